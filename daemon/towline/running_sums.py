"""What the ledger notes beside its figures: sums over source keys, of each batch and running, for every route.

A route's running sum (`towline.key_sum`) is unknown until its table was copied and counted (`towline.recount`), and
again when the form of its keys changes. Then it follows the changes that are applied, as exactly as the position does:
both are written in the same transaction. Here nothing is read or written.

It is also here that the figures are held against what came from the source: `RunningSums.entries` raises
LedgerImbalance before anything is committed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from towline.change import Piece, Relation
from towline.errors import LedgerImbalance
from towline.key_sum import MODULUS, NO_KEYS, Change, KeySum, by_transaction, changes_of, key_form
from towline.recount import Recount
from towline.target import Checksum, Counts
from towline_transforms.route import Route
from towline_transforms.schema import TableName


@dataclass(frozen=True, slots=True)
class Running:
    """A running sum as it is stored, and the form of the keys that it is over (`key_form`).

    ``version``: of the row that it is in, changes with every batch that has rows of the route.
    """

    total: KeySum | None
    form: str | None
    version: str = field(default="", compare=False)


NOT_RUNNING = Running(None, None)


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger is to note of a route: what a batch did to its keys, and the running sum after it.

    ``keys``: None when that cannot be told, or does not lead from one running sum to the next: of a table that was
    copied or counted anew, or emptied when nobody knew what was in it.
    """

    form: str
    seen: int = 0
    keys: KeySum | None = NO_KEYS
    operations: int = 0
    total: KeySum | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """To who asked for a count: the keys counted and the running sum, both at the position that is being committed.

    ``total``: None when it was not known. ``anew``: it was asked to be what was counted, and is from now on.
    """

    route: str
    counted: KeySum
    total: KeySum | None
    anew: bool


