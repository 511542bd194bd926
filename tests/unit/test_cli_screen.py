"""What people see of a status: sizes and times in words, tables, and rates between two looks."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from towline.cli.screen import Screen, duration, headline, route_rows, size
from towline.cli.table import plain
from towline.errors import Action
from towline.source import Identity, LargeTransactions, SlotState
from towline.status import RouteStatus, Status, Trouble
from towline.target import Checkpoint, Counts

NOON = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)
IDENTITY = Identity("7000", 1, "erp", 180006)
STATUS = Status(
    pipeline="p",
    role="active",
    checkpoint=Checkpoint(0x16_0000_1000, 3, IDENTITY, "towline_p", "pgoutput", NOON, NOON),
    source=IDENTITY,
    source_position=0x16_0010_1000,
    slot_name="towline_p",
    slot=SlotState(True, 0x16_0000_1000, 0x16_0000_0000, 77, 5 << 20, "reserved", "pgoutput", "erp"),
    lag_bytes=1 << 20,
    lag_seconds=75.0,
    routes=(
        RouteStatus("[order]", "copying", copied=250, estimate=1000, counts=Counts(250, 250)),
        RouteStatus("item", "streaming", counts=Counts(1234, 1000, 200, 30, 4), last_applied=NOON),
        RouteStatus("new"),
    ),
    errors=(),
    large=LargeTransactions(1234, 3 << 30, 0, 0, True),
    streaming="on",
)


def shown(screen: Screen, status: Status, now: float) -> str:
    """The screen as text, on a wide terminal without colours."""
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(screen.render(status, now))
    return capture.get()


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "?"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (3 << 60, "3072.0 PiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    """Bytes in words."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "?"), (0.04, "0.0 s"), (59.94, "59.9 s"), (125, "2 min 5 s"), (11_400, "3 h 10 min")]
)
def test_durations(seconds: float | None, text: str) -> None:
    """Seconds in words."""
    assert duration(seconds) == text


def test_headline() -> None:
    """The pipeline as a whole; with the source down, what is left of it."""
    assert dict(headline(STATUS)) == {
        "pipeline": "p",
        "daemon": "active",
        "checkpoint": "16/1000, written 2026-01-31 12:00:00 UTC",
        "source": "16/101000",
        "lag": "1.0 MiB, 1 min 15 s",
        "slot": "towline_p: reserved, retains 5.0 MiB",
        "streaming": "on; large transactions: 1,234 streamed (3.0 GiB), 0 spilled at the source (0 B)",
    }
    down = replace(STATUS, role="unknown", source_position=None, slot=None, lag_bytes=None, lag_seconds=None)
    assert dict(headline(down))["lag"] == "?, ?"
    assert "slot" not in dict(headline(down))


@pytest.mark.parametrize(
    ("streaming", "text"),
    [("suspended", "suspended, as the spool was full or failed"), ("off", "off"), (None, "not known now")],
)
def test_large_transactions_that_are_not_streamed(streaming: str | None, text: str) -> None:
    """Why, and what they cost the source; nothing is said of a source that does not count them."""
    status = replace(STATUS, streaming=streaming, large=LargeTransactions(spilled=2, spilled_bytes=5 << 20))
    found = dict(headline(status))["streaming"]
    assert found == f"{text}; large transactions: 0 streamed (0 B), 2 spilled at the source (5.0 MiB)"
    assert "streaming" not in dict(headline(replace(status, large=None)))


def test_routes_in_plain_text() -> None:
    """Columns that a script can read, numbers to the right."""
    assert plain(*route_rows(STATUS.routes)) == [
        "ROUTE    SNAPSHOT      UPSERTED  DELETED  SUPERSEDED  FILTERED  LAST APPLIED",
        "[order]  copying 25 %       250        0           0         0  -",
        "item     streaming        1,000      200          30         4  2026-01-31 12:00:00",
        "new      not set up           0        0           0         0  -",
    ]


def test_what_could_not_be_read_is_not_zero() -> None:
    """With the target down nothing is claimed of the routes."""
    _, [row], _ = route_rows([RouteStatus("item", known=False)])
    assert row == ["item", "?", "?", "?", "?", "?", "-"]


def test_screen_shows_rates() -> None:
    """Rows a second are the difference of two looks; none are claimed at the first."""
    screen = Screen()
    assert "[order]" in shown(screen, STATUS, 10.0)
    later = replace(STATUS, routes=(STATUS.routes[0], replace(STATUS.routes[1], counts=Counts(2234, 2000, 200, 30, 4))))
    row = next(line for line in shown(screen, later, 12.0).splitlines() if line.startswith("item"))
    assert row.split()[:3] == ["item", "streaming", "500"]


def test_screen_shows_trouble() -> None:
    """Errors stand on the screen, with what to do."""
    trouble = Trouble("TL-401", "target", "no answer", "wait", Action.RETRY)
    text = shown(Screen(), replace(STATUS, errors=(trouble,)), 0.0)
    assert "TL-401 (target): no answer" in text and "what to do: wait" in text


@pytest.mark.parametrize(
    ("actions", "code"),
    [((), 0), ((Action.RETRY,), 1), ((Action.RETRY, Action.STOP), 3), ((Action.CONFIGURE, Action.RETRY), 2)],
)
def test_exit_code(actions: tuple[Action, ...], code: int) -> None:
    """The most severe error counts."""
    errors = tuple(Trouble("TL-000", "source", "", "", action) for action in actions)
    assert replace(STATUS, errors=errors).exit_code == code


def test_json_has_plain_values() -> None:
    """The JSON form holds LSNs and times as text, and every documented field."""
    found = json.loads(json.dumps(STATUS.as_json()))
    assert list(found) == [
        "format",
        "pipeline",
        "role",
        "healthy",
        "checkpoint",
        "source_position",
        "lag_bytes",
        "lag_seconds",
        "slot",
        "large_transactions",
        "routes",
        "errors",
    ]
    assert found["checkpoint"] == {
        "position": "16/1000",
        "commit_time": "2026-01-31T12:00:00+00:00",
        "updated_at": "2026-01-31T12:00:00+00:00",
        "epoch": 3,
    }
    assert found["slot"]["active"] is True and found["slot"]["confirmed"] == "16/1000"
    assert found["large_transactions"] == {
        "streaming": "on",
        "streamed": 1234,
        "streamed_bytes": 3 << 30,
        "spilled": 0,
        "spilled_bytes": 0,
    }
    assert found["routes"][1]["seen"] == 1234
