"""A pipeline's status for eyes: lines and tables of `Status`, and rates between two of them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from towline.position import format_lsn
from towline.status import RouteStatus, Status

#: Of large transactions while they are under way.
_STREAMING = {None: "not known now", "suspended": "suspended, as the spool was full or failed"}

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float | None) -> str:
    """Bytes for people: ``1.5 MiB``; ``?`` for None."""
    if count is None:
        return "?"
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if unit == 0 else f"{count:.1f} {_UNITS[unit]}"


def duration(seconds: float | None) -> str:
    """Seconds for people: ``0.4 s``, ``2 min 5 s``, ``3 h 10 min``; ``?`` for None."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def headline(status: Status) -> list[tuple[str, str]]:
    """The pipeline as a whole: names and texts."""
    checkpoint, slot = status.checkpoint, status.slot
    catching_up = slot is not None and slot.catching_up
    lines = [("pipeline", status.pipeline), ("daemon", f"{status.role}{', catching up' if catching_up else ''}")]
    if checkpoint is not None:
        lines.append(
            ("checkpoint", f"{format_lsn(checkpoint.position)}, written {checkpoint.updated_at:%Y-%m-%d %H:%M:%S %Z}")
        )
    if status.source_position is not None:
        lines.append(("source", format_lsn(status.source_position)))
    lines.append(("lag", f"{size(status.lag_bytes)}, {duration(status.lag_seconds)}"))
    if slot is not None:
        state = f"{slot.wal_status or 'ok'}, retains {size(slot.retained_bytes)}" if slot.exists else "does not exist"
        lines.append(("slot", f"{status.slot_name}: {state}"))
    if (large := status.large) is not None:
        streaming = _STREAMING.get(status.streaming, status.streaming)
        sent = f"{large.streamed:,} streamed ({size(large.streamed_bytes)})"
        spilled = f"{large.spilled:,} spilled at the source ({size(large.spilled_bytes)})"
        lines.append(("streaming", f"{streaming}; large transactions: {sent}, {spilled}"))
    return lines


def route_rows(routes: Sequence[RouteStatus]) -> tuple[list[str], list[list[str]], list[int]]:
    """Routes as headers, rows, and the places of the columns that are numbers."""
    headers = ["route", "snapshot", "upserted", "deleted", "superseded", "filtered", "last applied"]
    rows = [
        [
            route.name,
            snapshot(route),
            _count(route, route.counts.upserted),
            _count(route, route.counts.deleted),
            _count(route, route.counts.superseded),
            _count(route, route.counts.filtered),
            f"{route.last_applied:%Y-%m-%d %H:%M:%S}" if route.last_applied is not None else "-",
        ]
        for route in routes
    ]
    return headers, rows, [2, 3, 4, 5]


def aside(status: Status) -> list[str]:
    """A line for each route of which rows were refused and wait for a person."""
    return [
        f"quarantine: {route.quarantine_open:,} of {route.name} set aside; see `towline quarantine list`"
        for route in status.routes
        if route.quarantine_open
    ]


def snapshot(route: RouteStatus) -> str:
    """``streaming``, ``pending``, or how far the copy is; ``?`` when the target could not be asked."""
    if not route.known:
        return "?"
    if route.state == "copying" and route.estimate > 0:
        return f"copying {min(99, 100 * route.copied // route.estimate)} %"
    return route.state or "not set up"


def _count(route: RouteStatus, count: int) -> str:
    return f"{count:,}" if route.known else "?"


class Screen:
    """Remembers the status before, for rates."""

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._at: float | None = None
        self._rates: dict[str, float] = {}

    def render(self, status: Status, now: float) -> RenderableType:
        """The screen for a status taken at ``now`` (seconds of a steady clock)."""
        self._measure(status, now)
        top = Table.grid(padding=(0, 2))
        for name, text in headline(status):
            top.add_row(Text(name, style="bold"), Text(text))
        parts: list[RenderableType] = [top, Text(), self._routes(status)]
        parts += [Text(line, style="yellow") for line in aside(status)]
        for error in status.errors:
            parts.append(Text(f"{error.code} ({error.side}): {error.detail}", style="red"))
            parts.append(Text(f"  what to do: {error.advice}"))
        return Group(*parts)

    def _measure(self, status: Status, now: float) -> None:
        rows = {route.name: route.counts.seen for route in status.routes}
        if self._at is not None and now > self._at:
            passed = now - self._at
            self._rates = {name: (rows[name] - self._rows.get(name, rows[name])) / passed for name in rows}
        self._rows, self._at = rows, now

    def _routes(self, status: Status) -> Table:
        table = Table(expand=True, box=None, pad_edge=False)
        table.add_column("route", ratio=2)
        table.add_column("snapshot", ratio=2)
        for header in ("rows/s", "upserted", "deleted", "seen"):
            table.add_column(header, justify="right")
        for route in status.routes:
            table.add_row(
                Text(route.name),
                _bar(route),
                f"{self._rates.get(route.name, 0):,.0f}",
                _count(route, route.counts.upserted),
                _count(route, route.counts.deleted),
                _count(route, route.counts.seen),
            )
        return table


def _bar(route: RouteStatus) -> RenderableType:
    if route.state == "copying" and route.estimate > 0:
        return ProgressBar(total=max(route.estimate, route.copied), completed=route.copied, width=24)
    return Text(snapshot(route), style="green" if route.state == "streaming" else "")
