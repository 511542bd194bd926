"""How far the target is behind the source, in seconds: right under load, when idle, and when the source is silent.

The time of the last applied commit says nothing on an idle source, where it grows old though nothing is missing.
Instead the source's position is sampled with the time of the sample: the lag is the age of the oldest sample that was
not reached yet. When the last sample has been reached the lag is zero, unless samples stopped coming.
"""

from __future__ import annotations

from collections import deque


class LagClock:
    """Samples of the source's position, against the position reached. Times are seconds of any one steady clock."""

    def __init__(self, *, stale_after: float = 10.0, keep: int = 4096) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._last: tuple[float, int] | None = None
        self._stale_after = stale_after
        self._keep = keep

    def sample(self, now: float, position: int) -> None:
        """The source's log ended at ``position`` at time ``now``."""
        self._last = (now, position)
        if not self._samples or self._samples[-1][1] < position:
            self._samples.append((now, position))
        if len(self._samples) > self._keep:  # thin out: the oldest stays exact, the others lose half their resolution
            self._samples = deque(list(self._samples)[:1] + list(self._samples)[2::2])

    def seconds(self, now: float, reached: int) -> float:
        """The lag now, for a target that has everything before ``reached``."""
        while self._samples and self._samples[0][1] <= reached:
            self._samples.popleft()
        oldest = self._samples[0][0] if self._samples else now
        if self._last is not None and now - self._last[0] > self._stale_after:
            oldest = min(oldest, self._last[0])
        return max(0.0, now - oldest)

    def bytes(self, reached: int) -> int:
        """How much log the source had at the last sample beyond ``reached``."""
        return max(0, self._last[1] - reached) if self._last is not None else 0
