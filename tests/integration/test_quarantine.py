"""Rows that are set aside, from the source's log to the person who resolves them: the real pipeline and its verbs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result
from psycopg import sql

from tests.support.databases import NewDatabase
from tests.support.line import Line, running
from tests.support.wait import until
from towline import config, plan, status
from towline.cli import cli
from towline.demo.server import Server
from towline.errors import SourceTableChanged
from towline.target.postgres.entries import Entries, Entry

PLUGINS = pytest.mark.parametrize(
    ("server", "plugin"), [("pg18", "pgoutput"), ("pg15", "wal2json")], ids=lambda v: str(v)
)
ROUTES = """
  - {from: public.item, into: hub.item, on_error: quarantine, sensitive: [iban]}
  - {from: public.part, into: hub.part, on_error: quarantine}
"""
SOURCE = """
CREATE TABLE item (id int PRIMARY KEY, code text, price numeric, note text, iban text, done bool);
ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
CREATE TABLE part (id int PRIMARY KEY, item int, at timestamptz);
"""
HUB = """
CREATE SCHEMA hub;
CREATE TABLE hub.item (id int PRIMARY KEY, code text UNIQUE, price numeric CONSTRAINT positive CHECK (price > 0),
    note text, iban text, done bool);
CREATE TABLE hub.part (id int PRIMARY KEY, item int REFERENCES hub.item, at timestamptz);
"""


@pytest.fixture
def line(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """A pipeline over the server and plugin that the test is parametrized with, set up."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    server: Server = request.getfixturevalue(parameters.get("server", "pg18"))
    made = Line.make(
        tmp_path, new_database(server), new_database(hub18), ROUTES, plugin=parameters.get("plugin", "pgoutput")
    )
    made.at_source(SOURCE)
    made.at_hub(HUB)
    made.apply()
    return made


def towline(line: Line, *arguments: str, code: int = 0) -> Result:
    """``towline quarantine VERB FILE …``."""
    verb, *more = arguments
    result = CliRunner().invoke(cli, ["--debug", "quarantine", verb, str(line.path), *more])
    assert result.exit_code == code, result.output
    return result


def entries(line: Line, *arguments: str) -> list[dict[str, Any]]:
    """What `list --json` says."""
    found: list[dict[str, Any]] = json.loads(towline(line, "list", "--json", *arguments).stdout)
    return found


def items(line: Line) -> list[tuple[Any, ...]]:
    return line.at_hub("SELECT id, code, price::text, left(note, 3), iban FROM hub.item ORDER BY id")


