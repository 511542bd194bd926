"""The demo from start to end: servers, rows, pipeline, load, screen; then still water, and proof."""

from __future__ import annotations

import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
from rich.console import Console

from towline import config
from towline.demo.command import Towline
from towline.demo.programs import ProgramsMissing, embedded_bindir
from towline.demo.scratch import Scratch
from towline.demo.screen import Display, display
from towline.demo.server import Server, ServerFailed, free_port
from towline.demo.workload import Pacer, Workload, script
from towline.signals import answered
from towline.status import Reader, Status

#: Transactions a second: what a laptop does beside everything else.
RATE = 300.0
#: Seconds between two looks at the status, and without any progress until the demo gives up.
LOOK, PATIENCE = 0.5, 60.0


class Failed(Exception):
    """The demo cannot go on; the message says why. ``code`` is the exit code."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def demonstrate(seconds: int | None, console: Console) -> int:
    """Run the demo for ``seconds``, or until SIGINT or SIGTERM. Returns the exit code; all it made is gone then."""
    try:
        with _stop_on_signals() as stop, Scratch() as directory:
            return Demonstration(directory, console, stop).run(seconds)
    except (Failed, ServerFailed, ProgramsMissing) as error:
        print(f"The demo failed: {error}", file=sys.stderr)
        return error.code if isinstance(error, Failed) else 1
    except psycopg.Error as error:
        print(f"The demo failed: one of its databases: {error}", file=sys.stderr)
        return 1


class Demonstration:
    """One run of the demo in ``directory``; ``stop`` is set when it is to come to its end."""

    def __init__(self, directory: Path, console: Console, stop: threading.Event) -> None:
        self._directory = directory
        self._console = console
        self._stop = stop

    def run(self, seconds: int | None) -> int:
        """Returns the exit code: that of ``towline verify``."""
        with ExitStack() as stack:
            source, hub = self._servers(stack)
            erp = self._databases(source, hub)
            file = write_pipeline(self._directory, erp, hub.dsn("hub"), port := free_port())
            towline = Towline(file, self._directory / "towline.log")
            self._say("Applying the pipeline (towline apply)")
            self._require(towline, "apply")
            stack.callback(towline.stop)
            towline.start()
            pacer = Pacer(Workload(erp), erp, rate=RATE)
            stack.callback(pacer.stop)
            pacer.start()
            self._say(f"Running; metrics are at http://127.0.0.1:{port}/metrics")
            with Reader(config.load(file)) as reader, display(self._console) as shown:
                self._watch(reader, shown, towline, pacer, seconds)
                pacer.stop()
                waited = self._catch_up(reader, shown, towline, pacer)
            self._say(f"Workload stopped after {pacer.transactions:,} transactions; caught up in {waited:.1f} s")
            return self._verify(towline)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _servers(self, stack: ExitStack) -> tuple[Server, Server]:
        bindir = embedded_bindir()
        servers = [
            Server(self._directory / name, bindir, password=secrets.token_urlsafe(12)) for name in ("source", "hub")
        ]
        for server in servers:
            stack.callback(server.remove)
        self._say(f"Starting two PostgreSQL {servers[0].major_version} servers, a source and a hub")
        with ThreadPoolExecutor() as pool:
            list(pool.map(Server.start, servers))
        return servers[0], servers[1]

    def _databases(self, source: Server, hub: Server) -> str:
        """Make and fill the databases; returns the source's DSN."""
        self._say("Filling the source: a small ERP and a warehouse system")
        for server, name in ((source, "erp"), (hub, "hub")):
            with psycopg.connect(server.dsn(), autocommit=True) as connection:
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        fill_source(source.dsn("erp"))
        with psycopg.connect(hub.dsn("hub")) as connection:
            connection.execute(script("hub.sql"))
        return source.dsn("erp")

    def _watch(self, reader: Reader, shown: Display, towline: Towline, pacer: Pacer, seconds: int | None) -> None:
        """Show the status until time is up or a signal came."""
        began = time.monotonic()
        while not self._stop.is_set():
            self._check(towline, pacer)
            now = time.monotonic()
            if seconds is not None and now - began >= seconds:
                return
            end = f" of {seconds}" if seconds is not None else ""
            hint = "" if seconds is not None else " (Ctrl-C ends it)"
            doing = f"{now - began:.0f}{end} s, {pacer.transactions:,} transactions at the source{hint}"
            shown.show(reader.read(), now, doing)
            self._stop.wait(LOOK)

    def _catch_up(self, reader: Reader, shown: Display, towline: Towline, pacer: Pacer) -> float:
        """Wait until the hub has everything that the source had at the beginning; returns the seconds it took."""
        began = progressed = time.monotonic()
        goal, mark = 0, (0, 0)
        while True:
            self._check(towline, pacer)
            status, now = reader.read(), time.monotonic()
            goal = goal or status.source_position or 0
            shown.show(status, now, "the workload has stopped; catching up")
            if goal and caught_up(status, goal):
                return now - began
            position = status.checkpoint.position if status.checkpoint is not None else 0
            here = (position, sum(route.copied for route in status.routes))
            if here != mark:
                mark, progressed = here, now
            if now - progressed > PATIENCE:
                raise Failed(f"no progress for {PATIENCE:.0f} s; the daemon's log ends with:\n{towline.log_tail()}")
            time.sleep(LOOK / 5)

    def _verify(self, towline: Towline) -> int:
        self._say("Verifying (towline verify)")
        done = towline.verb("verify")
        code = towline.stop()
        if code != 0:
            raise Failed(f"the daemon ended with exit code {code}; its log ends with:\n{towline.log_tail()}", code)
        self._console.print(done.stdout.rstrip(), markup=False, highlight=False, soft_wrap=True)
        return done.returncode

    # ---- what can go wrong ---------------------------------------------------------------------------------------

    def _require(self, towline: Towline, verb: str) -> None:
        done = towline.verb(verb)
        if done.returncode != 0:
            raise Failed(f"towline {verb}:\n{done.stdout}", done.returncode)

    def _check(self, towline: Towline, pacer: Pacer) -> None:
        if not towline.running:
            code = towline.stop()
            raise Failed(f"the daemon ended with exit code {code}; its log ends with:\n{towline.log_tail()}", code or 1)
        if pacer.error is not None:
            raise Failed(f"the workload: {pacer.error}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def write_pipeline(directory: Path, source: str, hub: str, port: int) -> Path:
    """Write the demo's pipeline file, with the DSNs and the port of its web server in files beside it."""
    for name, content in (("erp.dsn", source), ("hub.dsn", hub), ("web.port", str(port))):
        secret = directory / name
        secret.touch(mode=0o600)
        secret.write_text(content)
    file = directory / "demo.yaml"
    file.write_bytes(script("pipeline.yaml"))
    return file


def fill_source(dsn: str) -> None:
    """Make the demo's ERP and WMS in an empty database, and fill them."""
    with psycopg.connect(dsn) as connection:
        connection.execute(script("source.sql"))
        connection.execute(script("seed.sql"))


def caught_up(status: Status, goal: int) -> bool:
    """Whether all routes stream, and the target has everything before ``goal``."""
    checkpoint = status.checkpoint
    streaming = bool(status.routes) and all(route.state == "streaming" for route in status.routes)
    return streaming and checkpoint is not None and checkpoint.position >= goal


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """The event that SIGINT and SIGTERM set; a second SIGINT interrupts whatever goes on."""
    stop = threading.Event()
    with answered({signal.SIGINT: stop.set, signal.SIGTERM: stop.set}, insisting=True):
        yield stop
