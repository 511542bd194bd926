"""The replication protocol under a stream: a connection to a walsender, its messages in, status updates out.

In COPY BOTH mode the server sends, each in one CopyData message,

    'w' int64 start, int64 end, int64 clock, then the output plugin's bytes       (XLogData)
    'k' int64 end, int64 clock, byte reply                                        (keepalive)

and takes

    'r' int64 written, int64 flushed, int64 applied, int64 clock, byte reply      (standby status update)

Positions are in the log; clocks are microseconds since 2000-01-01 UTC; ``reply`` 1 asks the other end to answer at
once. The server ends the connection when it has had no status update for its ``wal_sender_timeout``.

Nothing here blocks once replication has started. psycopg has no class for this; its ``pq`` wrapper of libpq carries it.
Source: https://www.postgresql.org/docs/current/protocol-replication.html.
"""

from __future__ import annotations

import fcntl
import select
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace

import psycopg
from psycopg import conninfo, pq, sql

from towline import errors
from towline.position import format_lsn
from towline.postgres import session, statements
from towline.source import Identity, SlotState
from towline.source.postgres import identity, published, slot_checks
from towline.source.postgres.notices import Notices
from towline.source.postgres.routed import Routed

#: Where the output plugin's bytes begin in an XLogData message.
XLOG_HEADER = 25
XLOG_DATA, KEEPALIVE = ord("w"), ord("k")
KEEPALIVE_SIZE = 18
#: How long the server may take to start replication: it may have to wait for other transactions.
START_TIMEOUT = 60.0

_EPOCH_SECONDS = 946_684_800  # 2000-01-01, from 1970-01-01
_SLOT = statements.load("towline.source.postgres", "tables.sql")["slot"]
_DATABASE = "SELECT pg_catalog.current_database()"
_PARTITIONED = """
    SELECT count(*) FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'p' AND (n.nspname, c.relname) IN ({names})
"""
_TIMEOUT = "SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout'"
#: What servers up to 15 and from 16 on say when the role lacks REPLICATION; libpq passes no SQLSTATE on here.
_NOT_ALLOWED = ("replication role to start walsender", "to start WAL sender")


