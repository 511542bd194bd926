"""Where in its work the daemon is when a fault strikes: the columns of the matrix."""

from __future__ import annotations

import enum

from towline.pipeline import POINTS

PLUGINS = ("pgoutput", "wal2json")


class Phase(enum.StrEnum):
    """A phase; its points are where the daemon is paused and the fault put in (one of them, by the seed)."""

    SNAPSHOT = "snapshot"
    STREAMING = "streaming"
    APPLYING = "applying"
    COMMITTING = "committing"
    ACKNOWLEDGING = "acknowledging"
    VERIFYING = "verifying"

    @property
    def points(self) -> tuple[str, ...]:
        """The daemon's points (`towline.pipeline.POINTS`); none for VERIFYING: there verify is paused."""
        return _POINTS[self]


_POINTS = {
    Phase.SNAPSHOT: ("chunk-read", "chunk-loaded"),
    Phase.STREAMING: ("received",),
    Phase.APPLYING: ("begun", "applied", "within-transaction"),
    Phase.COMMITTING: ("committing",),
    Phase.ACKNOWLEDGING: ("committed",),
    Phase.VERIFYING: (),
}

assert all(point in POINTS for points in _POINTS.values() for point in points)
