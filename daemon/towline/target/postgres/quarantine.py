"""The writer's side of the quarantine: rows that the target refuses are written to a table, in the transaction of the
rows around them; and the keys of which the target's row is *behind* them are known.

A key is behind when a change of it was set aside and no later one has succeeded: the target's row of that key, if there
is one, is older than the source's was at that change. Of such a row nothing may be taken: neither columns that a
change left out, nor that the change has been applied. A later change of the key that succeeds overtakes what was
set aside; one that fails is set aside behind it.

Of a row that changes again and again `_PER_KEY` changes are kept open: the first ones and the last one. What lies
between says nothing that the last one does not, since that takes from the source what it lacks.

The keys are read when the first transaction begins, and kept with the transactions. The command line may resolve
entries meanwhile: then a key that is known here is not behind any more, and all that costs is a row read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import psycopg

from towline.breaker import WINDOW, Breaker
from towline.change import DELETE, INSERT, UPDATE, Relation, RowSet
from towline.errors import KeyUnreadable, QuarantineFlooded, QuarantineFull, RowRefused
from towline.position import format_lsn
from towline.target import Counts
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.gaps import names
from towline.target.postgres.savepoints import Savepoints
from towline.target.postgres.source_text import SourceText, Text, Unreadable, as_json, framed_keys
from towline_transforms.identifier import quote
from towline_transforms.route import MASK, OnError, Route

#: Open entries of one row, at most.
_PER_KEY = 100


#: How much is kept of what a server says (characters): it may quote a value of any size.
_MESSAGE = 2000


def message(route: Route, refused: RowRefused) -> str:
    """What an entry says it was refused with. The server's own words may quote values, so that they are left out where
    some of the route's are sensitive.
    """
    if not refused.said or route.sensitive:
        return refused.detail
    said = refused.said.replace("\ufffd", "?")  # not every database can hold that
    return f"{refused.detail}: {said if len(said) <= _MESSAGE else said[:_MESSAGE] + '...'}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a refused change comes from. ``position``: the start of its commit record, or up to where its chunk is
    loaded; ``ordinal``: its number in that transaction. ``snapshot``: it is a row of a chunk.
    """

    position: int
    ordinal: int
    commit_time: datetime
    xid: int | None
    snapshot: bool = False


