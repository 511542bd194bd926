"""The servers that all other tests stand on: they start, crash, come back, and never outlive us."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase, create_database, drop_database
from tests.support.wait import until
from towline.demo.process import children, is_alive
from towline.demo.programs import Account, ProgramsMissing, debian_bindir, embedded_bindir, unprivileged
from towline.demo.scratch import Scratch, sweep
from towline.demo.server import Server, free_port


@pytest.fixture(scope="module")
def server(scratch: Path) -> Iterator[Server]:
    """A server of this module's own, to be mistreated."""
    with Server(scratch / "mistreated", embedded_bindir(), durable=False) as server:
        yield server


@pytest.fixture(autouse=True)
def _started(server: Server) -> None:
    server.start()


def one(dsn: str, query: str) -> object:
    """The single value that a query returns."""
    with psycopg.connect(dsn) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def test_listens_on_loopback_and_on_its_own_socket_only(server: Server) -> None:
    """No other interface is opened, and the settings for logical decoding are in force."""
    assert one(server.dsn(), "SHOW listen_addresses") == "127.0.0.1"
    assert one(server.socket_dsn(), "SHOW unix_socket_directories") == str(server.directory)
    assert one(server.dsn(), "SHOW wal_level") == "logical"
    assert one(server.dsn(), "SELECT upper('é')") == "É"


def test_stop_and_restart_keep_port_and_data(server: Server, new_database: NewDatabase) -> None:
    """A DSN stays good through restarts."""
    dsn = new_database(server)
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")
    server.restart()
    assert one(dsn, "SELECT n FROM t") == 42
    server.stop("immediate")
    assert not server.running
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(dsn)
    server.start()
    assert one(dsn, "SELECT n FROM t") == 42


def test_kill_leaves_no_process_and_recovers(server: Server, new_database: NewDatabase) -> None:
    """A crash takes the backends along; what was committed is there after recovery."""
    dsn = new_database(server)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE t AS SELECT 42 AS n")
        processes = [server.pid, *children(server.pid)]
        server.kill()
        assert not any(map(is_alive, processes))
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    server.start()
    assert "was not properly shut down" in server.log_tail(60)
    assert one(dsn, "SELECT n FROM t") == 42


