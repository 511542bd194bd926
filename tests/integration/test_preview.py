"""preview shows what the daemon would do to the target, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from towline import plan
from towline.demo.server import Server
from towline.errors import NotSetUp, RowRefused
from towline.preview import preview
from towline.target.postgres.preview import PreviewResult

SOURCE = """
CREATE TYPE state AS ENUM ('draft', 'done');
CREATE TABLE sale (number int PRIMARY KEY, party int, state state, total numeric(10, 2), tags text[]);
INSERT INTO sale VALUES (1, 1, 'done', 1.10, '{a}'), (2, 2, 'draft', 2, NULL),
  (3, 9, 'done', 3, '{}'), (4, 1, 'done', 4, '{}');
CREATE TABLE item (id int PRIMARY KEY, name text);
INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 30) AS n;
"""

HUB = """
CREATE SCHEMA hub;
CREATE TABLE hub.customer (src_key text PRIMARY KEY, code text);
INSERT INTO hub.customer VALUES ('1', 'c1'), ('2', 'c2');
CREATE TABLE hub.trade (
  order_no text PRIMARY KEY, customer text, total numeric CHECK (total < 100), origin text, note text
);
CREATE SEQUENCE hub.changes;
INSERT INTO hub.trade VALUES ('SO-3', 'OLD', 3.00, 'x', 'kept'), ('SO-4', 'C1', 4.00, 'x', NULL);
CREATE SCHEMA replica;
CREATE TABLE replica.item (id int PRIMARY KEY, name text);
INSERT INTO replica.item VALUES (1, 'item 1'), (2, NULL);
"""

ROUTES = """  - {name: item, from: public.item, into: replica.item}
  - name: trade
    from: public.sale
    into: hub.trade
    select: |
      SELECT 'SO-' || s.number AS order_no, upper(c.code) AS customer, s.total AS total
      FROM sale s LEFT JOIN hub.customer c ON c.src_key = s.party::text WHERE s.state <> 'draft'"""


@pytest.fixture(params=[("pg18", "pgoutput"), pytest.param(("pg15", "wal2json"), marks=pytest.mark.debian)])
def line(request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path: Path) -> Line:
    server: Server = request.getfixturevalue(request.param[0])
    made = Line.make(tmp_path, new_database(server), new_database(server), ROUTES, plugin=request.param[1])
    made.at_source(SOURCE)
    made.at_hub(HUB)
    return made


def show(line: Line, route: str, rows: int) -> PreviewResult:
    with plan.prepare(line.config) as prepared:
        return preview(prepared, next(each for each in prepared.routes if each.name == route), rows)


def contents(line: Line) -> list[tuple[object, ...]]:
    """Everything that a preview could have left: rows, relations of any kind, types, locks of others' view."""
    return [
        *line.at_hub("SELECT xmin::text, ctid::text, t::text FROM hub.trade AS t ORDER BY 3"),
        *line.at_hub("SELECT xmin::text, ctid::text, t::text FROM replica.item AS t ORDER BY 3"),
        *line.at_hub("SELECT c.oid, c.relname FROM pg_class AS c WHERE c.oid >= 16384 ORDER BY 1"),
        *line.at_hub("SELECT schemaname, tablename FROM pg_tables WHERE schemaname = 'towline'"),
    ]


def test_before_and_after_of_a_select_route(line: Line) -> None:
    """Inserted, changed, equal and filtered rows, as text; columns that the route does not fill keep their values."""
    before = contents(line)
    result = show(line, "trade", 10)
    assert result.columns == ("order_no", "customer", "total", "origin", "note")
    assert [(row.source_key, row.key, row.outcome) for row in result.rows] == [
        (("1",), ("SO-1",), "insert"),
        (("2",), None, "filtered"),
        (("3",), ("SO-3",), "update"),
        (("4",), ("SO-4",), "same"),
    ]
    assert result.rows[0].after == ("SO-1", "C1", "1.10", None, None)
    assert result.rows[2].before == ("SO-3", "OLD", "3.00", "x", "kept")
    assert result.rows[2].after == ("SO-3", None, "3.00", "x", "kept")
    assert contents(line) == before
    lines = list(result.lines())
    assert "    customer: OLD → NULL" in lines
    assert lines[-1] == "1 insert, 1 filtered, 1 update, 1 same; nothing was kept"


def test_before_and_after_of_an_identity_route(line: Line) -> None:
    """As many rows as asked for, the first by key."""
    before = contents(line)
    result = show(line, "item", 4)
    assert [(row.source_key, row.outcome, row.before, row.after) for row in result.rows] == [
        (("1",), "same", ("1", "item 1"), ("1", "item 1")),
        (("2",), "update", ("2", None), ("2", "item 2")),
        (("3",), "insert", None, ("3", "item 3")),
        (("4",), "insert", None, ("4", "item 4")),
    ]
    assert contents(line) == before


def test_it_needs_no_set_up_and_no_lock(line: Line) -> None:
    """Before `apply`, and while the daemon's locks are held; the checkpoint stays what it is."""
    show(line, "item", 1)
    line.apply()
    line.run()
    checkpoint = line.at_hub("SELECT c::text FROM towline.checkpoint AS c")
    assert [row.outcome for row in show(line, "trade", 10).rows] == ["same", "filtered", "same", "same"]
    assert line.at_hub("SELECT c::text FROM towline.checkpoint AS c") == checkpoint
    assert line.verify().differing == 0


def test_a_refused_row_is_shown_as_the_daemon_would(line: Line) -> None:
    """The error that would halt the daemon, and no trace of it either."""
    line.at_source("UPDATE sale SET total = 1000 WHERE number = 3")
    before = contents(line)
    with pytest.raises(RowRefused):
        show(line, "trade", 10)
    assert contents(line) == before


def test_a_table_that_is_yet_to_be_made(line: Line, tmp_path: Path) -> None:
    """There is no before and after without the table."""
    other = Line.make(tmp_path, line.source, line.hub, "  - {name: new, from: public.item, into: made.item}")
    with pytest.raises(NotSetUp):
        show(other, "new", 1)
