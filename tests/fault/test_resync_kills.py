"""The daemon that copies and sweeps after `towline resync` is killed; one that runs meets another source."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.fault.harness import Fault, fault
from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.demo.server import Server

ROWS = 1000


@pytest.fixture
def under(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Iterator[Fault]:
    with fault(tmp_path, new_database(pg18), new_database(hub18), rows=ROWS) as made:
        yield made


def drop_slot(under: Fault) -> None:
    slot = under.config.source.slot
    until(lambda: under.at_source(f"SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'") == [(False,)])
    under.at_source(f"SELECT pg_drop_replication_slot('{slot}')")


def test_killed_while_it_copies_again_and_while_it_sweeps(under: Fault) -> None:
    """Each time, the next daemon goes on where it was; at the end the target has what the source has, and no more."""
    daemon = under.daemon()
    under.await_position()
    daemon.stop()
    under.at_source("DELETE FROM sale; DELETE FROM stock; DELETE FROM item WHERE id % 10 = 0")
    under.at_source("INSERT INTO item VALUES (88888, 'new', 1)")
    drop_slot(under)
    under.resync()
    copying = under.daemon("chunk-loaded", "2")
    assert copying.await_exit() == -signal.SIGKILL
    assert under.at_hub("SELECT bool_and(sweep) FROM towline.route_state") == [(True,)]
    with psycopg.connect(under.hub) as holder:  # a row that is to go cannot, so that the sweep is caught in the middle
        assert holder.execute("SELECT FROM replica.item WHERE id % 10 = 0 FOR UPDATE").fetchall()
        sweeping = under.daemon()
        waits = (
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        until(lambda: under.copied() and under.at_hub(waits) == [(True,)], 60, sweeping.log)
        sweeping.kill()
    assert under.at_hub("SELECT bool_or(sweep) FROM towline.route_state") == [(True,)]
    last = under.daemon()
    until(lambda: under.at_hub("SELECT bool_or(sweep) FROM towline.route_state") == [(False,)], 60, last.log)
    under.await_position()
    last.stop()
    under.verify()


def other_system(under: Fault) -> None:
    under.at_hub("UPDATE towline.checkpoint SET system_identifier = '42'")


def other_database(under: Fault) -> None:
    under.at_hub("UPDATE towline.checkpoint SET source_database = 'crm'")


def other_plugin(under: Fault) -> None:
    drop_slot(under)
    under.at_source(f"SELECT pg_create_logical_replication_slot('{under.config.source.slot}', 'test_decoding')")


def no_publication(under: Fault) -> None:
    under.at_source(f'DROP PUBLICATION "{under.config.source.publication}"')


@pytest.mark.parametrize(
    ("harm", "code"),
    [(other_system, "TL-308"), (other_database, "TL-325"), (other_plugin, "TL-321"), (no_publication, "TL-329")],
)
def test_a_mismatch_after_a_reconnect(under: Fault, harm: Callable[[Fault], None], code: str) -> None:
    """A daemon whose line is cut looks at all of it again, and ends with the error that a start has."""
    daemon = under.daemon()
    under.await_position()
    daemon.signal(signal.SIGSTOP)
    slot = under.config.source.slot
    under.at_source(f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{slot}'")
    harm(under)
    daemon.signal(signal.SIGCONT)
    assert daemon.await_exit(60) == 3, daemon.log()
    assert f"code={code}" in daemon.log()
