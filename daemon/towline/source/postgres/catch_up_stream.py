"""A stream that is left while its consumer is far behind, for a `Backlog`, and begun again near the end of the log.

Who is far behind when it starts need not begin with the stream. It switches where the consumer has taken all
transactions up to a position, and never within one. What the stream had read beyond that is read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from towline.catch_up import CatchUp
from towline.change import Piece
from towline.errors import SourceTableChanged, StreamMalformed, TowlineError
from towline.source.postgres.backlog import Backlog
from towline.source.postgres.slot_copy import SlotCopy
from towline.source.postgres.stream import PostgresStream

#: Passed as the loop's points are, see `towline.pipeline.POINTS`.
POINTS = (
    "gulp-read",  # a gulp of the backlog was read
    "switching",  # the backlog is at its end, the stream is to be begun
    "switched",  # it was begun
)


class Switches(Protocol):
    """Who wants to know how the log is read."""

    def catching_up(self, position: int, behind: int) -> None:
        """The backlog of ``behind`` bytes after the position is read through SQL from here on."""

    def refused(self, position: int, error: TowlineError) -> None:
        """Why the backlog cannot be read from the position on."""

    def streaming(self, position: int, caught_up: bool) -> None:
        """The stream goes on at the position; ``caught_up``: near the end of the log."""


class CatchUpStream:
    """Implements `towline.source.Stream`, from ``position`` on, which is durable.

    ``stream`` and ``backlog`` begin to read at a position, the first argument; the second is what is durable.
    ``sample``: what `sampled` would be told; without one it begins with the stream.

    The constructor and `poll` raise what these do.
    """

    def __init__(
        self,
        position: int,
        *,
        stream: Callable[[int, int], PostgresStream],
        backlog: Callable[[int, int], Backlog],
        decision: CatchUp,
        switches: Switches,
        sample: tuple[int, int] = (0, 0),
        announce: Callable[[str], None] = lambda point: None,
    ) -> None:
        self._position = self._acknowledged = position
        self._inside = False
        self._stream = stream
        self._backlog = backlog
        self._decision = decision
        self._switches = switches
        self._announce = announce
        self._source = sample
        self._gulps = 0
        self._behind = self._far_behind()  # 0, or what has not been told of the backlog that was begun
        self._now: PostgresStream | Backlog = (backlog if self._behind else stream)(position, position)

    def sampled(self, end: int, restart: int) -> None:
        """Where the source's log ends, and the slot's restart position. May be called from another thread."""
        self._source = (end, restart)

    def poll(self, timeout: float) -> Piece | None:
        """See the contract."""
        if isinstance(self._now, PostgresStream):
            self._enter_if_due()
        if self._behind:
            self._switches.catching_up(self._position, self._behind)
            self._behind = 0
        try:
            piece = self._now.poll(timeout)
        except SourceTableChanged:
            raise
        except TowlineError:
            if isinstance(self._now, Backlog):
                self._decision.failed(time.monotonic())
            raise
        if piece is not None:
            self._inside = piece.end is None
            self._position = piece.end or self._position
        if isinstance(self._now, Backlog):
            if self._now.gulps > self._gulps:
                self._gulps = self._now.gulps
                self._announce("gulp-read")
            if piece is None and self._now.drained:
                self._leave(self._now)
        return piece

    def _enter_if_due(self) -> None:
        if self._inside or self.spooled[0]:  # what came of transactions under way would come again
            return
        self._position = max(self._position, self._now.idle_position)
        if behind := self._far_behind():
            self._now.close()
            self._gulps = 0
            self._now = self._backlog(self._position, self._acknowledged)
            self._behind = behind

    def _far_behind(self) -> int:
        """The bytes of the log that are to be read as a backlog from here on; 0: none are."""
        end, restart = self._source
        return end - self._position if self._decision.enter(time.monotonic(), end, self._position, restart) else 0

    def _leave(self, backlog: Backlog) -> None:
        self._announce("switching")
        backlog.close()
        self._position = max(self._position, backlog.position)
        self._source = (0, 0)
        if self._inside:
            raise StreamMalformed("the backlog has ended inside a transaction")
        if backlog.refused is not None:
            self._decision.refused(time.monotonic())
            self._switches.refused(self._position, backlog.refused)
        self._now = self._stream(self._position, self._acknowledged)
        self._announce("switched")
        self._switches.streaming(self._position, caught_up=backlog.refused is None and not backlog.left)

    def acknowledge(self, position: int) -> None:
        """See the contract."""
        self._acknowledged = max(self._acknowledged, position)
        self._now.acknowledge(position)

    @property
    def waiting(self) -> SlotCopy | None:
        """See `Backlog.waiting`. The stream's line is the stream's own to watch."""
        now = self._now
        return now.waiting if isinstance(now, Backlog) else None

    @property
    def spooled(self) -> tuple[int, int]:
        """See `PostgresStream.spooled`."""
        now = self._now
        return now.spooled if isinstance(now, PostgresStream) else (0, 0)

    @property
    def ready(self) -> bool:
        """See the contract."""
        return self._now.ready

    @property
    def idle_position(self) -> int:
        """See the contract."""
        return self._now.idle_position

    @property
    def received_position(self) -> int:
        """See the contract."""
        return self._now.received_position

    @property
    def awaited_position(self) -> int:
        """See the contract."""
        return self._now.awaited_position

    def close(self) -> None:
        """See the contract."""
        self._now.close()
