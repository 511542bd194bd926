"""When so many rows are refused that it is not the rows: the circuit breaker of the quarantine. Decisions, no I/O.

Of each route the last `WINDOW` changes that were committed are remembered: how many each transaction had, and which
rows were set aside. A row counts once, by its key, however often it changes; and not at all when an earlier change of
it waits in the quarantine already, since then nothing new is wrong. What the transaction under way has set aside is
held against them before any of it is durable, so that of a batch that trips the breaker nothing is in the quarantine.

It lives as long as the daemon, over all its attempts. What it does not remember itself, since another daemon was at
work, it is told from the control tables (`recall`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from towline.errors import QuarantineFlooded, QuarantineFull
from towline.target import Counts

#: Over how many of a route's changes, at least, its share is measured, once it has seen so many.
WINDOW = 10_000


@dataclass(frozen=True, slots=True)
class Limits:
    """``max_share``: of a route's latest changes, the largest part of which rows may be set aside; it counts from
    ``min_rows`` changes on.

    ``max_open``: rows of one route that may be in the quarantine at a time.
    """

    max_share: float = 0.1
    min_rows: int = 100
    max_open: int = 10_000


@dataclass(slots=True)
class _Window:
    """What became of a route's latest changes, by transaction: how many there were, which rows were set aside, and how
    many more were, of which the keys are not known.
    """

    parts: deque[tuple[int, frozenset[bytes], int]] = field(default_factory=deque)
    seen: int = 0
    keys: Counter[bytes] = field(default_factory=Counter)
    more: int = 0

    @property
    def rows(self) -> int:
        return len(self.keys) + self.more

    def add(self, seen: int, keys: frozenset[bytes], more: int = 0) -> None:
        self.parts.append((seen, keys, more))
        self.seen += seen
        self.keys.update(keys)
        self.more += more
        while self.seen - self.parts[0][0] >= WINDOW:
            seen, keys, more = self.parts.popleft()
            self.seen -= seen
            self.more -= more
            for key in keys:
                self.keys[key] -= 1
                if not self.keys[key]:
                    del self.keys[key]


class Breaker:
    """Watches over the routes of a pipeline. Between `begin` and `committed`, what is refused is of a transaction."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._windows: dict[str, _Window] = {}
        self._refused: dict[str, set[bytes]] = {}
        self._fresh: Counter[str] = Counter()
        self._epoch: int | None = None

    def remembers(self, epoch: int) -> bool:
        """Whether nobody else was at work before that epoch began; else all is forgotten."""
        known, self._epoch = self._epoch is not None and epoch - self._epoch in (0, 1), epoch
        if not known:
            self._windows.clear()
        return known

    def recall(self, route: str, *, seen: int, rows: int) -> None:
        """What others have noted: of so many of the route's latest changes, so many rows are in the quarantine."""
        if seen > WINDOW:
            seen, rows = WINDOW, rows * WINDOW // seen
        self._windows.setdefault(route, _Window()).add(seen, frozenset(), rows)

    def begin(self) -> None:
        """A transaction begins, or the one under way was rolled back."""
        self._refused.clear()
        self._fresh.clear()

    def refused(self, route: str, key: bytes, *, seen: int, opened: int) -> None:
        """A row is to be set aside, of which nothing is in the quarantine.

        ``seen``: the route's changes in the transaction, as far as they are known to come. ``opened``: its rows in the
        quarantine, with this one. Raises QuarantineFlooded, QuarantineFull.
        """
        limits = self.limits
        if opened > limits.max_open:
            raise QuarantineFull(f"route {route}: more than {limits.max_open} rows would be in the quarantine")
        window = self._windows.get(route) or _Window()
        refused = self._refused.setdefault(route, set())
        if key not in refused:
            refused.add(key)
            self._fresh[route] += key not in window.keys
        seen, rows = seen + window.seen, window.rows + self._fresh[route]
        if seen >= limits.min_rows and rows > limits.max_share * seen:
            raise QuarantineFlooded(
                f"route {route}: in its last {seen} changes the target refuses {rows} rows or more, "
                f"which is over {limits.max_share:.0%}"
            )

    def committed(self, counts: Mapping[str, Counts]) -> None:
        """A transaction was committed."""
        for route, each in counts.items():
            if each.seen:
                keys = frozenset(self._refused.get(route, ()))
                self._windows.setdefault(route, _Window()).add(each.seen, keys)
        self.begin()
