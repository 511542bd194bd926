"""Set-up of a source: what `towline plan` shows and `towline apply` does there. Every step may be repeated.

The publication comes before the slot: pgoutput looks for it in the catalogs as they were at the position it decodes,
so that a slot older than its publication could never be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from towline.change import Relation
from towline.errors import SlotInUse, SourceUnavailable
from towline.position import parse_lsn
from towline.postgres import statements
from towline.postgres.session import connection_string, translating
from towline.source import Step
from towline.source.postgres import publication as publications
from towline.source.postgres import slot_checks
from towline.source.postgres.findings import FAILOVER_SINCE, check, slot_state

__all__ = ["check", "drop", "execute", "plan", "publish"]

_SQL = statements.load("towline.source.postgres", "setup.sql")

#: A command of the replication protocol: there is no function for it.
_ALTER_SLOT = "ALTER_REPLICATION_SLOT"

#: How long `execute` waits for transactions that are under way when the slot is created (seconds).
PATIENCE = 120.0


def plan(
    connection: psycopg.Connection,
    relations: Sequence[Relation],
    *,
    slot: str,
    publication: str,
    plugin: str,
    failover: bool = False,
) -> list[Step]:
    """The steps that are still to be done, in order.

    ``failover``: the slot is to be one that standbys have a copy of; the server is 17 or newer then. Raises
    SlotUnusable or SlotSynchronized when there is a slot that cannot be used.
    """
    with translating("source"):
        steps = []
        if plugin == "pgoutput":
            leaves = publications.leaves_of(connection, relations)
            columns = publications.wanted(relations, leaves, connection.info.server_version)
            found = publications.read(connection, publication)
            # Who does not own it need not make it smaller.
            enough = found is not None and not found.owned and publications.suffices(found, columns)
            steps = [
                Step("source", title, statement.as_string(connection))
                for title, statement in ([] if enough else publications.changes(publication, found, columns))
            ]
        state = slot_state(connection, slot)
        if not state.exists:
            # Named, so that what the arguments in between mean is not left to their places.
            more = sql.SQL(", failover => true") if failover else sql.SQL("")
            statement = sql.SQL("SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot({}, {}{})").format(
                sql.Literal(slot), sql.Literal(plugin), more
            )
            steps.append(Step("source", f"replication slot {slot}", statement.as_string(connection)))
            return steps
        refused = slot_checks.problem(slot, state, plugin=plugin, database=connection.info.dbname)
        if refused is not None:
            raise refused
        if state.failover != failover and connection.info.server_version >= FAILOVER_SINCE:
            title = (
                f"replication slot {slot}, for failover" if failover else f"replication slot {slot}, not for failover"
            )
            statement = sql.SQL("{} {} (FAILOVER {})").format(
                sql.SQL(_ALTER_SLOT), sql.Identifier(slot), sql.SQL("true" if failover else "false")
            )
            steps.append(Step("source", f"{title} (needs replication=database)", statement.as_string(connection)))
        return steps


def publishes(step: Step) -> bool:
    """Whether a step makes or changes the publication."""
    return step.side == "source" and step.sql.startswith(("CREATE PUBLICATION", "ALTER PUBLICATION"))


def publish(connection: psycopg.Connection, relations: Sequence[Relation], *, publication: str) -> list[Step]:
    """The step that adds tables to the publication; what else it has stays."""
    with translating("source"):
        leaves = publications.leaves_of(connection, relations)
        columns = publications.wanted(relations, leaves, connection.info.server_version)
        statement = publications.addition(publication, publications.read(connection, publication), columns)
    if statement is None:
        return []
    return [Step("source", f"publication {publication}, with more tables", statement.as_string(connection))]


def execute(connection: psycopg.Connection, steps: Sequence[Step], *, patience: float = PATIENCE) -> int | None:
    """Do the steps, on a connection in autocommit mode. Returns the position from which a slot made here will send.

    A slot waits for the transactions that are running to end: after ``patience`` seconds SourceUnavailable says
    which ones.
    """
    position = None
    with translating("source"):
        connection.execute("SELECT pg_catalog.set_config('statement_timeout', %s, false)", (str(int(patience * 1000)),))
        try:
            for step in steps:
                if step.sql.startswith(_ALTER_SLOT):
                    _command(connection, step.sql)
                    continue
                cursor = connection.execute(step.sql.encode())
                if cursor.description is not None:
                    row = cursor.fetchone()
                    position = parse_lsn(row[0]) if row is not None else None
        except psycopg.errors.QueryCanceled:
            raise _waited(connection, step, patience) from None
        finally:
            if not connection.closed:
                connection.execute("SELECT pg_catalog.set_config('statement_timeout', '0', false)")
    return position


def _command(connection: psycopg.Connection, command: str) -> None:
    """Run a command of the replication protocol, over a connection like this one. Raises SlotInUse."""
    parameters = connection.info.get_parameters() | {"password": connection.info.password, "replication": "database"}
    given = {name: value for name, value in parameters.items() if value}
    with psycopg.connect(connection_string("", "source", **given), autocommit=True) as walsender:
        walsender.execute(command.encode())


def _waited(connection: psycopg.Connection, step: Step, patience: float) -> SourceUnavailable:
    writers = connection.execute(_SQL["writers"]).fetchone()
    prepared = connection.execute(_SQL["prepared"]).fetchone()
    what = (writers[0] if writers else "") or "none that this role can see"
    more = f", and {prepared[0]} prepared transactions" if prepared and prepared[0] else ""
    hint = "Let them end, or end them, then run `towline apply` again."
    if connection.execute("SELECT pg_catalog.pg_is_in_recovery()").fetchone() == (True,):
        hint = (
            "A standby's slot waits for its primary to log which transactions run: there, end those that are old, and "
            "run SELECT pg_log_standby_snapshot(); while `towline apply` runs again."
        )
    return SourceUnavailable(
        f"not done within {patience:g} s: {step.title}. Transactions under way: {what}{more}", hint=hint
    )


def drop_slot(connection: psycopg.Connection, slot: str) -> None:
    """Drop the slot, if it is there. Raises SlotInUse while somebody reads it."""
    with translating("source"):
        connection.execute(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots"
            " WHERE slot_name = %s",
            (slot,),
        )


def drop(connection: psycopg.Connection, *, slot: str, publication: str) -> None:
    """Remove the slot and the publication, if they are there. Raises SlotInUse while a daemon reads the slot."""
    with translating("source"):
        row = connection.execute(
            "SELECT active_pid FROM pg_catalog.pg_replication_slots WHERE slot_name = %s", (slot,)
        ).fetchone()
        if row is not None and row[0] is not None:
            raise SlotInUse(f"replication slot {slot} is read by process {row[0]} of the source")
        if row is not None:
            connection.execute("SELECT pg_catalog.pg_drop_replication_slot(%s)", (slot,))
        connection.execute(sql.SQL("DROP PUBLICATION IF EXISTS {}").format(sql.Identifier(publication)))
