"""The rows of ``COPY (SELECT one bytea column) TO STDOUT (FORMAT binary)``, each in a CopyData message of its own.

    first   :=  "PGCOPY\\n" 0xFF "\\r\\n" 0x00  int32 flags  int32 length  extension  [ row | trailer ]
    row     :=  int16 1  int32 length  value
    trailer :=  int16 -1

The server appends the first row to the header.
Source: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format).
"""

from __future__ import annotations

from collections.abc import Sequence

from towline.errors import StreamMalformed
from towline.frame import numbers
from towline.source.postgres.block import Block

#: Where the value begins in a message that is a row.
ROW_HEADER = 6

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_FIXED = len(_SIGNATURE) + 8
_ONE, _END = b"\0\x01", b"\xff\xff"
#: Flag bits 16 to 31 must be understood: none is set by a server of today (16: rows have OIDs).
_CRITICAL = 0xFFFF0000


class CopyRows:
    """Tells which messages of one COPY are rows, in turn."""

    def __init__(self) -> None:
        self._begun = False
        #: Whether the trailer came.
        self.ended = False

    def of(self, messages: Sequence[bytes | memoryview]) -> Block:
        """The rows among the messages that follow: each value begins at `ROW_HEADER`, and ends with the message.

        Raises StreamMalformed.
        """
        block = Block.of(messages, ROW_HEADER)
        if not self._begun and len(block):
            block.begins[0] += self._header(block.message(0))
            if block.begins[0] == block.ends[0]:
                block = block.part(1, len(block))
        if not len(block):
            return block
        if self.ended:
            raise StreamMalformed("COPY: something follows the trailer")
        last = len(block) - 1
        if block.message(last) == _END:
            self.ended = True
            block = block.part(0, last)
        sizes = block.ends - block.begins
        columns, lengths = (numbers(block.data, form) for form in (">u2", ">i4"))
        # Of a message that is too short, what is read is of the next one or the padding.
        rows = (columns[block.begins] == 1) & (lengths[block.begins + len(_ONE)] == sizes - ROW_HEADER)
        if not rows.all():
            raise self._malformed(block.message(int((~rows).argmax())))
        return block

    def _malformed(self, message: bytes) -> StreamMalformed:
        if message[: len(_ONE)] == _ONE:
            return StreamMalformed("COPY: a row is not as long as it says")
        if message == _END:
            return StreamMalformed("COPY: something follows the trailer")
        return StreamMalformed("COPY: a row has not one column")

    def _header(self, message: bytes) -> int:
        if len(message) < _FIXED or not message.startswith(_SIGNATURE):
            raise StreamMalformed("COPY: the header is not that of the binary format")
        flags, extension = (int.from_bytes(message[at : at + 4], "big") for at in (_FIXED - 8, _FIXED - 4))
        if flags & _CRITICAL or _FIXED + extension > len(message):
            raise StreamMalformed("COPY: the header has unknown flags, or is cut")
        self._begun = True
        return _FIXED + extension
