"""Faults of what is replicated: rows that the target refuses, large transactions that are struck half-way."""

from __future__ import annotations

import os
from collections.abc import Callable

import psycopg

from tests.faults.fault import Fault
from tests.faults.phases import Phase
from tests.faults.settings import setting
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until

REFUSED, LARGE = "Rows that the target refuses", "Large transactions under way"
PREPARED = "Prepared transactions"
ROWS = 5000


def refuse(trial: Trial, condition: str) -> None:
    """From now on the target refuses rows of the journal: those for which that is true of ``NEW``."""
    trial.hook(
        f"IF TG_TABLE_NAME = 'journal' AND {condition} THEN RAISE EXCEPTION 'no' USING ERRCODE = 'check_violation'; "
        "END IF; RETURN NEW;"
    )


def set_aside(trial: Trial) -> None:
    """Some rows are refused, until all is written; then they are retried."""
    every = 25 if trial.phase is Phase.SNAPSHOT else 10
    refuse(trial, f"NEW.id % {every} = 3")
    trial.go()
    trial.write_all()
    trial.await_rest()
    aside = trial.at("target", "SELECT count(*) FROM towline.quarantine WHERE state = 'open'")[0][0]
    assert aside, "nothing was refused"
    trial.hook("RETURN NEW;")
    trial.over()
    trial.retry_quarantined()
    assert not trial.at("target", "SELECT FROM towline.quarantine WHERE state = 'open'"), "something is still refused"


def killed_with_some_aside(trial: Trial) -> None:
    """The same, with the daemon killed where it waits and another one setting them aside."""
    trial.kill()
    trial.start()
    set_aside(trial)


#: What the target's server does with one row in a hundred each, and the SQLSTATE that comes of it. (More would trip the
#: breaker.)
KINDS = {
    "23502": "NEW.amount := NULL",
    "22P02": "PERFORM ('x' || NEW.id)::int",
    "22001": "UPDATE audit.narrow SET c = 'too long'",
    "22P05": "PERFORM convert_to(chr(9731), 'LATIN1')",
    "22012": "PERFORM 1 / (NEW.id - NEW.id)",
}


def each_kind(trial: Trial) -> None:
    """NOT NULL, a cast, a length, an encoding, an expression that raises: all are set aside, then retried."""
    trial.at("target", "CREATE TABLE audit.narrow (c varchar(2))")
    trial.at("target", "INSERT INTO audit.narrow VALUES ('')")
    cases = " ".join(f"WHEN {number} THEN {deed};" for number, deed in enumerate(KINDS.values()))
    trial.hook(f"IF TG_TABLE_NAME = 'journal' THEN CASE NEW.id % 100 {cases} ELSE NULL; END CASE; END IF; RETURN NEW;")
    trial.go()
    trial.at("source", "INSERT INTO journal SELECT n, 1 FROM generate_series(2000000, 2000199) n")
    trial.write_all()
    trial.await_rest()
    found = {state for (state,) in trial.at("target", "SELECT DISTINCT sqlstate FROM towline.quarantine")}
    assert found == set(KINDS), found
    trial.hook("RETURN NEW;")
    trial.over()
    trial.retry_quarantined()
    assert not trial.at("target", "SELECT FROM towline.quarantine WHERE state = 'open'"), "something is still refused"


def nothing_aside(trial: Trial) -> None:
    """What is no fault of a row has set none aside."""
    aside = trial.at("target", "SELECT DISTINCT sqlstate FROM towline.quarantine")
    assert not aside, f"the quarantine was filled by an outage: {aside}"


def none_aside(hit: Callable[[Trial], None]) -> Callable[[Trial], None]:
    """A fault that is none of the rows': when all has come to rest, none may have been set aside. See `QUARANTINE`."""

    def hit_and_look(trial: Trial) -> None:
        trial.at_rest(nothing_aside)
        hit(trial)

    return hit_and_look


