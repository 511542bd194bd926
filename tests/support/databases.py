"""Databases for single tests on servers that a whole run shares."""

from __future__ import annotations

import itertools
import os
import time
from typing import Protocol

import psycopg
from psycopg import sql

from tests.support.sessions import session
from towline.demo.server import Server

PREPARED = "SELECT gid FROM pg_prepared_xacts WHERE database = %s"

_numbers = itertools.count(1)


class NewDatabase(Protocol):
    """The fixture ``new_database``: makes an empty database on a server and returns its DSN."""

    def __call__(self, server: Server, name: str | None = None) -> str: ...


def create_database(server: Server, name: str | None = None) -> str:
    """Make an empty database; returns its name. ``name`` is for tests of odd names: it must be unique in the run."""
    name = name or f"t{os.getpid()}_{next(_numbers)}"
    with session(server.dsn()) as connection:
        # Logged, block by block, it would take three times as long.
        create = sql.SQL("CREATE DATABASE {} TEMPLATE template0 STRATEGY FILE_COPY")
        connection.execute(create.format(sql.Identifier(name)))
    return name


def drop_database(server: Server, name: str, timeout: float = 20.0) -> None:
    """Drop a database with all that holds it: sessions, prepared transactions and replication slots."""
    if not server.running:
        server.start()
    deadline = time.monotonic() + timeout
    with session(server.dsn()) as connection:
        if prepared := connection.execute(PREPARED, (name,)).fetchall():
            with psycopg.connect(server.dsn(name), autocommit=True) as inside:
                for (gid,) in prepared:
                    inside.execute(sql.SQL("ROLLBACK PREPARED {}").format(sql.Literal(gid)))
        while True:
            connection.execute(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots"
                " WHERE database = %s AND active_pid IS NOT NULL",
                (name,),
            )
            try:
                connection.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = %s", (name,)
                )
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
                return
            except (psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                # A walsender that is still on its way out, or a temporary slot that went with its session.
                if time.monotonic() > deadline:
                    raise
