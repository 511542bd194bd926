"""A publication that was changed under the pipeline: it says so, and what was not sent is copied again."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline import catch_up
from towline.catch_up import Bounds
from towline.cli import cli
from towline.demo.server import Server
from towline.errors import (
    PublicationFiltered,
    PublicationInterrupted,
    PublicationLacksColumn,
    PublicationLacksOperation,
    PublicationLacksTable,
    PublicationMissing,
    TowlineError,
)
from towline.source.postgres.walsender import Walsender
from towline.status import read

ROUTES = """
  - {from: public.t, into: replica.t}
  - {from: public.other, into: replica.other}
  - {name: part, from: public.wide, into: hub.part, select: "SELECT id, a FROM wide"}
"""

CHANGES = "DELETE FROM t WHERE id = 1; UPDATE t SET v = 'changed' WHERE id = 2; INSERT INTO t VALUES (4, 'd')"


def made(source: str, hub: str, directory: Path) -> Line:
    """Three tables, of one of which not all columns are published; replicated once."""
    line = Line.make(directory, source, hub, ROUTES)
    line.at_source("CREATE TABLE t (id int PRIMARY KEY, v text); CREATE TABLE other (LIKE t INCLUDING ALL)")
    line.at_source("CREATE TABLE wide (id int PRIMARY KEY, a int, b int); CREATE TABLE foreigner (id int PRIMARY KEY)")
    line.at_source("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'); INSERT INTO other SELECT * FROM t")
    line.at_source("INSERT INTO wide VALUES (1, 1, 1), (2, 2, 2)")
    line.at_hub("CREATE SCHEMA hub; CREATE TABLE hub.part (id int PRIMARY KEY, a int)")
    line.apply()
    line.run()
    return line


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    return made(new_database(pg18), new_database(hub18), tmp_path)


def alter(line: Line, change: str) -> None:
    line.at_source(f'ALTER PUBLICATION "{line.config.source.publication}" {change}')


def invoke(line: Line, *words: str) -> Result:
    verb, *more = words
    return CliRunner().invoke(cli, [verb, str(line.path), *more], catch_exceptions=False)


def equal(line: Line) -> None:
    """All rows are there, and nothing is left to be done or told."""
    line.same("t", "replica.t")
    line.same("other", "replica.other")
    line.same("(SELECT id, a FROM wide)", "hub.part")
    assert line.at_hub("SELECT bool_or(sweep) FROM towline.route_state") == [(False,)]
    assert read(line.config).errors == ()
    assert invoke(line, "apply").output == "nothing to do\n"
    line.run()


def halted(line: Line, error: type[TowlineError]) -> None:
    """`run` halts with that error, and `status` shows the same."""
    with pytest.raises(error):
        line.run()
    assert [trouble.code for trouble in read(line.config).errors] == [error.code]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("DROP TABLE ONLY t", PublicationLacksTable),
        ("SET (publish = 'truncate')", PublicationLacksOperation),
        ("SET TABLE ONLY t WHERE (id > 100), ONLY other, ONLY wide (id, a)", PublicationFiltered),
        ("SET TABLE ONLY t (id), ONLY other, ONLY wide (id, a)", PublicationLacksColumn),
    ],
)
@pytest.mark.parametrize("behind", [False, True], ids=["streamed", "behind"])
def test_less_is_published(
    line: Line, change: str, error: type[TowlineError], behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`apply` restores the publication, and has the routes copied again that it did not serve; only those. Nothing is
    read of the log before, however it would be read."""
    if behind:
        monkeypatch.setattr(catch_up, "BOUNDS", Bounds(enter=1, leave=1, follow=1 << 30, again=1 << 20))
        monkeypatch.setattr(Walsender, "__init__", lambda *words, **more: pytest.fail("a stream was opened"))
    before = line.at_hub("SELECT position FROM towline.checkpoint")
    alter(line, change)
    line.at_source(CHANGES if error is not PublicationFiltered else "INSERT INTO t VALUES (4, 'd')")
    halted(line, error)
    monkeypatch.undo()
    assert line.at_hub("SELECT position FROM towline.checkpoint") == before
    assert "towline apply" in error.remedy
    done = invoke(line, "apply")
    assert done.exit_code == 0, done.output
    pending = line.at_hub("SELECT route FROM towline.route_state WHERE state = 'pending' AND sweep ORDER BY 1")
    every = [("part",), ("public.other",), ("public.t",)]
    assert pending == (every if error is PublicationLacksOperation else [("public.t",)])
    line.run()
    equal(line)


