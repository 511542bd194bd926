"""What a verification found: by route, in words, as JSON, and as an exit code."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from towline.errors import ChecksumDiffers, OperationsDiffer, RowRefused
from towline.position import format_lsn

#: How many keys of each kind of difference a report shows.
SAMPLES = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """A row that differs; ``key`` is the target's key as text.

    ``kind``: missing, extra, different, quarantined, or refused by the target when it was to be mended.
    """

    kind: str
    key: tuple[str | None, ...]
    columns: tuple[str, ...] = ()


#: The state of a route whose table has columns that the target is to get, and has not yet (``on_schema_change:
#: evolve``): they are in ``columns``.
EVOLVING = "evolving"
#: The state of a route whose source table changed while it was compared, or is not the one that the target remembers:
#: what differed may be what the daemon has yet to follow. ``changes`` says what.
CHANGED = "changed"
#: The state of a route that differed while the daemon still had to remove rows that the source no longer has.
SWEEPING = "sweeping"


class Keys(enum.StrEnum):
    """Whether the source's keys are those that the ledger adds up to, or the changes of its log those that the ledger
    noted. UNKNOWN: one of the two is not known.
    """

    EQUAL = "equal"
    DIFFER = "differs"
    UNSETTLED = "unsettled"
    UNKNOWN = "not established"


@dataclass(slots=True)
class RouteReport:
    """What was found for one route. ``rows``: source rows compared. ``columns``: how many rows differ in which column.

    ``quarantined``: rows that differ because a change of them was set aside; they are not among the others.
    ``state``: the route's, or `EVOLVING`, `CHANGED`, `SWEEPING`; only a route that is ``streaming`` can be compared.
    ``checksum``: None when it was not looked at. ``refused``: rows that a repair could not write, since the target
    refuses them; ``refusals``: why, ``refusal``: the first of these. ``again``: the change is over, so that the route
    can be compared once more.
    """

    route: str
    state: str = "streaming"
    rows: int = 0
    missing: int = 0
    extra: int = 0
    different: int = 0
    unsettled: int = 0
    quarantined: int = 0
    repaired: int = 0
    refused: int = 0
    refusals: set[str] = field(default_factory=set)
    refusal: RowRefused | None = None
    columns: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0
    checksum: Keys | None = None
    changes: tuple[str, ...] = ()
    again: bool = False

    @property
    def doubtful(self) -> bool:
        """Whether something was found wrong, or kept changing."""
        return bool(self.differing or self.unsettled) or self.checksum in (Keys.DIFFER, Keys.UNSETTLED)

    @property
    def differing(self) -> int:
        """Rows that are missing, extra or different."""
        return self.missing + self.extra + self.different

    def add(self, kind: str, key: tuple[str | None, ...], columns: tuple[str, ...] = ()) -> None:
        """Count a difference, and keep it as a sample while there are few of its kind."""
        setattr(self, kind, getattr(self, kind) + 1)
        for name in columns:
            self.columns[name] = self.columns.get(name, 0) + 1
        if sum(sample.kind == kind for sample in self.samples) < SAMPLES:
            self.samples.append(Sample(kind, key, columns))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "route": self.route,
            "state": self.state,
            "changes": list(self.changes),
            "rows": self.rows,
            "missing": self.missing,
            "extra": self.extra,
            "different": self.different,
            "unsettled": self.unsettled,
            "quarantined": self.quarantined,
            "repaired": self.repaired,
            "refused": self.refused,
            "refusals": sorted(self.refusals),
            "columns": dict(sorted(self.columns.items())),
            "checksum": None if self.checksum is None else self.checksum.value,
            "samples": [{"kind": s.kind, "key": list(s.key), "columns": list(s.columns)} for s in self.samples],
            "seconds": round(self.seconds, 3),
        }

    def lines(self) -> Iterator[str]:
        """For people; samples hold keys of rows, which are shown nowhere else."""
        if self.state != "streaming":
            yield f"{self.route}: {self._not_compared()}"
            if self.repaired:
                yield f"  {_rows(self.repaired)} repaired before that"
            return
        found = f"missing {self.missing}, extra {self.extra}, different {self.different}"
        if self.checksum is not None:
            found += f", checksum {self.checksum}"
        rate = f"{self.rows / self.seconds:,.0f} rows/s" if self.seconds > 0 else ""
        yield f"{self.route}: {_rows(self.rows)}, {found} ({self.seconds:.1f} s, {rate})"
        if self.checksum is Keys.DIFFER:
            yield f"  {ChecksumDiffers.code}: the source's keys are not those that the ledger adds up to"
        if self.unsettled:
            yield f"  {_rows(self.unsettled)} kept changing, not verified"
        if self.quarantined:
            yield f"  {_rows(self.quarantined)} behind: set aside, see `towline quarantine list`"
        if self.repaired:
            yield f"  {_rows(self.repaired)} repaired"
        if self.refused:
            yield f"  {_rows(self.refused)} not repaired: {RowRefused.code}, the target refuses what the source has"
        for reason in sorted(self.refusals):
            yield f"    {reason}"
        for name, count in sorted(self.columns.items()):
            yield f"  column {name} differs in {_rows(count)}"
        for sample in self.samples:
            key = ", ".join("NULL" if part is None else part for part in sample.key)
            yield f"  {sample.kind} ({key})" + (f" in {', '.join(sample.columns)}" if sample.columns else "")

    def _not_compared(self) -> str:
        if self.state == EVOLVING:
            lacking = ", ".join(self.columns)
            return f"not compared, the target lacks {lacking}, which the daemon adds, or `towline apply`"
        if self.state == CHANGED:
            what = f" ({'; '.join(self.changes)})" if self.changes else ""
            return f"not verified, its source table has changed{what}; it can be once the daemon has followed"
        if self.state == SWEEPING:
            return "not verified, the daemon is removing rows that the source no longer has"
        return f"not compared, its copy is not complete ({self.state})"


@dataclass(frozen=True, slots=True)
class RouteOperations:
    """Whether the ledger noted the changes of a route.

    ``log``, ``ledger``: how many each of them has, when both are known. ``reason``: why nothing is.
    """

    route: str
    state: Keys = Keys.UNKNOWN
    log: int | None = None
    ledger: int | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "route": self.route,
            "state": self.state.value,
            "log": self.log,
            "ledger": self.ledger,
            "reason": self.reason or None,
        }


@dataclass(frozen=True, slots=True)
class Operations:
    """The part of the source's log that was read once more, and what was found. ``reason``: why it was not."""

    begin: int = 0
    end: int = 0
    routes: tuple[RouteOperations, ...] = ()
    reason: str = ""

    @property
    def state(self) -> Keys:
        """Of all routes: EQUAL if that is known of some, and of no other one that they differ."""
        states = {route.state for route in self.routes}
        return next((state for state in (Keys.DIFFER, Keys.EQUAL) if state in states), Keys.UNKNOWN)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "state": self.state.value,
            "from": format_lsn(self.begin) if self.begin else None,
            "to": format_lsn(self.end) if self.end else None,
            "reason": self.reason or None,
            "routes": [route.as_dict() for route in self.routes],
        }

    def lines(self) -> Iterator[str]:
        """For people."""
        if self.reason:
            yield f"operations {Keys.UNKNOWN}: {self.reason}"
            return
        changes = sum(route.log or 0 for route in self.routes)
        span = f"{format_lsn(self.begin)} to {format_lsn(self.end)}"
        yield f"operations {_SAID.get(self.state, self.state)}: the log has {changes:,} changes of routes from {span}"
        for route in self.routes:
            if route.state is Keys.DIFFER:
                few = f"{route.log:,} and {route.ledger:,}" if route.log != route.ledger else "as many, but other ones"
                yield f"  {OperationsDiffer.code}: {route.route}: the log and the ledger have {few}"
            elif route.reason:
                yield f"  {route.route}: {route.state}, {route.reason}"


