"""Sessions that are kept: beginning one costs more than most of the questions that tests ask while they wait."""

from __future__ import annotations

import atexit
import select
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

#: More are not kept; the one that was used longest ago is closed.
MOST = 24

_kept: OrderedDict[str, psycopg.Connection[Any]] = OrderedDict()


@contextmanager
def session(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A session in autocommit mode, as good as new except that it has its database's settings as they once were."""
    connection = _kept.pop(dsn, None)
    if connection is not None and _ended(connection):
        connection.close()
        connection = None
    if connection is None:
        connection = psycopg.connect(dsn, autocommit=True, prepare_threshold=None)
    else:
        connection.execute("DISCARD ALL")
    try:
        yield connection
    except BaseException:
        connection.close()
        raise
    if not connection.closed:
        _keep(dsn, connection)


def rows(dsn: str, statement: str | sql.Composable, parameters: Sequence[Any] = (), **options: str) -> list[Any]:
    """Run a statement in a transaction of its own; its rows, if it has any. ``options`` add to the DSN.

    Only a question is asked in a session that is kept: what changes anything may be meant to begin one.
    """
    dsn = make_conninfo(dsn, **options)
    if isinstance(statement, str) and statement.startswith("SELECT "):
        with session(dsn) as connection:
            return _run(connection, statement, parameters)
    with psycopg.connect(dsn, autocommit=True) as connection:
        return _run(connection, statement, parameters)


def _run(connection: psycopg.Connection[Any], statement: str | sql.Composable, parameters: Sequence[Any]) -> list[Any]:
    text = statement.as_bytes(connection) if isinstance(statement, sql.Composable) else statement.encode()
    cursor = connection.execute(text, parameters or None)
    return cursor.fetchall() if cursor.description is not None else []


def _ended(connection: psycopg.Connection[Any]) -> bool:
    """Whether the server has said something in a session that asked nothing: that it ends."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _keep(dsn: str, connection: psycopg.Connection[Any]) -> None:
    for each in (_kept.pop(dsn, None), _kept.popitem(last=False)[1] if len(_kept) >= MOST else None):
        if each is not None:
            each.close()
    _kept[dsn] = connection


@atexit.register
def close() -> None:
    """End all of them."""
    while _kept:
        _kept.popitem()[1].close()