class Walsender:
    """A connection in replication mode. Raises SourceUnavailable and SourceRefused."""

    def __init__(self, dsn: str, *, application_name: str) -> None:
        self._dsn = dsn
        given = session.connection_string(dsn, "source")
        options = str(conninfo.conninfo_to_dict(given).get("options") or "")
        target = session.connection_string(
            dsn,
            "source",
            application_name=application_name,
            client_encoding="UTF8",
            replication="database",
            options=f"{options} {session.REPLICATION_OPTIONS}".strip(),
        )
        try:
            self._connection = psycopg.connect(target, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            if any(phrase in str(error) for phrase in _NOT_ALLOWED):
                raise errors.SourceRefused("the role lacks the attribute REPLICATION") from None
            raise session._refusal(error, target, "source") from None
        self._pgconn = self._connection.pgconn
        self.notices = Notices()
        self._connection.add_notice_handler(self.notices.note)
        self._unsent: bytes | None = None
        self._flushed = True

    # ---- before replication starts ---------------------------------------------------------------------------

    @property
    def server_version(self) -> int:
        """As ``server_version_num``, e.g. 150004."""
        return self._pgconn.server_version

    def check_slot(self, slot: str, plugin: str) -> None:
        """Raises what `slot_checks.problem` finds, and SlotInUse: a slot of another plugin would start, and send
        nonsense.
        """
        with session.translating("source"), psycopg.ClientCursor(self._connection) as cursor:
            row = cursor.execute(_SLOT, {"slot": slot}).fetchone()
        state = SlotState(True, *row) if row is not None else SlotState(False)
        ((here,),) = self._query(sql.SQL(_DATABASE))
        refused = slot_checks.problem(slot, state, plugin=plugin, database=str(here))
        if refused is not None:
            raise refused
        if state.active_pid:
            raise errors.SlotInUse(f"the process {state.active_pid} is streaming from the replication slot {slot}")

    def check_publication(self, publication: str, routed: Routed) -> None:
        """Raises what `published.problem` finds: servers from 18 on would do without a publication, too.

        It is asked in a session of its own. The view of what is published opens each table, and a walsender that has
        done so would decode the log with the columns that the tables have now, not with those that they had then.
        """
        info = self._connection.info
        here = {"host": info.host, "hostaddr": info.hostaddr, "port": str(info.port)}
        dsn = conninfo.make_conninfo(self._dsn, **{key: value for key, value in here.items() if value})
        with (
            session.connect(dsn, application_name="towline publication", side="source") as connection,
            session.translating("source"),
        ):
            identity.same(identity.read(self._connection), identity.read(connection))
            refused = published.lacking(connection, publication, routed.relations)
        if refused is not None:
            raise refused

    def identify(self) -> Identity:
        """The server, with the timeline of what it has written or, on a standby, replayed last."""
        with session.translating("source"):
            found = identity.read(self._connection)
        return replace(found, timeline=self.timeline())

    def timeline(self) -> int:
        """That timeline alone."""
        ((_, timeline, *_),) = self._query(sql.SQL("IDENTIFY_SYSTEM"))
        return int(str(timeline))

    def history(self, timeline: int) -> bytes:
        """The server's history file of a timeline after the first."""
        ((_, content),) = self._query(sql.SQL("TIMELINE_HISTORY {}").format(sql.Literal(timeline)))
        return content if isinstance(content, bytes) else str(content).encode()

    def any_partitioned(self, names: list[tuple[str, str]]) -> bool:
        """Whether a table of those (schema, name) is partitioned."""
        if not names:
            return False
        rows = sql.SQL(", ").join(sql.SQL("({}, {})").format(sql.Literal(s), sql.Literal(n)) for s, n in names)
        return int(str(self._query(sql.SQL(_PARTITIONED).format(names=rows))[0][0])) > 0

    def timeout(self) -> float:
        """The server's wal_sender_timeout, in seconds; 0 for none."""
        return int(str(self._query(sql.SQL(_TIMEOUT))[0][0])) / 1000

    def _query(self, query: sql.SQL | sql.Composed) -> list[tuple[object, ...]]:
        """Without parameters, since a walsender only knows the simple protocol."""
        with session.translating("source"):
            rows: list[tuple[object, ...]] = self._connection.execute(query).fetchall()
        return rows

    def start(self, slot: str, position: int, options: Mapping[str, str]) -> None:
        """Start replication. Raises what `towline.postgres.session.translate` makes of the server's refusal."""
        asked = ", ".join(f"{_identifier(name)} {_literal(value)}" for name, value in options.items())
        command = f"START_REPLICATION SLOT {_identifier(slot)} LOGICAL {format_lsn(position)} ({asked})"
        pgconn = self._pgconn
        deadline = time.monotonic() + START_TIMEOUT
        with session.translating("source"):
            pgconn.nonblocking = 1
            pgconn.send_query(command.encode())
            while pgconn.flush() or pgconn.is_busy():
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise errors.SourceUnavailable("the source did not start replication in time")
                self.wait(remaining, writing=bool(pgconn.flush()))
                pgconn.consume_input()
            result = pgconn.get_result()
            if result is None or result.status != pq.ExecStatus.COPY_BOTH:
                self._raise(result)

    # ---- while it runs ---------------------------------------------------------------------------------------

    @property
    def socket(self) -> int:
        """The descriptor to wait on."""
        return self._pgconn.socket

    def wait(self, timeout: float, *, writing: bool = False) -> None:
        """Until there is something to read, or room to write, or the time (seconds) is over."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN | (select.POLLOUT if writing else 0))
        poll.poll(timeout * 1000)

    def waiting(self) -> int:
        """How many bytes the socket has."""
        try:
            return int.from_bytes(fcntl.ioctl(self.socket, termios.FIONREAD, bytes(4)), sys.byteorder)
        except (OSError, psycopg.Error):  # it is closed: `receive` says why
            return 0

    def receive(self) -> None:
        """Take what the socket has, up to 16 kB or so. Raises SourceUnavailable."""
        try:
            self._pgconn.consume_input()
        except psycopg.Error as error:
            raise self._lost(error) from None

    def messages(self) -> Iterator[bytes]:
        """The messages received. Raises SourceUnavailable, NotSetUp, … when the server ended the stream."""
        get = self._pgconn.get_copy_data
        try:
            size, data = get(1)
            while size > 0:
                yield bytes(data)
                size, data = get(1)
        except psycopg.Error as error:
            raise self._lost(error) from None
        if size < 0:
            self._ended()

    def send_status(self, position: int, *, ask: bool = False) -> None:
        """Tell the server that everything before the position is durable; ``ask`` it to answer.

        When the connection cannot take it now, it is kept for `flush`, and replaced by a newer one.
        """
        clock = int((time.time() - _EPOCH_SECONDS) * 1_000_000)
        eight = position.to_bytes(8, "big")
        self._unsent = b"r" + eight * 3 + clock.to_bytes(8, "big", signed=True) + bytes((ask,))
        self.flush()

    def flush(self) -> bool:
        """Go on with what could not be sent; True when all of it has been. Raises SourceUnavailable."""
        try:
            if not self._flushed:
                self._flushed = self._pgconn.flush() == 0
            if self._flushed and self._unsent is not None and self._pgconn.put_copy_data(self._unsent) == 1:
                self._unsent = None
                self._flushed = self._pgconn.flush() == 0
        except psycopg.Error as error:
            raise self._lost(error) from None
        return self._flushed and self._unsent is None

    def close(self) -> None:
        """End the connection; the server frees the slot."""
        self._connection.close()

    # ---- errors ----------------------------------------------------------------------------------------------

    def _lost(self, error: psycopg.Error) -> errors.TowlineError:
        """What ended the connection: what the server said before it, if it said anything."""
        try:
            self._ended()
        except errors.TowlineError as ended:
            return ended
        except psycopg.Error:
            pass
        return session.translate(error, "source")

    def _ended(self) -> None:
        """The stream is over. Raises the error that the server sent, or SourceUnavailable."""
        while (result := self._pgconn.get_result()) is not None:
            if result.status == pq.ExecStatus.FATAL_ERROR:
                self._raise(result)
            if result.status in (pq.ExecStatus.COPY_BOTH, pq.ExecStatus.COPY_IN, pq.ExecStatus.COPY_OUT):
                break
        raise errors.SourceUnavailable("the source ended the replication stream")

    def _raise(self, result: pq.abc.PGresult | None) -> None:
        """Raise the coded error of a failed result."""
        if result is None or result.status != pq.ExecStatus.FATAL_ERROR:
            raise errors.SourceUnavailable("the source did not start replication")
        if not result.error_field(pq.DiagnosticField.SQLSTATE):  # made by libpq, not sent by the server
            raise errors.SourceUnavailable("the connection to the source was lost")
        raise session.translate(psycopg.errors.error_from_result(result, encoding="utf-8"), "source")


def _identifier(name: str) -> str:
    """A name in the grammar of replication commands, which is not SQL's but quotes names like it."""
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    """A string in that grammar: it has no E'…' (which sql.Literal would write), and backslashes mean nothing."""
    return "'" + value.replace("'", "''") + "'"
