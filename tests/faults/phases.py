"""Where in its work the daemon is when a fault strikes: the columns of the matrix."""

from __future__ import annotations

import enum

from tests.faults import verifier
from towline.pipeline import POINTS

PLUGINS = ("pgoutput", "wal2json")


class Phase(enum.StrEnum):
    """A phase; its points are where the daemon is paused and the fault put in (one of them at a time)."""

    SNAPSHOT = "snapshot"
    STREAMING = "streaming"
    APPLYING = "applying"
    COMMITTING = "committing"
    ACKNOWLEDGING = "acknowledging"
    VERIFYING = "verifying"

    @property
    def points(self) -> tuple[str, ...]:
        """The daemon's points (`towline.pipeline.POINTS`); that of verify for VERIFYING."""
        return _POINTS[self]


_POINTS = {
    Phase.SNAPSHOT: ("chunk-read", "chunk-loaded"),
    Phase.STREAMING: ("received",),
    Phase.APPLYING: ("begun", "applied", "within-transaction"),
    Phase.COMMITTING: ("committing",),
    Phase.ACKNOWLEDGING: ("committed",),
    Phase.VERIFYING: (verifier.POINT,),
}

assert all(point in POINTS for phase, points in _POINTS.items() if phase is not Phase.VERIFYING for point in points)