class Quarantine:
    """What of a pipeline is set aside. ``opened``: rows by route that are open, as of the last count.

    Between `begin` and `committed` or `rolled_back`, what is noted belongs to that transaction.
    """

    def __init__(
        self,
        executor: Executor,
        savepoints: Savepoints,
        *,
        schema: str,
        pipeline: str,
        routes: Sequence[Route],
        relations: Sequence[Relation],
        breaker: Breaker,
    ) -> None:
        self._executor = executor
        self._text = SourceText(executor, savepoints)
        self._pipeline = pipeline
        self._routes = tuple(routes)
        self._relations = {relation.name: relation for relation in relations}
        self._breaker = breaker
        self._keys: dict[str, dict[bytes, str]] = {}
        self._undo: list[tuple[str, bytes, str | None]] = []
        self._added: dict[str, int] = {}
        self._changed = False
        self._loaded = False
        self.opened: dict[str, int] = {}
        self._statements = _Statements(schema)

    # ---- transactions ----------------------------------------------------------------------------------------

    def load(self, connection: psycopg.Connection[Any], epoch: int) -> None:
        """Read which keys are behind, once, and what the breaker does not remember of the time before that epoch.

        The connection has nothing under way.
        """
        if self._loaded:
            return
        found: dict[str, list[str]] = {}
        for route, key in connection.execute(self._statements.behind.encode(), (self._pipeline,)):
            found.setdefault(route, []).append(key)
        for each in self._routes:
            relation = self._relations.get(each.source.name)
            if each.name in found and relation is not None:
                self._keys[each.name] = framed_keys(connection, relation, found[each.name])
        self.opened = dict(connection.execute(self._statements.opened.replace("$1", "%s").encode(), (self._pipeline,)))
        if not self._breaker.remembers(epoch):
            watched = [route.name for route in self._routes if route.on_error is OnError.QUARANTINE]
            for name, seen, rows in connection.execute(
                self._statements.recent.encode(), {"pipeline": self._pipeline, "routes": watched, "window": WINDOW}
            ):
                self._breaker.recall(name, seen=seen, rows=rows)
        self._loaded = True

    def begin(self) -> None:
        """A transaction begins."""
        self._breaker.begin()
        self._undo.clear()
        self._added.clear()
        self._changed = False

    def rolled_back(self) -> None:
        """The transaction was rolled back: what it changed is as before."""
        for route, key, text in reversed(self._undo):
            if text is None:
                self._keys[route].pop(key, None)
            else:
                self._keys.setdefault(route, {})[key] = text
        self.begin()

    def committed(self, counts: Mapping[str, Counts], opened: Outcome | None) -> None:
        """The transaction was committed. ``opened``: what `count` queued."""
        self._breaker.committed(counts)
        if opened is not None:
            zeros = dict.fromkeys(self.opened, 0)
            self.opened = zeros | {str(route): int(count or 0) for route, count in opened.rows}
        self.begin()

    @property
    def changed(self) -> bool:
        """Whether the transaction under way has written to the quarantine."""
        return self._changed

    @property
    def watching(self) -> bool:
        """Whether any key is behind."""
        return any(self._keys.values())

    def count(self) -> Outcome:
        """Queue the statement that counts the open rows by route."""
        return self._executor.run(self._statements.opened, (self._pipeline,))

    # ---- keys ------------------------------------------------------------------------------------------------

    def behind(self, route: Route) -> Mapping[bytes, str]:
        """The framed keys of which the target's row is behind."""
        return self._keys.get(route.name) or {}

    def overtake(self, route: Route, keys: Iterable[bytes]) -> None:
        """Later changes of these keys, among those that are behind, have succeeded."""
        known = self._keys[route.name]
        texts = []
        for key in keys:
            texts.append(known[key])
            self._undo.append((route.name, key, known.pop(key)))
        self._changed = True
        self._executor.run(self._statements.overtake, (self._pipeline, route.name, texts))

    def set_aside(
        self, route: Route, rowset: RowSet, place: int, origin: Origin, refused: RowRefused, counts: Counts
    ) -> None:
        """Write the change at a place of a row set to the quarantine.

        ``counts``: the route's rows in this transaction before it, those that are sure to come among the seen. Raises
        KeyUnreadable, and what the breaker raises, which names what this row violates.
        """
        relation = rowset.relation
        framed = rowset.rows.take(np.array([place])).keys(relation.key)[0]
        known = self._keys.setdefault(route.name, {})
        if framed not in known:
            self._look(route, framed, refused, counts)
        texts = dict(
            zip(
                (column.name for column in relation.columns),
                self._text.of(relation, rowset.rows.row(place)),
                strict=True,
            )
        )
        key = _key(route, relation, texts, refused)
        gaps = names(rowset, rowset.missing.get(place, 0) | rowset.unknown.get(place, 0))
        kept = _Kept.of(route, {} if rowset.ops[place] == DELETE else texts, gaps)
        if framed in known:
            self._executor.run(self._statements.relieve, (self._pipeline, route.name, key, _PER_KEY - 1))
        self._executor.run(
            self._statements.insert,
            (
                *(self._pipeline, route.name, key, format_lsn(origin.position), origin.ordinal),
                *(origin.commit_time, origin.xid, "snapshot" if origin.snapshot else _OPERATIONS[rowset.ops[place]]),
                *(kept.row, kept.not_sent, kept.masked, kept.unreadable, refused.sqlstate, message(route, refused)),
            ),
        )
        self._undo.append((route.name, framed, known.get(framed)))
        known[framed] = key
        self._changed = True

    def _look(self, route: Route, key: bytes, refused: RowRefused, counts: Counts) -> None:
        """Have the breaker look at a row of which nothing was set aside before."""
        added = self._added.get(route.name, 0) + 1
        opened = self.opened.get(route.name, 0) + added
        try:
            self._breaker.refused(route.name, key, seen=counts.seen, opened=opened)
        except (QuarantineFlooded, QuarantineFull) as error:
            error.detail = f"{error.detail}; the last one: {refused.detail}"
            raise
        self._added[route.name] = added


_OPERATIONS = {INSERT: "insert", UPDATE: "update", DELETE: "delete"}


