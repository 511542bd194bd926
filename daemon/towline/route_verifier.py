"""Does the target hold what the routes make of the source? Asked while both go on changing.

The daemon is not stopped, no lock is taken that it would wait for, and no read is long: rows are read from the source
in chunks by key, run through their route at the target, and held against its table
(`towline.target.postgres.compare`). What is equal is done with. What is not may only be under way, so it is looked at
again, and

    a row is reported only if the source's row was the same in reads before and after at least `LOOKS` looks at the
    target, each taken when the target had passed the position of the read before it, and the target's row was wrong
    each time and not written to in between.

A row that is wrong because a change of it was set aside (`on_error: quarantine`) is counted apart, and not repaired.

What keeps changing under the looks, up to a limit of time, is counted as unsettled: not a difference, but not verified.

| what is wrong at the target | how it is found |
|---|---|
| a row is missing, or a value of it is different | its source row has no counterpart, or one that is not the same |
| a row is there twice, or under a wrong key | no source row produced its key, in the whole pass: extra |
| a row is there that was deleted at the source, or that the route's WHERE rejects | likewise extra |

Only keys that the target had before the pass began can be extra. A key that is the source's own is looked up at the
source, before and after a look at the target; of any other key the whole source is read once more.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol

import numpy as np

from towline.change import Chunk, Relation
from towline.differences import RouteReport
from towline.errors import RowRefused, VerifyUnsettled
from towline.frame import Frame
from towline.position import before_page_header, format_lsn
from towline.source import Tables
from towline.target.postgres.compare import Extra, Mismatch
from towline_transforms.route import MASK, OnDelete, Route, masked_columns

#: How often the same row must be found wrong, with the source unchanged around each look.
LOOKS = 3
#: How often a row is looked at before it is given up as unsettled.
ROUNDS = 25
#: Of the rows to be mended together, so many that the target refuses are found; then it ends, since the daemon waits.
MOST_REFUSED = 100


class Comparing(Protocol):
    """The target's side, for one route: see `towline.target.postgres.compare.TargetComparison`."""

    route: Route
    relation: Relation

    def remember(self) -> None: ...
    def look(self, rows: Frame, *, note: bool = False) -> list[Mismatch]: ...
    def leftovers(self) -> int: ...
    def withdraw(self, rows: Frame) -> None: ...
    def drop_changed(self, after: int, upto: int) -> None: ...
    def page(self, after: int, limit: int) -> list[Extra]: ...
    def source_keys(self, after: int, limit: int) -> Frame: ...
    def forget(self, rows: Sequence[int]) -> None: ...
    def locked(self) -> AbstractContextManager[None]: ...
    def write(self, chunk: Chunk) -> None: ...
    def quarantined(self) -> AbstractSet[bytes]: ...
    def remove(self, rows: Sequence[int]) -> int: ...
    @property
    def invertible(self) -> bool: ...


class Progress:
    """Waits until the target has applied everything up to a position of the source.

    ``position``: reads the checkpoint. ``pending``: whether the source has changes for this pipeline after the first
    position and before the second; True also when it cannot tell. Without a daemon the checkpoint of an idle
    pipeline stays behind the log's end, with nothing to apply in between.
    """

    def __init__(self, position: Callable[[], int], pending: Callable[[int, int], bool], timeout: float = 60.0) -> None:
        self._position = position
        self._pending = pending
        self._timeout = timeout
        self._reached = 0

    def wait(self, position: int) -> None:
        """Return once ``position`` has been passed. Raises VerifyUnsettled."""
        wanted = before_page_header(position)
        begun = time.monotonic()
        nap = 0.005
        while self._reached < wanted:
            applied = self._position()
            if applied >= wanted:
                self._reached = applied
            elif not self._pending(applied, wanted):
                self._reached = wanted
            elif time.monotonic() - begun > self._timeout:
                raise VerifyUnsettled(
                    f"the target is at {format_lsn(applied)} and has not reached {format_lsn(wanted)} "
                    f"within {self._timeout:g} s"
                )
            else:
                time.sleep(nap)
                nap = min(nap * 1.5, 0.2)


def settle(tables: Tables, timeout: float = 2.0) -> None:
    """Wait until what has been written to the source's log is visible there.

    A commit record reaches the log, and so the daemon, before others see the transaction (it may wait for a
    synchronous standby). Transactions that simply take long are not waited for: what the daemon applied had
    committed.
    """
    deadline = time.monotonic() + timeout
    barrier = tables.horizon().xmax
    while tables.visibility().xmin < barrier and time.monotonic() < deadline:
        time.sleep(0.02)


