"""Counts what becomes of rows while statements are queued: some figures are known only when the results are there."""

from __future__ import annotations

from towline.target import Counts
from towline.target.postgres.executor import Outcome
from towline_transforms.route import Route


class Tally:
    """The counts of one attempt at applying a piece."""

    def __init__(self) -> None:
        self._counts: dict[str, Counts] = {}
        self._made: list[tuple[Counts, int, Outcome]] = []
        self._updated: list[tuple[Counts, int, Outcome]] = []

    def of(self, route: Route) -> Counts:
        """The route's figures."""
        return self._counts.setdefault(route.name, Counts())

    def made(self, route: Route, staged: int, outcome: Outcome) -> None:
        """A statement that returns how many of the staged rows the route makes rows of; the others are filtered."""
        self._made.append((self.of(route), staged, outcome))

    def updated(self, route: Route, staged: int, outcome: Outcome) -> None:
        """The same, for a statement that changes as many rows."""
        self._updated.append((self.of(route), staged, outcome))

    def counts(self) -> dict[str, Counts]:
        """The figures by route, after all results have come."""
        for counts, staged, outcome in self._made:
            made = int(outcome.rows[0][0] or 0)
            counts.upserted += made
            counts.filtered += staged - made
        for counts, staged, outcome in self._updated:
            counts.upserted += outcome.rowcount
            counts.filtered += staged - outcome.rowcount
        return self._counts
