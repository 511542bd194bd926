"""When pieces are cut for a consumer that waits, and whether what is handed over at last is whole."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.unit.source.rows import relation
from towline.change import INSERT
from towline.source.postgres.batches import FramedRow, RowBatch
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.handover import QUEUED, Handover

T, U = relation("t", ["id:int4"], ["id"]), relation("u", ["id:int4"], ["id"])
ROW = FramedRow(b"\0\1\0\0\0\1" + b"1", INSERT)


class Reader:
    """Puts changes into a gatherer, and hands them over."""

    def __init__(self) -> None:
        self.gatherer = Gatherer[RowBatch](0, max_rows=100)
        self.handover = Handover(self.gatherer, position=0, acknowledged=0)
        self._at = 100

    def begin(self) -> None:
        self._at += 100
        self.gatherer.begin(self._at, self._at, datetime.now(UTC))

    def insert(self) -> None:
        batch = self.gatherer.batch("t", lambda: RowBatch(T))
        assert batch is not None
        batch.rows.append(ROW)
        batch.orders.append(self.gatherer.order)
        self.gatherer.order += 1

    def commit(self) -> None:
        self.gatherer.commit(self._at, self._at + 50)

    def taken(self) -> list[int | None]:
        """Where the pieces end that a consumer gets now."""
        found = []
        while (piece := self.handover.poll(0.0)) is not None:
            found.append(piece.end)
        return found


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.handover.release()


def fill(reader: Reader) -> None:
    """As many pieces as may wait, each a transaction."""
    for _ in range(QUEUED):
        reader.begin()
        reader.insert()
        reader.commit()
        piece = reader.gatherer.cut()
        assert piece is not None
        reader.handover.push(piece)


def test_ready_is_what_poll_would_give(reader: Reader) -> None:
    """Pieces, not what is still gathered."""
    assert not reader.handover.ready
    fill(reader)
    reader.begin()
    reader.insert()
    assert reader.handover.ready
    assert len(reader.taken()) == QUEUED
    assert not reader.handover.ready


def test_a_part_before_a_truncation_is_not_whole(reader: Reader) -> None:
    """It is cut out of its transaction while nobody takes anything: the rest must follow."""
    fill(reader)
    assert reader.handover.whole
    reader.begin()
    reader.insert()
    reader.gatherer.truncate([U])
    assert not reader.handover.room()
    assert not reader.handover.whole
    reader.insert()
    reader.commit()
    assert reader.handover.whole
    reader.handover.hand_over()
    assert reader.taken() == [250, 350, None, 450]


def test_what_is_gathered_of_a_transaction_stays(reader: Reader) -> None:
    """Nothing of it was handed over, so that it can be read again from its beginning."""
    fill(reader)
    reader.begin()
    reader.insert()
    assert reader.handover.whole
    reader.handover.hand_over()
    assert reader.taken() == [250, 350]


def test_pieces_some_time_apart(reader: Reader) -> None:
    """While the source has much to send, a consumer that waits gets none so soon after the last."""
    for apart, ends in ((60.0, [250]), (60.0, []), (0.0, [450])):  # the first comes at once
        assert reader.taken() == []
        reader.begin()
        reader.insert()
        reader.commit()
        reader.handover.offer(0, apart)
        assert reader.taken() == ends


def test_what_is_full_does_not_wait(reader: Reader) -> None:
    """Time between pieces is for small ones."""
    assert reader.taken() == []
    for _ in range(2):
        reader.begin()
        for _ in range(100):
            reader.insert()
        reader.commit()
        reader.handover.offer(0, 60.0)
    assert reader.taken() == [250, 350]
