"""Reading rows off the wire as they are: framed by the server, joined here, never looked into.

psycopg's cursors would take every row apart. Both functions need a connection on which nothing else is going on, and
raise psycopg.Error.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

import psycopg
from psycopg import pq
from psycopg.errors import error_from_result

from towline.frame import COPY_HEADER, COPY_TRAILER

_SECONDS_TO_CANCEL = 10.0
#: The server sends 8 kB at a time, and wakes up whoever waits for each: let some more come (seconds).
NAP = 0.0005


def copy_out(
    connection: psycopg.Connection, statement: bytes, max_bytes: int | None = None
) -> tuple[list[bytes | memoryview], bool]:
    """The framed rows of a ``COPY … TO STDOUT (FORMAT binary)``.

    Beyond ``max_bytes`` the statement is cancelled, and the second result is True: there may be more rows. The
    transaction is then in error, and can only be rolled back.
    """
    pgconn = connection.pgconn
    pgconn.send_query(statement)
    _flush(pgconn)
    _check(pgconn, _result(pgconn), pq.ExecStatus.COPY_OUT)
    get = pgconn.get_copy_data
    rows: list[bytes | memoryview] = []
    keep = rows.append
    room = sys.maxsize if max_bytes is None else max_bytes
    cut = looked = False
    while (received := get(1))[0] >= 0:
        length, data = received
        if not length:
            if looked:
                _await(pgconn)
                time.sleep(NAP)
            pgconn.consume_input()
            looked = True
            continue
        looked = False
        if not cut:
            keep(data)
            room -= length
            if room < 0:
                cut = True
                connection.cancel_safe(timeout=_SECONDS_TO_CANCEL)
    try:
        _finish(pgconn)
    except psycopg.errors.QueryCanceled:
        if not cut:
            raise
    # The header comes with the first row, the trailer by itself or, when there are no rows, with the header.
    rows[0] = bytes(rows[0]).removeprefix(COPY_HEADER)
    if rows[-1] == COPY_TRAILER:
        del rows[-1]
    return rows, cut


def query(
    connection: psycopg.Connection, statement: bytes, values: Sequence[bytes], types: Sequence[int]
) -> list[list[bytes | None]]:
    """The rows of a statement with parameters, both in binary form. ``types``: the parameters' OIDs."""
    pgconn = connection.pgconn
    pgconn.send_query_params(statement, values, types, [pq.Format.BINARY] * len(values), pq.Format.BINARY)
    _flush(pgconn)
    result = _result(pgconn)
    _check(pgconn, result, pq.ExecStatus.TUPLES_OK)
    columns = range(result.nfields)
    rows = [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]
    _finish(pgconn)
    return rows


def _flush(pgconn: pq.abc.PGconn) -> None:
    while pgconn.flush():
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN | select.POLLOUT)
        if any(event & ~select.POLLOUT for _, event in poll.poll()):
            pgconn.consume_input()


def _await(pgconn: pq.abc.PGconn) -> None:
    poll = select.poll()
    poll.register(pgconn.socket, select.POLLIN)
    poll.poll()


def _read_more(pgconn: pq.abc.PGconn) -> None:
    _await(pgconn)
    pgconn.consume_input()


def _result(pgconn: pq.abc.PGconn) -> pq.abc.PGresult:
    while pgconn.is_busy():
        _read_more(pgconn)
    result = pgconn.get_result()
    if result is None:
        raise psycopg.OperationalError("the server sent no result")
    return result


def _check(pgconn: pq.abc.PGconn, result: pq.abc.PGresult, expected: pq.ExecStatus) -> None:
    if result.status != expected:
        with suppress(psycopg.Error):  # the first error is the one that tells
            _finish(pgconn)
        raise error_from_result(result)


def _finish(pgconn: pq.abc.PGconn) -> None:
    """Read up to where the server waits for the next statement."""
    while True:
        while pgconn.is_busy():
            _read_more(pgconn)
        result = pgconn.get_result()
        if result is None:
            return
        if result.status not in (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK):
            # The statement is over: what is left is only the sign that the server is ready.
            error = error_from_result(result)
            _finish(pgconn)
            raise error
