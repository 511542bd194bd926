"""A session that reads the log through a temporary copy of the slot, a gulp at a time.

The copy ends with the session, however that ends. What is read moves the copy on; the slot itself stands where it is
told to.

Source: https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION.
"""

from __future__ import annotations

import select
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import psycopg
from psycopg import pq, sql

from towline import errors
from towline.position import format_lsn
from towline.postgres import line, session, statements
from towline.source import Identity, SlotState
from towline.source.postgres import identity
from towline.source.postgres.notices import Notices

_SQL = statements.load("towline.source.postgres", "backlog.sql")
_SLOT = statements.load("towline.source.postgres", "tables.sql")["slot"]

#: Of a gulp, before its rows: nothing has come; the answer about what is passed over.
_BEFORE = (pq.ExecStatus.EMPTY_QUERY, pq.ExecStatus.TUPLES_OK)
#: The server ends the session, or is not there.
_ENDED = ("08", "57P")
#: How long a request to cancel may take (seconds).
_CANCEL_WITHIN = 0.5


class Refused(Exception):
    """The server does not do what is asked of it, but goes on: what is wanted has to be had in another way.

    ``error``: the coded error that the answer stands for.
    """

    def __init__(self, error: errors.TowlineError) -> None:
        super().__init__(f"{error.code} {error.detail}")
        self.error = error


