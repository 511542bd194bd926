"""Faults while the daemon reads from a standby, with a slot that is there."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from tests.faults.fault import Fault
from tests.faults.settings import setting
from tests.faults.trial import Trial
from tests.support.pair import promote

GROUP = "A standby as the source"
UNAVAILABLE = "code=TL-301"


def restarted(trial: Trial) -> None:
    """The standby crashes; it comes back when the daemon has noticed, and replays from its last restart point."""
    _, standby = trial.pair
    standby.stop("immediate")
    trial.go()
    trial.daemon.await_logged(UNAVAILABLE)
    standby.start()
    trial.over()


def paused(trial: Trial) -> None:
    """Replay is paused while the source writes all: the standby has it, and shows nothing of it."""
    _, standby = trial.pair
    with psycopg.connect(standby.dsn(), autocommit=True) as connection:
        connection.execute("SELECT pg_wal_replay_pause()")
        try:
            trial.go()
            trial.write_all()
        finally:
            connection.execute("SELECT pg_wal_replay_resume()")
    trial.over()


def cut_off(trial: Trial) -> None:
    """The standby has no line to its primary while that writes all."""
    _, standby = trial.pair
    with setting(standby, "primary_conninfo", "''"):
        trial.go()
        trial.write_all()
    trial.over()


def primary_crashed(trial: Trial) -> None:
    """The primary crashes and recovers, and the standby finds it again."""
    primary, _ = trial.pair
    primary.stop("immediate")
    trial.go()
    primary.start()
    trial.over()


def promoted(trial: Trial) -> None:
    """The primary dies, and the standby that is read from takes its place."""
    primary, standby = trial.pair
    primary.kill()
    promote(standby)
    trial.moved(standby)
    trial.over()
    trial.go()
    trial.daemon.await_logged("event=timeline_followed")


def _fault(name: str, title: str, hit: Callable[[Trial], None]) -> Fault:
    return Fault(name, GROUP, title, hit, wal2json="k", from_standby=True)


FAULTS = (
    _fault("standby-crash", "the standby crashes (immediate stop), recovers", restarted),
    _fault("standby-paused", "its replay is paused while all is written", paused),
    _fault("standby-cut-off", "its line to the primary is down while all is written", cut_off),
    _fault("standby-primary-crash", "the primary crashes (immediate stop), recovers", primary_crashed),
    _fault("standby-promoted", "the primary dies, the standby is promoted", promoted),
)
