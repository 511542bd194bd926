"""The verbs over real databases, from a check to a verified copy, and what status says when things go wrong."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from tests.support.databases import NewDatabase
from towline import config
from towline.cli import cli
from towline.demo.server import Server
from towline.status import Status, read

SOURCE = """
CREATE TABLE item (sku text PRIMARY KEY, name text NOT NULL, price numeric);
CREATE TABLE "sale-order" (id bigint PRIMARY KEY, party text, state text NOT NULL, note text);
INSERT INTO item SELECT 'SKU-' || n, 'item ' || n, n * 1.50 FROM generate_series(1, 250) n;
INSERT INTO "sale-order" SELECT n, 'c' || n % 7, CASE WHEN n % 5 = 0 THEN 'draft' ELSE 'open' END
FROM generate_series(1, 100) n;
"""
TARGET = """
CREATE SCHEMA hub;
CREATE TABLE hub.trade_order (order_no text PRIMARY KEY, customer text, changed_at timestamptz);
"""
ROUTES = """\
routes:
  - {from: public.item, into: replica.item}
  - name: order
    from: public.sale-order
    into: hub.trade_order
    select: |
      SELECT 'SO-' || s.id AS order_no, upper(s.party) AS customer, _commit_time AS changed_at
      FROM "sale-order" s WHERE s.state <> 'draft'
"""


class Pipeline:
    """A pipeline file over two new databases."""

    def __init__(self, path: Path, source: str, target: str, name: str) -> None:
        self.path, self.source, self.target, self.name = path, source, target, name
        path.write_text(
            f"pipeline: {name}\n"
            f"source: {{kind: postgres, dsn: {json.dumps(source)}}}\n"
            f"target: {{kind: postgres, dsn: {json.dumps(target)}}}\n"
            f"web: {{port: 0}}\ncheckpoint_seconds: 0.2\n" + ROUTES
        )

    def towline(self, verb: str, *arguments: str) -> Result:
        """Run a verb in this process; should it fail, with where that was."""
        return CliRunner().invoke(cli, ["--debug", verb, str(self.path), *arguments])

    def status(self) -> Status:
        """The status, as Python sees it."""
        return read(config.load(self.path))


def execute(dsn: str, statement: str) -> None:
    """Run statements."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement.encode())


