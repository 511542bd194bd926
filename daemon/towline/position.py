"""Positions in a source's log: their order and their text form.

A PostgreSQL position (LSN) is a byte offset into the write-ahead log. Towline keeps it as a plain
``int`` wherever it is compared or added to, and uses this module at the edges.

A *checkpoint* is always the position just **after** a commit record (``end_lsn``): many changes
share a commit, so the start of a commit says nothing about what of it was applied.
"""

from __future__ import annotations

import re

_LSN = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")

#: The position before everything; PostgreSQL calls it InvalidXLogRecPtr.
ZERO = 0


def parse_lsn(text: str) -> int:
    """Read ``'16/B374D848'`` (the output of type ``pg_lsn``).

    Raises ValueError when the text is not an LSN.
    """
    match = _LSN.match(text)
    if match is None:
        raise ValueError(f"not an LSN: {text!r} (expected two hexadecimal numbers, as in 16/B374D848)")
    return (int(match[1], 16) << 32) | int(match[2], 16)


def format_lsn(position: int) -> str:
    """Write a position as PostgreSQL prints it, e.g. ``'16/B374D848'``."""
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def before_page_header(position: int) -> int:
    """The same place in the log, without the header of an empty page.

    ``pg_current_wal_insert_lsn()`` names where the next record would start: at a page boundary that is after the
    page's header (24 bytes, 40 on a segment's first page), which is not written before the record. A stream that has
    sent everything stops before it. See XLogBytePosToRecPtr and XLogBytePosToEndRecPtr in PostgreSQL's xlog.c (pages
    of 8 kB).
    """
    return position - position % 8192 if position % 8192 in (24, 40) else position
