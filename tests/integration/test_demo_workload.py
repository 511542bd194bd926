"""The demo's load: every kind of change happens, and the same ones each time."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.wait import until
from tests.support.workload import make_pipeline
from towline.demo.server import Server
from towline.demo.workload import Pacer, Workload, kinds

TABLES = (
    *("erp.party", "erp.product", "erp.sale_order", "erp.sale_order_line", "erp.invoice"),
    *("wms.location", "wms.stock_level"),
)
#: What clocks and generated uuids fill is left out of a comparison.
MOVING = ("updated_at", "ordered_at", "counted_at", "paid_at", "issued_on", "due_on", "requested_on")


@pytest.fixture
def source(pg18: Server, new_database: NewDatabase, tmp_path: Path) -> str:
    """The demo's source."""
    dsn = new_database(pg18)
    make_pipeline(tmp_path, dsn, new_database(pg18))
    return dsn


def contents(dsn: str) -> dict[str, list[str]]:
    """All rows as text, by table, without what moves."""
    with psycopg.connect(dsn) as connection:
        return {
            table: [
                row[0]
                for row in connection.execute(
                    psycopg.sql.SQL("SELECT (to_jsonb(t) - %s::text[])::text FROM {} AS t ORDER BY 1").format(
                        psycopg.sql.Identifier(*table.split("."))
                    ),
                    (list(MOVING),),
                )
            ]
            for table in TABLES
        }


def test_the_same_seed_makes_the_same_changes(
    source: str, pg18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """A failure under load can be repeated."""
    other = new_database(pg18)
    make_pipeline(tmp_path, other, new_database(pg18))
    before = contents(source)
    for dsn in (source, other):
        Workload(dsn, seed=7).run(1000)
    after = contents(source)
    assert all(after[table] != before[table] for table in TABLES)
    assert after == contents(other)


def test_every_kind_of_change_happens(source: str) -> None:
    """Inserts, updates, deletes and key changes; each kind of transaction changes rows at times."""
    workload = Workload(source, seed=1)
    workload.run(1500)
    assert {kind.name for kind in kinds()} == workload.done.keys()
    with psycopg.connect(source) as connection:
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE line_no > 100),"
            " (SELECT count(*) FROM wms.location WHERE code LIKE '%*'),"
            " (SELECT count(*) FROM wms.stock_level WHERE location LIKE '%*') FROM erp.sale_order_line"
        ).fetchone()
        assert row is not None
        assert all(count > 0 for count in row)


def test_pacer_keeps_its_rate_and_stops(source: str) -> None:
    """It never runs ahead of its rate; stopping waits for the transaction in hand."""
    pacer = Pacer(Workload(source), source, rate=50)
    pacer.start()
    until(lambda: pacer.transactions >= 25)
    pacer.stop()
    assert pacer.error is None
    done = pacer.transactions
    with psycopg.connect(source) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'demo workload'"
            " AND datname = current_database()"
        ).fetchone()
    assert row == (0,)
    assert pacer.transactions == done


def test_pacer_says_when_the_server_is_gone(source: str) -> None:
    """An error ends the thread, and can be read."""
    pacer = Pacer(Workload(source), source)
    pacer.start()
    until(lambda: pacer.transactions > 0)
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'demo workload' AND datname = current_database()"
        )
    until(lambda: pacer.error is not None)
    pacer.stop()
