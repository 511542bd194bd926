"""The source and the target: two servers of our own, and what one does with databases and slots in them."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from bench import settings
from towline.demo.programs import debian_bindir, embedded_bindir
from towline.demo.server import Server

TEMPLATE = "bench_base"


Statement = str | sql.SQL | sql.Composed


class BenchFailed(Exception):
    """A run cannot be made, or did not end as it must; the message says why."""


class Servers:
    """Source and target. Entering the context starts them if need be, and leaving it removes what was made in them.

    ``transport``: ``socket`` or ``tcp``, for contenders and for us.
    """

    def __init__(self, source: Server, target: Server, transport: str = "socket") -> None:
        self.source = source
        self.target = target
        self.transport = transport
        self._stack = ExitStack()

    @classmethod
    def made(
        cls, directory: Path, version: int = 15, transport: str = "socket", more: Mapping[str, str] | None = None
    ) -> Servers:
        """Two of our own. ``version``: 15 (Debian's) or 18 (the wheel's); ``more``: settings."""
        bindir = embedded_bindir() if version == 18 else debian_bindir(version)
        source, target = (
            Server(directory / name, bindir, settings={**settings.COMMON, **own, **(more or {})})
            for name, own in (("source", settings.SOURCE), ("target", settings.TARGET))
        )
        servers = cls(source, target, transport)
        servers._stack.callback(target.remove)
        servers._stack.callback(source.remove)
        return servers

    def __enter__(self) -> Servers:
        self.source.start()
        self.target.start()
        return self

    def __exit__(self, *exception: object) -> None:
        with self._stack:
            self.clear()

    def dsn(self, server: Server, database: str = settings.DATABASE, *, tcp: bool = False) -> str:
        """How to reach a database: over the Unix socket unless the transport is TCP, or ``tcp`` insists."""
        return server.dsn(database) if tcp or self.transport == "tcp" else server.socket_dsn(database)

    def program(self, name: str) -> str:
        """A client program of PostgreSQL, as a path. Raises BenchFailed."""
        found = shutil.which(name, path=str(self.source.bindir)) or shutil.which(name)
        if found is None:
            raise BenchFailed(f"{name} is not installed")
        return found

    def version(self) -> str:
        """What the source says that it is (both are of one version)."""
        return str(value(self.dsn(self.source, "postgres"), "SHOW server_version")).split()[0]

    # ---- databases -----------------------------------------------------------------------------------------------

    def make_source(self) -> str:
        """An empty source database; what there was is dropped, with its slots. Returns its DSN."""
        self.drop_target(settings.DATABASE)
        self.drop_slots()
        self._drop(self.source, settings.DATABASE)
        run(self.dsn(self.source, "postgres"), f"CREATE DATABASE {settings.DATABASE} TEMPLATE template0")
        return self.dsn(self.source)

    def make_template(self, schema: str) -> None:
        """The database that each target begins as: what the source has now, but for one schema."""
        self.drop_target(TEMPLATE)
        admin = self.dsn(self.target, "postgres")
        run(admin, f"CREATE DATABASE {TEMPLATE} TEMPLATE template0")
        dump = [self.program("pg_dump"), "-N", schema, "--no-publications", "-d", self.dsn(self.source)]
        load = [self.program("psql"), "-Xq", "-v", "ON_ERROR_STOP=1", "-d", self.dsn(self.target, TEMPLATE)]
        with subprocess.Popen(dump, stdout=subprocess.PIPE) as dumping:
            loaded = subprocess.run(load, stdin=dumping.stdout, stdout=subprocess.DEVNULL, check=False)
        if loaded.returncode or dumping.returncode:
            raise BenchFailed("the target's template could not be made")
        run(self.dsn(self.target, TEMPLATE), "VACUUM ANALYZE")

    def copy_target(self, template: str, name: str = settings.DATABASE) -> str:
        """A target database made anew from a template; both servers have just made a checkpoint. Returns its DSN."""
        self.drop_target(name)
        run(
            self.dsn(self.target, "postgres"),
            sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)),
        )
        for server in (self.source, self.target):
            run(self.dsn(server, "postgres"), "CHECKPOINT")
        return self.dsn(self.target, name)

    def drop_target(self, name: str) -> None:
        """Drop a database of the target, with the subscriptions in it."""
        found = rows(self.dsn(self.target, "postgres"), "SELECT 1 FROM pg_database WHERE datname = %s", name)
        if not found:
            return
        drop_subscriptions(self.dsn(self.target, name))
        self._drop(self.target, name)

    def clear(self) -> None:
        """Drop all that was made."""
        made = "SELECT datname FROM pg_database WHERE datname ~ '^(bench|staged_)'"
        for (name,) in rows(self.dsn(self.target, "postgres"), made):
            self.drop_target(name)
        self.drop_slots()
        self._drop(self.source, settings.DATABASE)

    def _drop(self, server: Server, name: str) -> None:
        run(
            self.dsn(server, "postgres"),
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)),
        )

    # ---- slots ---------------------------------------------------------------------------------------------------

    def drop_slots(self, keep: str = "", timeout: float = 30.0) -> None:
        """Drop the slots of our source database but one, and end those who read them."""
        deadline = time.monotonic() + timeout
        admin = self.dsn(self.source, "postgres")
        while True:
            run(
                admin,
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                " WHERE database = %s AND slot_name <> %s AND active_pid IS NOT NULL",
                settings.DATABASE,
                keep,
            )
            try:
                run(
                    admin,
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
                    " WHERE database = %s AND slot_name <> %s",
                    settings.DATABASE,
                    keep,
                )
                return
            except psycopg.errors.ObjectInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def copy_slot(self, name: str, plugin: str) -> None:
        """A slot at the start of the changes, for any output plugin."""
        run(
            self.dsn(self.source),
            "SELECT pg_copy_logical_replication_slot(%s, %s, false, %s)",
            settings.BASE_SLOT,
            name,
            plugin,
        )


def drop_subscriptions(dsn: str) -> None:
    """Drop a database's subscriptions, and leave their slots alone."""
    found = rows(
        dsn,
        "SELECT subname FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid"
        " WHERE d.datname = current_database()",
    )
    for (name,) in found:
        subscription = sql.Identifier(name)
        run(dsn, sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(subscription))
        run(dsn, sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(subscription))
        run(dsn, sql.SQL("DROP SUBSCRIPTION {}").format(subscription))


def rows(dsn: str, statement: Statement, *parameters: Any) -> Sequence[tuple[Any, ...]]:
    """Run a statement by itself, outside of a transaction; its rows, if it has any."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description is not None else []


def run(dsn: str, statement: Statement, *parameters: Any) -> None:
    """Run a statement by itself, for what it does."""
    rows(dsn, statement, *parameters)


def value(dsn: str, statement: Statement, *parameters: Any) -> Any:
    """The one value that a query gives."""
    ((found,),) = rows(dsn, statement, *parameters)
    return found