def _key(route: Route, relation: Relation, texts: Mapping[str, Text], refused: RowRefused) -> str:
    """The key of a row, as the quarantine's table has it."""
    key = {}
    for column in relation.key_columns:
        text = texts[column.name]
        if isinstance(text, Unreadable):
            raise KeyUnreadable(
                f"route {route.name}: a row is refused, and its key column {column.name} cannot be read: "
                f"{refused.detail}",
                sqlstate=refused.sqlstate,
            ) from refused
        key[column.name] = text
    return as_json(key)


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a row: its columns as JSON (None: of a delete, nothing), and those that have no value there."""

    row: str | None
    not_sent: list[str]
    masked: list[str]
    unreadable: list[str]

    @classmethod
    def of(cls, route: Route, texts: Mapping[str, Text], gaps: frozenset[str]) -> _Kept:
        """The columns that the route has to do with."""
        used = {*route.columns, *route.source.identity}
        mine = {name: text for name, text in texts.items() if name in used}
        sent = {name: text for name, text in mine.items() if name not in gaps}
        shown: dict[str, str | None] = {}
        masked, unreadable = [], []
        for name, text in sent.items():
            if name in route.sensitive:
                masked.append(name)
                shown[name] = MASK
            elif isinstance(text, Unreadable):
                unreadable.append(name)
            else:
                shown[name] = text
        not_sent = [name for name in mine if name in gaps]
        return cls(as_json(shown) if texts else None, not_sent, masked, unreadable)


class _Statements:
    """Statements (``$1`` parameters) on the quarantine of one schema; the pipeline is ``$1`` in each."""

    def __init__(self, schema: str) -> None:
        table = f"{quote(schema)}.quarantine"
        self.behind = f"SELECT DISTINCT route, key FROM {table} WHERE pipeline = %s AND behind"
        self.opened = (
            f"SELECT route, pg_catalog.count(DISTINCT key) FROM {table} WHERE pipeline = $1 AND state = 'open' "
            "GROUP BY route"
        )
        # Of the last hours of each route that have that many changes: how many, and how many rows of them are open.
        self.recent = (
            "SELECT r.route, w.seen::bigint, (SELECT pg_catalog.count(DISTINCT q.key) "
            f"FROM {table} AS q WHERE q.pipeline = %(pipeline)s AND q.route = r.route AND q.state = 'open' "
            "AND q.created_at >= w.since) FROM pg_catalog.unnest(%(routes)s::text[]) AS r (route), LATERAL ("
            "SELECT pg_catalog.min(u.hour) AS since, pg_catalog.sum(u.seen) AS seen FROM ("
            "SELECT h.hour, h.seen, pg_catalog.sum(h.seen) OVER (ORDER BY h.hour DESC) AS upto FROM ("
            f"SELECT l.hour, l.seen FROM {quote(schema)}.ledger AS l "
            "WHERE l.pipeline = %(pipeline)s AND l.route = r.route ORDER BY l.hour DESC LIMIT 168) AS h) AS u "
            "WHERE u.upto - u.seen < %(window)s) AS w WHERE w.seen > 0"
        )
        self.relieve = (
            f"UPDATE {table} AS q SET behind = false, state = 'superseded', resolved_at = pg_catalog.now(), "
            "reason = 'the row has changed too often for all its changes to be kept open' WHERE q.id = ("
            f"SELECT o.id FROM {table} AS o WHERE o.pipeline = $1 AND o.route = $2 AND o.behind AND o.key = $3 "
            "AND pg_catalog.hashtextextended(o.key, 0) = pg_catalog.hashtextextended($3, 0) AND o.state = 'open' "
            "ORDER BY o.id OFFSET $4::int LIMIT 1)"
        )
        self.insert = (
            f"INSERT INTO {table} (pipeline, route, key, position, ordinal, commit_time, xid, operation, "
            '"row", not_sent, masked, unreadable, sqlstate, message) '
            "VALUES ($1, $2, $3, $4::pg_lsn, $5::bigint, $6::timestamptz, $7::bigint, $8, "
            "$9::json, $10::text[], $11::text[], $12::text[], $13, $14)"
        )
        self.overtake = (
            f"UPDATE {table} AS q SET behind = false, "
            "state = CASE q.state WHEN 'open' THEN 'superseded' ELSE q.state END, "
            "resolved_at = CASE q.state WHEN 'open' THEN pg_catalog.now() ELSE q.resolved_at END, "
            "reason = CASE q.state WHEN 'open' THEN 'a later change of the row succeeded' ELSE q.reason END "
            "FROM pg_catalog.unnest($3::text[]) AS k (key) "
            "WHERE q.pipeline = $1 AND q.route = $2 AND q.behind AND q.key = k.key "
            "AND pg_catalog.hashtextextended(q.key, 0) = pg_catalog.hashtextextended(k.key, 0)"
        )
