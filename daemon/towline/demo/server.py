"""A PostgreSQL server of our own, for the demo and the tests: made, started, crashed and removed at will.

It listens on 127.0.0.1, on a free port that it keeps through restarts, and on a Unix socket in its directory. It ends
with us, however we end (see `towline.demo.guard`).
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from psycopg.conninfo import make_conninfo

from towline.demo import guard
from towline.demo.process import children, is_alive
from towline.demo.programs import unprivileged, usable

#: What every server needs so that logical decoding works, beside what suits a machine that has other things to do.
SETTINGS: Final[Mapping[str, str]] = {
    "wal_level": "logical",
    "max_wal_senders": "20",
    "max_replication_slots": "20",
    "max_prepared_transactions": "10",
    "max_connections": "60",
    "shared_buffers": "128MB",
    "track_commit_timestamp": "on",
    "timezone": "UTC",
    "log_line_prefix": "%m [%p] %d ",
    "logging_collector": "off",
}
#: For tests: what is lost in a crash of the machine does not matter.
VOLATILE: Final[Mapping[str, str]] = {
    "fsync": "off",
    "full_page_writes": "off",
    "autovacuum_naptime": "10s",
    "max_wal_size": "2GB",
    # Source and target of a test often share a server, where what the one leaves unflushed, the other waits for.
    "wal_writer_delay": "10ms",
}
#: Below the ports that systems hand out to outgoing connections, so that none of those takes it during a restart.
PORTS: Final = range(20000, 32000)
SOCKET_PATH_LIMIT: Final = 100
NAP: Final = 0.01


class ServerFailed(Exception):
    """The server did not start, or did not stop; the message ends with the last lines of its log."""


class Server:
    """One cluster in ``directory`` (made if it is not there), run with the programs of ``bindir``.

    ``settings`` are added to SETTINGS. ``durable=False`` adds VOLATILE. A ``password`` is asked of every connection
    (SCRAM); without one, whoever can reach the port is let in. ``temporary``: remove the directory on `remove`, on
    leaving the context, and when this process dies.
    """

    def __init__(
        self,
        directory: Path,
        bindir: Path,
        *,
        settings: Mapping[str, str] | None = None,
        durable: bool = True,
        password: str | None = None,
        temporary: bool = True,
    ) -> None:
        self.directory = directory.resolve()
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.port = 0
        self._settings = {**SETTINGS, **({} if durable else VOLATILE), **(settings or {})}
        self._password = password
        self._temporary = temporary
        self._account = unprivileged()
        self._guard: subprocess.Popen[bytes] | None = None
        self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._account.give(self.directory)
        self.bindir = usable(bindir, self._account, self.directory)
        self.major_version = int(self._output("postgres", "--version").split()[2].split(".")[0])

    # ---- what it is ----------------------------------------------------------------------------------------------

    def dsn(self, database: str = "postgres", **options: str | int) -> str:
        """A libpq connection string for the superuser ``postgres`` over TCP; ``options`` add to it or replace parts."""
        parts: dict[str, str | int] = {"host": "127.0.0.1", "port": self.port, "user": "postgres", "dbname": database}
        if self._password:
            parts["password"] = self._password
        return make_conninfo("", **(parts | options))

    def socket_dsn(self, database: str = "postgres", **options: str | int) -> str:
        """The same over the Unix socket."""
        return self.dsn(database, **{"host": str(self.directory), **options})

    @property
    def running(self) -> bool:
        """Whether the server process is there."""
        return self._guard is not None and self._guard.poll() is None

    @property
    def pid(self) -> int:
        """The postmaster's process id. Raises ServerFailed when there is none."""
        try:
            return int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError) as error:
            raise self._failed("The server has no process id") from error

    def knows(self, setting: str) -> bool:
        """Whether this version of PostgreSQL has a setting of that name."""
        settings = self._output("postgres", "--describe-config")
        return any(line.split("\t", 1)[0] == setting for line in settings.splitlines())

    def log_tail(self, lines: int = 20) -> str:
        """The last lines of the server's log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return ""

    # ---- what one does with it -----------------------------------------------------------------------------------

    def configure(self, **settings: str) -> None:
        """Change settings; they take effect with `reload` or `restart`, as PostgreSQL says of each."""
        self._settings.update(settings)
        if self.port:
            self._write_settings()

    def reload(self) -> None:
        """Have the server read its settings again."""
        os.kill(self.pid, signal.SIGHUP)

    def start(self, timeout: float = 60.0) -> None:
        """Start the server, making its cluster first if there is none; returns once it accepts connections.

        Raises ServerFailed.
        """
        if self.running:
            return
        if not (self.data / "PG_VERSION").exists():
            self._initdb()
        deadline = time.monotonic() + timeout
        chosen = self.port
        while True:
            self.port = chosen or free_port()
            self._write_settings()
            offset = self.log.stat().st_size if self.log.exists() else 0
            self._launch()
            if self._wait_ready(deadline):
                return
            with open(self.log, errors="replace") as log:
                log.seek(offset)
                taken = "Address already in use" in log.read()
            if not taken or time.monotonic() > deadline:
                raise self._failed("The server did not start")
            time.sleep(NAP)

    def stop(self, mode: str = "fast", timeout: float = 15.0) -> None:
        """Stop the server: ``smart``, ``fast`` or ``immediate``, as pg_ctl has it.

        A fast shutdown waits for a walsender whose client does not read: after ``timeout`` seconds it becomes an
        immediate one.
        """
        if self._guard is None:
            return
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        if self.running:
            with suppress(ServerFailed):  # without its file it has no process id: it is ending by itself
                _signal(self.pid, signals[mode])
        try:
            self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            with suppress(ServerFailed):
                _signal(self.pid, signal.SIGQUIT)
            try:
                self._guard.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
        self._reap()

    def kill(self, timeout: float = 15.0) -> None:
        """SIGKILL the server with all its processes, as a crash would; the next start recovers."""
        if self._guard is None or not self.running:
            self._reap()
            return
        postmaster = self.pid
        _signal(postmaster, signal.SIGSTOP)  # so that it starts no more of them
        processes = children(postmaster)
        for pid in [postmaster, *processes]:
            _signal(pid, signal.SIGKILL)
        self._guard.wait(timeout)
        deadline = time.monotonic() + timeout
        while any(map(is_alive, processes)):
            if time.monotonic() > deadline:
                raise self._failed("Processes of the server outlived SIGKILL")
            time.sleep(NAP)
        self._reap()

    def restart(self, mode: str = "fast") -> None:
        """Stop and start, on the same port."""
        self.stop(mode)
        self.start()

    def remove(self) -> None:
        """Stop the server for good, and remove its directory if it is temporary. May be called twice."""
        self.stop("immediate" if self._temporary else "fast")
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    # ---- how -----------------------------------------------------------------------------------------------------

    def _initdb(self) -> None:
        # Bytes order text and Unicode defines upper and lower case, on every system alike.
        locale = (
            ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
            if self.major_version >= 17
            else ["--locale=C.UTF-8"]
        )
        command = [str(self.bindir / "initdb"), "-D", str(self.data), "-U", "postgres", "-E", "UTF8", "-N", *locale]
        if self._password is None:
            command.append("--auth=trust")
        else:
            secret = self.directory / "password"
            secret.touch(mode=0o600)
            secret.write_text(self._password + "\n")
            self._account.give(secret)
            command += ["--auth=scram-sha-256", f"--pwfile={secret}"]
        try:
            done = self._account.run(command, cwd=self.directory)
        finally:
            (self.directory / "password").unlink(missing_ok=True)
        if done.returncode != 0:
            raise ServerFailed(f"initdb failed:\n{done.stdout}")
        # After what initdb found out about this machine, such as which kind of shared memory it has.
        with open(self.data / "postgresql.conf", "a") as settings:
            settings.write("\ninclude = 'towline.conf'\n")

    def _write_settings(self) -> None:
        socket_directory = str(self.directory) if len(os.fsencode(self.directory)) < SOCKET_PATH_LIMIT - 20 else ""
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": socket_directory,
        }
        lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items()]
        (self.data / "towline.conf").write_text("".join(lines))
        self._account.give(self.data / "towline.conf")

    def _launch(self) -> None:
        (self.data / "postmaster.opts").unlink(missing_ok=True)
        account, remove = self._account, str(self.directory) if self._temporary else ""
        with open(self.log, "ab") as log:
            self._guard = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", guard.__file__, str(account.uid), str(account.gid), remove),
                    *(str(self.bindir / "postgres"), "-D", str(self.data)),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C in the terminal is for us, and we stop the server in our own time
            )

    def _wait_ready(self, deadline: float) -> bool:
        """True once the server accepts connections, False if it ended instead."""
        pidfile = self.data / "postmaster.pid"
        opts = self.data / "postmaster.opts"  # written anew by each start: tells a new pid file from a dead server's
        while self.running:
            if opts.exists() and pidfile.exists():
                lines = pidfile.read_text().splitlines()
                if len(lines) >= 8 and lines[7].strip() == "ready" and is_alive(int(lines[0])):
                    return True
            if time.monotonic() > deadline:
                failure = self._failed("The server was not ready in time")
                self._reap()
                raise failure
            time.sleep(NAP)
        self._reap()
        return False

    def _reap(self) -> None:
        """Close the guard's lifeline, which ends whatever is left, and wait for the guard."""
        if self._guard is not None:
            if self._guard.stdin is not None:
                self._guard.stdin.close()
            self._guard.wait()
            self._guard = None

    def _output(self, program: str, *arguments: str) -> str:
        done = self._account.run([str(self.bindir / program), *arguments], cwd=self.directory)
        if done.returncode != 0:
            raise ServerFailed(f"{program} failed:\n{done.stdout}")
        return done.stdout

    def _failed(self, what: str) -> ServerFailed:
        return ServerFailed(f"{what}. Its log in {self.log} ends with:\n{self.log_tail()}")


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def free_port() -> int:
    """A port of PORTS on which nothing listens now. Raises ServerFailed."""
    for port in random.sample(PORTS, 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServerFailed(f"No free port between {PORTS.start} and {PORTS.stop} on 127.0.0.1")
