"""Columns that come while a pipeline runs, or while it is behind: nothing goes unseen, and there is always a way on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline.demo.server import Server
from towline.errors import SourceTableChanged

IDENTITY = "  - {from: public.*, into: replica.*}"
PLUGINS = pytest.mark.parametrize(
    ("server", "plugin"),
    [("pg18", "pgoutput"), ("pg15", "pgoutput"), ("pg15", "wal2json")],
    ids=lambda value: str(value),
)
ITEM = (
    "CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item SELECT n, 'v' || n FROM generate_series(1, 80) n"
)
#: More rows than are framed one by one, in every way, and a few at the end.
CHANGES = """
UPDATE item SET v = v || '!' WHERE id <= 50; UPDATE item SET id = id + 1000 WHERE id <= 10;
DELETE FROM item WHERE id > 70;
INSERT INTO item SELECT n, 'new' FROM generate_series(101, 140) n;
UPDATE item SET v = 'last' WHERE id = 101;
"""


@pytest.fixture
def line(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """A source with one table, and an identity route for it."""
    parameters = request.node.callspec.params
    source = new_database(request.getfixturevalue(parameters["server"]))
    made = Line.make(tmp_path, source, new_database(hub18), IDENTITY, plugin=parameters["plugin"])
    made.at_source(ITEM)
    made.apply()
    made.run()
    return made


@PLUGINS
def test_column_added_while_behind(line: Line, server: str, plugin: str) -> None:
    """Changes from before the column are read again by key, and rows without changes beside the stream."""
    line.at_source(CHANGES)
    line.at_source("ALTER TABLE item ADD n numeric DEFAULT 1.50; UPDATE item SET n = id WHERE id BETWEEN 45 AND 60")
    line.at_source(CHANGES.replace("101", "201").replace("140", "240").replace("1000", "2000"))
    line.at_hub("ALTER TABLE replica.item ADD n numeric")
    line.apply()
    line.run()
    line.same("item", "replica.item")
    assert line.verify().differing == 0


@PLUGINS
def test_column_added_while_running(line: Line, server: str, plugin: str) -> None:
    """A table that is copied as it is must not go on without its new column; once the target has it, all goes on."""
    attempt = line.replication()
    with ThreadPoolExecutor() as thread:
        ended = thread.submit(attempt.run, until_caught_up=False)
        until(lambda: ended.done() or attempt.handle.pipeline is not None)
        line.at_source("ALTER TABLE item ADD n int; INSERT INTO item VALUES (900, 'x', 5)")
        with pytest.raises(SourceTableChanged, match=r"public\.item has a column n \(integer\)"):
            ended.result(30)
    line.at_hub("ALTER TABLE replica.item ADD n int")
    line.run()
    line.same("item", "replica.item")


@PLUGINS
def test_route_comes_to_use_one_more_column(line: Line, server: str, plugin: str) -> None:
    """The publication did not have the column when the changes were logged, and still they are applied."""
    line.at_source(
        "CREATE TABLE stock (id int PRIMARY KEY, v text, n int); INSERT INTO stock VALUES (1, 'a', 1), (2, 'b', 2)"
    )
    line.at_hub("CREATE TABLE replica.chosen (id int PRIMARY KEY, v text, n int)")
    route = "  - {from: public.stock, into: replica.chosen, select: 'SELECT id, %s FROM stock'}"
    pipeline = line.path.read_text()
    line.path.write_text(pipeline.replace(IDENTITY, route % "v"))
    line.apply()
    line.run()
    assert line.at_hub("SELECT * FROM replica.chosen ORDER BY 1") == [(1, "a", None), (2, "b", None)]
    line.at_source("UPDATE stock SET n = 7 WHERE id = 1; INSERT INTO stock VALUES (3, 'c', 3)")
    line.path.write_text(pipeline.replace(IDENTITY, route % "v, n"))
    line.apply()
    line.at_source("INSERT INTO stock VALUES (4, 'd', 4)")
    line.run()
    assert line.at_hub("SELECT n FROM replica.chosen ORDER BY id") == [(7,), (None,), (3,), (4,)]
    assert line.verify(repair=True).repairs[0].different == 1
    line.same("stock", "replica.chosen")
