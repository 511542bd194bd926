"""Targets that are down, read-only, full, in the way or cutting in: the daemon comes back alone, and says how it is."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fault.harness import Daemon, Fault, fault, shop
from tests.support.databases import NewDatabase
from tests.support.pair import pair, promote, replayed
from tests.support.wait import until
from towline.demo.programs import embedded_bindir
from towline.demo.server import Server, free_port
from towline.status import read

ROWS = 300
#: So that rows are set aside if one of these faults is taken for theirs.
QUARANTINE = "web: {{port: {port}}}\ndefaults: {{on_error: quarantine}}"

COPYING = """
SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'COPY%' AND state = 'active'
"""


@pytest.fixture
def under(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Iterator[Fault]:
    with fault(tmp_path, new_database(pg18), new_database(hub18), rows=ROWS, more=QUARANTINE.format(port=0)) as made:
        yield made


def finish(under: Fault, daemon: Daemon) -> None:
    """Caught up, stopped, equal; and no row is set aside for what was no fault of a row."""
    under.await_position()
    daemon.stop()
    assert under.at_hub("SELECT DISTINCT sqlstate FROM towline.quarantine") == []
    under.verify()
    under.never_ahead()


def failed(daemon: Daemon, code: str, times: int = 1) -> None:
    """Wait until the daemon has met an error."""
    until(lambda: daemon.log().count(f"code={code}") >= times, 30, daemon.log)


def end_sessions(under: Fault) -> None:
    """End the daemon's sessions at the hub."""
    under.at_hub(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'towline%'"
    )


