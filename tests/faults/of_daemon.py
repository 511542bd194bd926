"""Faults of the daemon's own process: killed, stopped, stale, doubled, its clock wrong."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from tests.faults.fault import Fault
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until

GROUP = "The daemon"


def kill(trial: Trial) -> None:
    """SIGKILL where it waits, and another one is started."""
    trial.kill()
    trial.over()
    trial.start()


def kill_again_and_again(trial: Trial) -> None:
    """SIGKILL where it waits, and then at moments that nobody chose: some of a second after a next has taken over."""
    trial.kill()
    trial.go()
    for _ in range(3):
        epoch = trial.epoch()
        daemon = trial.start()
        until(lambda epoch=epoch: trial.epoch() > epoch, PATIENCE, daemon.log)  # type: ignore[misc]
        moment = time.monotonic() + trial.random.random() * 0.4
        until(lambda moment=moment: time.monotonic() >= moment)  # type: ignore[misc]
        trial.kill()
    trial.over()
    trial.start()


def pause(trial: Trial) -> None:
    """SIGSTOP, while the source writes all the rest; then SIGCONT."""
    trial.daemon.signal(signal.SIGSTOP)
    trial.go()
    trial.write_all()
    trial.daemon.signal(signal.SIGCONT)
    trial.over()


def clock(seconds: float) -> Callable[[Trial], None]:
    """The clock of day jumps by so much."""

    def hit(trial: Trial) -> None:
        trial.daemon.clock(seconds)
        trial.over()

    return hit


def second_daemon(trial: Trial) -> None:
    """A second one is started beside it: it waits as the standby, and takes over when the first is killed."""
    first = trial.daemon
    epoch = trial.epoch()
    second = trial.start()
    second.await_logged("event=standby")
    trial.go()
    trial.write_all()
    assert trial.epoch() == epoch, "the second daemon wrote beside the first"
    first.kill()
    trial.over()


def stale_daemon(trial: Trial) -> None:
    """Frozen, its sessions ended, replaced; then it goes on where it was, with its batch in hand."""
    first = trial.daemon
    epoch = trial.epoch()
    first.signal(signal.SIGSTOP)
    for side in ("target", "source"):
        for pid in trial.sessions(side):
            trial.at(side, "SELECT pg_terminate_backend(%s)", pid)
    second = trial.start()
    until(lambda: trial.epoch() > epoch, PATIENCE, second.log)
    first.signal(signal.SIGCONT)
    trial.over()
    trial.go()
    first.await_logged("event=standby")


FAULTS = (
    Fault("kill", GROUP, "SIGKILL at the point, restarted", kill),
    Fault(
        "kill-random", GROUP, "SIGKILL at the point, then three times at random", kill_again_and_again,
    ),
    Fault("pause", GROUP, "SIGSTOP at the point; SIGCONT when the source has written all", pause),
    Fault("clock-forward", GROUP, "its clock jumps an hour forward", clock(3600)),
    Fault("clock-back", GROUP, "its clock jumps an hour back", clock(-3600)),
    Fault("second-daemon", GROUP, "a second daemon is started, then the first one killed", second_daemon),
    Fault("stale-daemon", GROUP, "frozen, replaced by another one, and resumed with its batch in hand", stale_daemon),
)  # fmt: skip