class RouteVerifier:
    """Verifies one route, in one pass (two when keys of the target must be looked for in the whole source).

    ``repair``: mend what differs, but for what is set aside, and what the target refuses. ``hold``: called before that,
    in the transaction; what it raises ends the verification.
    """

    def __init__(
        self,
        tables: Tables,
        comparing: Comparing,
        progress: Progress,
        *,
        chunk_rows: int = 20_000,
        repair: bool = False,
        hold: Callable[[], None] = lambda: None,
    ) -> None:
        self._tables = tables
        self._target = comparing
        self._relation = comparing.relation
        self._progress = progress
        self._chunk_rows = chunk_rows
        self._repair = repair
        self._hold = hold
        self._high = 0
        self._masked = masked_columns(comparing.route)
        self.report = RouteReport(comparing.route.name)

    def run(self) -> RouteReport:
        """Compare everything. Raises VerifyUnsettled, and what the two ends raise."""
        begun = time.monotonic()
        self._target.remember()
        for chunk in self._chunks():
            self.report.rows += len(chunk.rows)
            wrong = self._target.look(chunk.rows, note=True)
            if wrong:
                self._settle(chunk.rows.take(np.array(sorted({each.row for each in wrong}))), chunk.high)
        if self._target.route.on_delete is not OnDelete.IGNORE and (count := self._target.leftovers()):
            self._extras(count)
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _chunks(self) -> Iterator[Chunk]:
        """The whole source, in key order."""
        after = None
        while True:
            chunk = self._tables.chunk(self._relation, after, self._chunk_rows)
            self._high = max(self._high, chunk.high)
            yield chunk
            if chunk.upto is None:
                return
            after = chunk.upto

    # ---- rows of the source that are not right at the target -----------------------------------------------------

    def _settle(self, rows: Frame, high: int) -> None:
        """Look again at rows that were read at ``high``, until each is right, surely wrong, or given up."""
        key = self._relation.key
        looks: dict[bytes, tuple[str | None, int]] = {}  # the version of the target's row, and how often it was wrong
        confirmed: dict[bytes, tuple[str | None, ...]] = {}
        for attempt in range(ROUNDS):
            self._progress.wait(high)
            wrong = {each.row: each for each in self._target.look(rows)}
            if not wrong:
                break
            rows = rows.take(np.array(sorted(wrong)))
            mismatches = [wrong[place] for place in sorted(wrong)]
            again = self._tables.fetch(self._relation, rows.project(key))
            now = {name: place for place, name in enumerate(again.rows.keys(key))}
            keep: list[int] = []
            aside: AbstractSet[bytes] | None = None
            for place, (name, mismatch) in enumerate(zip(rows.keys(key), mismatches, strict=True)):
                if name not in now:
                    looks.pop(name, None)  # deleted meanwhile: no row to compare
                    continue
                unchanged = again.rows.row(now[name]) == rows.row(place)
                version, times = looks.get(name, (mismatch.version, 0))
                times = times + 1 if unchanged and version == mismatch.version else int(unchanged)
                looks[name] = mismatch.version, times
                if times >= LOOKS and name in (aside := self._target.quarantined() if aside is None else aside):
                    self.report.add("quarantined", self._shown(mismatch.key), mismatch.columns)
                elif times >= LOOKS:
                    kind = "missing" if mismatch.version is None else "different"
                    self.report.add(kind, self._shown(mismatch.key), mismatch.columns)
                    confirmed[name] = self._shown(mismatch.key)
                else:
                    keep.append(now[name])
            if not keep:
                break
            rows, high = again.rows.take(np.array(sorted(keep))), again.high
            if attempt >= LOOKS:
                time.sleep(min(0.02 * 1.3**attempt, 1.0))  # it is changing just now
        else:
            self.report.unsettled += len(rows)
        if confirmed and self._repair:
            self._write(confirmed)

    def _write(self, confirmed: Mapping[bytes, tuple[str | None, ...]]) -> None:
        """Apply the present rows of those source keys (each with what is shown of it), between two batches of the
        daemon.

        The source is read under the lock, so that what it says is not older than what the daemon has applied (see
        `settle`). What the target refuses is told of; the others are mended.
        """
        width = len(self._relation.key)
        with self._target.locked():
            self._hold()
            aside = self._target.quarantined()  # meanwhile, perhaps
            framed = [width.to_bytes(2, "big") + name for name in confirmed if name not in aside]
            settle(self._tables)
            chunk = self._tables.fetch(self._relation, Frame.of_rows(framed, width))
            refused = self._write_all(chunk)
        names = chunk.rows.keys(self._relation.key) if refused else []
        for place, error in refused.items():
            self.report.add("refused", confirmed[names[place]])
            self.report.refusals.add(error.detail)
            self.report.refusal = self.report.refusal or error
        self.report.repaired += len(framed) - len(refused)

    def _write_all(self, chunk: Chunk) -> dict[int, RowRefused]:
        """Write all rows but those that the target refuses, which are returned by place.

        They are tried again as long as that helps: one may have waited for another that came after it.
        """
        refused = self._by_halves(chunk, list(range(len(chunk.rows))))
        while refused and len(again := self._by_halves(chunk, list(refused))) < len(refused):
            refused = again
        return refused

    def _by_halves(self, chunk: Chunk, places: list[int]) -> dict[int, RowRefused]:
        """Write rows together, and where they are refused by halves; of very many that are refused, no more."""
        refused: dict[int, RowRefused] = {}
        parts = [places] if places else []
        while parts:
            part = parts.pop()
            try:
                self._target.write(replace(chunk, rows=chunk.rows.take(np.array(part))))
            except RowRefused as error:
                if len(refused) >= MOST_REFUSED:
                    refused |= dict.fromkeys([*part, *itertools.chain.from_iterable(parts)], error)
                    break
                if len(part) == 1:
                    refused[part[0]] = error
                else:
                    middle = len(part) // 2
                    parts += [part[middle:], part[:middle]]
        return refused

    # ---- rows of the target that no row of the source makes ----------------------------------------------------

    def _extras(self, count: int) -> None:
        """Decide about the ``count`` keys that no source row produced."""
        if not self._target.invertible:
            self._progress.wait(self._high)
            self._target.drop_changed(0, count)
            if not self._target.page(0, 1):
                return
            for chunk in self._chunks():
                self._target.withdraw(chunk.rows)
            self._progress.wait(self._high)
        after = 0
        while page := self._target.page(after, self._chunk_rows):
            last = page[-1].row
            for _ in range(LOOKS + 1 if self._target.invertible and page else 0):
                self._absent(page, after)
                page = self._remaining(after, last)
            self._target.drop_changed(after, last)
            page = self._not_aside(self._remaining(after, last), after, last)
            for extra in page:
                self.report.add("extra", self._shown(extra.key))
            if self._repair and page:
                self._remove(page, after)
            after = last

    def _remaining(self, after: int, last: int) -> list[Extra]:
        """What is left of a page."""
        return [extra for extra in self._target.page(after, self._chunk_rows) if extra.row <= last]

    def _not_aside(self, page: list[Extra], after: int, last: int) -> list[Extra]:
        """A page without the rows whose deletes were set aside, where their keys tell."""
        if not page or not self._target.invertible or not (aside := self._target.quarantined()):
            return page
        keys = self._target.source_keys(after, len(page))
        found = [extra for extra, name in zip(page, keys.keys(range(keys.width)), strict=True) if name in aside]
        for extra in found:
            self.report.add("quarantined", self._shown(extra.key))
        self._target.forget([extra.row for extra in found])
        return self._remaining(after, last)

    def _shown(self, key: tuple[str | None, ...]) -> tuple[str | None, ...]:
        """A key as a sample shows it."""
        return tuple(
            MASK if name in self._masked else text for name, text in zip(self._target.route.key, key, strict=True)
        )

    def _absent(self, page: Sequence[Extra], after: int) -> None:
        """Take from a page the keys that are at the source, and those whose row did not outlive that this was applied.

        Repeated, so that each look at the target lies between two reads of the source.
        """
        if not page:
            return
        chunk = self._present(page, after, self._target.source_keys(after, len(page)))
        self._progress.wait(chunk.high)
        self._target.drop_changed(after, page[-1].row)

    def _present(self, page: Sequence[Extra], after: int, keys: Frame) -> Chunk:
        """Read the keys at the source, and forget those that are there."""
        chunk = self._tables.fetch(self._relation, keys)
        if len(chunk.rows):
            there = set(chunk.rows.keys(self._relation.key))
            names = keys.keys(range(keys.width))
            self._target.forget([extra.row for extra, name in zip(page, names, strict=True) if name in there])
        return chunk

    def _remove(self, page: Sequence[Extra], after: int) -> None:
        """Delete or mark the extras of a page, if they are what they were when they were looked at."""
        with self._target.locked():
            self._hold()
            if self._target.invertible:
                settle(self._tables)
                self._present(page, after, self._target.source_keys(after, len(page)))
            self.report.repaired += self._target.remove([extra.row for extra in page])
