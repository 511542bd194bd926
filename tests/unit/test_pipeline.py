"""The order in which the loop does things, over parts that only take notes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pytest

from tests.unit.test_snapshot import chunk, route
from towline.change import INSERT, Chunk, Piece, RowSet, Transaction, Visibility
from towline.errors import SourceUnavailable, TargetUnavailable, TowlineError
from towline.pipeline import Pipeline
from towline.snapshot import Snapshots
from towline.target import Committed

ROUTE = route("item")
FAR = 1 << 30


class Parts:
    """Stream, target, reader and observer in one. The stream ends each of its transactions ``FAR`` bytes further on.

    ``commits``: position, time and whether it was synchronous. ``acknowledged``: positions, each with the number of
    commits before it. ``then``: the error that comes after the last piece.
    """

    def __init__(self, transactions: int, seen: list[Visibility]) -> None:
        self.notes: list[str] = []
        self.chunks = [chunk(ROUTE, 1, None, each) for each in seen]
        self.relation = self.chunks[0].relation
        self.pieces = deque(self._piece(number) for number in range(1, transactions + 1))
        self.idle_position = self.awaited_position = 0
        self.last = transactions * FAR
        self.commits: list[tuple[int, bool, bool]] = []
        self.acknowledged: list[tuple[int, int]] = []
        self.then: TowlineError | None = None
        self.pipeline: Pipeline | None = None

    def _piece(self, number: int) -> Piece:
        rows = self.chunks[0].rows
        rowset = RowSet(self.relation, rows, np.array([INSERT], np.uint8), np.array([0]))
        now = datetime.now(UTC)
        return Piece((rowset,), (Transaction(100 + number, number * FAR - 10, now, 0),), number * FAR)

    @property
    def ready(self) -> bool:
        return bool(self.pieces)

    def poll(self, timeout: float) -> Piece | None:
        if self.pieces:
            return self.pieces.popleft()
        if self.then is not None:
            raise self.then
        self.idle_position = self.last
        return None

    def request(self, *_: Any) -> Future[Chunk]:
        future: Future[Chunk] = Future()
        found = self.chunks.pop(0)
        future.set_result(Chunk(found.relation, found.rows, found.upto, found.visibility, self.last, found.read_at))
        self.notes.append("read")
        return future

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool) -> Committed:
        self.notes.append("commit")
        self.commits.append((position, commit_time is not None, synchronous))
        return Committed()

    def acknowledge(self, position: int) -> None:
        self.acknowledged.append((position, len(self.commits)))

    def load(self, load: object) -> None:
        self.notes.append("load")

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def run(parts: Parts, **options: Any) -> list[str]:
    snapshots = Snapshots([ROUTE], {})
    snapshots.listen(Visibility(50, 50))
    pipeline = Pipeline(
        stream=cast(Any, parts),
        target=cast(Any, parts),
        reader=parts,
        reread=cast(Any, None),
        snapshots=snapshots,
        relations=(parts.relation,),
        position=0,
        chunk_rows=10,
        checkpoint_seconds=3600,
        observer=cast(Any, parts),
        **{"synchronous_every": 3600.0, **options},
    )
    parts.pipeline = pipeline
    pipeline.run(until=parts.last)
    return parts.notes


def test_far_behind_the_stream_goes_first() -> None:
    """In transactions of its own: one up to a chunk's position would last for as long as the pipeline is behind."""
    assert run(Parts(4, [Visibility(200, 200)])) == ["read", "commit", "commit", "commit", "commit", "load", "commit"]


def test_a_chunk_that_waited_is_judged_again() -> None:
    """What was applied meanwhile has to be visible in it, as for any other chunk."""
    seen = [Visibility(104, 104), Visibility(200, 200)]
    assert run(Parts(4, seen)) == ["read", "commit", "commit", "commit", "commit", "read", "load", "commit"]


WHOLE = [Visibility(200, 200)]


def test_commits_are_synchronous_when_nothing_waits() -> None:
    """Only what a synchronous commit has made durable is acknowledged; a copy that is complete is durable at once."""
    parts = Parts(4, WHOLE)
    run(parts)
    each = [(number * FAR, True, number == 4) for number in (1, 2, 3, 4)]
    assert parts.commits == [*each, (4 * FAR, True, True)]
    assert parts.acknowledged == [(4 * FAR, 4), (4 * FAR, 5)]


def test_synchronous_commits_come_often_enough() -> None:
    """However much waits, the source is told now and then what is durable."""
    parts = Parts(4, WHOLE)
    run(parts, synchronous_every=0.0)
    assert [synchronous for _, _, synchronous in parts.commits] == [True] * 5
    assert parts.acknowledged == [(number * FAR, number) for number in (1, 2, 3, 4)] + [(4 * FAR, 5)]


def test_a_chunk_that_was_read_is_work_that_waits() -> None:
    """So commits before it are asynchronous, though the stream has nothing more."""
    parts = Parts(1, WHOLE)
    parts.chunks.insert(0, chunk(ROUTE, 1, "1", *WHOLE))
    assert run(parts) == ["read", "commit", "read", "load", "commit", "load", "commit"]
    assert [synchronous for _, _, synchronous in parts.commits] == [False, False, True]


def test_before_it_rests_all_is_durable() -> None:
    """What waited was nothing to apply."""
    parts = Parts(3, WHOLE)
    for number in (1, 2):
        parts.pieces[number] = replace(parts.pieces[number], rowsets=())
    run(parts)
    assert parts.commits[:2] == [(FAR, True, False), (3 * FAR, True, True)]
    assert parts.acknowledged[0] == (3 * FAR, 2)


def test_stopped_it_leaves_nothing_that_is_not_durable() -> None:
    """Neither more nor less: what was applied and not committed is abandoned, its commit time too."""
    parts = Parts(3, WHOLE)
    parts.pieces[1] = replace(parts.pieces[1], end=None)

    def announce(point: str) -> None:
        if point == "within-transaction":
            assert parts.pipeline is not None
            parts.pipeline.stop()

    run(parts, announce=announce)
    assert parts.commits == [(FAR, True, False), (FAR, False, True)]
    assert parts.acknowledged == [(FAR, 2)]


def test_the_source_is_lost() -> None:
    """What was committed is durable before anybody is told; a stream that failed is told nothing."""
    parts = Parts(2, WHOLE)
    parts.pieces[1] = replace(parts.pieces[1], end=None)
    parts.then = SourceUnavailable("lost")
    with pytest.raises(SourceUnavailable):
        run(parts)
    assert parts.commits == [(FAR, True, False), (FAR, False, True)]
    assert parts.acknowledged == []
    assert parts.pipeline is not None and parts.pipeline.durable == FAR


def test_the_target_is_lost() -> None:
    """It is asked nothing more, and what it may have lost counts as lost."""
    parts = Parts(2, WHOLE)
    parts.pieces[1] = replace(parts.pieces[1], end=None)
    parts.then = TargetUnavailable("lost")
    with pytest.raises(TargetUnavailable):
        run(parts)
    assert parts.commits == [(FAR, True, False)]
    assert parts.acknowledged == []
    assert parts.pipeline is not None
    assert (parts.pipeline.shown, parts.pipeline.durable) == (FAR, 0)
