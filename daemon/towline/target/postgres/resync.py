"""What `towline resync` changes in the control tables: each in one transaction, so that it can be killed anywhere.

    begin     the position becomes 0/0, from which nothing can go on; routes are to be copied, and swept
    (the slot is dropped and made anew at the source)
    finish    position and identity are those of the new slot
    (the daemon copies and sweeps)
    swept     a route's copy is complete, and what was not in it is gone

Every one of them but the last raises the epoch: a daemon that runs cannot commit any more, and begins anew.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from typing import Any, LiteralString

import psycopg
from psycopg import ClientCursor, sql

from towline.errors import Fenced, NotSetUp
from towline.position import format_lsn
from towline.postgres.session import translating
from towline.source import Identity
from towline.target.postgres.ledger import lock_key

_BEGIN = """
UPDATE {schema}.checkpoint
SET position = '0/0', slot = %(slot)s, plugin = %(plugin)s, commit_time = NULL, epoch = epoch + 1, updated_at = now()
WHERE pipeline = %(pipeline)s
"""

_MARK = """
UPDATE {schema}.checkpoint SET epoch = epoch + 1, updated_at = now() WHERE pipeline = %(pipeline)s
"""

_COPY = """
INSERT INTO {schema}.route_state (pipeline, route, state, sweep)
SELECT %(pipeline)s, route, 'pending', true FROM unnest(%(routes)s::text[]) AS route
ON CONFLICT (pipeline, route) DO UPDATE
SET state = 'pending', cursor = NULL, copied = 0, estimate = 0, sweep = true, updated_at = now()
"""

#: Rows that were set aside are read again with the others.
_SET_ASIDE_BEFORE = """
UPDATE {schema}.quarantine
SET state = CASE state WHEN 'open' THEN 'superseded' ELSE state END, behind = false,
    resolved_at = CASE state WHEN 'open' THEN now() ELSE resolved_at END,
    reason = CASE state WHEN 'open' THEN 'the route is copied again' ELSE reason END
WHERE pipeline = %(pipeline)s AND route = ANY (%(routes)s::text[]) AND behind
"""

_MARKING: tuple[LiteralString, ...] = (_MARK, _COPY, _SET_ASIDE_BEFORE)

#: The tables are taken in as they are now: what is known of them is of another stream, if not of another server.
_FORGET_TABLES = """
DELETE FROM {schema}.source_table WHERE pipeline = %(pipeline)s
"""

#: What has changed of the source's tables is no reason to halt: all rows are read again.
_ACCEPT_TABLES = """
UPDATE {schema}.source_table SET accepted = true WHERE pipeline = %(pipeline)s AND route = ANY (%(routes)s::text[])
"""

_SWEEP = """
UPDATE {schema}.route_state SET sweep = true, updated_at = now()
WHERE pipeline = {pipeline} AND route = ANY ({routes}::text[])
"""

_FINISH = """
UPDATE {schema}.checkpoint
SET position = %(position)s, system_identifier = %(system)s, timeline = %(timeline)s, source_database = %(database)s,
    publication = %(publication)s, ahead = '0/0', commit_time = NULL, epoch = epoch + 1, updated_at = now()
WHERE pipeline = %(pipeline)s
"""

#: The daemon that holds the pipeline's lock, by its key's halves (see pg_locks).
_END_DAEMON = """
SELECT pg_catalog.pg_terminate_backend(l.pid) FROM pg_catalog.pg_locks l
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1 AND l.pid <> pg_catalog.pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
  AND l.classid = %(high)s::bigint::oid AND l.objid = %(low)s::bigint::oid
"""

_SWEPT = """
UPDATE {schema}.route_state s SET sweep = false, updated_at = now()
WHERE s.pipeline = %(pipeline)s AND s.route = %(route)s AND s.state = 'streaming'
  AND EXISTS (SELECT FROM {schema}.checkpoint c WHERE c.pipeline = s.pipeline AND c.epoch = %(epoch)s)
