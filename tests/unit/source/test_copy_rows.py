"""Which messages of a COPY in the binary format are rows, and what is no such message."""

from __future__ import annotations

import pytest

from towline.errors import StreamMalformed
from towline.source.postgres.block import Block
from towline.source.postgres.copy_rows import ROW_HEADER, CopyRows

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
EXTENDED = b"PGCOPY\n\xff\r\n\0" + bytes(4) + b"\0\0\0\x03abc"
TRAILER = b"\xff\xff"


def row(value: bytes) -> bytes:
    """A row as the server sends it."""
    return b"\0\x01" + len(value).to_bytes(4, "big") + value


def values(*messages: bytes) -> list[bytes]:
    """The values of all messages, which must end with the trailer; they come one by one, or together."""
    alone, together = CopyRows(), CopyRows()
    found = [value for each in messages for value in of_block(alone.of([each]))]
    assert of_block(together.of(messages)) == found
    assert alone.ended
    assert together.ended
    return found


def of_block(block: Block) -> list[bytes]:
    """The values in it."""
    assert block.at == ROW_HEADER
    return [block.message(number)[ROW_HEADER:] for number in range(len(block))]


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([HEADER + TRAILER], []),
        ([HEADER, TRAILER], []),
        ([HEADER + row(b"a"), TRAILER], [b"a"]),
        ([HEADER, row(b"a"), row(b"bc"), TRAILER], [b"a", b"bc"]),
        ([EXTENDED + row(b"a"), row(b""), row(b"\xff\xff"), TRAILER], [b"a", b"", b"\xff\xff"]),
    ],
)
def test_rows(messages: list[bytes], expected: list[bytes]) -> None:
    """The first may come with the header, or not; a value may be empty, or look like a trailer."""
    assert values(*messages) == expected


@pytest.mark.parametrize(
    "messages",
    [
        [row(b"a")],  # no header
        [TRAILER],
        [b""],
        [HEADER[:-1]],
        [b"PGCOPY\n\xff\n\0" + bytes(9)],  # line ends were changed
        [HEADER[:11] + b"\0\x01\0\0" + bytes(4) + row(b"a")],  # rows with OIDs
        [EXTENDED[:-1]],
        [HEADER, b""],
        [HEADER, b"\0"],
        [HEADER, b"\0\x01"],
        [HEADER, b"\0\x01\xff\xfe"],
        [HEADER, b"\0\x01\0\0\0\x02a"],  # cut
        [HEADER, b"\0\x01\0\0\0\x01ab"],  # longer than it says
        [HEADER, b"\0\x01\xff\xff\xff\xff"],  # NULL
        [HEADER, b"\0\x02\0\0\0\x01a\0\0\0\x01b"],  # two columns
        [HEADER + row(b"a")[:-1]],
        [HEADER, row(b"a") + row(b"b")],
        [HEADER, TRAILER + b"\0"],
        [HEADER, TRAILER, TRAILER],
        [HEADER, TRAILER, row(b"a")],
        [HEADER, HEADER],
    ],
)
def test_malformed(messages: list[bytes]) -> None:
    """Whatever is cut, wrong or too much is told, and never taken for a value."""
    rows, together = CopyRows(), CopyRows()
    with pytest.raises(StreamMalformed):
        for each in messages:
            rows.of([each])
    with pytest.raises(StreamMalformed):
        together.of(messages)
