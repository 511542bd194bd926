"""The session that writes to the target: one, with the pipeline's lock, and which another thread can end.

The lock is an advisory one on `ledger.lock_key`: the server releases it when the session ends, so that a standby may go
on. A daemon that is frozen, with its connection alive, loses both session and transaction to the server's idle timeouts
(`_IDLE`).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import psycopg

from towline.change import Chunk, Relation
from towline.errors import TargetUnavailable
from towline.frame import Frame
from towline.postgres.line import hang_up, traffic, widen, within
from towline.postgres.session import connect, translate
from towline.target import Reread
from towline.target.postgres.ledger import lock_key

#: How long a session may be idle, in a transaction or not, before the server ends it (milliseconds). The pipeline's
#: heartbeat is several times as frequent.
_IDLE = 60_000
#: How long a statement waits for a lock that another session holds (milliseconds): then TargetConflict.
_LOCK_WAIT = 30_000
#: How often a standby tries for the lock (seconds).
_POLL = 0.2
#: How long the server may take to say whether the lock is free (seconds): a standby's line may be dead.
_ANSWER = 30.0

SETTINGS = {
    "idle_in_transaction_session_timeout": _IDLE,
    "lock_timeout": _LOCK_WAIT,
    # Stages have few rows and targets many, mostly in memory: with the default of 4, a join with a stage of some
    # thousand keys would rather read the whole target than look the keys up in its index.
    "random_page_cost": 1.1,
}

#: A server process and when it began, which tells it from a later one of the same number.
Session = tuple[int, datetime]

_OWN_SESSION = "SELECT pid, backend_start FROM pg_catalog.pg_stat_activity WHERE pid = pg_catalog.pg_backend_pid()"
_END_SESSION = """
SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity WHERE pid = %s AND backend_start = %s
"""


class WritingSession:
    """Connects when it is first used. ``predecessor``: the ``own`` of this daemon's last one, which is ended if the
    server still has it.

    `call` surrounds whatever is done with the connection; ``connected`` is called with it once, and ``failed`` whenever
    a call fails in the driver.
    """

    def __init__(
        self,
        dsn: str,
        *,
        pipeline: str,
        schema: str,
        predecessor: Session | None,
        connected: Callable[[psycopg.Connection[Any]], None],
        failed: Callable[[], None],
    ) -> None:
        self._dsn = dsn
        self._pipeline = pipeline
        self._schema = schema
        self._predecessor = predecessor
        self._connected = connected
        self._failed = failed
        self._connection: psycopg.Connection[Any] | None = None
        self._closing = threading.Event()
        self._calling: int | None = None
        #: Since when the loop is in a call that needs an answer of the target's (monotonic); None when it is not.
        self.called: float | None = None
        #: What the server knows it by.
        self.own: Session | None = None

    @property
    def connection(self) -> psycopg.Connection[Any]:
        """The connection, made if there is none."""
        if self._connection is None:
            connection = connect(
                self._dsn, application_name=f"towline {self._pipeline}", side="target", search_path=None
            )
            self._connection = connection
            widen(connection)
            settings = dict(SETTINGS)
            if connection.info.server_version >= 140000:
                settings["idle_session_timeout"] = _IDLE
            for name, value in settings.items():
                connection.execute("SELECT set_config(%s, %s, false)", (name, str(value)))
            self._end_predecessor(connection)
            self._connected(connection)
        return self._connection

    @property
    def open(self) -> psycopg.Connection[Any] | None:
        """The connection, if there is one that was not closed."""
        connection = self._connection
        return connection if connection is not None and not connection.closed else None

    def _end_predecessor(self, connection: psycopg.Connection[Any]) -> None:
        """End the session that this daemon had before, and note the new one.

        When its line was cut at our end only, the server would keep it, with the lock, until it has been idle too long.
        """
        if self._predecessor is not None:
            with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
                connection.execute(_END_SESSION, self._predecessor)
        row = connection.execute(_OWN_SESSION).fetchone()
        self.own = (row[0], row[1]) if row is not None else None

    def lock(self, timeout: float) -> bool:
        """Take the pipeline's lock, within so many seconds. One that another session holds is tried for again and
        again, since waiting for it in the server would hold a snapshot, and with it the vacuum of the target, for as
        long.
        """
        deadline = time.monotonic() + timeout
        with self.call():
            connection = self.connection
            while True:
                with within(connection, _ANSWER):
                    locked = connection.execute(
                        "SELECT pg_try_advisory_lock(%s)", (lock_key(self._schema, self._pipeline),)
                    ).fetchone()
                if locked is not None and locked[0]:
                    return True
                left = deadline - time.monotonic()
                if left <= 0 or self._closing.wait(min(_POLL, left)):
                    return False

    @contextmanager
    def call(self) -> Iterator[None]:
        """Something is done with the connection: notes who is at it, and translates the driver's errors."""
        if self._closing.is_set():
            raise TargetUnavailable("the connection to the target was closed")
        self._calling = threading.get_ident()
        self.called = time.monotonic()
        try:
            yield
        except psycopg.Error as error:
            self._failed()
            raise translate(error, "target") from error
        finally:
            self._calling = self.called = None

    def elsewhere(self, reread: Reread) -> Reread:
        """What a call asks the source, however long that takes, is not the target's silence."""

        def asked(relation: Relation, keys: Frame) -> Chunk:
            self.called = None
            try:
                return reread(relation, keys)
            finally:
                self.called = time.monotonic()

        return asked

    @property
    def traffic(self) -> int | None:
        """Bytes that have passed on the line, see `towline.postgres.line.traffic`. May be asked by any thread."""
        connection = self.open
        return traffic(connection) if connection is not None else None

    def close(self) -> None:
        """End it, and a call of another thread."""
        self._closing.set()
        connection = self.open
        if connection is None:
            return
        if self._calling in (None, threading.get_ident()):
            connection.close()
            return
        # Another thread is inside libpq: have the server end the statement, then cut the line under both.
        with contextlib.suppress(psycopg.Error):
            connection.cancel_safe(timeout=1.0)
        hang_up(connection)