_SAID = {Keys.DIFFER: "differ", Keys.UNSETTLED: "kept changing"}


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"


@dataclass(frozen=True, slots=True)
class Report:
    """All routes as they are now. ``repairs``: what an earlier pass with ``repair`` found and mended. ``operations``:
    None when they were not looked at.
    """

    pipeline: str
    routes: tuple[RouteReport, ...]
    repairs: tuple[RouteReport, ...] = ()
    operations: Operations | None = None

    @property
    def rows(self) -> int:
        """Source rows compared."""
        return sum(route.rows for route in self.routes)

    @property
    def differing(self) -> int:
        """Rows that are missing, extra or different."""
        return sum(route.differing for route in self.routes)

    @property
    def unsettled(self) -> int:
        """Rows that could not be verified."""
        return sum(route.unsettled for route in self.routes)

    @property
    def quarantined(self) -> int:
        """Rows that differ because they were set aside."""
        return sum(route.quarantined for route in self.routes)

    @property
    def exit_code(self) -> int:
        """4: rows, checksums or operations differ. 1: not everything could be verified; later it may be. 0: all is
        equal.

        A checksum that is not established is none of these: the daemon counts the keys when it runs. Nor are
        operations: when nothing is applied meanwhile there are none.
        """
        checksums = {route.checksum for route in self.routes}
        operations = self.operations is not None and self.operations.state is Keys.DIFFER
        if self.differing or operations or Keys.DIFFER in checksums:
            return 4
        moving = self.unsettled > 0 or Keys.UNSETTLED in checksums
        return int(moving or any(route.state != "streaming" for route in self.routes))

    @property
    def total(self) -> str:
        """The last line of the report."""
        text = f"verified: {_rows(self.rows)} compared, {self.differing} differ"
        if self.unsettled:
            text += f", {self.unsettled} kept changing"
        if self.quarantined:
            text += f", {self.quarantined} in quarantine"
        for keys in (Keys.DIFFER, Keys.UNSETTLED):
            if count := sum(route.checksum is keys for route in self.routes):
                text += f"; {count} of {len(self.routes)} checksums {_SAID[keys]}"
        if self.operations is not None and self.operations.state is Keys.DIFFER:
            count = sum(route.state is Keys.DIFFER for route in self.operations.routes)
            text += f"; operations of {count} of {len(self.routes)} routes differ"
        left_out = sum(route.state != "streaming" for route in self.routes)
        if left_out:
            text += f"; {left_out} of {len(self.routes)} routes not compared"
        return text

    def amended(self, later: Report) -> Report:
        """With what was found of some routes later. Operations stay those of the log that was kept first."""
        found = {route.route: route for route in later.routes}
        routes = tuple(found.get(route.route, route) for route in self.routes)
        mended = (route for route in self.routes if route.route in found and route.repaired)
        return replace(self, routes=routes, repairs=(*self.repairs, *mended, *later.repairs))

    def lines(self) -> Iterator[str]:
        """For people, the total last."""
        for route in self.repairs:
            yield from route.lines()
        if self.repairs:
            yield "after the repair:"
        for route in self.routes:
            yield from route.lines()
        if self.operations is not None:
            yield from self.operations.lines()
        yield self.total

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "pipeline": self.pipeline,
            "rows": self.rows,
            "differing": self.differing,
            "unsettled": self.unsettled,
            "quarantined": self.quarantined,
            "operations": None if self.operations is None else self.operations.as_dict(),
            "routes": [route.as_dict() for route in self.routes],
            "repairs": [route.as_dict() for route in self.repairs],
        }
