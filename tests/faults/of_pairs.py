"""Faults that take a source of two servers: a primary that dies, and the standby that takes its place."""

from __future__ import annotations

from tests.faults.fault import Fault
from tests.faults.phases import Phase
from tests.faults.trial import Trial
from tests.support.pair import promote


def promoted(trial: Trial) -> None:
    """The primary dies, the standby is promoted: the daemon, whose dsn names both, follows it."""
    primary, standby = trial.pair
    primary.kill()
    trial.proxies["source"].cut()
    promote(standby)
    trial.moved(standby)
    trial.over()
    trial.go()
    trial.daemon.await_logged("event=timeline_followed")


FAULTS = (
    Fault("source-promoted", "The source", "the primary dies, a standby is promoted (`failover: true`)", promoted,
          {Phase.SNAPSHOT: "f", Phase.VERIFYING: "f"}, wal2json="g", standby=True),
)  # fmt: skip