@pytest.mark.parametrize("mended", [("apply",), ("resync", "public.t", "--yes")])
def test_a_table_is_taken_out_and_put_back(line: Line, mended: tuple[str, ...]) -> None:
    """The publication is what it was, and did not send what happened in between."""
    alter(line, "DROP TABLE ONLY t")
    line.at_source(CHANGES)
    alter(line, "ADD TABLE ONLY t")
    for _ in range(2):  # what is remembered is not overwritten by looking at it
        halted(line, PublicationInterrupted)
    assert invoke(line, *mended).exit_code == 0
    line.run()
    equal(line)


def test_options_are_changed_and_changed_back(line: Line) -> None:
    """The same for what is published of all tables."""
    alter(line, "SET (publish = 'insert')")
    line.at_source(CHANGES)
    alter(line, "SET (publish = 'insert, update, delete, truncate')")
    halted(line, PublicationInterrupted)
    assert invoke(line, "apply").exit_code == 0
    line.run()
    equal(line)


def test_what_takes_nothing_away(line: Line) -> None:
    """More tables, and columns that a route comes to need, are no reason to copy anything again."""
    alter(line, "ADD TABLE ONLY foreigner")
    line.at_source("INSERT INTO t VALUES (4, 'd')")
    line.run()
    line.at_hub("ALTER TABLE hub.part ADD b int")
    line.path.write_text(line.path.read_text("utf-8").replace("SELECT id, a FROM", "SELECT id, a, b FROM"), "utf-8")
    done = invoke(line, "apply")
    assert "copied again" not in done.output
    line.at_source("UPDATE wide SET b = 7 WHERE id = 1")
    line.run()
    assert line.at_hub("SELECT b FROM hub.part WHERE id = 1") == [(7,)]
    assert line.at_hub("SELECT DISTINCT state, sweep FROM towline.route_state") == [("streaming", False)]
    line.run()


@pytest.mark.parametrize("server", ["pg18", "pg15"])
def test_the_publication_is_dropped(
    server: str, request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """A slot cannot read a publication that is younger, whoever makes it again: only a new slot helps."""
    line = made(new_database(request.getfixturevalue(server)), new_database(hub18), tmp_path)
    name = line.config.source.publication
    line.at_source(f'DROP PUBLICATION "{name}"')
    line.at_source(CHANGES)
    halted(line, PublicationMissing)
    with pytest.raises(PublicationMissing):
        line.apply()
    refused = invoke(line, "resync", "public.t", "--yes")
    assert (refused.exit_code, "TL-329" in refused.output) == (3, True)
    line.at_source(f'CREATE PUBLICATION "{name}" FOR TABLE ONLY t, ONLY other, ONLY wide')
    halted(line, PublicationMissing)
    done = invoke(line, "resync", "--yes")
    assert (done.exit_code, "TL-329" in done.output) == (0, True)
    line.run()
    equal(line)


def test_the_publication_is_dropped_while_running(line: Line) -> None:
    """PostgreSQL 18 goes on without it, and only warns."""
    found: list[TowlineError] = []
    replication = line.replication()

    def run() -> None:
        try:
            replication.run(until_caught_up=False)
        except TowlineError as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: replication.handle.pipeline is not None, 20)
    line.at_source(f'DROP PUBLICATION "{line.config.source.publication}"')
    line.at_source(CHANGES)
    thread.join(30)
    assert [type(error) for error in found] == [PublicationMissing]