class SlotCopy:
    """Raises Refused, and SourceUnavailable when the connection is lost."""

    def __init__(self, dsn: str, *, slot: str, application_name: str, purpose: str = "catchup") -> None:
        """Connects; there is no copy yet. ``purpose``: a word for its name."""
        self._slot = slot
        self._purpose = purpose
        self._copy = ""
        try:
            self._connection = session.connect(dsn, application_name=application_name, side="source")
        except (errors.SourceRefused, errors.SourceUnavailable) as error:
            # It may have no connection left; if it is not there at all, the stream will find out.
            raise Refused(error) from error
        self._pgconn = self._connection.pgconn
        self.notices = Notices()
        self._connection.add_notice_handler(self.notices.note)
        self._state: pq.ExecStatus | None = None
        self._after: int | None = None
        #: Since when an answer is waited for (monotonic); None: none is.
        self.waiting: float | None = None
        #: The server's process, and when it was started (microseconds since 1970); from `identify` on.
        self.backend = 0, 0

    def identify(self) -> Identity:
        """The server of this session."""
        pid, started = self._row("session")
        self.backend = int(str(pid)), int(str(started))
        with self._asks():
            return identity.read(self._connection)

    # ---- slots -----------------------------------------------------------------------------------------------

    def slot(self) -> SlotState:
        """The slot itself, as it is now."""
        return self._look(self._slot)

    def copied(self) -> SlotState:
        """The copy."""
        return self._look(self._copy)

    def _look(self, slot: str) -> SlotState:
        with self._asks():
            row = self._connection.execute(_SLOT, {"slot": slot}).fetchone()
        return SlotState(False) if row is None else SlotState(True, *row)

    def end(self) -> int:
        """Where the log ends as far as it is flushed. A server in recovery is refused."""
        in_recovery, position = self._row("now")
        if in_recovery:
            raise Refused(errors.SourceUnavailable("the source is in recovery"))
        return int(str(position))

    def standbys_first(self) -> bool:
        """Whether a walsender waits for standbys before it sends something of a slot for failover."""
        return bool(self._row("standbys_first")[0])

    def idle_slots_end(self) -> bool:
        """Whether the server invalidates slots that nobody streams from for a while."""
        return bool(self._row("idle_slots_end")[0])

    def any_partitioned(self, oids: Sequence[int]) -> bool:
        """Whether a table of those OIDs is partitioned."""
        return bool(self._row("partitioned", oids=list(oids))[0])

    def end_walsender(self) -> None:
        """End the one that has the slot, if it goes by the name of this session: it is ours, and of no use."""
        self._row("end_walsender", slot=self._slot)

    def copy(self) -> None:
        """Make the copy, which stands where the slot does."""
        self._copy = str(self._row("name", slot=self._slot, purpose=self._purpose)[0])
        self._row("copy", slot=self._slot, copy=self._copy)

    def advance(self, position: int) -> None:
        """Confirm the slot itself up to the position."""
        self._row("advance", slot=self._slot, position=format_lsn(position))

    def _row(self, name: str, **parameters: object) -> tuple[object, ...]:
        with self._asks():
            row = self._connection.execute(_SQL[name], parameters).fetchone()
        assert row is not None
        return tuple(row)

    # ---- a gulp ----------------------------------------------------------------------------------------------

    def begin(self, upto: int, options: Mapping[str, str], after: int | None = None) -> None:
        """Ask for what commits up to the first record that ends at position ``upto`` or after it.

        ``after``: without what commits up to the first record that ends there: somebody else reads that. The server
        passes over it without making anything of it.
        """
        copy = sql.Literal(self._copy)
        listed = sql.SQL(", ").join(sql.Literal(text) for option in options.items() for text in option)
        query = sql.SQL(
            "COPY (SELECT data FROM pg_logical_slot_get_binary_changes({}, {}::pg_lsn, NULL,"
            " VARIADIC ARRAY[{}]::text[])) TO STDOUT (FORMAT binary)"
        ).format(copy, sql.Literal(format_lsn(upto)), listed)
        if after is not None:
            advance = sql.SQL("SELECT end_lsn FROM pg_replication_slot_advance({}, {}::pg_lsn); ")
            query = advance.format(copy, sql.Literal(format_lsn(after))) + query
        with self._answers():
            self._pgconn.send_query(query.as_bytes(self._connection))
        self._state, self._after = pq.ExecStatus.EMPTY_QUERY, after

    @property
    def done(self) -> bool:
        """Whether all of the gulp was read."""
        return self._state is None

    @property
    def socket(self) -> int:
        """The descriptor to wait on."""
        return self._pgconn.socket

    def receive(self, most: int) -> tuple[list[memoryview], int]:
        """Take the CopyData messages that have come, until there are ``most`` bytes of them or so.

        Also returns the events to wait for when there is no more.
        """
        taken: list[memoryview] = []
        size = -1
        sending = 0
        with self._answers():
            while size < most and not self.done:
                sending = self._pgconn.flush()
                self._pgconn.consume_input()
                before, size = size, self._take(taken, max(size, 0))
                if size == before or not size:
                    break
        return taken, select.POLLIN | (select.POLLOUT if sending else 0)

    def _take(self, taken: list[memoryview], size: int) -> int:
        """Take what libpq has of the server's answers. ``size`` is that of what was taken before; returns it with that
        of the messages that were added."""
        while self._state in _BEFORE:
            if not self._next_result():
                return size
        if self._state == pq.ExecStatus.COPY_OUT:
            get, add = self._pgconn.get_copy_data, taken.append
            count, data = get(1)
            while count > 0:
                add(data)
                size += count
                count, data = get(1)
            if count == 0:
                return size
            self._state = pq.ExecStatus.COMMAND_OK
        while self._state is not None and self._next_result():
            pass
        return size

    def _next_result(self) -> bool:
        """Take the server's next answer, if it has come."""
        if self._pgconn.is_busy():
            return False
        result = self._pgconn.get_result()
        if result is None:
            self._state = None
        elif result.status == pq.ExecStatus.FATAL_ERROR:
            if not result.error_field(pq.DiagnosticField.SQLSTATE):  # made by libpq, not sent by the server
                raise psycopg.OperationalError("lost")
            raise psycopg.errors.error_from_result(result, encoding="utf-8")
        else:
            self._state = pq.ExecStatus(result.status)
            if (
                self._state == pq.ExecStatus.TUPLES_OK
                and result.get_value(0, 0) != format_lsn(self._after or 0).encode()
            ):
                raise errors.StreamMalformed("a copy of the slot does not stand where it was moved to")
        return True

    # ---- the end ---------------------------------------------------------------------------------------------

    def waits(self) -> None:
        """More of the gulp is waited for."""
        if self.waiting is None:
            self.waiting = time.monotonic()

    def heard(self) -> None:
        """Some of it came."""
        self.waiting = None

    @property
    def traffic(self) -> int | None:
        """How many bytes have passed, see `towline.postgres.line.traffic`."""
        return line.traffic(self._connection)

    def hang_up(self) -> None:
        """End a wait that nothing else will end; may be called from another thread."""
        line.hang_up(self._connection)

    def cancel(self) -> None:
        """End what is under way at the server; may be called from another thread."""
        with suppress(psycopg.Error):
            self._connection.cancel_safe(timeout=_CANCEL_WITHIN)

    def close(self) -> None:
        """End the session, and so the copy."""
        self._connection.close()

    @contextmanager
    def _asks(self) -> Iterator[None]:
        """An answer is waited for."""
        self.waits()
        try:
            with self._answers():
                yield
        finally:
            self.heard()

    @contextmanager
    def _answers(self) -> Iterator[None]:
        """Tell a lost connection from an answer that is not the one wanted."""
        try:
            yield
        except psycopg.Error as error:
            translated = session.translate(error, "source")
            lost = self._pgconn.status != pq.ConnStatus.OK or (error.sqlstate or "08").startswith(_ENDED)
            if lost:
                raise errors.SourceUnavailable(translated.detail, sqlstate=error.sqlstate or "") from error
            raise Refused(translated) from error
