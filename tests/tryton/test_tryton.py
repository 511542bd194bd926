"""A whole ERP that we did not write, Tryton 8.2, is carried to a hub while it works and the daemon is killed.

266 tables with hyphens and keywords in their names, numerics without scale, intervals, bytea, jsonb; all through one
route, ``public.*`` into ``erp.*``. Run by `make test-tryton`: it takes some minutes, most of them Tryton's.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.databases import create_database
from tests.support.wait import until
from tests.tryton.comparison import contents, differences
from tests.tryton.replication import Replication
from towline.demo.programs import ProgramsMissing, debian_bindir, embedded_bindir
from towline.demo.server import Server
from towline.position import parse_lsn

pytestmark = pytest.mark.timeout(1800)

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-tryton" / "bin" / "python"
SEED = int(os.environ.get("TRYTON_SEED", "2"))
ROUNDS = int(os.environ.get("TRYTON_ROUNDS", "16"))
TABLES = 266
#: Tryton's only table without a primary key. Its unique index on the name serves as well, once PostgreSQL is told:
#: without that, PostgreSQL would refuse Tryton's own updates of it as soon as it is published.
IDENTITY = "ALTER TABLE public.ir_cache REPLICA IDENTITY USING INDEX ir_cache_name_unique"

PIPELINE = """\
pipeline: erp-to-hub
source: {{kind: postgres, dsn: "{source}"}}
target: {{kind: postgres, dsn: "{hub}"}}
checkpoint_seconds: 1
web: {{port: 0}}
routes:
  - from: public.*
    into: erp.*
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What there was to see from the first check to the last."""

    refusal: str
    kills: int
    business: str
    verified: Any
    tables: int
    rows: int
    differences: list[str]
    routes: list[dict[str, Any]]
    exit_code: int


@pytest.fixture(scope="module")
def source(scratch: Path) -> Iterator[Server]:
    """Debian's PostgreSQL 15 where it is installed, so that source and hub are of different versions."""
    try:
        bindir = debian_bindir(15)
    except ProgramsMissing:
        bindir = embedded_bindir()
    with Server(scratch / "tryton", bindir, durable=False, settings={"jit": "off"}) as server:
        yield server


@pytest.fixture(scope="module")
def outcome(source: Server, hub18: Server, scratch: Path) -> Iterator[Outcome]:
    """Make the ERP, replicate it, work with it while the daemon is killed, and compare."""
    assert PYTHON.exists(), "Tryton is not installed: `make test-tryton` does it, and runs this test"
    erp, hub = source.dsn(create_database(source, "erp")), hub18.dsn(create_database(hub18, "erp_hub"))
    tryton(source, "create")
    tryton(source, "stock-up")
    config = scratch / "tryton.yaml"
    config.write_text(PIPELINE.format(source=erp, hub=hub))
    replication = Replication(config)
    try:
        yield replicate(replication, source, erp, hub, scratch)
    finally:
        replication.end()


def replicate(replication: Replication, source: Server, erp: str, hub: str, scratch: Path) -> Outcome:
    """From `check` to the end of the daemon."""
    refusal = replication.command("check", expect=[2]).stderr
    with psycopg.connect(erp, autocommit=True) as connection:
        connection.execute(IDENTITY)
    replication.command("check")
    replication.command("apply")
    replication.start()
    business = work_under_fire(replication, source, scratch / "business.log")
    with psycopg.connect(erp, autocommit=True) as connection:
        position = parse_lsn(one(connection, "SELECT pg_current_wal_insert_lsn()::text"))
    until(lambda: replication.caught_up(position), 180, replication.log_tail)
    verified = json.loads(replication.command("verify", "--json", expect=[0, 4]).stdout)
    routes = replication.status()["routes"]
    here, there = contents(erp, "public"), contents(hub, "erp")
    return Outcome(
        refusal=refusal,
        kills=replication.kills,
        business=business,
        verified=verified,
        tables=len(here),
        rows=sum(table.rows for table in here.values()),
        differences=differences(here, there),
        routes=routes,
        exit_code=replication.stop(),
    )


def work_under_fire(replication: Replication, source: Server, log: Path) -> str:
    """Tryton's business with the daemon killed meanwhile; what was done, as Tryton's driver sums it up."""
    with log.open("w") as output:
        command = driver(source, "trade", "--rounds", str(ROUNDS), "--seed", str(SEED))
        business = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        replication.harass(business, random.Random(SEED))
    finally:
        business.kill()
        business.wait()
    text = log.read_text()
    assert business.returncode == 0, text
    return text.splitlines()[-1]


def driver(source: Server, step: str, *options: str) -> list[str]:
    """The command that has Tryton do something, in its own virtual environment."""
    uri = f"postgresql://postgres@127.0.0.1:{source.port}/erp"
    return [str(PYTHON), "-m", "tests.tryton.erp", step, uri, *options]


def tryton(source: Server, step: str) -> None:
    """Have Tryton do something, to its end."""
    done = subprocess.run(driver(source, step), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def one(connection: psycopg.Connection[Any], query: str) -> str:
    """The one value of a query."""
    row = connection.execute(query).fetchone()
    assert row is not None
    return str(row[0])


def test_check_names_the_table_without_identity(outcome: Outcome) -> None:
    """The only table that cannot be routed as it is, and what to do about it."""
    assert "TL-211" in outcome.refusal
    assert "public.ir_cache" in outcome.refusal
    assert "1 problem" in outcome.refusal


def test_business_went_on_while_the_daemon_was_killed(outcome: Outcome) -> None:
    """Kills in snapshot and stream, while sales, shipments, purchases, returns and deletions took place."""
    assert outcome.kills >= 5
    for what in ("sale=", "shipment=", "purchase=", "invoice_paid=", "sale_deleted=", "return=", "stock_count="):
        assert what in outcome.business


def test_every_table_is_verified(outcome: Outcome) -> None:
    """`towline verify` compares every row of every table and finds none that differs."""
    assert outcome.verified["differing"] == 0
    assert outcome.verified["unsettled"] == 0
    assert len(outcome.verified["routes"]) == outcome.tables == TABLES
    assert outcome.verified["rows"] == outcome.rows


def test_every_table_is_equal_without_asking_towline(outcome: Outcome) -> None:
    """Columns, types, NOT NULL, number of rows and all values as PostgreSQL prints them."""
    assert outcome.differences == []


def test_ledger_balances_for_every_table(outcome: Outcome) -> None:
    """Every row seen is accounted for, through all the kills."""
    parts = ("upserted", "deleted", "superseded", "filtered", "quarantined")
    unbalanced = [route["name"] for route in outcome.routes if route["seen"] != sum(route[part] for part in parts)]
    assert unbalanced == []
    assert sum(route["deleted"] for route in outcome.routes) > 0


def test_sigterm_ends_the_daemon_cleanly(outcome: Outcome) -> None:
    """Within ten seconds, with exit code 0."""
    assert outcome.exit_code == 0