def table_missing(trial: Trial) -> None:
    """Somebody renames a table of the target between two batches: halts, and no row is set aside."""
    trial.go()
    trial.at("target", "ALTER TABLE replica.journal RENAME TO elsewhere")
    trial.at("source", "INSERT INTO journal VALUES (2000000, 1)")
    trial.halted("TL-")
    trial.at("target", "ALTER TABLE replica.elsewhere RENAME TO journal")
    trial.start()
    trial.over()


def outage(trial: Trial) -> None:
    """The target crashes where rows would be set aside: none is."""
    trial.target_server.kill()
    trial.go()
    trial.daemon.await_logged("code=TL-401")
    trial.target_server.start()
    trial.over()


def flooded(trial: Trial) -> None:
    """All rows are refused: the pipeline halts, and sets none of that batch aside. Then the target takes them again."""
    refuse(trial, "NEW.id > 1000000")
    trial.at("source", "INSERT INTO journal SELECT n, 1 FROM generate_series(1000001, 1000400) n")
    trial.go()
    trial.halted("TL-408")
    assert not trial.at("target", "SELECT FROM towline.quarantine"), "the quarantine was flooded"
    trial.hook("RETURN NEW;")
    trial.start()
    trial.over()


def kill(trial: Trial) -> None:
    """SIGKILL, and another one is started."""
    trial.kill()
    trial.start()


def cut(trial: Trial) -> None:
    """The lines to the source are reset."""
    trial.proxies["source"].cut()
    trial.go()


def aborted(trial: Trial) -> None:
    """A large transaction is rolled back after much of it was sent; the daemon is killed before it hears of that."""
    with (
        setting(trial.source_server, "logical_decoding_work_mem", "'64kB'"),
        psycopg.connect(trial.source) as connection,
    ):
        connection.execute("INSERT INTO journal SELECT n, 1 FROM generate_series(1000001, %s) n", (1000000 + ROWS,))
        connection.execute("UPDATE sale SET quantity = -1")
        trial.go()
        until(lambda: _streamed(trial), PATIENCE, trial.daemon.log)
        kill(trial)
        connection.rollback()
        trial.over()


def large(strike: Callable[[Trial], None]) -> Callable[[Trial], None]:
    """A transaction that the source sends while it is under way: struck in the phase, as it is told."""

    def hit(trial: Trial) -> None:
        with (
            setting(trial.source_server, "logical_decoding_work_mem", "'64kB'"),
            psycopg.connect(trial.source) as connection,
        ):
            connection.execute("INSERT INTO journal SELECT n, 1 FROM generate_series(1000001, %s) n", (1000000 + ROWS,))
            connection.execute("SAVEPOINT one")
            connection.execute("UPDATE journal SET amount = 2 WHERE id > 1000000")
            connection.execute("ROLLBACK TO one")
            trial.go()
            until(lambda: _streamed(trial), PATIENCE, trial.daemon.log)
            if trial.phase not in (Phase.SNAPSHOT, Phase.STREAMING):
                trial.daemon.pause_at("within-transaction", trial.random.randint(1, 5))
            else:
                strike(trial)
            connection.commit()
            if trial.phase not in (Phase.SNAPSHOT, Phase.STREAMING):
                trial.daemon.await_paused(PATIENCE)
                if trial.phase is not Phase.APPLYING:
                    trial.daemon.pause_at({Phase.COMMITTING: "committing"}.get(trial.phase, "committed"), 1)
                    trial.daemon.go()
                    trial.daemon.await_paused(PATIENCE)
                strike(trial)
            trial.over()

    return hit


def fill_spool(trial: Trial) -> None:
    """A transaction under way has more than the disk of the spool holds; it commits when the daemon goes on without."""
    with (
        setting(trial.source_server, "logical_decoding_work_mem", "'64kB'"),
        psycopg.connect(trial.source) as connection,
    ):
        connection.execute(
            "INSERT INTO item SELECT n, 'sku ' || n, 1, (SELECT string_agg(md5(n || ' ' || j), '') FROM"
            " generate_series(1, 40) j) FROM generate_series(1000001, %s) n",
            (1000000 + ROWS,),
        )
        trial.go()
        trial.daemon.await_logged("code=TL-335")
        connection.commit()
    trial.over()


