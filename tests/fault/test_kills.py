"""SIGKILL, at every named point of the loop and at random: nothing is lost, nothing is applied twice."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.fault.harness import fault, shop
from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.demo.server import Server
from towline.pipeline import POINTS

ROWS = 2000
KILLS_AT_A_POINT = 3
KILLS_AT_RANDOM = 10

#: These are passed when a table of the source has changed.
AT_CHANGES = ("adopting", "adopted", "looking-again")


def test_there_are_enough_kills() -> None:
    """Ten named points at least, and fifty kills in all."""
    assert len(POINTS) >= 10
    assert len(POINTS) * KILLS_AT_A_POINT + KILLS_AT_RANDOM >= 50


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(point: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Killed each time it passes the point, from the first snapshot chunk on; then one daemon puts all right."""
    source, hub = new_database(pg18), new_database(hub18)
    with fault(tmp_path, source, hub, rows=ROWS) as under:
        if point in AT_CHANGES:
            under.path.write_text(under.path.read_text() + "defaults: {on_schema_change: evolve}\n")
        with shop(under, seed=POINTS.index(point), rows=ROWS):
            for kill in range(0 if point == "idle-checkpoint" else KILLS_AT_A_POINT):
                count = "1" if point in ("opened", *AT_CHANGES) else str(1 + 2 * kill)
                daemon = under.daemon(point, count)
                if point in AT_CHANGES:
                    until(lambda kill=kill: under.epoch() > kill, 30, daemon.log)  # type: ignore[misc]
                    under.at_source(f"ALTER TABLE stock ADD added_{kill} int DEFAULT {kill}")
                assert daemon.await_exit() == -signal.SIGKILL, daemon.log()
                under.never_ahead()
        if point == "idle-checkpoint":  # which only an idle source makes it pass
            for _ in range(KILLS_AT_A_POINT):
                under.at_source("SELECT pg_logical_emit_message(true, 'idle', 'x')")
                assert under.daemon(point, "1").await_exit() == -signal.SIGKILL
        last = under.daemon()
        under.await_position()
        under.await_sums()
        last.stop()
        under.verify()
        under.never_ahead()
        if point not in AT_CHANGES:  # then a daemon takes over from itself
            assert under.epoch() == KILLS_AT_A_POINT + 1


def test_killed_at_random_under_load(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Ten kills at moments that nobody chose, while the snapshot and then the stream go on."""
    moments = random.Random(10)
    source, hub = new_database(pg18), new_database(hub18)
    with fault(tmp_path, source, hub, rows=ROWS) as under:
        with shop(under, seed=99, rate=300, rows=ROWS) as writer:
            for _ in range(KILLS_AT_RANDOM):
                daemon = under.daemon()
                epoch = under.epoch()
                until(lambda epoch=epoch: under.epoch() > epoch, 30, daemon.log)  # type: ignore[misc]
                wait = writer.transactions + moments.randint(0, 150)
                until(lambda wait=wait: writer.transactions >= wait, 30)  # type: ignore[misc]
                daemon.kill()
                under.never_ahead()
        last = under.daemon()
        under.await_position()
        under.await_sums()
        last.stop()
        under.verify()


@pytest.mark.parametrize("point", ["applied", "within-transaction", "chunk-loaded"])
def test_killed_with_wal2json(
    point: str, pg15: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The same with the other plugin and text values."""
    source, hub = new_database(pg15), new_database(hub18)
    with fault(tmp_path, source, hub, plugin="wal2json", rows=ROWS) as under:
        with shop(under, seed=7, rows=ROWS):
            for kill in range(2):
                daemon = under.daemon(point, str(1 + kill))
                assert daemon.await_exit() == -signal.SIGKILL, daemon.log()
        last = under.daemon()
        under.await_position()
        under.await_sums()
        last.stop()
        under.verify()
