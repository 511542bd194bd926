"""Runs statements so that few of them wait for an answer.

Statements are queued in libpq's pipeline mode, sent in one go and their results looked at once, at `Executor.sync`.
COPY cannot be queued: it ends the queue first. Either way, the order is the order of the calls.

This is done on `psycopg.pq`, since psycopg's own pipeline mode sends, and looks for answers, with every statement: for
a batch of one row that is most of its cost.

Source: https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

import itertools
import select
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import psycopg
from psycopg import RawCursor, pq
from psycopg.adapt import PyFormat, Transformer

from towline.frame import COPY_HEADER, COPY_TRAILER, Frame
from towline.target.postgres.params import Raw

#: How much of a COPY is handed to libpq at once (bytes). It is one message, of which a server does nothing before it
#: has all: so that it works on one while the next is sent, several have to fit into a socket.
_WRITE = 1 << 16
#: Statements that are kept prepared at the server; a route has a handful, of which most run again with each batch. When
#: there are more, each is made anew just after it made room for another. One takes some 50 kB of the server.
_PREPARED = 1500
#: A queue of so many statements is sent and answered, so that neither end's buffers fill up with it.
_QUEUE = 256

_GOOD = (pq.ExecStatus.COMMAND_OK, pq.ExecStatus.TUPLES_OK)


#: Several executors may share a session: what each makes there has its number in its name.
_numbers = itertools.count(1)

_Key = tuple[str, tuple[int, ...]]


@dataclass(slots=True)
class Outcome:
    """What a statement's result tells, once the queue was synced. ``done``: it has one, and that is no error."""

    done: bool = False
    rowcount: int = -1
    rows: list[tuple[str | None, ...]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A command whose result is to come. ``prepares``: the statement that it prepares."""

    outcome: Outcome | None
    prepares: _Key | None = None


class Executor:
    """Queues statements on a connection in autocommit mode. Any call may raise the psycopg.Error of an earlier one.

    ``number`` is its own among the executors of the process. With ``queueing`` False, each statement waits for its
    result, so that the one that fails is known.
    """

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._pgconn = connection.pgconn
        self._transformer = Transformer.from_context(connection)
        self._sent: list[_Sent] = []
        # Names by statement and types (those of an int depend on its size), in the order of their last use.
        self._prepared: dict[_Key, bytes] = {}
        self._names = 0
        self.number = next(_numbers)
        self.queueing = True
        #: Whether nothing that is queued can fail, as long as the session lasts.
        self.settled = True

    def run(
        self, statement: str, parameters: Sequence[object] = (), *, prepare: bool = False, certain: bool = False
    ) -> Outcome:
        """Queue a statement (``$1`` parameters). The outcome is filled by `sync`. ``certain``: it cannot fail."""
        outcome = Outcome()
        self.settled = self.settled and certain
        if not self._sent and self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            self._pgconn.enter_pipeline_mode()
        values, types, formats = self._dump(parameters)
        if prepare:
            name = self._prepare(statement, types)
            self._pgconn.send_query_prepared(name, values, formats)
        else:
            self._pgconn.send_query_params(statement.encode(), values, types, formats)
        self._sent.append(_Sent(outcome))
        if not self.queueing or len(self._sent) >= _QUEUE:
            self.sync()
        return outcome

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
        if self._pgconn.pipeline_status == pq.PipelineStatus.OFF:
            return
        self._pgconn.pipeline_sync()
        sent, self._sent = self._sent, []
        self.settled = True
        failed: psycopg.Error | None = None
        for command in sent:
            result = self._result()
            if result is None:
                raise psycopg.OperationalError("the server gave no result")
            while self._result() is not None:
                pass
            if result.status in _GOOD:
                _fill(command.outcome, result)
                continue
            if command.prepares is not None:
                self._prepared.pop(command.prepares, None)
            if failed is None and result.status != pq.ExecStatus.PIPELINE_ABORTED:
                failed = psycopg.errors.error_from_result(result, encoding="utf-8")
        self._result()  # that of the sync
        self._pgconn.exit_pipeline_mode()
        if failed is not None:
            raise failed

    def abandon(self) -> psycopg.Error | None:
        """After an error: end the queue, whatever becomes of it. Returns the error of a statement in it."""
        try:
            self.sync()
        except psycopg.Error as error:
            return error
        return None

    def _dump(
        self, parameters: Sequence[object]
    ) -> tuple[Sequence[Any] | None, Sequence[int] | None, Sequence[int] | None]:
        """Values, types and formats, as libpq takes them."""
        if not parameters:
            return None, None, None
        if set(map(type, parameters)) == {Raw}:
            # What `RawDumper` would say of them; most parameters are such, and there are many.
            count = len(parameters)
            return [each.data for each in cast(Sequence[Raw], parameters)], [0] * count, [pq.Format.BINARY] * count
        transformer = self._transformer
        values = transformer.dump_sequence(parameters, [PyFormat.AUTO] * len(parameters))
        return values, transformer.types, transformer.formats

    def _prepare(self, statement: str, types: Sequence[int] | None) -> bytes:
        """The name of a prepared statement, prepared if need be; the one not used for longest makes room."""
        key = statement, tuple(types or ())
        if key in self._prepared:
            name = self._prepared.pop(key)
        else:
            if len(self._prepared) >= _PREPARED:
                oldest = next(iter(self._prepared))
                self._pgconn.send_query_params(b"DEALLOCATE " + self._prepared.pop(oldest), None)
                self._sent.append(_Sent(None))
            self._names += 1
            name = f"towline_{self.number}_{self._names}".encode()
            self._pgconn.send_prepare(name, statement.encode(), types)
            self._sent.append(_Sent(None, prepares=key))
        self._prepared[key] = name
        return name

    def _result(self) -> pq.abc.PGresult | None:
        """The next result, waited for; None between the results of two commands."""
        pgconn = self._pgconn
        flushing = pgconn.flush()
        while pgconn.is_busy():
            poll = select.poll()
            poll.register(pgconn.socket, select.POLLIN | (select.POLLOUT if flushing else 0))
            for _, events in poll.poll():
                if events & ~select.POLLOUT:
                    pgconn.consume_input()
            flushing = pgconn.flush()
        return pgconn.get_result()


def _fill(outcome: Outcome | None, result: pq.abc.PGresult) -> None:
    if outcome is None:
        return
    outcome.done = True
    outcome.rowcount = result.command_tuples or 0
    for row in range(result.ntuples):
        values = (result.get_value(row, column) for column in range(result.nfields))
        outcome.rows.append(tuple(None if value is None else value.decode() for value in values))