def test_read_only_for_a_while(under: Fault) -> None:
    """New sessions are read-only, as during a maintenance: it waits, and loses nothing."""
    daemon = under.daemon()
    name = under.at_hub("SELECT current_database()")[0][0]
    with shop(under, seed=31, rows=ROWS):
        under.await_progress()
        under.at_hub(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        end_sessions(under)
        failed(daemon, "TL-401", 2)
        writable = psycopg.conninfo.make_conninfo(under.hub, options="-c default_transaction_read_only=off")
        with psycopg.connect(writable, autocommit=True) as hub:
            hub.execute(f'ALTER DATABASE "{name}" RESET ALL'.encode())
        under.await_progress()
    finish(under, daemon)


def test_a_standby_as_target_until_it_is_promoted(
    pg18: Server, scratch: Path, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The address leads to a server in recovery: it waits for the promotion."""
    with (
        pair(scratch / "hubs", embedded_bindir()) as (primary, standby),
        fault(
            tmp_path,
            source := new_database(pg18),
            primary.dsn(),
            rows=ROWS,
            more=QUARANTINE.format(port=0),
            through=(source, standby.dsn()),
            set_up=lambda made: set_up(made, standby),
        ) as under,
    ):
        replayed(primary, standby)
        daemon = under.daemon()
        failed(daemon, "TL-401")
        primary.stop()
        promote(standby)
        under.hub = standby.dsn()
        with shop(under, seed=32, rows=ROWS):
            under.await_progress()
        finish(under, daemon)


def set_up(made: Fault, standby: Server) -> None:
    """`towline apply`, while the file still names the primary."""
    text = made.path.read_text("utf-8")
    made.path.write_text(text.replace(standby.dsn(), made.hub), "utf-8")
    made.apply()
    made.path.write_text(text, "utf-8")


@contextmanager
def small_disk(under: Fault, directory: Path, account: str) -> Iterator[Callable[[], None]]:
    """The table of stock is where there is 1 MB left; the callable makes room.

    Where nothing can be mounted, a trigger says what the server would say.
    """
    if os.geteuid() != 0:
        under.at_hub(
            "CREATE FUNCTION full() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$;"
            "CREATE TRIGGER full BEFORE INSERT OR UPDATE ON replica.stock EXECUTE FUNCTION full()"
        )

        def drop() -> None:
            under.at_hub("DROP TRIGGER full ON replica.stock")

        yield drop
        return
    directory.mkdir(mode=0o755)
    mount = ["mount", "-t", "tmpfs", "-o", f"size=1m,uid={account}", "tmpfs", str(directory)]
    subprocess.run(mount, check=True)
    try:
        with psycopg.connect(under.hub, autocommit=True) as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{directory}'".encode())
            connection.execute("CREATE TABLE replica.moved (LIKE replica.stock INCLUDING ALL) TABLESPACE small")
            connection.execute("DROP TABLE replica.stock; ALTER TABLE replica.moved RENAME TO stock")

        def enlarge() -> None:
            subprocess.run([*mount[:4], "remount,size=200m", str(directory)], check=True)

        yield enlarge
        with psycopg.connect(under.hub, autocommit=True) as connection:
            connection.execute("ALTER TABLE replica.stock SET TABLESPACE pg_default")
            connection.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def test_out_of_disk(under: Fault, hub18: Server, scratch: Path) -> None:
    """A full disk is no fault of the rows: nothing is set aside, and it goes on when there is room."""
    with small_disk(under, scratch / "small", str(hub18._account.uid)) as make_room:
        under.at_source(
            "INSERT INTO stock SELECT 'full', n::text, n, repeat(md5(n::text), 10) FROM generate_series(1, 8000) n"
        )
        daemon = under.daemon()
        failed(daemon, "TL-401", 2)
        assert "53100" in daemon.log()
        make_room()
        with shop(under, seed=33, rows=ROWS):
            under.await_progress()
        under.await_position()
        daemon.stop()
    assert under.at_hub("SELECT DISTINCT sqlstate FROM towline.quarantine") == []
    under.verify()
    under.never_ahead()


def test_deadlock_with_another_writer(under: Fault) -> None:
    """Somebody else writes to the same tables in the other order; whoever is the victim, the batch is tried again."""
    name = under.at_hub("SELECT current_database()")[0][0]
    under.at_hub(f"ALTER DATABASE \"{name}\" SET deadlock_timeout = '2s'")
    daemon = under.daemon()
    under.await_position()
    with psycopg.connect(under.hub) as other:
        other.execute("SET deadlock_timeout = '20s'")
        other.execute("SELECT FROM replica.sale WHERE id = 5 FOR UPDATE")
        under.at_source("UPDATE item SET note = 'a' WHERE id = 5; UPDATE sale SET state = 'b' WHERE id = 5")
        waiting = "SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted AND a.datname = %s"
        with psycopg.connect(under.hub, autocommit=True) as looking:
            until(lambda: bool(looking.execute(waiting, (name,)).fetchall()), 20, daemon.log)
        with suppress(psycopg.errors.DeadlockDetected):
            other.execute("SELECT FROM replica.item WHERE id = 5 FOR UPDATE")
        failed(daemon, "TL-405")
        other.rollback()
    finish(under, daemon)


def test_statements_are_cancelled(under: Fault) -> None:
    """By an administrator, again and again; and the database's own statement_timeout is none of the daemon's."""
    name = under.at_hub("SELECT current_database()")[0][0]
    under.at_hub(f"ALTER DATABASE \"{name}\" SET statement_timeout = '20ms'")
    under.at_hub(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.05); RETURN NULL; END $$;"
        "CREATE TRIGGER slow AFTER INSERT OR UPDATE ON replica.item FOR EACH STATEMENT EXECUTE FUNCTION slow()"
    )
    daemon = under.daemon()
    cancel = (
        "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND state = 'active' AND application_name LIKE 'towline%'"
    )
    with (
        shop(under, seed=34, rows=ROWS),
        psycopg.connect(under.hub, autocommit=True, options="-c statement_timeout=0") as hub,
    ):
        under.await_progress()
        for times in (1, 2, 3):
            until(
                lambda times=times: hub.execute(cancel.encode()) and daemon.log().count("code=TL-405") >= times,  # type: ignore[misc]
                30,
                daemon.log,
            )
            under.await_progress()
    finish(under, daemon)


def test_restart_in_the_middle_of_a_copy(under: Fault, hub18: Server) -> None:
    """The hub goes down while rows are flowing into it by COPY, in the first copy and later."""
    under.at_hub(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.002); RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON replica.item FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    daemon = under.daemon()
    for round_ in (1, 2):
        with psycopg.connect(under.hub, autocommit=True) as hub:
            until(lambda hub=hub: bool(hub.execute(COPYING).fetchall()), 30, daemon.log)  # type: ignore[misc]
        hub18.restart("immediate")
        failed(daemon, "TL-401", round_)
        under.await_position()
        if round_ == 1:
            under.at_source("INSERT INTO item SELECT n, 'copied-' || n, 1 FROM generate_series(50000, 50400) n")
    finish(under, daemon)


def test_what_can_be_seen_meanwhile(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """While the target is down: alive, not ready, backing off, and the lag grows with what the source writes."""
    port = free_port()
    more = QUARANTINE.format(port=port)
    with fault(tmp_path, new_database(pg18), new_database(hub18), rows=ROWS, more=more) as under:
        daemon = under.daemon()

        def get(path: str) -> tuple[int, str]:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                    return answer.status, answer.read().decode()
            except urllib.error.HTTPError as error:
                return error.code, error.read().decode()

        def sample(name: str, **labels: str) -> float:
            for family in text_string_to_metric_families(get("/metrics")[1]):
                for each in family.samples:
                    if each.name == name and labels.items() <= each.labels.items():
                        return float(each.value)
            return -1.0

        under.await_position()
        hub18.stop("immediate")
        failed(daemon, "TL-401", 2)
        assert get("/healthz")[0] == 200
        assert get("/readyz")[0] == 503
        assert sample("towline_role", role="backoff") + sample("towline_role", role="starting") == 1
        seen = []
        for _ in range(3):
            before = sample("towline_source_lag_bytes")
            under.at_source("INSERT INTO stock SELECT 'w', 'sku-' || random(), n, 'x' FROM generate_series(1, 500) n")
            until(lambda before=before: sample("towline_source_lag_bytes") > before + 10_000, 20, daemon.log)  # type: ignore[misc]
            seen.append(sample("towline_lag_seconds"))
        assert seen == sorted(seen)
        assert seen[-1] > 1
        status = read(under.config)
        assert status.exit_code == 1
        assert [error.side for error in status.errors] == ["target"]
        assert status.slot is not None
        hub18.start()
        until(lambda: sample("towline_source_lag_bytes") == 0, 30, daemon.log)
        until(lambda: sample("towline_lag_seconds") == 0, 30, daemon.log)
        until(lambda: get("/readyz")[0] == 200, 30, daemon.log)
        finish(under, daemon)


def test_the_source_ends_every_session(under: Fault) -> None:
    """pg_terminate_backend of the stream, and of all others, again and again under load."""
    daemon = under.daemon()
    with shop(under, seed=35, rows=ROWS):
        for round_ in (1, 2, 3):
            under.await_progress()
            which = "backend_type = 'walsender'" if round_ == 1 else "true"
            under.at_source(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                f" AND pid <> pg_backend_pid() AND application_name LIKE 'towline%' AND {which}"
            )
            failed(daemon, "TL-301", round_)
    finish(under, daemon)
