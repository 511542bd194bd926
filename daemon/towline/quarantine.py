"""What people do about rows that were set aside: `towline quarantine`. How they get there: `towline.target.postgres`.

**Retry.** Entries are tried in the order in which they came, each with every constraint checked at once, in one
transaction that holds the pipeline's checkpoint: the daemon takes its turn before or after it. What fails is tried
again until nothing more succeeds, since one may refer to another; then what still may succeed is tried together, since
rows may refer to each other in a circle: all of it, and then what came in one source transaction. An entry that
succeeds supersedes those of its key that came before it; a later one that is still open stays, and is newer. So nothing
older ever takes the place of something newer.

What an entry does not hold (columns that were not sent, or are sensitive, or that this server could not read) is read
again from the source, by key. A row that is no longer there cannot be completed: it stays until its delete comes, or is
discarded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from towline.change import DELETE, INSERT, UPDATE, Chunk, Format, Piece, Relation, RowSet, Transaction
from towline.config import PipelineConfig
from towline.errors import RowRefused
from towline.frame import Frame
from towline.postgres import session
from towline.route_verifier import settle
from towline.source.postgres.tables import PostgresTables
from towline.table_name import ALL_TABLES
from towline.target.postgres import control
from towline.target.postgres.apply import Applier
from towline.target.postgres.entries import Entries, Entry
from towline.target.postgres.quarantine import message
from towline.target.postgres.refusals import MAY_PASS
from towline.target.postgres.stamps import SNAPSHOT
from towline_transforms.route import Route

if TYPE_CHECKING:
    from towline.plan import Prepared

_GONE = "the row is no longer at the source, which has what the entry lacks"
_UNROUTED = "the pipeline has no such route any more"
_REKEYED = "the source's table has another key now: run `towline apply`, which has the route copied again"
#: In place of an SQLSTATE: no server has refused it.
_NEVER = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one entry. ``state``: retried, superseded, or open with the reason in ``message``."""

    entry: Entry
    state: str
    message: str = ""
    reread: bool = False

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"id": self.entry.id, "state": self.state, "message": self.message, "reread": self.reread}


@dataclass(frozen=True, slots=True)
class RetryReport:
    """All outcomes, in the order of the entries."""

    outcomes: tuple[Outcome, ...]

    @property
    def exit_code(self) -> int:
        """3: some are still open, and wait for a person. 0: none is."""
        return 3 if any(outcome.state == "open" for outcome in self.outcomes) else 0

    def lines(self) -> Iterator[str]:
        """For people."""
        for outcome in self.outcomes:
            said = ", with values read from the source again" if outcome.reread and outcome.state == "retried" else ""
            yield f"{outcome.entry.id}  {outcome.entry.route}  {outcome.state}{said}" + (
                f": {outcome.message}" if outcome.message else ""
            )
        states = [outcome.state for outcome in self.outcomes]
        names = {"retried": "retried", "superseded": "superseded", "open": "still refused"}
        parts = [f"{states.count(state)} {name}" for state, name in names.items() if state in states]
        yield ", ".join(parts) or "nothing to retry"


@contextmanager
def entries(config: PipelineConfig) -> Iterator[Entries]:
    """The quarantine of a pipeline. Raises NotSetUp, ControlTablesOld, and what the target raises."""
    with closing(_connect(config)) as connection, session.translating("target"):
        control.present(connection, config.target.schema_name)
        yield Entries(connection, schema=config.target.schema_name, pipeline=config.pipeline)


def sensitive(config: PipelineConfig, route: str) -> frozenset[str]:
    """The columns of a route that the pipeline file says are sensitive now."""
    found: set[str] = set()
    for spec in config.specs():
        pattern = spec.source.name == ALL_TABLES and route.startswith(f"{spec.source.schema}.")
        if spec.name == route or pattern:
            found.update(spec.sensitive)
    return frozenset(found)


