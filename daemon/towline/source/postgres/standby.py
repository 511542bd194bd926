"""A stream from a standby, which may be promoted, or whose primary may be replaced, without the stream's noticing.

A standby goes on sending when that happens: what it had replayed until then is in the history of its new timeline too.
But a checkpoint has to say of which timeline its position is, or else the next start could not tell whether the source
has lost what the target has. So what is handed on here was received before a look that found the server on the timeline
that the attempt began with.
"""

from __future__ import annotations

import time

from towline.change import Piece
from towline.errors import SourceUnavailable
from towline.source import Stream
from towline.source.postgres.timelines import Timelines

#: How old a look may be that an idle position relies on, when no newer position has come (seconds).
_LOOK_EVERY = 1.0


class StandbyStream:
    """Implements `towline.source.Stream` around another one. Looks are taken in the caller's thread.

    Raises SourceUnavailable when the timeline has changed: the next attempt begins with the new one.
    """

    def __init__(self, stream: Stream, timelines: Timelines, timeline: int) -> None:
        self._stream = stream
        self._timelines = timelines
        self._timeline = timeline
        self._checked = 0
        self._looked_at = 0.0

    def poll(self, timeout: float) -> Piece | None:
        """See the contract."""
        piece = self._stream.poll(timeout)
        if piece is not None:
            self._look()
        return piece

    def acknowledge(self, position: int) -> None:
        """See the contract."""
        self._stream.acknowledge(position)

    @property
    def ready(self) -> bool:
        """See the contract."""
        return self._stream.ready

    @property
    def idle_position(self) -> int:
        """See the contract."""
        position = self._stream.idle_position
        if position > self._checked or time.monotonic() - self._looked_at > _LOOK_EVERY:
            self._look()
            self._checked = max(self._checked, position)
        return position

    @property
    def received_position(self) -> int:
        """See the contract."""
        return self._stream.received_position

    @property
    def awaited_position(self) -> int:
        """See the contract."""
        return self._stream.awaited_position

    def close(self) -> None:
        """End both connections."""
        self._stream.close()
        self._timelines.close()

    def _look(self) -> None:
        now = self._timelines.current()
        self._looked_at = time.monotonic()
        if now != self._timeline:
            raise SourceUnavailable(
                f"the source went over from timeline {self._timeline} to {now}: "
                "it was promoted, or follows another primary"
            )
