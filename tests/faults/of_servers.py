"""Faults of the servers: restarting, crashing, ending sessions, stopped, full, read-only, slow, in the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.faults.fault import Fault
from tests.faults.of_lines import ROWS
from tests.faults.of_rows import QUARANTINE, none_aside
from tests.faults.phases import Phase
from tests.faults.settings import setting
from tests.faults.small_disk import small_disk
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until
from tests.support.wire import Trap

SOURCE, TARGET = "The source", "The target"
SMALL = ("replica.sale", "replica.journal")
UNAVAILABLE = {"source": "code=TL-301", "target": "code=TL-401"}


def restart(side: str, how: signal.Signals, mode: str) -> Callable[[Trial], None]:
    """The server is told to go down; it comes back when the daemon has noticed."""

    def hit(trial: Trial) -> None:
        server = trial.server(side)
        os.kill(server.pid, how)  # the daemon waits at the point: it goes on while the server ends
        trial.go()
        server.stop(mode, timeout=5.0)
        trial.daemon.await_logged(UNAVAILABLE[side])
        server.start()
        trial.over()

    return hit


def restarted_within_copy(trial: Trial) -> None:
    """The target crashes while it receives rows, with half of them there."""
    proxy = trial.proxies["target"]
    tripped = proxy.trap(Trap(ROWS.up, ROWS.matches, "nothing"))
    trial.go()
    assert tripped.wait(PATIENCE), f"no COPY was begun: {trial.daemon.log()}"
    trial.target_server.kill()
    proxy.cut()
    proxy.release()
    trial.target_server.start()
    trial.over()


def terminate(side: str, which: str = "true") -> Callable[[Trial], None]:
    """pg_terminate_backend of the daemon's sessions."""

    def hit(trial: Trial) -> None:
        for pid in trial.sessions(side, which):
            trial.at(side, "SELECT pg_terminate_backend(%s)", pid)
        trial.over()

    return hit


def freeze(side: str, which: str = "true") -> Callable[[Trial], None]:
    """SIGSTOP of the server processes that serve the daemon, while the source writes all; then SIGCONT."""

    def hit(trial: Trial) -> None:
        frozen = trial.sessions(side, which)
        assert frozen, "the daemon has no session there"
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        try:
            trial.go()
            trial.write_all()
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
        trial.over()

    return hit


def timed_out(trial: Trial) -> None:
    """The daemon is frozen for longer than wal_sender_timeout: the source ends the stream."""
    trial.daemon.signal(signal.SIGSTOP)
    with setting(trial.source_server, "wal_sender_timeout", "'1s'"):
        until(lambda: not trial.sessions("source", WALSENDER), PATIENCE)
    trial.daemon.signal(signal.SIGCONT)
    trial.over()


def read_only(trial: Trial) -> None:
    """The target takes no writes, until the daemon has noticed."""
    server = trial.target_server
    with setting(server, "default_transaction_read_only", "on"):
        trial.go()
        trial.daemon.await_logged(UNAVAILABLE["target"])
    trial.over()


def on_small_disk(trial: Trial) -> None:
    """Two tables of the target are on a disk of 1 MB from the beginning."""
    directory = trial.target_server.directory / f"small-{os.getpid()}"
    trial.stack.enter_context(small_disk(directory))
    owner = trial.target_server.data.stat()
    os.chown(directory, owner.st_uid, owner.st_gid)
    name = f"small_{os.getpid()}"
    trial.at("target", f"CREATE TABLESPACE {name} LOCATION '{directory}'")
    trial.stack.callback(_drop_tablespace, trial, name)
    for table in SMALL:
        trial.at("target", f"ALTER TABLE {table} SET TABLESPACE {name}")


def disk_full(trial: Trial) -> None:
    """Something else fills the disk up, until the daemon has noticed."""
    filler = trial.target_server.directory / f"small-{os.getpid()}" / "filler"
    _fill_up(filler)
    trial.go()
    trial.daemon.await_logged("53100")
    filler.unlink()
    trial.over()


def _drop_tablespace(trial: Trial, name: str) -> None:
    for table in SMALL:
        trial.at("target", f"ALTER TABLE {table} SET TABLESPACE pg_default")
    trial.at("target", f"DROP TABLESPACE {name}")