def retry(prepared: Prepared, *, ids: Collection[int] | None = None, route: str | None = None) -> RetryReport:
    """Try entries again: those of these numbers, or of a route, or all. Raises EntryUnknown, EntryClosed, and what the
    two ends raise, and then nothing was changed.
    """
    config = prepared.config
    with ExitStack() as stack:
        connection = stack.enter_context(closing(_connect(config)))
        tables = PostgresTables(config.source.dsn.get_secret_value(), slot=config.source.slot)
        stack.callback(tables.close)
        with session.translating("target"), connection.transaction():
            control.present(connection, config.target.schema_name)
            found = Entries(connection, schema=config.target.schema_name, pipeline=config.pipeline)
            found.hold()
            chosen = found.find(route=route) if ids is None else found.opened(ids)
            connection.execute("SET CONSTRAINTS ALL DEFERRED")
            return RetryReport(tuple(_Retry(prepared, connection, tables, found).run(chosen)))


def _connect(config: PipelineConfig) -> psycopg.Connection[Any]:
    return session.connect(
        config.target.dsn.get_secret_value(),
        application_name=f"towline {config.pipeline} quarantine",
        side="target",
        search_path=None,
    )


class _Retry:
    """Tries entries inside a transaction that holds the checkpoint."""

    def __init__(
        self,
        prepared: Prepared,
        connection: psycopg.Connection[Any],
        tables: PostgresTables,
        found: Entries,
    ) -> None:
        self._routes = {route.name: route for route in prepared.routes}
        # The entries hold text, however the stream travels.
        self._relations = {
            each.name: Relation(each.table, each.columns, Format.TEXT, each.whole) for each in prepared.relations
        }
        self._tables = tables
        self._entries = found
        self._by = found.who()
        self._applier = Applier(
            connection,
            pipeline=prepared.config.pipeline,
            routes=prepared.routes,
            relations=tuple(self._relations.values()),
            direct=False,
        )
        self._applier.begin()
        self._settled = False
        self._waiting: dict[int, Entry] = {}
        self._refused: dict[int, RowRefused] = {}
        self._outcomes: dict[int, Outcome] = {}

    def run(self, chosen: Sequence[Entry]) -> list[Outcome]:
        """Try them, until nothing more succeeds."""
        self._waiting = {entry.id: entry for entry in chosen}
        while self._waiting and (self._one_by_one() or self._together()):
            pass
        for entry in self._waiting.values():
            refused = self._refused[entry.id]
            route = self._routes.get(entry.route)
            text = refused.detail if route is None else message(route, refused)
            self._entries.failed(entry, refused.sqlstate or entry.sqlstate, text)
            self._outcomes[entry.id] = Outcome(entry, "open", text)
        return [self._outcomes[entry.id] for entry in chosen]

    def _one_by_one(self) -> bool:
        """Try each that waits by itself. Returns whether one succeeded."""
        progress = False
        for entry in list(self._waiting.values()):
            if entry.id not in self._waiting:
                continue  # superseded
            try:
                change = self._change(entry)
            except RowRefused as refused:
                self._refused[entry.id] = refused
                continue
            if (failed := self._attempt([change])) is not None:
                self._refused[entry.id] = failed
                continue
            self._succeeded([change])
            progress = True
        return progress

    def _together(self) -> bool:
        """Try those together that may put each other right. Returns whether some succeeded."""
        changes = []
        for entry in self._waiting.values():
            if self._refused[entry.id].sqlstate.startswith(MAY_PASS):
                with suppress(RowRefused):
                    changes.append(self._change(entry))
        groups = [changes]
        for position in sorted({change.entry.position for change in changes}):
            groups.append([change for change in changes if change.entry.position == position])
        for group in groups[:1] if len(groups) == 2 else groups:
            if len(group) > 1 and self._attempt(group) is None:
                self._succeeded(group)
                return True
        return False

    def _succeeded(self, group: Sequence[_Change]) -> None:
        """A group of changes was applied, in order: of each key, the last one counts."""
        for change in reversed(group):
            entry = change.entry
            if entry.id not in self._waiting:
                continue
            self._entries.retried(entry, self._by)
            del self._waiting[entry.id]
            self._outcomes[entry.id] = Outcome(entry, "retried", reread=change.present is not None)
            for other in list(self._waiting.values()):
                if (other.route, other.key) == (entry.route, entry.key) and other.id < entry.id:
                    del self._waiting[other.id]
                    self._outcomes[other.id] = Outcome(other, "superseded", f"by entry {entry.id}")

    def _change(self, entry: Entry) -> _Change:
        """What an entry is about. Raises RowRefused when it cannot be completed."""
        route = self._routes.get(entry.route)
        if route is None:
            raise RowRefused(_UNROUTED, sqlstate=_NEVER)
        if tuple(entry.key) != tuple(route.source.identity):
            raise RowRefused(_REKEYED, sqlstate=_NEVER)
        relation = self._relations[route.source.name]
        rowset, gaps = _rowset(entry, route, relation)
        present = self._read(relation, rowset) if gaps else None
        if present is not None and not len(present.rows):
            raise RowRefused(_GONE, sqlstate=_NEVER)
        return _Change(entry, rowset, present)

    def _attempt(self, changes: Sequence[_Change]) -> RowRefused | None:
        """Apply changes as if they had come in one piece; what refuses them."""

        def reread(relation: Relation, keys: Frame) -> Chunk:
            chunks = [c.present for c in changes if c.present is not None and c.rowset.relation is relation]
            rows = Frame.concat([chunk.rows for chunk in chunks], len(relation.columns))
            places = {key: place for place, key in enumerate(rows.keys(relation.key))}
            wanted = [places[key] for key in keys.keys(range(keys.width))]
            return replace(chunks[0], rows=rows.take(np.array(wanted, dtype=np.int64)))

        routes = {change.entry.route for change in changes}
        pieces = {route: _piece([change for change in changes if change.entry.route == route]) for route in routes}
        return self._applier.attempt(pieces, reread)

    def _read(self, relation: Relation, rowset: RowSet) -> Chunk:
        """The present row of the source; not older than what the daemon has applied."""
        if not self._settled:
            settle(self._tables)
            self._settled = True
        return self._tables.fetch(relation, rowset.rows.project(relation.key))


