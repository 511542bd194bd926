"""The rows of ``COPY (SELECT one bytea column) TO STDOUT (FORMAT binary)``, each in a CopyData message of its own.

    first   :=  "PGCOPY\\n" 0xFF "\\r\\n" 0x00  int32 flags  int32 length  extension  [ row | trailer ]
    row     :=  int16 1  int32 length  value
    trailer :=  int16 -1

The server appends the first row to the header.
Source: https://www.postgresql.org/docs/current/sql-copy.html (Binary Format).
"""

from __future__ import annotations

from collections.abc import Iterator

from towline.errors import StreamMalformed

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

    def of(self, messages: Iterator[bytes]) -> Iterator[bytes]:
        """The rows among the messages: each value begins at `ROW_HEADER`, and ends with the bytes.

        Raises StreamMalformed.
        """
        for message in messages:
            if not self._begun:
                message = message[self._header(message) :]
                if not message:
                    continue
            if self.ended:
                raise StreamMalformed("COPY: something follows the trailer")
            if message[:2] == _ONE:
                if int.from_bytes(message[2:ROW_HEADER], "big") != len(message) - ROW_HEADER:
                    raise StreamMalformed("COPY: a row is not as long as it says")
                yield message
            elif message == _END:
                self.ended = True
            else:
                raise StreamMalformed("COPY: a row has not one column")

    def _header(self, message: bytes) -> int:
        if len(message) < _FIXED or not message.startswith(_SIGNATURE):
            raise StreamMalformed("COPY: the header is not that of the binary format")
        flags, extension = (int.from_bytes(message[at : at + 4], "big") for at in (_FIXED - 8, _FIXED - 4))
        if flags & _CRITICAL or _FIXED + extension > len(message):
            raise StreamMalformed("COPY: the header has unknown flags, or is cut")
        self._begun = True
        return _FIXED + extension
