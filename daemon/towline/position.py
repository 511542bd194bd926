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
