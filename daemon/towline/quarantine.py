"""What people do about rows that were set aside: `towline quarantine`. How they get there: `towline.target.postgres`.

**Retry.** Entries are tried in the order in which they came, each with every constraint checked at once, in one
transaction that holds the pipeline's checkpoint: the daemon takes its turn before or after it. What fails is tried
again until nothing more succeeds, since one may refer to another. An entry that succeeds supersedes those of its key
that came before it; a later one that is still open stays, and is newer. So nothing older ever takes the place of
something newer.

What an entry does not hold (columns that were not sent, or are sensitive, or that this server could not read) is read
again from the source, by key. A row that is no longer there cannot be completed: it stays until its delete comes, or is
discarded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psycopg

from towline.change import DELETE, INSERT, UPDATE, Chunk, Format, Piece, Relation, RowSet, Transaction, Visibility
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
from towline_transforms.route import Route

if TYPE_CHECKING:
    from towline.plan import Prepared

_GONE = "the row is no longer at the source, which has what the entry lacks"
_UNROUTED = "the pipeline has no such route any more"


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

    def run(self, chosen: Sequence[Entry]) -> list[Outcome]:
        """Try them, until nothing more succeeds."""
        outcomes: dict[int, Outcome] = {}
        waiting = list(chosen)
        refusals: dict[int, RowRefused] = {}
        progress = True
        while waiting and progress:
            progress = False
            for entry in list(waiting):
                if entry.id in outcomes:
                    continue
                refused, reread = self._attempt(entry)
                if refused is not None:
                    refusals[entry.id] = refused
                    continue
                progress = True
                self._entries.retried(entry, self._by)
                outcomes[entry.id] = Outcome(entry, "retried", reread=reread)
                for other in waiting:
                    same = (other.route, other.key) == (entry.route, entry.key)
                    if same and other.id < entry.id and other.id not in outcomes:
                        outcomes[other.id] = Outcome(other, "superseded", f"by entry {entry.id}")
            waiting = [entry for entry in waiting if entry.id not in outcomes]
        for entry in waiting:
            self._entries.failed(entry, refusals[entry.id])
            outcomes[entry.id] = Outcome(entry, "open", refusals[entry.id].detail)
        return [outcomes[entry.id] for entry in chosen]

    def _attempt(self, entry: Entry) -> tuple[RowRefused | None, bool]:
        """Apply an entry; what refuses it, and whether values were read from the source."""
        route = self._routes.get(entry.route)
        if route is None or tuple(entry.key) != route.source.identity:
            return RowRefused(_UNROUTED, sqlstate=entry.sqlstate), False
        relation = self._relations[route.source.name]
        rowset, gaps = _rowset(entry, route, relation)
        present: Chunk | None = None
        if gaps:
            present = self._read(relation, rowset)
            if not len(present.rows):
                return RowRefused(_GONE, sqlstate=entry.sqlstate), True

        def reread(relation: Relation, keys: Frame) -> Chunk:
            assert present is not None
            return present

        time = entry.commit_time or entry.created_at
        chunk = None
        if entry.operation == "snapshot":
            chunk = Chunk(relation, rowset.rows, None, Visibility(0, 0), entry.position, time)
        transaction = Transaction(entry.xid or 0, entry.position, time, 0)
        piece = Piece((rowset,), () if chunk is not None else (transaction,), None)
        return self._applier.attempt(piece, {route.name}, reread, chunk), bool(gaps)

    def _read(self, relation: Relation, rowset: RowSet) -> Chunk:
        """The present row of the source; not older than what the daemon has applied."""
        if not self._settled:
            settle(self._tables)
            self._settled = True
        return self._tables.fetch(relation, rowset.rows.project(relation.key))


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
