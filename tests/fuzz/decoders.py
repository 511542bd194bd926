"""What is fuzzed: the decoders with the streams that they were made for, and what must hold whatever comes in."""

from __future__ import annotations

import os
import signal
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np

from tests.fuzz.mutations import Mutation, altered, mutated
from tests.unit.source import test_streamed
from tests.unit.source.capture import read
from tests.unit.source.test_pgoutput import decode as decode_pgoutput
from tests.unit.source.test_pgoutput import routed
from tests.unit.source.test_wal2json import decode as decode_wal2json
from towline.change import DELETE, INSERT, UPDATE, Format, Piece, RowSet
from towline.errors import SourceUnavailable, SpoolCorrupt, TowlineError
from towline.frame import Frame, FrameError, frame_row
from towline.source.postgres import stream
from towline.source.postgres.copy_rows import ROW_HEADER, CopyRows
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.notices import Notices
from towline.source.postgres.pgoutput import Decoder
from towline.source.postgres.pgoutput_messages import parse
from towline.source.postgres.routed import Routed
from towline.source.postgres.spool import Spool
from towline.source.postgres.streamed import StreamingDecoder
from towline.source.postgres.tuple_batch import TupleBatch
from towline.source.postgres.walsender import KEEPALIVE, XLOG_DATA

#: What the decoding of a stream may take, in bytes for each byte of it, and beyond that.
MEMORY_PER_BYTE, MEMORY = 60, 8 << 20
#: As many messages of a COPY are taken at once.
COPIED_TOGETHER = 100
#: Longer than this is a hang (seconds, on any machine).
PATIENCE = 20.0


XLOG_DATA_BYTE, KEEPALIVE_BYTE = bytes((XLOG_DATA,)), bytes((KEEPALIVE,))

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
        with _bounded(sum(map(len, messages))), _coded():
            for piece in self.decode(messages):
                _check(piece)


@dataclass(frozen=True)
class Parsed:
    """The parser of single messages: each gives something or StreamMalformed."""

    stream: str

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """See `Decoded.try_one`."""
        messages = mutated(captured(self.stream), mutations)
        with _bounded(sum(map(len, messages))):
            for message in messages:
                with _coded():
                    parse(message)


@dataclass(frozen=True)
class Enveloped:
    """The messages of the walsender: data with its header, and keepalives."""

    stream: str

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """See `Decoded.try_one`."""
        sent = mutated(list(_enveloped(captured(self.stream))), mutations)
        with _bounded(sum(map(len, sent))), _coded():
            for piece in _streaming(sent):
                _check(piece)


def _enveloped(messages: Sequence[bytes]) -> Iterator[bytes]:
    for number, message in enumerate(messages):
        position = (1000 + number).to_bytes(8, "big")
        yield XLOG_DATA_BYTE + position + position + bytes(8) + message
        if number % 5 == 4:
            yield KEEPALIVE_BYTE + position + bytes(8) + bytes((number % 2,))


class _Sent:
    """In place of a walsender: what was sent, and then the end of the line."""

    def __init__(self, sent: Sequence[bytes]) -> None:
        self._sent = list(sent)
        self.notices = Notices()

    def waiting(self) -> int:
        """As if there were little."""
        return 0

    def receive(self) -> None:
        """Raises SourceUnavailable when all was given."""
        if not self._sent:
            raise SourceUnavailable("the end")

    def messages(self) -> Iterator[bytes]:
        """Each once, as a walsender gives them."""
        while self._sent:
            yield self._sent.pop(0)

    def timeout(self) -> float:
        """Of the server."""
        return 60.0

    def flush(self) -> bool:
        """All is sent."""
        return True

    def nothing(self, *arguments: object, **named: object) -> None:
        """What needs a server."""

    check_slot = check_publication = start = send_status = close = nothing


