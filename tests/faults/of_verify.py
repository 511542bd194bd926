"""Faults of `towline verify` itself: they strike it, and not the daemon, which goes on beside it."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.fault import Fault
from tests.faults.of_lines import LOST, QUERY, trapped
from tests.faults.phases import Phase
from tests.faults.puppet import Puppet
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until
from tests.support.wire import Trap
from towline.errors import Action

GROUP = "`towline verify`"
_ITS = "application_name LIKE '%%verify'"
#: What it asks, by side. The daemon reads no chunk meanwhile, and its statements at the target are prepared.
QUERIES = {
    "source": ("rows of the source", QUERY),
    "target": (
        "the target's rows",
        Trap(True, lambda message: message.kind == "Q" and message.head.startswith(b"WITH produced")),
    ),
}


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


def cut_off(side: str, trap: Trap, lose: str) -> Callable[[Trial], None]:
    """Its line is cut at what it asks: it ends, and says that it may be tried again."""

    def hit(trial: Trial) -> None:
        trapped(side, trap, lose)(trial)
        code = _verifier(trial).await_exit(PATIENCE)
        assert code == Action.RETRY, f"verify ended with exit code {code}: {_verifier(trial).log()}"

    return hit


def _row(name: str, title: str, hit: Callable[[Trial], None]) -> Fault:
    empty: dict[Phase, str] = {phase: "i" for phase in Phase if phase is not Phase.VERIFYING}
    return Fault(name, GROUP, title, hit, empty)


FAULTS = (
    _row("verify-kill", "SIGKILL at the point", kill),
    _row("verify-pause", "SIGSTOP at the point; SIGCONT when the target has all", pause),
    _row("verify-terminate", "its session at the target is ended", terminate),
    *(
        _row(f"verify-{side}-{lose}", f"cut: its query of {what} {how}", cut_off(side, trap, lose))
        for side, (what, trap) in QUERIES.items()
        for lose, how in LOST.items()
    ),
)