class RunningSums:
    """The sums of one pipeline's routes, and the transaction in hand.

    ``known``: by route, what is stored. ``streaming``: the routes whose first copy is complete; the others' sums
    are unknown. `follow` may be called by another thread.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        relations: Sequence[Relation],
        known: Mapping[str, Running],
        streaming: Collection[str],
    ) -> None:
        self._relations = {relation.name: relation for relation in relations}
        self._routes: dict[TableName, list[str]] = {}
        self._committed: dict[str, Entry] = {}
        for route in routes:
            relation = self._relations[route.source.name]
            self._routes.setdefault(relation.name, []).append(route.name)
            form = key_form(relation)
            was = known.get(route.name)
            valid = was is not None and was.form == form and route.name in streaming
            self._committed[route.name] = Entry(form, total=was.total if valid and was is not None else None)
        self._streaming = set(streaming)
        self._working: dict[str, Entry] = {}
        self._noted: dict[str, Entry] = {}
        self._loaded: dict[str, bool] = {}
        self._asked: dict[str, bool] = {}
        self._lock = threading.Lock()
        self._inside = False
        self._recount: Recount | None = None
        self._next: Recount | None = None
        self.answers: tuple[Answer, ...] = ()

    # ---- the transaction in hand -----------------------------------------------------------------------------

    def begin(self) -> None:
        """A transaction begins."""
        with self._lock:
            self._inside = True
            self._working, self._noted, self._loaded = {}, {}, {}
            self.answers = ()

    def apply(self, piece: Piece, active: AbstractSet[str]) -> None:
        """A piece is applied to the routes named in ``active``."""
        for relation in piece.truncated:
            self._emptied(relation.name, active)
        for rowset, change in zip(piece.rowsets, changes_of(piece.rowsets), strict=True):
            name = rowset.relation.name
            if rowset.relation is not self._relations.get(name):
                self._redefined(rowset.relation)
            if not len(rowset):
                continue
            if (recount := self._recounted(name)) is not None:
                recount.applied(by_transaction(piece, rowset, change))
            for route in self._routes.get(name, ()):
                if route in active:
                    self._changed(route, change, len(rowset))

    def _recounted(self, table: TableName) -> Recount | None:
        """The count under way, when it is of that table."""
        recount = self._recount
        return recount if recount is not None and recount.relation.name == table else None

    def _changed(self, route: str, change: Change, rows: int) -> None:
        entry, keys = self._entry(route), change.keys
        self._working[route] = Entry(
            entry.form,
            entry.seen + rows,
            None if entry.keys is None else entry.keys + keys,
            (entry.operations + change.operations) % MODULUS,
            None if entry.total is None else entry.total + keys,
        )

    def _redefined(self, relation: Relation) -> None:
        """The table was changed while the daemon runs; if its key was, the sums are over something else now."""
        form = key_form(relation)
        self._relations[relation.name] = relation
        for route in self._routes.get(relation.name, ()):
            if (entry := self._entry(route)).form != form:
                self._working[route] = replace(entry, form=form, keys=None, total=None)
                if self._recount is not None and self._recount.relation.name == relation.name:
                    self._drop_recount()

    def _emptied(self, table: TableName, active: AbstractSet[str]) -> None:
        """The source has no key of that table any more, whatever the routes do about it."""
        if self._recount is not None and self._recount.relation.name == table:
            self._drop_recount()
        for route in self._routes.get(table, ()):
            if route in active:
                entry = self._entry(route)
                keys = None if entry.keys is None or entry.total is None else entry.keys - entry.total
                self._working[route] = replace(entry, keys=keys, total=NO_KEYS)

    def load(self, route: str, rows: int, *, last: bool) -> None:
        """A chunk of so many rows was loaded. What is being copied has to be counted."""
        entry = self._entry(route)
        self._working[route] = replace(entry, seen=entry.seen + rows, keys=None, total=None)
        self._loaded[route] = last

    def _entry(self, route: str) -> Entry:
        return self._working.get(route) or self._committed[route]

    def entries(self, position: int, counts: Mapping[str, Counts]) -> Mapping[str, Entry]:
        """What is to be noted with the figures, by route; ``answers`` has what is to be told to who asked.

        Raises LedgerImbalance when a route's figures do not account for what came from the source.
        """
        for route in {*counts, *self._working}:
            figures, seen = counts.get(route) or Counts(), self._entry(route).seen
            if figures.seen != seen or not figures.balanced:
                raise LedgerImbalance(
                    f"route {route}: {seen} rows came from the source, {figures.seen} were seen, "
                    f"{figures.accounted} are accounted for",
                    route=route,
                    rows=max(abs(figures.seen - seen), abs(figures.seen - figures.accounted)),
                )
        self._noted = dict(self._working)
        recount = self._recount
        counted = recount.at(position) if recount is not None else None
        if recount is not None and counted is not None:
            answers = []
            for route in self._counting(recount.relation.name):
                entry = self._entry(route)
                if route in self._asked:
                    answers.append(Answer(route, counted, entry.total, self._asked[route]))
                if entry.total is None or self._asked.get(route):
                    keys = None if self._asked.get(route) else entry.keys
                    self._noted[route] = replace(entry, keys=keys, total=counted)
            self.answers = tuple(answers)
        return self._noted

    def committed(self, position: int) -> Mapping[str, Checksum]:
        """The transaction was committed. Returns what is newly known of routes' sums."""
        news = {}
        with self._lock:
            for route, entry in self._noted.items():
                if (entry.total is None) != (self._committed[route].total is None):
                    news[route] = Checksum.UNKNOWN if entry.total is None else Checksum.KNOWN
                self._committed[route] = Entry(entry.form, total=entry.total)
            for answer in self.answers:
                right = answer.anew or answer.total in (None, answer.counted)
                news[answer.route] = Checksum.KNOWN if right else Checksum.DIFFERS
            for route, last in self._loaded.items():
                if last:
                    self._streaming.add(route)
            if self._recount is not None and self._recount.at(position) is not None:
                for route in self._counting(self._recount.relation.name):
                    self._asked.pop(route, None)
                self._drop_recount()
            self._end()
        return news

    def rolled_back(self) -> None:
        """The transaction was abandoned; a count that followed it must be made again."""
        with self._lock:
            self._drop_recount()
            self._end()

    def _end(self) -> None:
        self._inside = False
        self._working, self._noted, self._loaded = {}, {}, {}
        if self._next is not None:
            self._recount, self._next = self._next, None
            self._recount.following.set()

    def _counting(self, table: TableName) -> list[str]:
        """The routes of a table that a count is of use to."""
        return [
            route for route in self._routes.get(table, ()) if route in self._streaming and route not in self._loaded
        ]

    # ---- counts ----------------------------------------------------------------------------------------------

    def ask(self, wanted: Mapping[str, bool]) -> None:
        """Have routes counted again; True for those whose running sum is to be what was counted, whatever it is now."""
        self._asked = {route: anew for route, anew in wanted.items() if route in self._committed}

    def uncounted(self) -> list[Relation]:
        """The tables that are to be counted, those first that somebody asks for."""
        asked, unknown = [], []
        for table, routes in self._routes.items():
            there = [route for route in routes if route in self._streaming]
            if any(route in self._asked for route in there):
                asked.append(self._relations[table])
            elif any(self._committed[route].total is None for route in there):
                unknown.append(self._relations[table])
        return asked + unknown

    def follow(self, recount: Recount) -> None:
        """Tell a count what is applied, from the next transaction on (``following`` is set then)."""
        with self._lock:
            if self._inside:
                self._next = recount
            else:
                self._drop_recount()
                self._recount = recount
                recount.following.set()

    def forget(self, recount: Recount) -> None:
        """A count that failed needs to be told nothing more."""
        with self._lock:
            if self._recount is recount:
                self._drop_recount()
            if self._next is recount:
                self._next = None

    def due(self, position: int) -> bool:
        """Whether a commit at that position would make a sum known."""
        recount = self._recount
        return recount is not None and recount.at(position) is not None

    def _drop_recount(self) -> None:
        if self._recount is not None:
            self._recount.over.set()
            self._recount = None

    def checksums(self) -> Mapping[str, Checksum]:
        """Which routes' running sums are known, as of the last commit."""
        return {
            route: Checksum.UNKNOWN if entry.total is None else Checksum.KNOWN
            for route, entry in self._committed.items()
        }