def prepared(trial: Trial) -> None:
    """Transactions are prepared, the daemon is killed, and then one is committed and another one rolled back."""
    names = [f"{trial.directory.name} {os.getpid()} {verb}" for verb in ("COMMIT", "ROLLBACK")]
    for number, name in enumerate(names):
        trial.stack.callback(_roll_back, trial, name)
        with psycopg.connect(trial.source, autocommit=True) as connection:
            first = 1000001 + number * ROWS
            connection.execute("BEGIN")
            connection.execute("INSERT INTO journal SELECT n, 1 FROM generate_series(%s, %s) n", (first, first + 300))
            connection.execute(f"PREPARE TRANSACTION '{name}'".encode())
    trial.kill()
    daemon = trial.start()
    trial.go()
    daemon.await_logged("event=replicating")
    for name in names:
        trial.at("source", f"{name.split()[-1]} PREPARED '{name}'")
    trial.over()


def _roll_back(trial: Trial, name: str) -> None:
    """A prepared transaction that a failed trial leaves would keep its database from being dropped."""
    if trial.at("source", "SELECT FROM pg_prepared_xacts WHERE gid = %s", name):
        trial.at("source", f"ROLLBACK PREPARED '{name}'")


def _streamed(trial: Trial) -> bool:
    """Whether the source has sent parts of a transaction that is under way."""
    slots = "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
    sent = f"SELECT FROM pg_stat_replication_slots WHERE stream_bytes > 0 AND slot_name IN ({slots})"
    return bool(trial.at("source", sent))


NOT_VERIFYING = {Phase.VERIFYING: "b"}
QUARANTINE = "on_error: quarantine"
FAULTS = (
    Fault("row-refused", REFUSED, "some rows are refused (`on_error: quarantine`), then retried", set_aside,
          NOT_VERIFYING, options=QUARANTINE),
    Fault("row-refused-kill", REFUSED, "the same, with a SIGKILL at the point", killed_with_some_aside,
          NOT_VERIFYING, options=QUARANTINE),
    Fault("row-flood", REFUSED, "hundreds are refused: halts (TL-408), then the target takes them", flooded,
          NOT_VERIFYING, options=QUARANTINE),
    Fault("row-kinds", REFUSED, "NOT NULL, cast, length, encoding, raising expression; then retried", each_kind,
          NOT_VERIFYING, options=QUARANTINE),
    Fault("row-table-missing", REFUSED, "a table is renamed: halts, none is set aside; then renamed back",
          none_aside(table_missing), NOT_VERIFYING, options=QUARANTINE),
    Fault("row-outage", REFUSED, "the target crashes: none is set aside", none_aside(outage),
          NOT_VERIFYING, options=QUARANTINE),
    Fault("large-abort", LARGE, f"{ROWS:,} rows, rolled back; SIGKILL before the daemon hears of it", aborted,
          {phase: "j" for phase in Phase if phase not in (Phase.SNAPSHOT, Phase.STREAMING)}, wal2json="e"),
    Fault("large-kill", LARGE, f"{ROWS:,} rows, SIGKILL while they are streamed, applied or committed", large(kill),
          NOT_VERIFYING, wal2json="e"),
    Fault("large-cut", LARGE, f"{ROWS:,} rows, the line to the source is cut", large(cut),
          NOT_VERIFYING, wal2json="e"),
    Fault("large-full", LARGE, f"{ROWS:,} rows, more than the spool's disk of 1 MB holds", fill_spool,
          NOT_VERIFYING, wal2json="e", root=True, small_spool=True),
    Fault("prepared-kill", PREPARED, "SIGKILL between PREPARE TRANSACTION and COMMIT or ROLLBACK PREPARED", prepared,
          NOT_VERIFYING),
)  # fmt: skip
