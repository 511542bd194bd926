"""Faults while the daemon is far behind, and reads the log in gulps through SQL, from a copy of the slot.

Each strikes while it does: whoever is started after a fault has a backlog before it, and must come to its end.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.fault import Fault
from tests.faults.of_daemon import kill, stale_daemon
from tests.faults.of_lines import trapped
from tests.faults.of_servers import crash, freeze, restart, terminate
from tests.faults.phases import Phase
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until
from tests.support.wire import Trap

GROUP = "Far behind: the log is read through SQL"
#: A row of a gulp has one column; rows of chunks have more, and what a walsender sends begins otherwise.
GULP = Trap(False, lambda message: message.kind == "d" and message.head.startswith(b"\0\1"))
#: The session that has the copy of the slot, which is temporary, by what pg_stat_activity says.
READING = "pid IN (SELECT active_pid FROM pg_replication_slots WHERE temporary)"


def kill_at(point: str) -> Callable[[Trial], None]:
    """SIGKILL where it waits, and of the next one at a point of the catching up."""

    def hit(trial: Trial) -> None:
        trial.kill()
        trial.go()
        trial.start((point, 1)).await_paused(PATIENCE)
        trial.kill()
        trial.fall_behind()
        trial.over()
        trial.start()

    return hit


def reading(hit: Callable[[Trial], None]) -> Callable[[Trial], None]:
    """The same, when the daemon has its copy of the slot."""

    def wait_and_hit(trial: Trial) -> None:
        until(lambda: trial.sessions("source", READING), PATIENCE, trial.daemon.log)
        hit(trial)

    return wait_and_hit


def _row(name: str, title: str, hit: Callable[[Trial], None]) -> Fault:
    return Fault(f"behind-{name}", GROUP, title, hit, {Phase.VERIFYING: "b"}, far_behind=True)


FAULTS = (
    _row("kill", "SIGKILL at the point, restarted", kill),
    _row("kill-gulp", "SIGKILL at the point, and of the next one when it has read a gulp", kill_at("gulp-read")),
    _row("kill-switching", "SIGKILL at the point, and of the next one at the end of the backlog",
         kill_at("switching")),
    _row("kill-switched", "SIGKILL at the point, and of the next one when it streams again", kill_at("switched")),
    _row("stale", "frozen, replaced by another one, and resumed with its batch in hand", reading(stale_daemon)),
    _row("cut", "cut: in the middle of a row of a gulp", trapped("source", GULP, "message", spread=20)),
    _row("terminate", "the source ends the session that reads, and so the copy of the slot",
         reading(terminate("source", READING))),
    _row("frozen", "that session's process is stopped (SIGSTOP) while all is written",
         reading(freeze("source", READING))),
    _row("source-crash", "the source crashes (immediate stop), recovers",
         reading(restart("source", signal.SIGQUIT, "immediate"))),
    _row("target-crash", "the target crashes (SIGKILL of all its processes), recovers", crash),
)  # fmt: skip
