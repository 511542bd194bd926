"""Settings of a server that running sessions take over at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg

from towline.demo.server import Server


@contextmanager
def setting(server: Server, name: str, value: str) -> Iterator[None]:
    """Set it for all sessions of the server, as SQL says it, while the block runs."""
    with psycopg.connect(server.dsn(options="-c default_transaction_read_only=off"), autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute(f"ALTER SYSTEM RESET {name}".encode())
            connection.execute("SELECT pg_reload_conf()")
