"""SIGKILL while rows are being set aside: each bad change is in the quarantine once, and nothing else is missing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psycopg
import pytest

from tests.fault.harness import Fault
from tests.support.databases import NewDatabase
from towline.demo.server import Server

POINTS = ("chunk-loaded", "applied", "committing", "committed")


@pytest.fixture
def under(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Fault:
    """A pipeline that is set up, with a hub that takes no price below one."""
    source, hub = new_database(pg18), new_database(hub18)
    with psycopg.connect(source, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE item (id int PRIMARY KEY, price int);"
            "INSERT INTO item SELECT n, n % 20 FROM generate_series(1, 300) n"
        )
    with psycopg.connect(hub, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA hub; CREATE TABLE hub.item (id int PRIMARY KEY, price int CHECK (price > 0))")
    path = tmp_path / "items.yaml"
    path.write_text(
        "pipeline: items\n"
        f'source: {{kind: postgres, dsn: "{source}", slot: items_{os.getpid()}}}\n'
        f'target: {{kind: postgres, dsn: "{hub}"}}\n'
        "batch: {max_rows: 50}\nsnapshot: {chunk_rows: 200}\ncheckpoint_seconds: 0.5\nweb: {port: 0}\n"
        "routes: [{from: public.item, into: hub.item, on_error: quarantine}]\n",
        "utf-8",
    )
    made = Fault(source, hub, path)
    made.apply()
    return made


def test_killed_while_rows_are_set_aside(under: Fault) -> None:
    """At each point of the loop, in the first copy and in the stream."""
    for round_, point in enumerate(POINTS):
        low = 1000 * (round_ + 1)
        under.at_source(f"INSERT INTO item SELECT n, n % 20 FROM generate_series({low}, {low + 59}) n")
        under.at_source(f"UPDATE item SET price = 5 WHERE id = {low}")  # one bad row is put right
        under.at_source(f"UPDATE item SET price = -1 WHERE id = {low + 20}")  # another stays bad
        under.at_source(f"DELETE FROM item WHERE id = {low + 40}")
        daemon = under.daemon(point, "1")
        assert daemon.await_exit() == -signal.SIGKILL, daemon.log()
        under.never_ahead()
    last = under.daemon()
    under.await_position()
    last.stop()
    good = "SELECT id, price FROM {} WHERE price > 0 ORDER BY id"
    assert under.at_hub(good.format("hub.item")) == under.at_source(good.format("item"))
    opened = under.at_hub(
        "SELECT DISTINCT (key::json->>'id')::int FROM towline.quarantine WHERE state = 'open' ORDER BY 1"
    )
    assert opened == under.at_source("SELECT id FROM item WHERE price <= 0 ORDER BY id")
    assert under.at_hub(
        "SELECT count(*) - count(DISTINCT (key, position, ordinal, operation)), count(*) > 15 FROM towline.quarantine"
    ) == [(0, True)]
    assert under.at_hub("SELECT sum(quarantined) FROM towline.ledger") == under.at_hub(
        "SELECT count(*) FROM towline.quarantine"
    )
    assert "price" not in last.log()
