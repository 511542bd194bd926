"""What people do to a pipeline by hand, and what becomes of it: tables dropped, files ahead of what was applied."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.databases import NewDatabase
from tests.support.line import Line
from towline.cli import cli
from towline.demo.server import Server
from towline.differences import EVOLVING
from towline.errors import NotSetUp, TargetTableChanged
from towline.status import read

ROUTES = "  - {from: public.*, into: replica.*, on_schema_change: evolve}\n"
TABLES = """
CREATE TABLE item (id int PRIMARY KEY, name text);
CREATE TABLE stock (id int PRIMARY KEY, quantity int);
INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 50) n;
INSERT INTO stock SELECT n, n FROM generate_series(1, 50) n;
"""


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """Two tables, copied and streaming."""
    made = Line.make(tmp_path, new_database(pg18), new_database(hub18), ROUTES)
    made.at_source(TABLES)
    made.apply()
    made.run()
    return made


def towline(line: Line, verb: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [verb, str(line.path), *arguments])


def test_a_target_table_that_is_gone_is_copied_again(line: Line) -> None:
    """`apply` makes it anew: a route that is `streaming` over an empty table would have lost its rows for good."""
    line.at_hub("DROP TABLE replica.item")
    line.at_source("INSERT INTO item VALUES (51, 'new')")
    with pytest.raises(TargetTableChanged, match="item") as error:
        line.run()
    assert "towline apply" in error.value.advice
    found = towline(line, "check")
    assert found.exit_code == 0 and "`towline apply` has 1 step to do" in found.output
    applied = towline(line, "apply")
    assert applied.exit_code == 0, applied.output
    assert "table replica.item, which is gone, and its rows are copied again" in applied.output
    assert line.at_hub("SELECT route, state FROM towline.route_state ORDER BY 1") == [
        ("public.item", "pending"),
        ("public.stock", "streaming"),
    ]
    line.run()
    assert line.same("public.item", "replica.item", order="id") == 51
    assert line.verify().exit_code == 0


def test_a_route_that_was_not_applied_leaves_nothing_behind(line: Line) -> None:
    """The daemon refuses to start with it; with the former file all is well, and `status` says so."""
    former = line.path.read_text("utf-8")
    line.at_source("CREATE SCHEMA other; CREATE TABLE other.thing (id int PRIMARY KEY)")
    line.path.write_text(former + "  - {from: other.thing, into: replica.thing}\n", "utf-8")
    with pytest.raises(NotSetUp, match=r"1 route is new since the last `towline apply`: other.thing"):
        line.run()
    assert line.at_hub("SELECT count(*) FROM towline.source_table WHERE route = 'other.thing'") == [(0,)]
    line.path.write_text(former, "utf-8")
    assert read(line.config).exit_code == 0
    # What an earlier version may have left there is nobody's.
    line.at_hub(
        "INSERT INTO towline.source_table SELECT (jsonb_populate_record(t, jsonb_build_object('route', 'other.thing', "
        "'table_name', 'gone'))).* FROM towline.source_table t LIMIT 1"
    )
    assert read(line.config).exit_code == 0


def test_check_tells_of_a_slot_that_is_gone(line: Line) -> None:
    """As the daemon would at its start."""
    line.at_source(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
    )
    found = towline(line, "check")
    assert found.exit_code == 3 and "TL-304" in found.output


def test_repair_mends_what_it_can(line: Line) -> None:
    """A row that the target refuses is told of with its key; the others are mended, and other routes are verified."""
    line.at_hub("DELETE FROM replica.item; ALTER TABLE replica.item ADD CONSTRAINT known CHECK (name <> 'item 7')")
    report = line.verify(repair=True)
    assert report.exit_code == 4 and report.differing == 1
    (repairs,) = report.repairs
    assert (repairs.missing, repairs.repaired, repairs.refused) == (50, 49, 1)
    assert [sample.key for sample in repairs.samples if sample.kind == "refused"] == [("7",)]
    text = "\n".join(report.lines())
    assert "1 row not repaired: TL-403" in text and "known" in text and "refused (7)" in text
    assert "public.stock: 50 rows" in text
    assert line.at_hub("SELECT count(*) FROM replica.item") == [(49,)]


def test_repair_goes_on_where_one_row_waits_for_another(line: Line) -> None:
    """A refused row has the others tried by halves: a row before the one that it refers to is tried again after it."""
    line.at_hub(
        "DELETE FROM replica.item;"
        "ALTER TABLE replica.item ADD CONSTRAINT known CHECK (name <> 'item 50'), ADD boss int"
        " GENERATED ALWAYS AS (CASE WHEN id < 10 THEN id + 30 END) STORED REFERENCES replica.item DEFERRABLE"
    )
    (repairs,) = line.verify(repair=True).repairs
    assert (repairs.missing, repairs.repaired, repairs.refused) == (50, 49, 1)
    assert [sample.key for sample in repairs.samples if sample.kind == "refused"] == [("50",)]


def test_repair_gives_up_where_all_are_refused(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else is wrong then, and the daemon waits for the lock."""
    monkeypatch.setattr("towline.route_verifier.MOST_REFUSED", 5)
    line.at_hub("DELETE FROM replica.item; ALTER TABLE replica.item ADD CONSTRAINT known CHECK (name = 'none')")
    (repairs,) = line.verify(repair=True).repairs
    assert (repairs.repaired, repairs.refused) == (0, 50)


def test_a_column_that_is_yet_to_come_keeps_nothing_else_from_being_verified(line: Line) -> None:
    """The daemon would add it; it does not run."""
    line.at_source("ALTER TABLE item ADD COLUMN vat int DEFAULT 7")
    line.at_hub("UPDATE replica.stock SET quantity = 0 WHERE id = 1")
    report = line.verify()
    assert [(route.route, route.state, route.differing) for route in report.routes] == [
        ("public.item", EVOLVING, 0),
        ("public.stock", "streaming", 1),
    ]
    assert "public.item: not compared, the target lacks vat" in "\n".join(report.lines())
    line.at_source("UPDATE stock SET quantity = 2 WHERE id = 1")
    line.run()
    assert line.verify().exit_code == 0