@dataclass(frozen=True, slots=True)
class _Change:
    """An entry as the one change that it is. ``present``: the row at the source, where the entry lacks columns."""

    entry: Entry
    rowset: RowSet
    present: Chunk | None


def _piece(changes: Sequence[_Change]) -> Piece:
    """The changes of a route as one piece, each of a transaction of its own."""
    relation = changes[0].rowset.relation
    rowset = RowSet(
        relation,
        Frame.concat([change.rowset.rows for change in changes], len(relation.columns)),
        np.concatenate([change.rowset.ops for change in changes]),
        np.arange(len(changes), dtype=np.int64),
        {},
        {place: change.rowset.unknown[0] for place, change in enumerate(changes) if change.rowset.unknown},
    )
    transactions = tuple(
        Transaction(entry.xid or SNAPSHOT, entry.position, entry.commit_time or entry.created_at, place)
        for place, entry in enumerate(change.entry for change in changes)
    )
    return Piece((rowset,), transactions, transactions[-1].lsn)


def _rowset(entry: Entry, route: Route, relation: Relation) -> tuple[RowSet, frozenset[str]]:
    """The one change of an entry, in text; and the columns whose values it does not have."""
    deleted = entry.row is None
    texts: Mapping[str, str | None] = entry.key if entry.row is None else entry.row
    used = {*route.columns, *route.source.identity}
    lacking = set() if deleted else {name for name in used if name not in texts or name in entry.masked}
    values = [
        None if (text := texts.get(column.name)) is None or column.name in lacking else text.encode()
        for column in relation.columns
    ]
    op = DELETE if deleted else UPDATE if entry.operation == "update" else INSERT
    mask = relation.places(lacking)
    rowset = RowSet(
        relation,
        Frame.of_values([values], len(relation.columns)),
        np.array([op], dtype=np.uint8),
        np.array([0], dtype=np.int64),
        {},
        {0: mask} if mask else {},
    )
    return rowset, frozenset(lacking)