@PLUGINS
def test_from_the_first_copy_to_a_retry(line: Line, server: str, plugin: str, caplog: pytest.LogCaptureFixture) -> None:
    """Bad rows of chunk and stream are set aside, verify says so, and a retry applies them in order."""
    line.at_source(
        "INSERT INTO item SELECT n, 'c' || n, CASE n WHEN 3 THEN -1 ELSE n END, repeat('x', 3000), 'DE' || n, n = 1 "
        "FROM generate_series(1, 5) n; INSERT INTO part VALUES (31, 3, '2026-01-01 00:00+00'), (11, 1, NULL)"
    )
    line.run()
    assert [row[0] for row in items(line)] == [1, 2, 4, 5]
    line.at_source("UPDATE item SET code = 'c3b' WHERE id = 3")  # the note is not sent
    line.at_source("INSERT INTO item VALUES (6, 'c1', 1, NULL, 'DE6', false)")
    line.run()
    found = entries(line)
    assert [(e["route"], e["key"], e["operation"], e["sqlstate"], e["not_sent"]) for e in found] == [
        ("public.item", {"id": "3"}, "snapshot", "23514", []),
        ("public.part", {"id": "31"}, "snapshot", "23503", []),
        ("public.item", {"id": "3"}, "update", "23514", ["note"]),
        ("public.item", {"id": "6"}, "insert", "23505", []),
    ]
    assert found[0]["row"] | {"note": ""} == {
        "id": "3", "code": "c3", "price": "-1", "note": "", "iban": "***", "done": "f"
    }  # fmt: skip
    assert "positive" in found[0]["message"] and "DE3" not in json.dumps(found)
    assert status.read(config.load(line.path)).routes[0].quarantine_open == 2
    report = line.verify()
    assert (report.differing, report.quarantined, report.exit_code) == (0, 3, 0)
    assert "3 in quarantine" in report.total
    assert line.verify(repair=True).quarantined == 3

    assert "still refused" in towline(line, "retry", "--all", code=3).stdout
    assert [e["attempts"] for e in entries(line)] == [2, 2, 2, 2]
    line.at_hub("ALTER TABLE hub.item DROP CONSTRAINT positive")
    said = towline(line, "retry", "--all", code=3).stdout
    assert "3 retried, 1 still refused" in said and "read from the source again" in said
    assert items(line)[2] == (3, "c3b", "-1", "xxx", "DE3")
    assert line.at_hub("SELECT id, item, at::text FROM hub.part ORDER BY id")[1][:2] == (31, 3)
    assert [e["key"] for e in entries(line)] == [{"id": "6"}]
    line.at_hub("INSERT INTO hub.part VALUES (0, 1)")
    line.at_source("DELETE FROM part WHERE id = 11; DELETE FROM item WHERE id = 1")
    line.run()
    assert [(e["operation"], e["key"]) for e in entries(line)] == [("insert", {"id": "6"}), ("delete", {"id": "1"})]
    line.at_hub("DELETE FROM hub.part WHERE id = 0")
    assert "2 retried" in towline(line, "retry", "--route", "public.item").stdout
    assert line.verify().exit_code == 0 and line.verify().quarantined == 0
    line.same("item", "hub.item")
    line.same("part", "hub.part")
    logged = str([record.__dict__ for record in caplog.records])
    assert "rows_quarantined" in logged and not any(value in logged for value in ("DE3", "c3b", "xxx"))


def test_edit_and_discard(line: Line) -> None:
    """A value is put right by hand, and that is kept; an entry is given up, with who and why."""
    line.at_source("INSERT INTO item VALUES (1, 'a', -1, NULL, 'DE1', true), (2, 'b', -2, 'n', 'DE2', true)")
    line.run()
    one, two = (str(e["id"]) for e in entries(line))
    assert "edited entry" in towline(line, "edit", one, "--set", "price=1.50", "--null", "code").stdout
    for wrong in ("id=7", "iban=x", "prise=1"):
        assert "TL-508" in towline(line, "edit", one, "--set", wrong, code=2).stderr
    said = towline(line, "show", one).stdout
    assert "price: -1 → 1.50" in said and "iban: *** (sensitive)" in said and "DE1" not in said
    assert "1 retried" in towline(line, "retry", one).stdout
    assert items(line) == [(1, None, "1.50", None, "DE1")]
    towline(line, "discard", two, "--reason", "a test of the cashier")
    ((state, by, reason),) = line.at_hub("SELECT state, resolved_by, reason FROM towline.quarantine WHERE id = %s", two)
    assert state == "discarded" and "system user" in by and reason == "a test of the cashier"
    assert "TL-507" in towline(line, "retry", two, code=2).stderr
    assert "TL-506" in towline(line, "discard", "99", "--reason", "x", code=2).stderr
    assert "TL-501" in towline(line, "retry", "--route", "public.itme", code=2).stderr
    towline(line, "retry", code=2)
    assert entries(line) == [] and len(entries(line, "--state", "all")) == 2
    assert line.verify().differing == 2  # one was edited, one was given up


