"""Has a stopped pipeline anything left to apply? Asked of its slot, which is only looked at and stays where it is.

While no daemon runs, its checkpoint stays where it was, and the log's end moves on with records that concern nobody: a
checkpoint of the server, the vacuuming of a table, another database's rows. The slot can tell whether there is
more: ``pg_logical_slot_peek_*`` decodes what lies ahead without consuming it.

Source: https://www.postgresql.org/docs/current/functions-admin.html, "Replication Management Functions".
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg

from towline.change import Format, Relation
from towline.position import format_lsn
from towline.postgres.session import connect, translating
from towline.source.postgres import pgoutput, wal2json

#: A slot that is free for a moment only is a daemon that is starting again, and is left to it (seconds).
_FREE = 1.0
#: How long to wait between two looks, each of which decodes what is pending (seconds).
_AGAIN = 2.0
#: So many changes are looked at, from where the slot is confirmed (a transaction is always decoded to its end). Where
#: there are more, something is taken to be pending: the slot may be far behind what was applied.
_ENOUGH = 10_000

#: A daemon that reads its backlog through a copy (see backlog.sql) goes on with the slot itself.
_STATE = """
SELECT active_pid IS NOT NULL OR EXISTS (
  SELECT FROM pg_replication_slots c WHERE c.temporary AND starts_with(
    c.slot_name::text, left(s.slot_name::text, 30) || '_catchup_' || left(md5(s.slot_name::text), 8)))
FROM pg_replication_slots s WHERE slot_name = %s AND slot_type = 'logical'
"""

#: Transactions with a row or a TRUNCATE; the greatest position of each is that of its COMMIT's end.
_PGOUTPUT = """
WITH change AS MATERIALIZED (
  SELECT lsn, xid, get_byte(data, 0) IN (68, 73, 84, 85) AS counts
  FROM pg_logical_slot_peek_binary_changes(%(slot)s, %(upto)s::pg_lsn, %(enough)s, VARIADIC %(options)s::text[]))
SELECT (SELECT count(*) FROM change) >= %(enough)s
  OR EXISTS (SELECT FROM change GROUP BY xid HAVING max(lsn) > %(applied)s::pg_lsn AND bool_or(counts))
"""

_WAL2JSON = """
WITH change AS MATERIALIZED (
  SELECT lsn, xid,
    left(data, 12) IN ('{"action":"D', '{"action":"I', '{"action":"T', '{"action":"U') AS counts
  FROM pg_logical_slot_peek_changes(%(slot)s, %(upto)s::pg_lsn, %(enough)s, VARIADIC %(options)s::text[]))
SELECT (SELECT count(*) FROM change) >= %(enough)s
  OR EXISTS (SELECT FROM change GROUP BY xid HAVING max(lsn) > %(applied)s::pg_lsn AND bool_or(counts))
"""


class PendingChanges:
    """Looks at one slot, with a session of its own."""

    def __init__(
        self, dsn: str, *, slot: str, plugin: str, publication: str, relations: Sequence[Relation], pipeline: str
    ) -> None:
        if plugin == "wal2json":
            partitioned = any(relation.table.partitions for relation in relations)
            self._statement, options = _WAL2JSON, wal2json.options(relations, partitioned=partitioned)
        else:
            self._statement, options = _PGOUTPUT, pgoutput.options(publication, Format.TEXT)
        flat = [part for option in options.items() for part in option]
        self._parameters: dict[str, object] = {"slot": slot, "enough": _ENOUGH, "options": flat}
        self._connection: psycopg.Connection[Any] = connect(
            dsn, application_name=f"towline {pipeline} verify", side="source"
        )
        self._slot = slot
        self._free_since: float | None = None
        self._looked = 0.0

    def __call__(self, applied: int, upto: int) -> bool:
        """Whether routed tables changed in transactions that end after ``applied`` and before ``upto``.

        True as well when that cannot be told: the slot is in use, gone, far behind, or was looked at a moment ago.
        Raises SourceUnavailable.
        """
        now = time.monotonic()
        with translating("source"):
            row = self._connection.execute(_STATE, (self._slot,)).fetchone()
            if row is None or row[0]:
                self._free_since = None
                return True
            if self._free_since is None:
                self._free_since = now
            if now - self._free_since < _FREE or now - self._looked < _AGAIN:
                return True
            try:
                return self._peek(applied, upto)
            except (psycopg.errors.ObjectInUse, psycopg.errors.InsufficientPrivilege):
                return True
            finally:
                self._looked = time.monotonic()

    def _peek(self, applied: int, upto: int) -> bool:
        parameters = self._parameters | {"applied": format_lsn(applied), "upto": format_lsn(upto)}
        row = self._connection.execute(self._statement.encode(), parameters).fetchone()
        return row is None or bool(row[0])

    def close(self) -> None:
        """End the session."""
        self._connection.close()