"""


def sweep(schema: str, pipeline: str, routes: Collection[str]) -> str:
    """The statement that has the rows of routes removed that the source no longer has, once they are copied."""
    literals = {"pipeline": sql.Literal(pipeline), "routes": sql.Literal(sorted(routes))}
    return sql.SQL(_SWEEP).format(schema=sql.Identifier(schema), **literals).as_string().strip()


class ResyncState:
    """The changes, over one session with the target, in autocommit mode. Raises what the target does."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str, pipeline: str) -> None:
        self._connection = connection
        self._schema = schema
        self._pipeline = pipeline

    def lock(self) -> bool:
        """Take the pipeline's lock for this session. False: a daemon has it."""
        key = lock_key(self._schema, self._pipeline)
        with translating("target"):
            row = self._connection.execute("SELECT pg_catalog.pg_try_advisory_lock(%s)", (key,)).fetchone()
        return row is not None and bool(row[0])

    def begin(self, routes: Collection[str], *, slot: str, plugin: str) -> None:
        """Give the position up, and have these routes copied. Raises NotSetUp when there is no checkpoint.

        From here on the slot is the pipeline's, and may be dropped.
        """
        with translating("target"), self._connection.transaction():
            self._one(_BEGIN, slot=slot, plugin=plugin)
            self._run(_COPY, routes=list(routes))
            self._run(_SET_ASIDE_BEFORE, routes=list(routes))
            self._run(_FORGET_TABLES)

    def mark(self, routes: Collection[str]) -> None:
        """Have these routes copied from where the stream is. Raises NotSetUp when there is no checkpoint."""
        with translating("target"), self._connection.transaction():
            self._one(_MARK)
            self._run(_COPY, routes=list(routes))
            self._run(_SET_ASIDE_BEFORE, routes=list(routes))
            self._run(_ACCEPT_TABLES, routes=list(routes))

    def marking(self, routes: Collection[str]) -> str:
        """What `mark` does, as one text of SQL."""
        with closing(ClientCursor(self._connection)) as cursor:
            texts = (
                cursor.mogrify(
                    sql.SQL(statement).format(schema=sql.Identifier(self._schema)),
                    {"pipeline": self._pipeline, "routes": list(routes)},
                )
                for statement in _MARKING
            )
            return ";\n".join(text.strip() for text in texts)

    def finish(self, *, position: int, identity: Identity, publication: int | None) -> None:
        """Set the position from which the new slot sends."""
        with translating("target"), self._connection.transaction():
            self._one(
                _FINISH,
                position=format_lsn(position),
                system=identity.system_identifier,
                timeline=identity.timeline,
                database=identity.database,
                publication=publication,
            )

    def wake_daemon(self) -> bool:
        """End the session of the daemon that runs the pipeline, so that it begins anew at once. False: none, or not
        allowed; one that runs then notices when it next commits.
        """
        key = lock_key(self._schema, self._pipeline) % (1 << 64)
        halves = {"high": key >> 32, "low": key & 0xFFFFFFFF}
        with translating("target"):
            try:
                return bool(self._connection.execute(_END_DAEMON, halves).fetchall())
            except psycopg.errors.InsufficientPrivilege:
                return False

    def swept(self, route: str, epoch: int) -> None:
        """Note that a route holds what the source has, and no more. Raises Fenced when another daemon took over."""
        with translating("target"):
            if self._run(_SWEPT, route=route, epoch=epoch) != 1:
                raise Fenced(f"epoch {epoch} of pipeline {self._pipeline} has been superseded")

    def _one(self, statement: LiteralString, **parameters: object) -> None:
        if self._run(statement, **parameters) != 1:
            raise NotSetUp(f"the target has no checkpoint of pipeline {self._pipeline}")

    def _run(self, statement: LiteralString, **parameters: object) -> int:
        query = sql.SQL(statement).format(schema=sql.Identifier(self._schema))
        return self._connection.execute(query, {"pipeline": self._pipeline, **parameters}).rowcount
