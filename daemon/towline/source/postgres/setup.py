"""Set-up of a source: what `towline plan` shows and `towline apply` does there. Every step may be repeated.

The publication comes before the slot: pgoutput looks for it in the catalogs as they were at the position it decodes,
so that a slot older than its publication could never be read.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from towline.change import Relation
from towline.errors import SlotInUse, SlotUnusable, SourceUnavailable
from towline.position import parse_lsn
from towline.postgres import statements
from towline.postgres.session import translating
from towline.source import Step
from towline.source.postgres import publication as publications
from towline.source.postgres.findings import check

__all__ = ["check", "drop", "execute", "plan"]

_SQL = statements.load("towline.source.postgres", "setup.sql")

#: How long `execute` waits for transactions that are under way when the slot is created (seconds).
PATIENCE = 120.0


def plan(
    connection: psycopg.Connection, relations: Sequence[Relation], *, slot: str, publication: str, plugin: str
) -> list[Step]:
    """The steps that are still to be done, in order. Raises SlotUnusable when there is a slot that cannot be used."""
    with translating("source"):
        steps = []
        if plugin == "pgoutput":
            leaves = publications.leaves_of(connection, relations)
            columns = publications.wanted(relations, leaves, connection.info.server_version)
            found = publications.read(connection, publication)
            steps = [
                Step("source", title, statement.as_string(connection))
                for title, statement in publications.changes(publication, found, columns)
            ]
        if not _slot_exists(connection, slot, plugin):
            statement = sql.SQL("SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot({}, {})").format(
                sql.Literal(slot), sql.Literal(plugin)
            )
            steps.append(Step("source", f"replication slot {slot}", statement.as_string(connection)))
        return steps


def _slot_exists(connection: psycopg.Connection, slot: str, plugin: str) -> bool:
    row = connection.execute(_SQL["slot"], {"slot": slot}).fetchone()
    if row is None:
        return False
    kind, slot_plugin, database, is_this, wal_status = row
    if kind != "logical":
        raise SlotUnusable(f"replication slot {slot} is a physical one")
    if not is_this:
        raise SlotUnusable(f"replication slot {slot} is of another database, {database}")
    if slot_plugin != plugin:
        raise SlotUnusable(f"replication slot {slot} is of plugin {slot_plugin}, the pipeline says {plugin}")
    if wal_status == "lost":
        raise SlotUnusable(f"replication slot {slot} was invalidated: the source has removed log that it needs")
    return True


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


def _waited(connection: psycopg.Connection, step: Step, patience: float) -> SourceUnavailable:
    writers = connection.execute(_SQL["writers"]).fetchone()
    prepared = connection.execute(_SQL["prepared"]).fetchone()
    what = (writers[0] if writers else "") or "none that this role can see"
    more = f", and {prepared[0]} prepared transactions" if prepared and prepared[0] else ""
    return SourceUnavailable(
        f"not done within {patience:g} s: {step.title}. Transactions under way: {what}{more}",
        hint="Let them end, or end them, then run `towline apply` again.",
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
