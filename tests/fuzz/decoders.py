"""What is fuzzed: the decoders with the streams that they were made for, and what must hold whatever comes in."""

from __future__ import annotations

import signal
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from types import FrameType

import numpy as np

from tests.fuzz.mutations import Mutation, altered, mutated
from tests.unit.source import test_streamed
from tests.unit.source.capture import read
from tests.unit.source.test_pgoutput import decode as decode_pgoutput
from tests.unit.source.test_pgoutput import routed
from tests.unit.source.test_wal2json import decode as decode_wal2json
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, RowSet
from towline.errors import TowlineError
from towline.frame import Frame, FrameError, frame_row
from towline.source.postgres.gather import Gatherer, TupleBatch
from towline.source.postgres.pgoutput import parse
from towline.source.postgres.routed import Routed
from towline.source.postgres.streamed import StreamingDecoder

#: What the decoding of a stream may take, in bytes for each byte of it, and beyond that.
MEMORY_PER_BYTE, MEMORY = 60, 8 << 20
#: Longer than this is a hang (seconds, on any machine).
PATIENCE = 20.0


captured = cache(read)


class Hung(Exception):
    """It takes too long."""


def _streamed(messages: Sequence[bytes]) -> list[Piece]:
    """As `test_streamed.streamed`, but transactions may be left under way."""
    gatherer = Gatherer[TupleBatch](0)
    decoder = StreamingDecoder(Routed(routed(Format.TEXT)), gatherer, test_streamed.Memory(), test_streamed.unpaced)
    for message in messages:
        decoder.feed(message, 0)
    cut = gatherer.cut()
    rest = [gatherer.cut_full()] if not gatherer.empty else []
    return [*gatherer.ready, *([cut] if cut is not None else []), *rest]


@dataclass(frozen=True)
class Decoded:
    """A decoder over a whole stream."""

    stream: str
    decode: Callable[[Sequence[bytes]], list[Piece]]

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """Only coded errors, in time, within bounds; and what comes out are rows. Raises anything else."""
        messages = mutated(captured(self.stream), mutations)
        with _bounded(sum(map(len, messages))):
            try:
                pieces = self.decode(messages)
            except TowlineError as error:
                assert error.code != TowlineError.code, "a defect, and not a coded error"
                return
            for piece in pieces:
                _check(piece)


@dataclass(frozen=True)
class Parsed:
    """The parser of single messages: each gives something or StreamMalformed."""

    stream: str

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """See `Decoded.try_one`."""
        for message in mutated(captured(self.stream), mutations):
            with suppress(TowlineError):
                parse(message)


@dataclass(frozen=True)
class Framed:
    """Rows of a COPY BINARY stream, taken apart column by column."""

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """FrameError, or rows that are, put together again, what they were."""
        values: list[list[bytes | None]] = [
            [b"1", None, b"long" * 30],
            [b"", b"x", None],
            [None, None, None],
            [b"2", b"\xff" * 9, b"y"],
        ]
        rows = [frame_row(row) for row in values]
        for mutation in mutations:
            place = mutation.message % len(rows)
            rows[place] = altered(rows[place], mutation, rows[mutation.value % len(rows)])
        frame = Frame.of_rows(rows, 3)
        with _bounded(sum(map(len, rows))):
            try:
                frame.fields()
            except FrameError:
                return
            for place, row in enumerate(rows):
                found = [frame.value(place, column) for column in range(3)]
                assert frame_row(found)[2:] == row[2:] or _odd_null(row)
                assert [frame.column(column)[place] for column in range(3)] == found
            assert len(frame.keys([0, 2])) == len(rows)


def _odd_null(row: bytes) -> bool:
    """Whether a length is negative without being -1: read as NULL, and refused by whoever gets the bytes."""
    at = 2
    while at < len(row):
        length = int.from_bytes(row[at : at + 4], "big", signed=True)
        if length < -1:
            return True
        at += 4 + max(length, 0)
    return False


DECODERS: dict[str, Decoded | Parsed | Framed] = {
    "pgoutput, text": Decoded("pgoutput-text", lambda messages: decode_pgoutput(messages, routed(Format.TEXT))),
    "pgoutput, binary": Decoded("pgoutput-binary", lambda messages: decode_pgoutput(messages, routed(Format.BINARY))),
    "pgoutput, streamed": Decoded("pgoutput-streamed", _streamed),
    "pgoutput, single messages": Parsed("pgoutput-text"),
    "wal2json": Decoded("wal2json", lambda messages: decode_wal2json(messages, routed(Format.TEXT))),
    "COPY BINARY": Framed(),
}


# ---- what must hold --------------------------------------------------------------------------------------------


def _check(piece: Piece) -> None:
    """A piece holds rows as `towline.change` says, whatever it was made of."""
    firsts = [transaction.first for transaction in piece.transactions]
    assert firsts == sorted(firsts)
    for rows in piece.rowsets:
        _check_rows(rows)
    if any(len(rows) for rows in piece.rowsets):
        assert piece.transactions, "rows of no transaction"


def _check_rows(rows: RowSet) -> None:
    relation, width = rows.relation, len(rows.relation.columns)
    assert rows.rows.width == width
    assert len(rows.rows) == len(rows.ops) == len(rows.order)
    offsets, lengths = rows.rows.fields()  # raises FrameError when a row is not one
    assert offsets.shape == lengths.shape == (width, len(rows))
    assert bool((lengths >= -1).all())
    assert np.isin(rows.ops, (INSERT, UPDATE, DELETE)).all()
    assert bool((np.diff(rows.order) >= 0).all())
    for place in range(len(rows)):
        row = rows.rows.row(place)
        values = [rows.rows.value(place, column) for column in range(width)]
        assert frame_row(values) == row, "not the bytes that its values make"
        if rows.ops[place] == DELETE:
            assert all(values[column] is None for column in range(width) if column not in relation.key)
    for masks in (rows.missing, rows.unknown):
        for place, mask in masks.items():
            assert 0 <= place < len(rows) and 0 < mask < 1 << width
            assert all(rows.rows.value(place, column) is None for column in range(width) if mask >> column & 1)
    for place, old in rows.moved.items():
        assert rows.ops[old] == DELETE and rows.ops[place] == UPDATE and rows.order[old] == rows.order[place]


@contextmanager
def _bounded(size: int) -> Iterator[None]:
    """Within the time and memory that an input of that many bytes may take. Raises Hung and AssertionError."""

    def alarm(signum: int, frame: FrameType | None) -> None:
        raise Hung(f"{PATIENCE:g} s were not enough for {size} bytes")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
        assert peak <= MEMORY + MEMORY_PER_BYTE * size, f"{peak} bytes of memory for {size} bytes of input"
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
