"""The servers that trials share, one after the other: a source for each plugin, and a target."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

from tests.support.databases import create_database, drop_database
from towline.demo.programs import debian_bindir, embedded_bindir
from towline.demo.server import Server


class Bench:
    """A source for each plugin and a target, started when first asked for. Not to be shared between threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}

    @classmethod
    def of(cls, directory: Path, **servers: Server) -> Bench:
        """A bench on servers that someone else has: ``pgoutput``, ``wal2json`` and ``target``."""
        bench = cls(directory)
        bench._servers.update(servers)
        return bench

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def source(self, plugin: str) -> Server:
        """PostgreSQL 18 for pgoutput; for wal2json Debian's 15, which has it."""
        return self._server(plugin)

    @property
    def target(self) -> Server:
        """PostgreSQL 18."""
        return self._server("target")

    def mend(self) -> None:
        """Start what a trial left down, and take back the settings that it made."""
        for server in self._servers.values():
            if not server.running:
                server.start()

    def database(self, server: Server, stack: ExitStack) -> str:
        """Make a database, to be dropped with the slots in it when the stack is closed; returns its DSN."""
        name = create_database(server)
        stack.callback(drop_database, server, name)
        return server.dsn(name)

    def _server(self, name: str) -> Server:
        if name not in self._servers:
            server = Server(self._directory / name, _bindir(name), durable=False)
            if server.knows("output_plugin_libraries"):
                server.configure(output_plugin_libraries="pgoutput, test_decoding, wal2json")
            self._servers[name] = self._stack.enter_context(server)
        return self._servers[name]


def versions() -> dict[str, str]:
    """What each server is, by role. Raises ProgramsMissing."""
    found = {}
    for name in ("pgoutput", "wal2json", "target"):
        said = subprocess.run(
            [str(_bindir(name) / "postgres"), "--version"], check=True, capture_output=True, text=True
        )
        found[name] = said.stdout.split()[2]
    return found


def _bindir(name: str) -> Path:
    return debian_bindir(15) if name == "wal2json" else embedded_bindir()
