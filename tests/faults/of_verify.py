"""Faults of `towline verify` itself: they strike it, and not the daemon, which goes on beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.fault import Fault
from tests.faults.phases import Phase
from tests.faults.puppet import Puppet
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until

GROUP = "`towline verify`"
_ITS = "application_name LIKE '%%verify'"


def _verifier(trial: Trial) -> Puppet:
    assert trial.verifier is not None
    return trial.verifier


def kill(trial: Trial) -> None:
    """SIGKILL: it leaves nothing at the target that is in anybody's way."""
    _verifier(trial).kill()
    trial.verifier = None
    until(lambda: not trial.sessions("target", _ITS), PATIENCE)
    trial.go()
    trial.over()


def pause(trial: Trial) -> None:
    """SIGSTOP, while the source writes all the rest; then SIGCONT."""
    _verifier(trial).signal(signal.SIGSTOP)
    trial.go()
    trial.write_all()
    trial.await_rest()
    _verifier(trial).signal(signal.SIGCONT)
    trial.over()


def terminate(trial: Trial) -> None:
    """pg_terminate_backend of its session at the target."""
    sessions = trial.sessions("target", _ITS)
    assert sessions, "verify has no session there"
    for pid in sessions:
        trial.at("target", "SELECT pg_terminate_backend(%s)", pid)
    trial.go()
    trial.over()


def _row(name: str, title: str, hit: Callable[[Trial], None]) -> Fault:
    empty: dict[Phase, str] = {phase: "i" for phase in Phase if phase is not Phase.VERIFYING}
    return Fault(name, GROUP, title, hit, empty)


FAULTS = (
    _row("verify-kill", "SIGKILL at the point", kill),
    _row("verify-pause", "SIGSTOP at the point; SIGCONT when the target has all", pause),
    _row("verify-terminate", "its session at the target is ended", terminate),
)