def _streaming(sent: Sequence[bytes]) -> Iterator[Piece]:
    """The pieces that a stream makes of what a walsender sends. Raises the error that ends it, but for the end."""
    there = vars(stream)["Walsender"]
    setattr(stream, "Walsender", lambda dsn, application_name: _Sent(sent))  # noqa: B010 (not what it exports)
    try:
        made = stream.PostgresStream(
            "",
            slot="s",
            publication="p",
            plugin="pgoutput",
            relations=routed(Format.TEXT),
            start=0,
            max_rows=50,
            max_bytes=1 << 20,
            resolve=lambda oid: None,
        )
    finally:
        setattr(stream, "Walsender", there)  # noqa: B010
    try:
        while True:
            if (piece := made.poll(0.05)) is not None:
                yield piece
    except SourceUnavailable:
        return
    finally:
        made.close()


@dataclass(frozen=True)
class Copied:
    """The messages of a COPY whose rows are those of a decoder: a backlog that is read through SQL."""

    stream: str

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """See `Decoded.try_one`. A row is as long as it says."""
        sent = mutated(list(_copied(captured(self.stream))), mutations)
        with _bounded(sum(map(len, sent))), _coded():
            for piece in _rows_decoded(sent):
                _check(piece)


def _copied(messages: Sequence[bytes]) -> Iterator[bytes]:
    """As a server sends them: the header with the first row, and the trailer."""
    header = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    for message in messages:
        yield header + b"\0\1" + len(message).to_bytes(4, "big") + message
        header = b""
    yield b"\xff\xff"


def _rows_decoded(sent: Sequence[bytes]) -> Iterator[Piece]:
    """The pieces that a backlog makes of it. Raises the errors of both."""
    gatherer = Gatherer[TupleBatch](0)
    decoder = Decoder(Routed(routed(Format.TEXT)), gatherer)

    rows = CopyRows()
    for begin in range(0, len(sent), COPIED_TOGETHER):
        block = rows.of(sent[begin : begin + COPIED_TOGETHER])
        for number in range(len(block)):
            message = block.message(number)
            assert int.from_bytes(message[2:ROW_HEADER], "big") == len(message) - ROW_HEADER, "not the row's own length"
        decoder.take(block)
    cut = gatherer.cut()
    yield from (*gatherer.ready, *([cut] if cut is not None else []))


@dataclass(frozen=True)
class Spooled:
    """The file of a transaction in the spool: what was written, or SpoolCorrupt."""

    stream: str

    def try_one(self, mutations: Sequence[Mutation]) -> None:
        """See `Decoded.try_one`. Bytes that are wrong are found out: no message is another one."""
        messages = captured(self.stream)
        with tempfile.TemporaryDirectory() as directory, closing(Spool(Path(directory), 1 << 30)) as spool:
            transaction = spool.open()
            for number, message in enumerate(messages):
                transaction.add([message])
                if number % 40 == 39:
                    transaction.flush()
            transaction.flush()
            file = transaction._file
            assert file is not None
            data = written = os.pread(file.fileno(), transaction.size, 0)
            for mutation in mutations:
                data = altered(data, mutation, written[mutation.message :])
            os.ftruncate(file.fileno(), 0)
            os.pwrite(file.fileno(), data, 0)
            with _bounded(len(written)):
                try:
                    read_back = [m for block in transaction.blocks() for m in block.messages(0, len(block))]
                except SpoolCorrupt:
                    return
                assert read_back == list(messages), "what was not written was read"


@contextmanager
def _coded() -> Iterator[None]:
    """Only coded errors are raised, and not that of a defect."""
    try:
        yield
    except TowlineError as error:
        assert error.code != TowlineError.code, f"a defect, and not a coded error: {error}"


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


DECODERS: dict[str, Decoded | Parsed | Enveloped | Copied | Spooled | Framed] = {
    "pgoutput, text": Decoded("pgoutput-text", lambda messages: decode_pgoutput(messages, routed(Format.TEXT))),
    "pgoutput, binary": Decoded("pgoutput-binary", lambda messages: decode_pgoutput(messages, routed(Format.BINARY))),
    "pgoutput, streamed": Decoded("pgoutput-streamed", _streamed),
    "pgoutput, single messages": Parsed("pgoutput-text"),
    "messages of the walsender": Enveloped("pgoutput-text"),
    "rows of a COPY": Copied("pgoutput-text"),
    "spool": Spooled("pgoutput-streamed"),
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
