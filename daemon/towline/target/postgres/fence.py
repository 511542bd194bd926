"""The transaction that a daemon writes in: it holds the pipeline's checkpoint from its first statements on.

The *epoch* in the checkpoint is raised by whoever starts: a daemon that was suspended and comes back finds another's
with the first statements of a transaction, and gets `Fenced`; what else it had sent with them is rolled back.

A synchronous commit flushes the server's log up to its own record, and so the records of all that committed before it;
then it waits for synchronous standbys, if there are any. An asynchronous one does not wait: the server flushes its log
within three times ``wal_writer_delay``, and a crash before that undoes the commit.
Source: https://www.postgresql.org/docs/current/wal-async-commit.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime

import psycopg

from towline.errors import Fenced, TargetUnavailable, TowlineError
from towline.position import format_lsn, parse_lsn
from towline.target import RouteState
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.ledger import Control

#: How a transaction commits, said in it just before. The synchronous way is that of the session, which may be more than
#: ``on``, but never off, whatever the settings of the server have become since the session began.
ASYNCHRONOUS = "SET LOCAL synchronous_commit = off"
SYNCHRONOUS = """
SELECT pg_catalog.set_config('synchronous_commit', CASE way WHEN 'off' THEN 'on' ELSE way END, true)
FROM pg_catalog.current_setting('synchronous_commit') AS way
"""


class Fence:
    """One transaction after the other. ``executing``: asked for the session's executor. ``asked``: told for which
    routes somebody wants the keys counted, and whether anew.

    ``epoch``, ``position``: of the checkpoint, as of `at`, `hold` and `commit`. ``open``: whether there is a
    transaction. Everything raises psycopg.Error, and TowlineError when called where it must not be; what looks at the
    checkpoint raises Fenced, and TargetUnavailable.
    """

    def __init__(
        self,
        pipeline: str,
        control: Control,
        *,
        executing: Callable[[], Executor],
        asked: Callable[[Mapping[str, bool]], None],
    ) -> None:
        self._pipeline = pipeline
        self._control = control
        self._executing = executing
        self._asked = asked
        self._held: Outcome | None = None  # the checkpoint, in a transaction that has just begun
        self.epoch = self.position = 0
        self.open = False

    def at(self, epoch: int, position: int) -> None:
        """The checkpoint is this daemon's from now on."""
        self.epoch, self.position = epoch, position

    def begin(self) -> None:
        """Begin a transaction that holds the checkpoint.

        What the server says to that is looked at with the answers to the first statements that follow, see `holding`:
        a round trip less for each batch.
        """
        if self.open:
            raise TowlineError("a transaction was begun inside another one")
        executor = self._executing()
        self.open = True
        executor.run("BEGIN", prepare=True)
        self._held = executor.run(*self._control.hold(self.epoch), prepare=True)
        executor.run("SET CONSTRAINTS ALL DEFERRED", prepare=True)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """What is done may be done for nothing, and fail for that reason, when the checkpoint is not held: see to it
        that nothing is made of it.
        """
        try:
            yield
        except (psycopg.Error, TowlineError):
            if self._held is not None and self._held.done and not self._held.rows:
                raise self._fenced() from None
            raise
        self.hold()

    def hold(self) -> None:
        """Look at what the server said to `begin`."""
        if self._held is None:
            return
        held = self._held
        if not held.done:
            self._executing().sync()
        if not held.rows:  # it stays so: whatever is called next is told the same
            raise self._fenced() if held.done else TargetUnavailable("the transaction has not begun")
        self._held = None
        position, asked = held.rows[0]
        self.position = parse_lsn(position or "")
        if asked == "t":
            self.ask()

    def ask(self) -> None:
        """See for which routes somebody wants the keys counted."""
        executor = self._executing()
        wanted = executor.run(*self._control.asked())
        executor.sync()
        self._asked({route or "": anew == "t" for route, anew in wanted.rows})

    def note(self, statement: str, parameters: Sequence[object]) -> None:
        """Run a statement of its own, without a transaction, that changes this daemon's checkpoint."""
        executor = self._executing()
        noted = executor.run(statement, parameters)
        executor.sync()
        if noted.rowcount != 1:
            raise self._fenced()

    def commit(self, position: int, commit_time: datetime | None, read: int, *, synchronous: bool) -> None:
        """Move the checkpoint and commit. The checkpoint is held, and so is its epoch: only the position can be
        wrong. ``read``: up to where the source's log was when rows were last read from it again.
        """
        if position < self.position:
            raise TowlineError(
                f"a commit at {format_lsn(position)} is before the checkpoint {format_lsn(self.position)}"
            )
        executor = self._executing()
        moved = self._control.advance(self.epoch, position, commit_time, read)
        advanced = executor.run(*moved, prepare=True)
        executor.run(SYNCHRONOUS if synchronous else ASYNCHRONOUS, prepare=True)
        executor.run("COMMIT")
        executor.sync()
        self.open = False
        if advanced.rowcount != 1:
            raise self._fenced()
        self.position = position

    def record(self, statements: Sequence[str], states: Sequence[RouteState]) -> None:
        """In a transaction that was begun, and for all there is in it: run statements, note states of routes and
        commit, with the checkpoint where it is.
        """
        self.hold()
        executor = self._executing()
        for statement in statements:
            executor.run(statement)
        for state in states:
            executor.run(*self._control.state(state))
        executor.run("COMMIT")
        executor.sync()
        self.open = False

    def roll_back(self) -> None:
        """Undo what was done since `begin`."""
        self.open, self._held = False, None
        executor = self._executing()
        executor.abandon()
        executor.run("ROLLBACK")
        executor.sync()

    def _fenced(self) -> Fenced:
        return Fenced(f"epoch {self.epoch} of pipeline {self._pipeline} has been superseded")
