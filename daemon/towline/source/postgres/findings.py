"""What `towline check` finds at a source: what would keep replication from working, and what is a risk.

Each finding has the code of the error that would come otherwise, and a statement to run or a sentence to follow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from towline.change import Relation
from towline.errors import PluginRefused, SlotLost, SourceRefused, SourceSettings
from towline.postgres import statements
from towline.postgres.session import translating
from towline.source import Finding, SlotState
from towline.source.postgres import slot_checks
from towline.source.postgres.finding_parts import Server, fatal, text, warning
from towline.source.postgres.table_findings import of_partitions, of_privileges, of_publication, of_tables

_SQL = statements.load("towline.source.postgres", "setup.sql")
_SLOT = statements.load("towline.source.postgres", "tables.sql")["slot"]

_DECODING_ON_STANDBYS_SINCE = 160000
#: Slots of which standbys keep a copy.
FAILOVER_SINCE = 170000

#: The server's own value of output_plugin_libraries, where the role may not read it.
_ALLOWED_BY_DEFAULT = "pgoutput, test_decoding"

#: Milliseconds that a probe of the plugin waits for running transactions: it has loaded the plugin before that.
_PROBE_TIMEOUT = "1000"


def check(
    connection: psycopg.Connection,
    relations: Sequence[Relation],
    *,
    plugin: str,
    slot: str,
    publication: str | None = None,
    failover: bool = False,
) -> list[Finding]:
    """Everything there is to say, fatal findings first.

    The connection is in autocommit mode (the plugin is tried with a temporary slot). Without a name of the
    publication, the right to make it is not looked at. Raises SourceUnavailable.
    """
    with translating("source"):
        row = connection.execute(_SQL["server"]).fetchone()
        assert row is not None
        server = Server(*row)
        state = slot_state(connection, slot)
        found = [
            *_server_findings(connection, server, new_slot=not state.exists),
            *(_slot_findings(connection, slot, plugin, state) if state.exists else ()),
            *(_failover_findings(connection, server, slot, state) if failover else ()),
            *_plugin_findings(connection, server, plugin),
            *of_privileges(connection, server, relations),
            *of_tables(connection, relations, plugin),
            *of_partitions(connection, relations),
        ]
        if plugin == "pgoutput" and publication is not None:
            found += of_publication(connection, server, relations, publication)
    return sorted(found, key=lambda finding: not finding.fatal)


def slot_state(connection: psycopg.Connection, slot: str) -> SlotState:
    """The slot as it is now."""
    row = connection.execute(_SLOT, {"slot": slot}).fetchone()
    return SlotState(False) if row is None else SlotState(True, *row)


# ---- The server -----------------------------------------------------------------------------------------------


def _server_findings(connection: psycopg.Connection, server: Server, new_slot: bool) -> Iterator[Finding]:
    if server.in_recovery and connection.info.server_version < _DECODING_ON_STANDBYS_SINCE:
        yield fatal(
            SourceSettings,
            "the source is a standby, and its version has no logical decoding on standbys",
            "Use the primary, or PostgreSQL 16 or newer.",
        )
    elif server.in_recovery and not server.hot_standby_feedback:
        yield warning(
            SourceSettings,
            "the source is a standby without hot_standby_feedback: its primary may invalidate the slot",
            "ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();",
        )
    if server.wal_level != "logical":
        yield fatal(
            SourceSettings,
            f"wal_level is {server.wal_level}, so that the log does not have what logical decoding needs",
            "ALTER SYSTEM SET wal_level = logical; then restart the server.",
        )
    if new_slot and server.slots >= server.max_slots:
        yield fatal(
            SourceSettings,
            f"all {server.max_slots} replication slots are in use",
            "Drop a slot that nobody reads, or raise max_replication_slots and restart the server.",
        )
    if new_slot and server.senders >= server.max_senders:
        yield fatal(
            SourceSettings,
            f"all {server.max_senders} walsenders are in use",
            "Raise max_wal_senders and restart the server.",
        )
    if not server.may_replicate:
        yield fatal(
            SourceRefused,
            f"the role {server.role} may not replicate",
            text(connection, "ALTER ROLE {} REPLICATION;", sql.Identifier(server.role)),
        )
    if server.max_slot_wal_keep_size != "-1":
        yield warning(
            SourceSettings,
            f"max_slot_wal_keep_size is {server.max_slot_wal_keep_size}: when the pipeline is further behind, "
            "the server invalidates its slot, and everything must be copied again",
            "Raise it to what the server writes in the longest outage to expect, or set it to -1 and watch the disk.",
        )
    if server.idle_slot_timeout != "0":
        yield warning(
            SourceSettings,
            f"idle_replication_slot_timeout is {server.idle_slot_timeout}: after a longer outage of the pipeline the "
            "server invalidates its slot, and everything must be copied again",
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf();",
        )
    if server.encoding == "SQL_ASCII":
        yield warning(
            SourceSettings,
            "the source's encoding is SQL_ASCII: text that is not UTF-8 will be refused by the target",
            "Correct such text at the source before it is copied.",
        )


def _slot_findings(connection: psycopg.Connection, slot: str, plugin: str, state: SlotState) -> Iterator[Finding]:
    refused = slot_checks.problem(slot, state, plugin=plugin, database=connection.info.dbname)
    if refused is not None:
        yield Finding(refused.code, True, refused.detail, refused.advice)
    if state.wal_status == "unreserved":
        yield warning(
            SlotLost,
            f"replication slot {slot} is about to be invalidated: it holds more log than max_slot_wal_keep_size",
            "Start the pipeline now.",
        )


def _failover_findings(
    connection: psycopg.Connection, server: Server, slot: str, state: SlotState
) -> Iterator[Finding]:
    """What `failover: true` needs, as far as the primary can tell, and what the standby needs besides."""
    if connection.info.server_version < FAILOVER_SINCE:
        yield fatal(
            SourceSettings,
            "`failover: true` needs PostgreSQL 17 or newer: standbys of older ones keep no copy of a slot",
            "Take `failover` out of the pipeline file. After a promotion, run `towline resync`.",
        )
        return
    if server.in_recovery and not state.exists:
        yield fatal(
            SourceSettings,
            "the source is a standby, and a slot that is made there cannot be copied to another one",
            "Name the primary as the source, or take `failover` out of the pipeline file.",
        )
        return
    if state.exists and not state.failover:
        yield warning(
            SourceSettings,
            f"replication slot {slot} is not for failover: no standby keeps a copy of it",
            "Stop the daemon, run `towline apply`, and start it again.",
        )
    if not server.synchronized_standby_slots:
        yield warning(
            SourceSettings,
            f"synchronized_standby_slots is empty: the pipeline may read what no standby has yet from slot {slot}, and "
            "could not go on after a promotion (TL-326)",
            "Name there the physical slot of each standby that may be promoted. Such a standby needs "
            "sync_replication_slots = on, hot_standby_feedback = on, primary_slot_name, and dbname in "
            "primary_conninfo.",
        )


def _plugin_findings(connection: psycopg.Connection, server: Server, plugin: str) -> Iterator[Finding]:
    """Try the plugin with a temporary slot: only the server can say whether it has it and allows it."""
    standby_without_decoding = server.in_recovery and connection.info.server_version < _DECODING_ON_STANDBYS_SINCE
    ready = server.may_replicate and server.wal_level == "logical" and server.slots < server.max_slots
    if standby_without_decoding or not ready:
        return  # found already; the plugin comes up when that is cured
    name = f"towline_probe_{connection.info.backend_pid}"
    connection.execute("SELECT pg_catalog.set_config('statement_timeout', %s, false)", (_PROBE_TIMEOUT,))
    try:
        connection.execute("SELECT pg_catalog.pg_create_logical_replication_slot(%s, %s, true)", (name, plugin))
        connection.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (name,))
    except psycopg.errors.QueryCanceled:
        pass  # it waited for running transactions, with the plugin loaded
    except psycopg.errors.UndefinedFile:
        package = f"postgresql-{connection.info.server_version // 10000}-{plugin}"
        yield fatal(
            PluginRefused,
            f"the source does not have the output plugin {plugin}",
            f"Install it on the source's server (Debian's package: {package}), or use `plugin: pgoutput`.",
        )
    except psycopg.errors.InsufficientPrivilege as error:
        if "output_plugin_libraries" not in (error.diag.message_hint or ""):
            raise
        yield fatal(
            PluginRefused,
            f"the source does not allow the output plugin {plugin}: its setting output_plugin_libraries lacks it",
            _allow(connection, plugin),
        )
    finally:
        if not connection.closed:
            connection.execute("SELECT pg_catalog.set_config('statement_timeout', '0', false)")


def _allow(connection: psycopg.Connection, plugin: str) -> str:
    """The statement for a superuser. A bare list: quoted as one string it would name one library of that odd name."""
    try:
        row = connection.execute("SELECT pg_catalog.current_setting('output_plugin_libraries')").fetchone()
        # A quoted element is most likely a whole list that somebody wrote as one string.
        allowed = row[0] if row and '"' not in row[0] else _ALLOWED_BY_DEFAULT
    except psycopg.errors.InsufficientPrivilege:
        allowed = _ALLOWED_BY_DEFAULT
    values = ", ".join(filter(None, [allowed, plugin]))
    return f"ALTER SYSTEM SET output_plugin_libraries = {values}; SELECT pg_reload_conf();"
