"""Runs statements so that few of them wait for an answer.

Statements are queued (libpq's pipeline mode) and their results looked at once, at `Executor.sync`. COPY cannot be
queued: it ends the queue first. Either way, the order is the order of the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import psycopg
from psycopg import RawCursor

from towline.frame import COPY_HEADER, COPY_TRAILER, Frame

#: How much of a COPY is handed to libpq at once (bytes).
_WRITE = 1 << 20


class Executor:
    """Queues statements on a connection. Any call may raise the psycopg.Error of an earlier one.

    With ``queueing`` False, each statement waits for its result, so that the one that fails is known.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._pipeline: AbstractContextManager[Any] | None = None
        self.queueing = True

    def run(self, statement: str, parameters: Sequence[object] = (), *, prepare: bool = False) -> RawCursor[Any]:
        """Queue a statement (``$1`` parameters). What the cursor returned tells is there after `sync`."""
        if self.queueing and self._pipeline is None:
            pipeline = self._connection.pipeline()
            pipeline.__enter__()
            self._pipeline = pipeline
        cursor = RawCursor(self._connection)
        cursor.execute(statement.encode(), parameters or None, prepare=prepare)
        return cursor

    def copy(self, statement: str, frame: Frame) -> None:
        """COPY … FROM STDIN (FORMAT binary) of the rows."""
        self.sync()
        cursor = RawCursor(self._connection)
        with cursor.copy(statement.encode()) as copy:
            data = memoryview(frame.data)
            copy.write(COPY_HEADER)
            for at in range(0, len(data), _WRITE):
                copy.write(data[at : at + _WRITE])
            copy.write(COPY_TRAILER)

    def sync(self) -> None:
        """Wait for everything queued. Raises the first error; the statements after it were skipped by the server."""
        if self._pipeline is not None:
            pipeline, self._pipeline = self._pipeline, None
            pipeline.__exit__(None, None, None)

    def abandon(self) -> None:
        """After an error: end the queue, whatever becomes of it."""
        with suppress(psycopg.Error):
            self.sync()
