"""The parts of a verification that need no server: reports, and waiting for a position."""

from __future__ import annotations

import json

import pytest

from towline.differences import CHANGED, SAMPLES, SWEEPING, Report, RouteReport
from towline.errors import VerifyUnsettled
from towline.route_verifier import Progress


def test_exit_codes() -> None:
    """4 when rows differ, whatever else; 1 when not everything was verified; 0 when all is equal."""
    equal, different, moving = RouteReport("a", rows=5), RouteReport("b", rows=5), RouteReport("c", unsettled=1)
    different.add("missing", ("1",))
    copying = RouteReport("d", "copying")
    assert Report("p", (equal,)).exit_code == 0
    assert Report("p", ()).exit_code == 0
    assert Report("p", (equal, moving)).exit_code == 1
    assert Report("p", (equal, copying)).exit_code == 1
    assert Report("p", (different, moving, copying)).exit_code == 4
    assert Report("p", (equal,), repairs=(different,)).exit_code == 0


def test_a_report_in_words_and_as_json() -> None:
    """The total is the last line; the samples are bounded; JSON has the same figures."""
    route = RouteReport("orders", rows=100, seconds=0.5, unsettled=2)
    for number in range(SAMPLES + 5):
        route.add("different", (str(number), None), ("total", "état"))
    route.add("extra", ("x",))
    report = Report("erp", (route,))
    lines = list(report.lines())
    assert lines[0].startswith("orders: 100 rows, missing 0, extra 1, different 15")
    assert "  2 rows kept changing, not verified" in lines
    assert "  column total differs in 15 rows" in lines
    assert "  different (0, NULL) in total, état" in lines
    assert "  extra (x)" in lines
    assert lines[-1] == "verified: 100 rows compared, 16 differ, 2 kept changing"
    assert len(route.samples) == SAMPLES + 1
    data = json.loads(json.dumps(report.as_dict()))
    assert (data["rows"], data["differing"], data["unsettled"]) == (100, 16, 2)
    assert data["routes"][0]["columns"] == {"total": 15, "état": 15}
    assert data["routes"][0]["samples"][0] == {"kind": "different", "key": ["0", None], "columns": ["total", "état"]}


def test_a_route_that_was_not_compared_says_so() -> None:
    """One clear line, and no figures."""
    assert Report("p", (RouteReport("a", "copying"), RouteReport("b", rows=1))).total == (
        "verified: 1 row compared, 0 differ; 1 of 2 routes not compared"
    )
    assert list(RouteReport("a", "copying").lines()) == ["a: not compared, its copy is not complete (copying)"]


def test_a_route_whose_table_changed_says_so() -> None:
    """No difference, and not verified either; what was mended before is not kept back."""
    changed = RouteReport("a", CHANGED, changes=("public.a: column dropped: v",), repaired=2)
    assert list(changed.lines()) == [
        "a: not verified, its source table has changed (public.a: column dropped: v); "
        "it can be once the daemon has followed",
        "  2 rows repaired before that",
    ]
    report = Report("p", (changed, RouteReport("b", SWEEPING)))
    assert (report.exit_code, report.differing) == (1, 0)
    assert report.as_dict()["routes"][0]["changes"] == ["public.a: column dropped: v"]


def test_a_later_comparison_takes_the_place_of_the_first() -> None:
    """Of the routes that were compared again; what the first one mended is among the repairs."""
    first = Report("p", (RouteReport("a", CHANGED, repaired=2, again=True), RouteReport("b", rows=5)))
    report = first.amended(Report("p", (RouteReport("a", rows=7),)))
    assert [(route.route, route.state, route.rows) for route in report.routes] == [
        ("a", "streaming", 7),
        ("b", "streaming", 5),
    ]
    assert [(route.route, route.repaired) for route in report.repairs] == [("a", 2)]


class Position:
    """A checkpoint that moves by ``step`` whenever it is read."""

    def __init__(self, start: int, step: int) -> None:
        self.now, self.step, self.reads = start, step, 0

    def __call__(self) -> int:
        self.reads += 1
        self.now += self.step
        return self.now


def test_waiting_ends_when_the_checkpoint_has_passed() -> None:
    """The checkpoint is read until it is there, and not again for positions before it."""
    position = Position(0, 40)
    progress = Progress(position, lambda applied, upto: True, timeout=30)
    progress.wait(100)
    assert (position.now, position.reads) == (120, 3)
    progress.wait(120)
    assert position.reads == 3
    progress.wait(121)
    assert position.reads == 4


def test_waiting_ends_when_nothing_is_pending() -> None:
    """A source that wrote nothing for this pipeline counts as applied up to there."""
    asked: list[tuple[int, int]] = []

    def pending(applied: int, upto: int) -> bool:
        asked.append((applied, upto))
        return len(asked) < 3

    position = Position(50, 0)
    Progress(position, pending, timeout=30).wait(100)
    assert asked == [(50, 100)] * 3


def test_waiting_gives_up() -> None:
    """The error says where the target is, and where it should be."""
    with pytest.raises(VerifyUnsettled, match=r"is at 0/32 and has not reached 0/64 within 0\.02 s"):
        Progress(Position(50, 0), lambda applied, upto: True, timeout=0.02).wait(100)


def test_the_header_of_an_empty_page_is_not_waited_for() -> None:
    """At a page's border the insert position is after a header that nothing has been written behind yet."""
    progress = Progress(Position(8192 * 3, 0), lambda applied, upto: True, timeout=0.02)
    progress.wait(8192 * 3 + 24)
    with pytest.raises(VerifyUnsettled):
        progress.wait(8192 * 3 + 25)
