"""When so many rows are refused that it is not the rows: the circuit breaker of the quarantine. Decisions, no I/O.

Of each route the last `WINDOW` rows that were committed are remembered, as two figures for each transaction. What the
transaction under way has set aside is held against them before any of it is durable, so that of a batch that trips
the breaker nothing is in the quarantine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from towline.errors import QuarantineFlooded, QuarantineFull
from towline.target import Counts

#: How many rows of a route, at least, its share is measured over, once it has seen so many.
WINDOW = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_share``: of a route's latest rows, the largest part that may be set aside; it counts from ``min_rows`` on.

    ``max_open``: rows of one route that may be in the quarantine at a time.
    """

    max_share: float = 0.1
    min_rows: int = 100
    max_open: int = 10_000


@dataclass(slots=True)
class _Window:
    """What became of a route's latest rows: rows seen and rows set aside, by transaction and in all."""

    parts: deque[tuple[int, int]] = field(default_factory=deque)
    seen: int = 0
    quarantined: int = 0

    def add(self, seen: int, quarantined: int) -> None:
        self.parts.append((seen, quarantined))
        self.seen += seen
        self.quarantined += quarantined
        while self.seen - self.parts[0][0] >= WINDOW:
            seen, quarantined = self.parts.popleft()
            self.seen -= seen
            self.quarantined -= quarantined


class Breaker:
    """Watches over the routes of a pipeline."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._windows: dict[str, _Window] = {}

    def check(self, route: str, *, seen: int, quarantined: int, opened: int) -> None:
        """Look at a transaction under way before another row is set aside.

        ``seen``: the route's rows in it, as far as they are known to come; ``quarantined``: of these, with that row.
        ``opened``: the route's rows in the quarantine, with that row. Raises QuarantineFlooded, QuarantineFull.
        """
        limits = self._limits
        if opened > limits.max_open:
            raise QuarantineFull(f"route {route}: more than {limits.max_open} rows would be in the quarantine")
        window = self._windows.get(route) or _Window()
        seen, quarantined = seen + window.seen, quarantined + window.quarantined
        if seen >= limits.min_rows and quarantined > limits.max_share * seen:
            raise QuarantineFlooded(
                f"route {route}: of its last {seen} rows the target refuses {quarantined} or more, "
                f"which is over {limits.max_share:.0%}"
            )

    def committed(self, counts: Mapping[str, Counts]) -> None:
        """A transaction was committed."""
        for route, each in counts.items():
            if each.seen:
                self._windows.setdefault(route, _Window()).add(each.seen, each.quarantined)