def value(dsn: str, query: str) -> object:
    """The one value of a query."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query.encode()).fetchone()
        return row[0] if row else None


@pytest.fixture
def pipeline(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Pipeline:
    """Source and target with rows, nothing set up."""
    source, target = new_database(pg18), new_database(hub18)
    execute(source, SOURCE)
    execute(target, TARGET)
    name = "cli-" + str(value(source, "SELECT current_database()")).replace("_", "-")
    return Pipeline(tmp_path / "p.yaml", source, target, name)


def test_from_check_to_verify(pipeline: Pipeline) -> None:
    """check, plan, apply, run --until-caught-up, status and verify, in the order of the tour; each says what it did."""
    found = pipeline.towline("check")
    assert found.exit_code == 0, found.output
    assert re.fullmatch(r"ok: 2 routes hold\n`towline apply` has \d steps to do, see `towline plan`\n", found.stdout)

    planned = pipeline.towline("plan")
    assert planned.exit_code == 0, planned.output
    assert "-- target: " in planned.stdout and "-- source: " in planned.stdout
    created = re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?(\S+)", planned.stdout.replace('"', ""), re.MULTILINE)
    assert "replica.item" in created and "hub.trade_order" not in created
    only = pipeline.towline("plan", "--side", "source").stdout
    assert "-- target: " not in only and "-- source: " in only
    assert value(pipeline.target, "SELECT to_regclass('replica.item')") is None

    assert pipeline.towline("status").exit_code == 3
    applied = pipeline.towline("apply")
    assert applied.exit_code == 0 and "applied: " in applied.stdout, applied.output
    again = pipeline.towline("apply")
    assert (again.exit_code, again.stdout) == (0, "nothing to do\n"), again.output
    assert pipeline.towline("check").stdout == "ok: 2 routes hold\n"
    assert pipeline.towline("plan").stdout == "-- nothing to do\n"

    ran = pipeline.towline("run", "--until-caught-up")
    assert ran.exit_code == 0, ran.output
    assert value(pipeline.target, "SELECT count(*) FROM replica.item") == 250
    assert value(pipeline.target, "SELECT count(*) FROM hub.trade_order") == 80

    status = json.loads(pipeline.towline("status", "--json").stdout)
    assert status["healthy"] and status["role"] == "stopped"
    assert {route["name"]: route["state"] for route in status["routes"]} == {
        "public.item": "streaming",
        "order": "streaming",
    }
    text = pipeline.towline("status").stdout
    assert "ROUTE" in text and "streaming" in text and status["checkpoint"]["position"] in text

    verified = pipeline.towline("verify")
    assert verified.exit_code == 0, verified.output
    assert verified.stdout.splitlines()[-1] == "verified: 350 rows compared, 0 differ"


def test_plan_is_sql_for_psql(pipeline: Pipeline) -> None:
    """What plan prints for an end can be run there by hand; then only the checkpoint is left to apply."""
    execute(pipeline.target, pipeline.towline("plan", "--side", "target").stdout)
    assert pipeline.towline("plan", "--side", "target").stdout == "-- nothing to do\n"
    with psycopg.connect(pipeline.source, autocommit=True) as connection:
        for statement in pipeline.towline("plan", "--side", "source").stdout.split(";\n"):
            connection.execute(statement.encode())
    assert pipeline.towline("apply").exit_code == 0
    assert pipeline.towline("run", "--until-caught-up").exit_code == 0
    assert pipeline.towline("verify").exit_code == 0


def test_verify_finds_and_repairs(pipeline: Pipeline) -> None:
    """Exit code 4 with what differs; --repair mends it; --json tells the same."""
    assert pipeline.towline("apply").exit_code == 0
    assert pipeline.towline("run", "--until-caught-up").exit_code == 0
    execute(
        pipeline.target,
        "DELETE FROM replica.item WHERE sku = 'SKU-7'; UPDATE replica.item SET price = 0 WHERE sku = 'SKU-8'",
    )
    found = pipeline.towline("verify", "--route", "public.item", "--json")
    assert found.exit_code == 4, found.output
    report = json.loads(found.stdout)
    assert [(each["route"], each["missing"], each["different"]) for each in report["routes"]] == [("public.item", 1, 1)]
    assert pipeline.towline("verify", "--repair").exit_code == 0
    assert pipeline.towline("verify").exit_code == 0


def test_preview_and_explain(pipeline: Pipeline) -> None:
    """preview shows real rows and leaves none; explain shows lineage and statements; a wrong name is helped."""
    shown = pipeline.towline("preview", "order", "--rows", "5")
    assert shown.exit_code == 0, shown.output
    assert "order_no = SO-1" in shown.stdout and "nothing was kept" in shown.stdout
    assert value(pipeline.target, "SELECT count(*) FROM hub.trade_order") == 0
    explained = pipeline.towline("explain", "order")
    assert explained.exit_code == 0, explained.output
    assert "customer   <- party   upper(s.party)" in explained.stdout and "left out: note" in explained.stdout
    wrong = pipeline.towline("explain", "ordre")
    assert (wrong.exit_code, "did you mean order?" in wrong.stderr) == (2, True)


def test_check_refuses_routes(pipeline: Pipeline) -> None:
    """All problems of all routes, as TL-200, exit code 2."""
    pipeline.path.write_text(
        pipeline.path.read_text().replace("upper(s.party)", "s.nope").replace("public.item,", "public.gone,")
    )
    found = pipeline.towline("check")
    assert found.exit_code == 2
    assert found.stderr.startswith("TL-200: ") and "TL-203" in found.stderr and "TL-202" in found.stderr


def test_status_when_the_slot_is_lost(pipeline: Pipeline) -> None:
    """A dropped slot is exit code 3, and status says what it means."""
    assert pipeline.towline("apply").exit_code == 0
    assert pipeline.status().exit_code == 0
    execute(pipeline.source, f"SELECT pg_drop_replication_slot('towline_{pipeline.name.replace('-', '_')}')")
    status = pipeline.status()
    assert (status.exit_code, [error.code for error in status.errors]) == (3, ["TL-304"])
    assert pipeline.towline("status").exit_code == 3


def test_status_when_one_side_is_down(pipeline: Pipeline) -> None:
    """With one end unreachable the other one's half is there, and exit code 1."""
    assert pipeline.towline("apply").exit_code == 0
    whole = pipeline.path.read_text()
    for mine, side, code in ((pipeline.source, "source", "TL-301"), (pipeline.target, "target", "TL-401")):
        pipeline.path.write_text(whole.replace(json.dumps(mine), '"host=127.0.0.1 port=1 dbname=x"'))
        status = pipeline.status()
        assert [(error.side, error.code) for error in status.errors] == [(side, code)]
        assert status.exit_code == 1 and status.lag_bytes is None
        assert (status.slot is None) == (side == "source") == (status.checkpoint is not None)


def test_lag_of_an_idle_pipeline(pipeline: Pipeline) -> None:
    """Nothing to apply is no lag: not in bytes for long, and in seconds never older than the checkpoint."""
    assert pipeline.towline("apply").exit_code == 0
    assert pipeline.towline("run", "--until-caught-up").exit_code == 0
    status = pipeline.status()
    assert status.lag_seconds is not None and status.lag_seconds < 60
    execute(pipeline.source, "UPDATE item SET price = price + 1")
    behind = pipeline.status()
    assert behind.lag_bytes and behind.lag_bytes > 10_000


def test_top_on_a_terminal(pipeline: Pipeline) -> None:
    """`top` draws the routes on a terminal, and Ctrl-C ends it with exit code 0."""
    assert pipeline.towline("apply").exit_code == 0
    ours, theirs = os.openpty()
    top = subprocess.Popen(
        [sys.executable, "-m", "towline", "top", str(pipeline.path), "--interval", "0.2"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        read_until(ours, 30, b"towline_cli", b"public.item", b"pending")
        top.send_signal(signal.SIGINT)
        drawn = read_until(ours, 20)
        assert (top.wait(10), b"Traceback" in drawn) == (0, False)
    finally:
        top.kill()
        top.wait()
        os.close(ours)


def read_until(terminal: int, seconds: float, *wanted: bytes) -> bytes:
    """What is written to a terminal until all of ``wanted`` is among it; without any, until the end."""
    drawn = b""
    deadline = time.monotonic() + seconds
    while not wanted or any(each not in drawn for each in wanted):
        left = deadline - time.monotonic()
        assert left > 0, drawn
        if select.select([terminal], [], [], left)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # the other side was closed
                piece = b""
            if not piece:
                assert not wanted, drawn
                break
            drawn += piece
    return drawn