def test_a_target_that_is_lost_during_a_retry(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was one transaction: nothing of it is at the target or in the entries, and it can be run again."""
    line.at_source("INSERT INTO item SELECT n, 'c' || n, -n, NULL, NULL, true FROM generate_series(1, 3) n")
    line.run()
    line.at_hub("ALTER TABLE hub.item DROP CONSTRAINT positive")
    before, retried = entries(line, "--state", "all"), Entries.retried

    def lost(self: Entries, entry: Entry, by: str) -> None:
        retried(self, entry, by)
        if entry.key == {"id": "2"}:
            line.at_hub(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name LIKE '%quarantine'"
            )

    monkeypatch.setattr(Entries, "retried", lost)
    assert "TL-401" in towline(line, "retry", "--all", code=1).stderr
    assert items(line) == [] and entries(line, "--state", "all") == before
    monkeypatch.undo()
    assert "3 retried" in towline(line, "retry", "--all").stdout
    line.same("item", "hub.item")


def test_what_is_newer_stays(line: Line) -> None:
    """A retry of an earlier entry does not undo what came later, and what is gone at the source is not made up."""
    line.at_source(
        "INSERT INTO item VALUES (1, 'a', -1, repeat('x', 3000), 'DE1', true), (2, 'b', -1, NULL, NULL, true)"
    )
    line.run()
    line.at_source("UPDATE item SET price = -2 WHERE id = 1")
    line.run()
    first, gone, second = (e["id"] for e in entries(line))
    line.at_hub("ALTER TABLE hub.item DROP CONSTRAINT positive")
    towline(line, "retry", str(second))
    assert items(line) == [(1, "a", "-2", "xxx", "DE1")]
    states = {e["id"]: e["state"] for e in entries(line, "--state", "all")}
    assert states == {first: "superseded", gone: "open", second: "retried"}
    line.at_source("DELETE FROM item WHERE id = 2")
    assert "no longer at the source" in towline(line, "retry", str(gone), code=3).stdout
    line.run()
    assert entries(line) == []


def test_beside_a_running_daemon(line: Line) -> None:
    """A retry takes its turn with the daemon, which goes on as if the row had always been there."""
    with running(line):
        line.at_source("INSERT INTO item VALUES (1, 'a', -1, repeat('x', 3000), 'DE1', true)")
        until(lambda: len(entries(line)) == 1, 20)
        assert "since" in towline(line, "list").stdout.lower() and "23514" in towline(line, "list").stdout
        line.at_hub("ALTER TABLE hub.item DROP CONSTRAINT positive")
        towline(line, "retry", "--all")
        assert items(line) == [(1, "a", "-1", "xxx", "DE1")]
        line.at_source("UPDATE item SET code = 'b' WHERE id = 1")
        until(lambda: items(line) == [(1, "b", "-1", "xxx", "DE1")], 20)
        line.at_hub("ALTER TABLE hub.item ADD CHECK (price > 0) NOT VALID")
        line.at_source("UPDATE item SET code = 'c' WHERE id = 1")
        until(lambda: len(entries(line)) == 1, 20)
    assert items(line) == [(1, "b", "-1", "xxx", "DE1")]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@PLUGINS
def test_a_target_in_another_encoding(
    request: pytest.FixtureRequest,
    encoding: str,
    server: str,
    plugin: str,
    hub18: Server,
    new_database: NewDatabase,
    tmp_path: Path,
) -> None:
    """What its encoding lacks is set aside, and can be read there all the same."""
    hub = new_database(hub18)
    name = sql.Identifier(f"enc_{encoding.lower()}_{plugin}")
    with psycopg.connect(hub, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(name))
        connection.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LOCALE 'C' TEMPLATE template0").format(name, sql.Literal(encoding))
        )
    source = new_database(request.getfixturevalue(server))
    line = Line.make(tmp_path, source, hub18.dsn(f"enc_{encoding.lower()}_{plugin}"), ROUTES, plugin=plugin)
    line.at_source(SOURCE)
    line.at_hub(HUB)
    line.apply()
    line.at_source("INSERT INTO item VALUES (1, 'ü', 1, NULL, NULL, true), (2, 'Ł€', 2.50, 'ż', NULL, true)")
    line.run()
    if encoding == "SQL_ASCII":
        assert [row[0] for row in items(line)] == [1, 2] and entries(line) == []
        return
    assert [row[:2] for row in items(line)] == [(1, "ü")]
    (entry,) = entries(line)
    assert (entry["row"]["code"], entry["row"]["price"], entry["sqlstate"]) == ("Ł€", "2.50", "22P05")
    towline(line, "edit", str(entry["id"]), "--set", "code=L", "--set", "note=z")
    towline(line, "retry", "--all")
    assert [row[:2] for row in items(line)] == [(1, "ü"), (2, "L")]


def test_columns_that_are_sensitive_later(line: Line) -> None:
    """What was set aside before is not shown from then on, nor kept from `apply` on; a retry reads it anew."""
    line.at_source("INSERT INTO part VALUES (1, 404, '2031-01-01 00:00+00'), (2, 404, NULL)")
    line.at_hub("ALTER TABLE hub.part ALTER at TYPE text; ALTER TABLE hub.part ADD CHECK (at::int > 0)")
    text = line.path.read_text("utf-8").replace("into: hub.part,", "into: hub.part, select: 'SELECT * FROM part',")
    line.path.write_text(text.replace("SELECT * FROM part", "SELECT id, item, at::text AS at FROM part"), "utf-8")
    line.run()
    (quoting, other) = entries(line, "--route", "public.part")
    assert 'for type integer: "2031' in quoting["message"] and "2031" in towline(line, "list").stdout
    assert "violates foreign key" in other["message"]
    number = str(quoting["id"])
    towline(line, "edit", number, "--set", "at=2032")
    line.path.write_text(line.path.read_text("utf-8").replace("into: hub.part,", "into: hub.part, sensitive: [at],"))
    for verb in (["list"], ["list", "--json"], ["show", number], ["show", number, "--json"]):
        said = towline(line, *verb).stdout
        assert "22P02" in said and "2031" not in said and "2032" not in said
    line.apply()
    kept = line.at_hub('SELECT "row"::text, masked, edits::text, message FROM towline.quarantine ORDER BY id')
    assert "2031" not in str(kept) and "2032" not in str(kept)
    assert [row[1] for row in kept] == [["at"], ["at"]]
    line.at_hub("ALTER TABLE hub.part DROP CONSTRAINT part_at_check, DROP CONSTRAINT part_item_fkey")
    assert "2 retried" in towline(line, "retry", "--all").stdout
    assert line.at_hub("SELECT id, left(at, 4) FROM hub.part ORDER BY id") == [(1, "2031"), (2, None)]


def test_sensitive_columns_are_shown_nowhere(line: Line) -> None:
    """Neither in a preview nor in the keys of rows that differ."""
    line.at_source("INSERT INTO item VALUES (1, 'a', 1, NULL, 'DE-secret', true)")
    result = CliRunner().invoke(cli, ["preview", str(line.path), "public.item"])
    assert "iban: ***" in result.stdout and "DE-secret" not in result.stdout
    text = line.path.read_text("utf-8").replace("on_error: quarantine, sensitive: [iban]", "sensitive: [id]")
    line.at_source("INSERT INTO item VALUES (4711, 'b', -1, NULL, NULL, true)")
    line.run()
    line.path.write_text(text, "utf-8")
    assert "id=***" in towline(line, "list").stdout
    assert "4711" not in towline(line, "list", "--json").stdout + towline(line, "show", "1").stdout
    line.at_source("DELETE FROM item WHERE id = 4711")
    line.run()
    line.at_hub("DELETE FROM hub.item")
    report = line.verify()
    assert report.differing == 1 and report.routes[0].samples[0].key == ("***",)


def test_after_the_key_of_the_table_has_changed(line: Line) -> None:
    """Nothing can follow what was set aside under the old key: the route is copied again when the new one is accepted.

    A later change takes nothing from the target's row meanwhile, which is older.
    """
    line.at_source("INSERT INTO item VALUES (1, 'a', 1, repeat('x', 3000), 'DE1', true), (2, 'b', 2, NULL, NULL, true)")
    line.at_source("ALTER TABLE item ALTER code SET NOT NULL, ADD UNIQUE (code)")
    line.at_hub("ALTER TABLE hub.item ALTER code SET NOT NULL")
    line.run()
    line.at_source("UPDATE item SET price = -1, note = repeat('y', 3000) WHERE id = 1")
    line.run()
    assert [e["key"] for e in entries(line)] == [{"id": "1"}]
    line.at_source("ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (code)")
    line.at_source("UPDATE item SET price = 5, done = false WHERE code = 'a'")  # the note is not sent
    with pytest.raises(SourceTableChanged, match="TL-317"):
        line.run()
    assert "has another key now" in towline(line, "retry", "--all", code=3).stdout
    with plan.prepare(line.config) as prepared:
        steps: list[str] = []
        plan.apply(prepared, lambda step: steps.append(step.title))
    assert any("public.item copied again: what is set aside has another key" in title for title in steps)
    assert entries(line) == []
    line.run()
    assert items(line) == [(1, "a", "5", "yyy", "DE1"), (2, "b", "2", None, None)]
    assert line.verify().exit_code == 0 and entries(line) == []
    line.same("item", "hub.item", "code")


CIRCLES = """
CREATE SCHEMA hub;
CREATE TABLE hub.item (id int PRIMARY KEY, other int REFERENCES hub.item {0},
    v text CONSTRAINT good CHECK (v <> 'bad'), op text);
CREATE TABLE hub.head (id int PRIMARY KEY, part int, v text CONSTRAINT good CHECK (v <> 'bad'));
CREATE TABLE hub.part (id int PRIMARY KEY, head int REFERENCES hub.head DEFERRABLE);
ALTER TABLE hub.head ADD FOREIGN KEY (part) REFERENCES hub.part DEFERRABLE;
"""


@pytest.mark.parametrize("deferrable", ["", "DEFERRABLE INITIALLY DEFERRED"])
def test_rows_that_refer_to_each_other_in_a_circle(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path, deferrable: str
) -> None:
    """They are retried together, once the bad one among them is put right; and beside others that are still bad."""
    routes = """
  - {name: item, from: public.item, into: hub.item, on_error: quarantine,
     select: "SELECT id, other, v, _op AS op FROM item"}
  - {from: public.head, into: hub.head, on_error: quarantine}
  - {from: public.part, into: hub.part, on_error: quarantine}
"""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), routes)
    line.at_source(
        "CREATE TABLE item (id int PRIMARY KEY, other int, v text); CREATE TABLE part (id int PRIMARY KEY, head int);"
        "CREATE TABLE head (id int PRIMARY KEY, part int, v text); INSERT INTO item VALUES (8, 9, 'bad'), (9, 8, 'ok')"
    )
    line.at_hub(CIRCLES.format(deferrable))
    line.apply()
    line.run()
    line.at_source("INSERT INTO item VALUES (1, 2, 'bad'), (2, 3, 'ok'), (3, 1, 'ok')")
    line.at_source("INSERT INTO head VALUES (1, 11, 'bad'); INSERT INTO part VALUES (11, 1)")
    line.at_source("INSERT INTO item VALUES (5, 404, 'ok'), (6, 6, 'ok')")
    line.run()
    assert len(entries(line)) == 8
    assert "8 still refused" in towline(line, "retry", "--all", code=3).stdout
    line.at_hub("ALTER TABLE hub.item DROP CONSTRAINT good")
    said = towline(line, "retry", "--all", code=3).stdout
    assert "5 retried, 3 still refused" in said
    line.at_hub("ALTER TABLE hub.head DROP CONSTRAINT good")
    assert "2 retried, 1 still refused" in towline(line, "retry", "--all", code=3).stdout
    assert line.at_hub("SELECT id, other, op FROM hub.item ORDER BY id") == [
        (1, 2, "insert"),
        (2, 3, "insert"),
        (3, 1, "insert"),
        (6, 6, "insert"),
        (8, 9, "snapshot"),
        (9, 8, "snapshot"),
    ]
    assert line.at_hub("SELECT h.id, p.id FROM hub.head h JOIN hub.part p ON p.id = h.part") == [(1, 11)]
