"""What the demo shows while it runs: a live screen in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from towline.cli.screen import Screen, duration, size
from towline.status import Status

#: Seconds between plain lines.
INTERVAL = 2.0


class Display(Protocol):
    """Shows the pipeline's status, with what the demo does meanwhile."""

    def show(self, status: Status, now: float, doing: str) -> None:
        """``now``: seconds of a steady clock; ``doing``: a line on workload and time."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def display(console: Console) -> Display:
    """The display that suits the console."""
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


class LiveDisplay:
    """The screen of `towline top`, redrawn in place; the last one stays."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._screen = Screen()

    def show(self, status: Status, now: float, doing: str) -> None:
        """Redraw."""
        self._live.update(Group(self._screen.render(status, now), Text(), Text(doing, style="dim")), refresh=True)

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class PlainDisplay:
    """One line every INTERVAL seconds, and one for how it ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: tuple[float, int] | None = None
        self._unseen: tuple[Status, float, str] | None = None

    def show(self, status: Status, now: float, doing: str) -> None:
        """Print a line, if it is time."""
        if self._before is not None and now - self._before[0] < INTERVAL:
            self._unseen = (status, now, doing)
        else:
            self._print(status, now, doing)

    def _print(self, status: Status, now: float, doing: str) -> None:
        rows = sum(route.counts.seen for route in status.routes)
        rate = (rows - self._before[1]) / (now - self._before[0]) if self._before is not None else 0.0
        self._before, self._unseen = (now, rows), None
        self._console.print(line(status, rows, rate, doing), markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unseen is not None:
            self._print(*self._unseen)


def line(status: Status, rows: int, rate: float, doing: str) -> str:
    """The status in one line."""
    streaming = sum(route.state == "streaming" for route in status.routes)
    copied = sum(route.copied for route in status.routes)
    parts = [
        doing,
        f"{streaming}/{len(status.routes)} routes streaming",
        f"{copied:,} rows copied",
        f"{rows:,} rows applied",
        f"{rate:,.0f} rows/s",
        f"lag {size(status.lag_bytes)}, {duration(status.lag_seconds)}",
        *(f"{trouble.code} {trouble.detail}" for trouble in status.errors),
    ]
    return " | ".join(parts)