def _fill_up(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            return


WAITING = "wait_event_type = 'Lock'"


def blocked(trial: Trial, other: psycopg.Connection) -> int:
    """Let the daemon run into a lock that the other session holds; the process id of the daemon's session.

    It waits with rows in hand, which could be set aside for that.
    """
    trial.go()
    other.execute("LOCK TABLE replica.journal IN EXCLUSIVE MODE")
    trial.at("source", "INSERT INTO journal VALUES (2000000, 1)")
    return until(lambda: trial.sessions("target", WAITING), PATIENCE, trial.daemon.log)[0]


def deadlock(trial: Trial) -> None:
    """Another writer holds what the daemon needs next, and wants what the daemon holds: the server ends one of them."""
    with psycopg.connect(trial.hub, options="-c deadlock_timeout=20s") as other:
        blocked(trial, other)
        try:  # the daemon looks for deadlocks first; it is the victim, unless it had looked already
            other.execute("SELECT FROM towline.checkpoint FOR UPDATE")
            other.rollback()
            trial.daemon.await_logged("40P01")
        except psycopg.errors.DeadlockDetected:
            other.rollback()
    trial.over()


def cancel(trial: Trial) -> None:
    """The daemon's statement is cancelled, three times."""
    with psycopg.connect(trial.hub) as other:
        pid = blocked(trial, other)
        for times in range(1, 4):
            trial.at("target", "SELECT pg_cancel_backend(%s)", pid)
            trial.daemon.await_logged("event=attempt_failed", times)
            if times < 3:
                pid = until(lambda: trial.sessions("target", WAITING), PATIENCE, trial.daemon.log)[0]
        other.rollback()
    trial.over()


def slow(trial: Trial) -> None:
    """Each row takes the target a few milliseconds more, while the source writes all the rest."""
    trial.hook("PERFORM pg_catalog.pg_sleep(0.003); RETURN NEW;")
    trial.go()
    trial.write_all()
    trial.hook("RETURN NEW;")
    trial.over()


def without_slot(code: str, harm: Callable[[Trial], None]) -> Callable[[Trial], None]:
    """Nobody reads the slot, and something befalls it: the pipeline halts. The remedy is `towline resync`."""

    def hit(trial: Trial) -> None:
        trial.daemon.signal(signal.SIGSTOP)
        end = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()"
        trial.at("source", end + " AND active_pid IS NOT NULL")
        until(lambda: not trial.sessions("source", WALSENDER), PATIENCE)
        harm(trial)
        trial.daemon.signal(signal.SIGCONT)
        trial.go()
        trial.halted(code)
        trial.write_all()
        trial.resync()
        trial.over()
        trial.start()

    return hit


def drop_slot(trial: Trial) -> None:
    """Somebody drops it."""
    drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = current_database()"
    trial.at("source", drop)


def lose_slot(trial: Trial) -> None:
    """The source writes more than max_slot_wal_keep_size, and removes what the slot needs."""
    status = "SELECT wal_status FROM pg_replication_slots WHERE database = current_database()"

    def lost() -> bool:
        trial.at("source", "SELECT pg_logical_emit_message(false, 'matrix', 'x')")
        trial.at("source", "SELECT pg_switch_wal()")
        trial.at("source", "CHECKPOINT")
        return trial.at("source", status) == [("lost",)]

    with setting(trial.source_server, "max_slot_wal_keep_size", "'1MB'"):
        until(lost, PATIENCE)


def crash(trial: Trial) -> None:
    """SIGKILL of all processes of the target; it comes back when the daemon has noticed."""
    trial.target_server.kill()
    trial.go()
    trial.daemon.await_logged(UNAVAILABLE["target"])
    trial.target_server.start()
    trial.over()


WALSENDER = "backend_type = 'walsender'"
NOT_VERIFYING = {Phase.VERIFYING: "b"}

FAULTS = (
    Fault("source-restart", SOURCE, "restarts (fast)", restart("source", signal.SIGINT, "fast")),
    Fault("source-immediate", SOURCE, "crashes (immediate stop), recovers",
          restart("source", signal.SIGQUIT, "immediate")),
    Fault("source-terminate", SOURCE, "ends the walsender", terminate("source", WALSENDER)),
    Fault("source-terminate-all", SOURCE, "ends all sessions of Towline", terminate("source")),
    Fault("source-frozen", SOURCE, "the walsender is stopped (SIGSTOP) while all is written",
          freeze("source", WALSENDER)),
    Fault("source-timeout", SOURCE, "the daemon is stopped for longer than wal_sender_timeout", timed_out),
    Fault("source-slot-dropped", SOURCE, "the slot is dropped: halts (TL-304), then `towline resync`",
          without_slot("TL-304", drop_slot), NOT_VERIFYING),
    Fault("source-slot-lost", SOURCE,
          "the slot is lost (max_slot_wal_keep_size): halts (TL-322), then `towline resync`",
          without_slot("TL-322", lose_slot), NOT_VERIFYING),
    Fault("target-restart", TARGET, "restarts (fast)", restart("target", signal.SIGINT, "fast")),
    Fault("target-crash", TARGET, "crashes (SIGKILL of all its processes), recovers", crash),
    Fault("target-copy", TARGET, "crashes in the middle of a COPY", restarted_within_copy),
    Fault("target-terminate", TARGET, "ends all sessions of Towline", terminate("target")),
    Fault("target-frozen", TARGET, "the session's process is stopped (SIGSTOP) while all is written", freeze("target")),
    Fault("target-read-only", TARGET, "turns read-only until the daemon has noticed: none is set aside",
          none_aside(read_only), options=QUARANTINE),
    Fault("target-disk-full", TARGET, "out of disk (1 MB tmpfs) until the daemon has noticed: none is set aside",
          none_aside(disk_full), NOT_VERIFYING, options=QUARANTINE, root=True, prepare=on_small_disk),
    Fault("target-deadlock", TARGET, "deadlock with another writer: none is set aside", none_aside(deadlock),
          NOT_VERIFYING, options=QUARANTINE),
    Fault("target-cancel", TARGET, "cancels the daemon's statement, three times: none is set aside",
          none_aside(cancel), NOT_VERIFYING, options=QUARANTINE),
    Fault("target-slow", TARGET, "3 ms more for each row of a table", slow),
)  # fmt: skip
