"""verify beside the real daemon: what is only under way is not reported, what is wrong is found."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.fault.harness import Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline import plan
from towline.demo.server import Server
from towline.differences import Report
from towline.errors import VerifyUnsettled
from towline.source.postgres import pending
from towline.verify import verify


def look(under: Fault, **options: bool) -> Report:
    with plan.prepare(under.config) as prepared:
        return verify(prepared, **options)  # type: ignore[arg-type]


@contextmanager
def toggling(dsn: str) -> Iterator[None]:
    """Rows of two values in turn, many times a second: what they were may be what they will be.

    Not as fast as it goes: wal2json could not keep up with that on a busy machine.
    """
    stop = threading.Event()

    def body() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not stop.wait(0.004):
                for price in ("1.0", "1.00"):
                    connection.execute("UPDATE item SET price = %s WHERE id BETWEEN 100 AND 103", (price,))

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    ("server", "plugin"), [("pg18", "pgoutput"), pytest.param("pg15", "wal2json", marks=pytest.mark.debian)]
)
def test_no_false_report_under_load(
    request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path, server: str, plugin: str
) -> None:
    """While rows are inserted, updated, deleted, rekeyed and toggled, only planted differences are found."""
    source = request.getfixturevalue(server)
    with fault(tmp_path, new_database(source), new_database(hub18), plugin=plugin, rows=500) as under:
        under.daemon()
        until(under.copied, 60.0)
        with shop(under, seed=11, rate=100.0, rows=500), toggling(under.source):
            for _ in range(3):
                report = look(under)
                assert report.differing == 0, list(report.lines())
                assert report.rows > 1500
            under.at_hub(
                "INSERT INTO replica.stock VALUES ('planted', 'extra', 1);"
                "INSERT INTO hub.open_sale VALUES ('planted', 1, NULL, now());"
                "UPDATE replica.sale SET quantity = 999 WHERE id = (SELECT min(id) FROM replica.sale)"
            )
            report = look(under)
            kinds = {route.route: (route.missing, route.extra, route.different) for route in report.routes}
            assert kinds["public.stock"] == (0, 1, 0)
            assert kinds["open_sale"] == (0, 1, 0)
            assert kinds["public.sale"] in {(0, 0, 1), (0, 0, 0)}  # the shop may have changed that very sale
            look(under, repair=True)
            report = look(under)
            assert report.differing == 0, list(report.lines())
        under.await_position()
        under.verify()
        under.daemons[-1].stop()


@pytest.mark.parametrize(
    ("server", "plugin"), [("pg18", "pgoutput"), pytest.param("pg15", "wal2json", marks=pytest.mark.debian)]
)
def test_without_a_daemon_the_slot_tells(
    request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path, server: str, plugin: str
) -> None:
    """The checkpoint of a stopped pipeline stays behind the log's end: with nothing routed in between it is at a common
    position all the same, and a difference is reported; with a change pending it is not."""
    routes = "  - {name: item, from: public.item, into: replica.item}"
    line = Line.make(
        tmp_path, new_database(request.getfixturevalue(server)), new_database(hub18), routes, plugin=plugin
    )
    line.at_source(
        "CREATE TABLE item (id int PRIMARY KEY, name text); INSERT INTO item SELECT generate_series(1, 50), 'x';"
        "CREATE TABLE other (id int)"
    )
    line.apply()
    line.run()
    line.at_hub("UPDATE replica.item SET name = 'y' WHERE id = 7; DELETE FROM replica.item WHERE id = 8")
    line.at_source("INSERT INTO other VALUES (1)")
    report = line.verify(timeout=20.0).routes[0]
    assert (report.missing, report.extra, report.different) == (1, 0, 1)
    line.at_source("INSERT INTO item VALUES (51, 'pending')")
    with pytest.raises(VerifyUnsettled):
        line.verify(timeout=4.0)
    line.run()
    report = line.verify(timeout=20.0).routes[0]
    assert (report.missing, report.extra, report.different) == (1, 0, 1)
    assert line.verify(repair=True).exit_code == 0
    assert line.same("item", "replica.item") == 51


@pytest.mark.parametrize(
    ("server", "plugin"),
    [("pg18", "pgoutput"), pytest.param("pg15", "wal2json", marks=pytest.mark.debian)],
)
def test_a_slot_far_behind_what_was_applied(
    request: pytest.FixtureRequest,
    hub18: Server,
    new_database: NewDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: str,
    plugin: str,
) -> None:
    """As a daemon leaves it that is stopped while it catches up: what is pending comes after all that was applied."""
    monkeypatch.setattr(pending, "_ENOUGH", 20)
    routes = "  - {name: item, from: public.item, into: replica.item}"
    line = Line.make(
        tmp_path, new_database(request.getfixturevalue(server)), new_database(hub18), routes, plugin=plugin
    )
    line.at_source("CREATE TABLE item (id int PRIMARY KEY, name text)")
    line.apply()
    line.run()
    slot = line.config.source.slot
    line.at_source("SELECT pg_copy_logical_replication_slot(%s, %s)", slot, f"{slot}_old")
    for number in range(40):
        line.at_source("INSERT INTO item VALUES (%s, 'applied')", number)
    line.run()
    until(lambda: line.at_source("SELECT active FROM pg_replication_slots WHERE slot_name = %s", slot) == [(False,)])
    line.at_source("SELECT pg_drop_replication_slot(%s)", slot)
    line.at_source("SELECT pg_copy_logical_replication_slot(%s, %s)", f"{slot}_old", slot)
    line.at_source("SELECT pg_drop_replication_slot(%s)", f"{slot}_old")
    line.at_source("INSERT INTO item VALUES (40, 'pending')")
    with pytest.raises(VerifyUnsettled):
        line.verify(timeout=4.0)
    line.run()
    assert line.verify(timeout=20.0).exit_code == 0