def test_fast_stop_does_not_wait_for_a_replication_client_that_does_not_read(server: Server) -> None:
    """A walsender with a mute client would hold up a fast shutdown: it becomes an immediate one."""
    name = create_database(server)
    with psycopg.connect(server.dsn(name), autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('mute', 'pgoutput')")
        connection.execute("CREATE PUBLICATION p FOR ALL TABLES")
        client = psycopg.connect(server.dsn(name, replication="database"), autocommit=True)
        client.pgconn.send_query(
            b"START_REPLICATION SLOT mute LOGICAL 0/0 (proto_version '1', publication_names 'p', binary 'true')"
        )
        until(lambda: connection.execute("SELECT active FROM pg_replication_slots").fetchone() == (True,))
    server.stop("fast", timeout=0.5)
    assert not server.running
    client.close()
    server.start()
    drop_database(server, name)


def test_a_taken_port_is_passed_over(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When somebody takes the port between the choice and the start, another is chosen."""
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        rival.listen()
        taken = rival.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr("towline.demo.server.free_port", lambda: next(ports, None) or free_port())
        with Server(scratch / "second-choice", embedded_bindir(), durable=False) as server:
            assert server.port != taken
            assert one(server.dsn(), "SELECT 1") == 1


def test_password_is_asked_for(scratch: Path) -> None:
    """With a password, a DSN without it is refused; the password is in no file afterwards."""
    with Server(scratch / "locked", embedded_bindir(), durable=False, password="not 'told'") as server:
        assert one(server.dsn(), "SELECT 1") == 1
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.dsn(password="wrong"))
        assert [path.name for path in server.directory.iterdir() if path.name == "password"] == []


ORPHAN = """
import os, signal, sys
from pathlib import Path
from towline.demo.programs import embedded_bindir
from towline.demo.scratch import Scratch
from towline.demo.server import Server, free_port
scratch = Scratch()
server = Server(scratch.path / "orphan", embedded_bindir(), durable=False)
server.start()
print(scratch.path, server.pid, server._guard.pid, flush=True)
os.kill(os.getpid() if sys.argv[1] == "us" else server._guard.pid, signal.SIGKILL)
sys.stdin.read()
"""


@pytest.mark.parametrize("victim", ["us", "guard"])
def test_nothing_outlives_a_killed_process(victim: str) -> None:
    """SIGKILL of the process that started a server, or of the guard between them, ends the server."""
    process = subprocess.Popen([sys.executable, "-c", ORPHAN, victim], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdout is not None
        path, postmaster, guard = process.stdout.readline().decode().split()
        until(lambda: not is_alive(int(postmaster)), describe="the server's end")
        until(lambda: not is_alive(int(guard)), describe="the guard's end")
        process.kill()
        process.wait()
    if victim == "us":
        until(lambda: not (Path(path) / "orphan").exists(), describe="the server's directory removed")
    assert Path(path) in sweep()
    assert not Path(path).exists()


def test_sweep_spares_the_living() -> None:
    """A directory whose process lives is not touched."""
    with Scratch() as path:
        assert path not in sweep()
        assert path.is_dir()
    assert not path.exists()


def test_sweep_ends_a_server_that_still_runs(scratch: Path, tmp_path: Path) -> None:
    """A server whose directory nobody holds any more is killed with it, but not another process of that number."""
    dead = tmp_path / "towline-scratch-dead"
    (dead / "s").mkdir(parents=True)
    (dead / "lock").touch()
    (dead / "s" / "data").mkdir()
    waiting = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    sleeper = subprocess.Popen(waiting, stdin=subprocess.PIPE, cwd=tmp_path)
    worker = subprocess.Popen(waiting, stdin=subprocess.PIPE, cwd=dead / "s" / "data")
    with sleeper, worker:
        (dead / "s" / "data" / "postmaster.pid").write_text(f"{worker.pid}\n")
        other = tmp_path / "towline-scratch-other"
        (other / "s" / "data").mkdir(parents=True)
        (other / "lock").touch()
        (other / "s" / "data" / "postmaster.pid").write_text(f"{sleeper.pid}\n")
        assert sweep(tmp_path) == [dead, other]
        assert worker.wait(10) == -signal.SIGKILL
        assert sleeper.poll() is None
        sleeper.kill()


def test_programs_that_the_account_cannot_reach_are_copied(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A virtual environment under a closed home directory: the server runs from a copy."""
    refused: list[bool] = []
    run = Account.run

    def closed(self: Account, command: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
        if Path(command[0]).is_relative_to(embedded_bindir()):
            refused.append(True)
            raise PermissionError(13, "Permission denied", command[0])
        return run(self, command, cwd=cwd)

    monkeypatch.setattr(Account, "run", closed)
    with Server(scratch / "copied", embedded_bindir(), durable=False) as server:
        assert server.bindir.is_relative_to(server.directory)
        assert one(server.dsn(), "SELECT 1") == 1
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute("SELECT pg_create_logical_replication_slot('copied', 'pgoutput')")
    assert refused


def test_the_server_never_runs_as_root(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL refuses root: whoever we are, an existing unprivileged account runs it."""
    with psycopg.connect(server.dsn()) as connection:
        row = connection.execute("SELECT pg_read_file('/proc/self/status')").fetchone()
    assert row is not None
    uid = re.search(r"^Uid:\s+(\d+)", row[0], re.MULTILINE)
    assert uid is not None
    assert int(uid[1]) > 0
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert unprivileged() == Account()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert unprivileged().uid > 0


def test_missing_programs_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Both places name the remedy."""
    with pytest.raises(ProgramsMissing, match="apt-get install postgresql-7"):
        debian_bindir(7)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ProgramsMissing, match=r"pip install '\.\[demo\]'"):
        embedded_bindir()


def test_debian_server_has_wal2json(pg15: Server, new_database: NewDatabase) -> None:
    """The setting that newer minor versions want is given, so that a slot with wal2json can be made."""
    dsn = new_database(pg15)
    assert one(dsn, "SELECT slot_name FROM pg_create_logical_replication_slot('w', 'wal2json')") == "w"


def test_two_servers_have_different_identities(pg18: Server, hub18: Server) -> None:
    """They are two clusters, not one with two ports."""
    query = "SELECT system_identifier FROM pg_control_system()"
    assert one(pg18.dsn(), query) != one(hub18.dsn(), query)
