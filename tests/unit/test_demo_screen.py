"""What the demo shows, from a status that was made up."""

from __future__ import annotations

from datetime import UTC, datetime
from io import StringIO

from rich.console import Console

from towline.demo.demonstration import caught_up
from towline.demo.screen import LiveDisplay, PlainDisplay, display
from towline.demo.workload import kinds
from towline.source import Identity
from towline.status import RouteStatus, Status
from towline.target import Checkpoint, Counts

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status(*routes: RouteStatus, position: int = 100) -> Status:
    """A pipeline of these routes, with its checkpoint at ``position``."""
    identity = Identity("1", 1, "erp", 180006)
    checkpoint = Checkpoint(position, 1, identity, "s", "pgoutput", NOW, NOW)
    return Status("demo", "active", checkpoint, identity, 2148, "s", None, 2048, 0.25, routes, ())


def route(name: str, state: str, seen: int) -> RouteStatus:
    """A route halfway through 1,000 rows."""
    return RouteStatus(name, state, 500, 1000, Counts(seen=seen, upserted=seen), NOW)


def text(console: Console) -> str:
    """What was written to the console."""
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_plain_lines_come_every_two_seconds_with_rates() -> None:
    """A log file gets one line in two seconds, each complete in itself, and the last state whenever that was."""
    console = Console(file=StringIO(), width=300)
    with display(console) as shown:
        assert isinstance(shown, PlainDisplay)
        for tenth in range(46):
            shown.show(status(route("a", "copying", 10 * tenth), route("b", "streaming", 0)), tenth / 10, "busy")
    lines = text(console).splitlines()
    assert len(lines) == 4
    assert lines[-2] == (
        "busy | 1/2 routes streaming | 1,000 rows copied | 400 rows applied | 100 rows/s | lag 2.0 KiB, 0.2 s"
    )
    assert "| 450 rows applied |" in lines[-1]


def test_a_terminal_gets_a_live_screen() -> None:
    """Routes with progress, rate and counts, the lag, and what the demo is doing."""
    console = Console(file=StringIO(), width=120, height=40, force_terminal=True, legacy_windows=False)
    with display(console) as shown:
        assert isinstance(shown, LiveDisplay)
        shown.show(status(route("copied", "copying", 0)), 0.0, "")
        shown.show(status(route("copied", "copying", 700), route("done", "streaming", 5)), 1.0, "7 transactions")
    for words in ("copied", "done", "streaming", "700", "2.0 KiB", "7 transactions", "━"):
        assert words in text(console), words


def test_caught_up_means_all_routes_and_the_position() -> None:
    """One route that still copies, or a checkpoint before the goal, is not enough; nor is no route at all."""
    done, copying = route("a", "streaming", 1), route("b", "copying", 1)
    assert caught_up(status(done), 100)
    assert not caught_up(status(done), 101)
    assert not caught_up(status(done, copying), 100)
    assert not caught_up(status(), 100)


def test_the_workloads_statements_are_found() -> None:
    """Every block of the file is a kind, with a weight and one statement."""
    assert len(kinds()) >= 20
    for kind in kinds():
        assert kind.weight > 0
        assert kind.statement.split(None, 1)[0] in (b"WITH", b"INSERT", b"UPDATE", b"DELETE"), kind.name
        assert b";" not in kind.statement, kind.name
