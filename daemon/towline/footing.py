"""What the verification of a route stands on: its state, its source's table, and what the target remembers of that.

While a table changes, rows differ that the daemon is about to bring, or to remove: a partition that came with rows is
read again, one that went is swept. So what was found wrong counts only if

    the route streamed from before the comparison until after it, the source's table is still the one that was
    compared, and nothing of it is left for the daemon to take in.

The source is looked at after the last row that was found wrong: a change that had made it so is seen. What the target
remembers is read before the state, since both change in one transaction: a route that streams then has what it
remembers.
"""

from __future__ import annotations

from towline import remembered as memory
from towline.change import Relation
from towline.differences import CHANGED, SWEEPING, RouteReport
from towline.errors import SourceTableChanged
from towline.postgres.session import translating
from towline.schema_change import Remembered, compare, unsettling
from towline.source import Tables
from towline.target.postgres.compare import CompareSession
from towline_transforms.route import Route


class Footing:
    """Of one route, as it is when this is made. ``relation``: what is to be compared."""

    def __init__(self, tables: Tables, session: CompareSession, route: Route, relation: Relation) -> None:
        self._tables = tables
        self._session = session
        self._route = route
        self._table = relation.table
        self._kept = self._remembered()
        self.state, self._sweep = self._now()

    def lost(self) -> RouteReport | None:
        """What there is to say instead of what was found wrong. None: that stands."""
        table = self._tables.describe([self._table.name]).get(self._table.name)
        kept = self._remembered()
        state, sweep = self._now()
        if state != "streaming":
            return RouteReport(self._route.name, state)
        meanwhile = compare(self._table, table, None)
        ahead = compare(kept.table, table, None) if kept is not None else ()
        waiting = kept is not None and unsettling(self._route, kept, ahead)
        if waiting or meanwhile or kept != self._kept:
            told = tuple(dict.fromkeys(map(str, ahead if waiting else meanwhile)))
            if table is None:  # renamed, perhaps
                told = (f"{self._table.name} is no more",)
            return RouteReport(self._route.name, CHANGED, changes=told, again=not waiting)
        if sweep or self._sweep:
            return RouteReport(self._route.name, SWEEPING, again=not sweep)
        return None

    def hold(self) -> None:
        """Before rows are mended, in that transaction. Raises SourceTableChanged when it is no longer known how."""
        found = self.lost()
        if found is not None and found.state != SWEEPING:
            raise SourceTableChanged(f"{self._table.name} changed while it was compared")

    def _remembered(self) -> Remembered | None:
        session, name = self._session, self._route.name
        with translating("target"):
            return memory.read(session.connection, session.schema, session.pipeline, name).get(name)

    def _now(self) -> tuple[str, bool]:
        """The route's state, and whether it is still to be swept."""
        found = self._session.states().get(self._route.name)
        return (found.state, found.sweep) if found is not None else ("pending", False)
