"""verify beside changes of source tables: what the daemon has yet to follow is no difference, what is wrong is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import towline.verify
from tests.support.databases import NewDatabase
from tests.support.line import Line, caught_up, running
from tests.support.wait import until
from towline.change import Chunk, Cursor, Relation
from towline.demo.server import Server
from towline.differences import CHANGED, SWEEPING, Keys, Report, RouteReport
from towline.errors import ColumnChanged, PartitionDetached, SourceTableChanged
from towline.source.postgres.tables import PostgresTables

SOURCE = """
CREATE TABLE alpha (id int PRIMARY KEY, v text); INSERT INTO alpha VALUES (1, 'a'), (2, 'b');
CREATE TABLE item (id int PRIMARY KEY, v text, w varchar(10)) PARTITION BY RANGE (id);
CREATE TABLE item_0 PARTITION OF item FOR VALUES FROM (0) TO (100);
CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (100) TO (200);
INSERT INTO item SELECT n, 'v' || n, 'w' || n FROM generate_series(1, 120) n;
"""
#: Its column w holds any text, so that only some changes of the type are to be halted for.
HUB = "CREATE SCHEMA replica; CREATE TABLE replica.item (id int PRIMARY KEY, v text, w text)"
ROUTES = "  - {{from: public.*, into: replica.*, on_schema_change: {}, on_truncate: {}}}"
ATTACH = """
CREATE TABLE item_2 (LIKE item INCLUDING ALL);
INSERT INTO item_2 SELECT n, 'x', 'y' FROM generate_series(200, 260) n;
ALTER TABLE item ATTACH PARTITION item_2 FOR VALUES FROM (200) TO (300)
"""
#: Changes of the table, and the policies with which the daemon halts.
CHANGES = {
    "partition attached": (ATTACH, ()),
    "column added": ("ALTER TABLE item ADD n int NOT NULL DEFAULT 7; UPDATE item SET n = 8 WHERE id < 5", ("halt",)),
    "column dropped": ("ALTER TABLE item DROP w", ("halt",)),
    "column retyped": ("ALTER TABLE item ALTER w TYPE text USING upper(w)", ()),
    "column retyped otherwise": ("ALTER TABLE item ALTER w TYPE int USING length(w)", ("halt", "evolve")),
}
NewLine = Callable[..., Line]


@pytest.fixture
def new_line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> NewLine:
    """Makes a pipeline of two tables, applied and caught up."""

    def make(policy: str, on_truncate: str = "halt") -> Line:
        routes, more = ROUTES.format(policy, on_truncate), "snapshot: {chunk_rows: 50}"
        line = Line.make(tmp_path, new_database(pg18), new_database(hub18), routes, more=more)
        line.at_source(SOURCE)
        line.at_hub(HUB)
        line.apply()
        line.run()
        return line

    return make


def meanwhile(monkeypatch: pytest.MonkeyPatch, table: str, number: int, act: Callable[[], object]) -> None:
    """Have something done, once, before verify reads the so manieth chunk of a table."""

    class Watched(PostgresTables):
        def chunk(self, relation: Relation, after: Cursor | None, limit: int) -> Chunk:
            nonlocal number
            if relation.name.name == table:
                number -= 1
                if number == 0:
                    act()
            return super().chunk(relation, after, limit)

    monkeypatch.setattr(towline.verify, "PostgresTables", Watched)


def remembered(line: Line) -> object:
    """What the target remembers of the table."""
    return line.at_hub("SELECT \"table\"::text FROM towline.source_table WHERE route = 'public.item'")


def taken_in(line: Line, before: object) -> None:
    """Wait until the daemon has taken a change in, and copied what there is to copy."""
    until(lambda: remembered(line) != before, 20)
    caught_up(line)


def of_item(report: Report) -> RouteReport:
    (found,) = (route for route in report.routes if route.route == "public.item")
    return found


def wrong(report: RouteReport) -> tuple[int, int, int]:
    return report.missing, report.extra, report.different


@pytest.mark.parametrize("policy", ["evolve", "halt"])
@pytest.mark.parametrize("change", CHANGES)
def test_no_alarm_beside_a_change(new_line: NewLine, monkeypatch: pytest.MonkeyPatch, change: str, policy: str) -> None:
    """A table that changes between two routes: it is compared as it has become, or its state is reported."""
    line = new_line(policy)
    statement, halting = CHANGES[change]
    before = remembered(line)
    meanwhile(monkeypatch, "alpha", 1, lambda: line.at_source(statement))

    reports = []
    try:
        with running(line) as failed:
            caught_up(line)
            reports.append(line.verify(timeout=5.0))
            until(lambda: bool(failed) or (policy not in halting and remembered(line) != before), 20)
            if not failed:
                caught_up(line)
    except SourceTableChanged:
        assert failed and policy in halting, "verify met the change, not the daemon"
    (report,) = reports
    assert report.differing == 0 and report.exit_code in (0, 1), list(report.lines())
    assert of_item(report).checksum is not Keys.DIFFER
    if policy not in halting:
        assert line.verify().exit_code == 0


@pytest.mark.parametrize("change", ["partition attached", "column dropped", "column retyped", "column added"])
def test_a_change_that_was_followed_meanwhile(new_line: NewLine, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """When the daemon is done with it the table is compared once more, in the same run, and what is wrong is found."""
    line = new_line("evolve")
    with running(line):
        caught_up(line)
        line.at_hub("UPDATE replica.alpha SET v = 'wrong' WHERE id = 2")

        def act() -> None:
            before = remembered(line)
            line.at_source(CHANGES[change][0])
            taken_in(line, before)
            line.at_hub("DELETE FROM replica.item WHERE id = 110; UPDATE replica.item SET v = 'wrong' WHERE id = 111")

        meanwhile(monkeypatch, "item", 2, act)
        report = line.verify()
    assert [wrong(route) for route in report.routes] == [(0, 0, 1), (1, 0, 1)], list(report.lines())
    assert report.exit_code == 4 and {route.state for route in report.routes} == {"streaming"}


def test_what_the_daemon_has_not_followed(new_line: NewLine) -> None:
    """Without a daemon the state says what has changed; once one has followed, what is wrong is reported."""
    line = new_line("evolve")
    line.at_hub("UPDATE replica.item SET v = 'wrong' WHERE id = 7")
    line.at_source(ATTACH)
    report = line.verify(timeout=5.0)
    found = of_item(report)
    assert (found.state, report.exit_code, wrong(found)) == (CHANGED, 1, (0, 0, 0))
    assert found.changes == ("public.item: partition attached (public.item_2)",)
    assert "not verified, its source table has changed (public.item: partition attached" in "\n".join(report.lines())
    line.run()
    line.at_hub("UPDATE replica.item SET v = 'wrong' WHERE id IN (7, 8)")
    assert wrong(of_item(line.verify())) == (0, 0, 2)


def test_differences_beside_a_harmless_change(new_line: NewLine) -> None:
    """What no route needs changes nothing: rows that differ are reported, though no daemon has looked yet."""
    line = new_line("ignore")
    line.at_hub("UPDATE replica.item SET v = 'wrong' WHERE id = 7")
    line.at_source("ALTER TABLE item ADD n int")
    report = line.verify()
    assert (wrong(of_item(report)), report.exit_code) == ((0, 0, 1), 4)


def test_nothing_is_mended_that_a_change_explains(new_line: NewLine) -> None:
    """Rows that went with a partition stay until a person has said what is to become of them: also with --repair."""
    line = new_line("halt")
    line.at_source("ALTER TABLE item DETACH PARTITION item_1")
    with pytest.raises(PartitionDetached):
        line.run()
    report = line.verify(repair=True, timeout=5.0)
    assert (of_item(report).state, report.exit_code, of_item(report).repaired) == (CHANGED, 1, 0)
    assert line.at_hub("SELECT count(*) FROM replica.item WHERE id >= 100") == [(21,)]


def test_rows_that_are_still_to_be_removed(new_line: NewLine) -> None:
    """After a partition went, the daemon removes its rows: until then they are no difference, afterwards they are."""
    line = new_line("halt", on_truncate="delete")
    line.at_source("ALTER TABLE item DETACH PARTITION item_1")
    with pytest.raises(InterruptedError):
        line.replication(announce=_ending_at("adopted")).run(until_caught_up=True)
    report = line.verify()
    assert (of_item(report).state, report.exit_code, wrong(of_item(report))) == (SWEEPING, 1, (0, 0, 0))
    line.run()
    assert (of_item(line.verify()).state, line.verify().differing) == ("streaming", 0)
    line.at_hub("INSERT INTO replica.item VALUES (150, 'planted', '')")
    assert wrong(of_item(line.verify())) == (0, 1, 0)


def _ending_at(point: str) -> Callable[[str], None]:
    def announce(passed: str) -> None:
        if passed == point:
            raise InterruptedError

    return announce


def test_a_column_that_goes_while_rows_are_compared(new_line: NewLine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A halt in the middle of a table: the state names the column, no code that would call for a person."""
    line = new_line("halt")
    meanwhile(monkeypatch, "item", 2, lambda: line.at_source("ALTER TABLE item DROP w"))
    report = line.verify(timeout=5.0)
    assert (of_item(report).state, report.exit_code) == (CHANGED, 1)
    assert of_item(report).changes == ("public.item: column dropped: w (was character varying(10))",)
    with pytest.raises(ColumnChanged):
        line.run()
