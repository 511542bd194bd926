"""The order in which the loop does things, over parts that only take notes."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np

from tests.unit.test_snapshot import chunk, route
from towline.change import INSERT, Chunk, Piece, RowSet, Transaction, Visibility
from towline.pipeline import Pipeline
from towline.snapshot import Snapshots
from towline.target import Committed

ROUTE = route("item")
FAR = 1 << 30


class Parts:
    """Stream, target, reader and observer in one. The stream ends each of its transactions ``FAR`` bytes further on."""

    def __init__(self, transactions: int, seen: list[Visibility]) -> None:
        self.notes: list[str] = []
        self.chunks = [chunk(ROUTE, 1, None, each) for each in seen]
        self.relation = self.chunks[0].relation
        self.pieces = deque(self._piece(number) for number in range(1, transactions + 1))
        self.idle_position = self.awaited_position = 0
        self.last = transactions * FAR

    def _piece(self, number: int) -> Piece:
        rows = self.chunks[0].rows
        rowset = RowSet(self.relation, rows, np.array([INSERT], np.uint8), np.array([0]))
        now = datetime.now(UTC)
        return Piece((rowset,), (Transaction(100 + number, number * FAR - 10, now, 0),), number * FAR)

    def poll(self, timeout: float) -> Piece | None:
        if self.pieces:
            return self.pieces.popleft()
        self.idle_position = self.last
        return None

    def request(self, *_: Any) -> Future[Chunk]:
        future: Future[Chunk] = Future()
        found = self.chunks.pop(0)
        future.set_result(Chunk(found.relation, found.rows, None, found.visibility, self.last, found.read_at))
        self.notes.append("read")
        return future

    def commit(self, position: int, commit_time: datetime | None) -> Committed:
        self.notes.append("commit")
        return Committed()

    def load(self, load: object) -> None:
        self.notes.append("load")

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


def run(parts: Parts) -> list[str]:
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
    )
    pipeline.run(until=parts.last)
    return parts.notes


def test_far_behind_the_stream_goes_first() -> None:
    """In transactions of its own: one up to a chunk's position would last for as long as the pipeline is behind."""
    assert run(Parts(4, [Visibility(200, 200)])) == ["read", "commit", "commit", "commit", "commit", "load", "commit"]


def test_a_chunk_that_waited_is_judged_again() -> None:
    """What was applied meanwhile has to be visible in it, as for any other chunk."""
    seen = [Visibility(104, 104), Visibility(200, 200)]
    assert run(Parts(4, seen)) == ["read", "commit", "commit", "commit", "commit", "read", "load", "commit"]
