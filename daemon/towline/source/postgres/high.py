"""How far the stream must be followed until it has told of everything that a snapshot saw.

The position where the next log record will be inserted is surely beyond that. But a stream sends only what is flushed,
and nothing has to be: reading a table writes log, too (pruning, hint bits with checksums), which on a quiet server is
left in the buffer for up to fifteen seconds. What counts is the end of the commits that the snapshot saw, and a commit
is flushed before it becomes visible. The exception are sessions with ``synchronous_commit = off``: the walwriter
flushes their commits within three times ``wal_writer_delay`` (PostgreSQL's documentation, "Asynchronous Commit").

So the flushed position will do when it has reached the insert position, or when that time has passed. It may be within
a record, whose end is flushed as late: so a snapshot that sees exactly what an earlier one saw has that one's position,
which the stream has reached, and not the one of today.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from towline.change import Visibility
from towline.position import before_page_header

#: How often to look whether the log has been flushed (seconds).
_LOOK = 0.005


@dataclass(frozen=True, slots=True)
class Look:
    """What a transaction sees, and the ends of the log, inserted and flushed, just after that was settled.

    ``exact``: it sees nothing but what ``visibility`` says. ``replayed``: on a standby, where a commit can be seen a
    moment before the position has passed it.
    """

    visibility: Visibility
    inserted: int
    flushed: int
    at: datetime
    exact: bool = True
    replayed: bool = False


class High:
    """Finds ``Chunk.high`` for looks of one session, in their order. Sleeps for the time that the walwriter may take,
    at most.

    ``flushed`` and ``writer_delay`` ask the server: the end of the flushed log, and wal_writer_delay in seconds.
    """

    def __init__(self, flushed: Callable[[], int], writer_delay: Callable[[], float]) -> None:
        self._flushed = flushed
        self._writer_delay = writer_delay
        self._settled: tuple[Visibility, int] | None = None

    def of(self, look: Look) -> int:
        """The position for what was read after that look: the earlier one's, if it saw the same."""
        if self._settled is not None and look.visibility == self._settled[0]:
            return self._settled[1]
        wanted = before_page_header(look.inserted)
        flushed = look.flushed
        if flushed < wanted:
            deadline = time.monotonic() + 3 * self._writer_delay()
            while (flushed := self._flushed()) < wanted and time.monotonic() < deadline:
                time.sleep(_LOOK)
        high = min(flushed, wanted)
        self._settled = None if look.replayed else (look.visibility, high)
        return high
