"""Savepoints: what the server refuses is undone there, and so is what is known of the session's stages."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from towline.errors import RowRefused
from towline.postgres.session import doubtful, of_schema, refused_row, translate
from towline.target.postgres.executor import Executor
from towline.target.postgres.staging import Stages


class Savepoints:
    """Runs parts of a transaction so that they can fail."""

    def __init__(self, executor: Executor, stages: Stages) -> None:
        self._executor = executor
        self._stages = stages

    def attempt(
        self, name: str, queue: Callable[[], None], without_rows: Callable[[], None] | None = None
    ) -> RowRefused | None:
        """Run statements under a savepoint; if rows are refused, all is as before, and that error is returned.

        ``without_rows``: queues the same statements without rows, to be run where the error alone does not tell whether
        it is about rows. Other errors are raised, translated; the transaction is lost then. Those of what was queued
        before are raised as they are: there is no savepoint yet to go back to.

        All has been answered when it returns, but maybe that the savepoint is released: who has just waited for the end
        of a COPY need not wait for that, too.
        """
        mark = self._stages.mark()
        begun = self._executor.run(f"SAVEPOINT {name}")
        try:
            queue()
            self._executor.run(f"RELEASE SAVEPOINT {name}", certain=True)
            if not self._executor.settled:
                self._executor.sync()
            return None
        except psycopg.Error as error:
            earlier = self._executor.abandon()
            if not begun.done:
                raise (earlier or error) from None
            doubted = without_rows is not None and doubtful(error)
            translated = refused_row(error) if doubted else translate(error, "target")
            if not isinstance(translated, RowRefused):
                raise translated from error
        self._undo(name, mark)
        if doubted and without_rows is not None:
            mark = self._stages.mark()
            try:
                self._executor.run(f"SAVEPOINT {name}")
                without_rows()
                self._executor.sync()
            except psycopg.Error as error:
                self._executor.abandon()
                raise of_schema(error) from error
            self._undo(name, mark)
        return translated

    def _undo(self, name: str, mark: tuple[dict[str, None], set[str]]) -> None:
        try:
            self._executor.run(f"ROLLBACK TO SAVEPOINT {name}")
            self._executor.run(f"RELEASE SAVEPOINT {name}")
            self._executor.sync()
        except psycopg.Error as error:
            self._executor.abandon()
            raise translate(error, "target") from error
        self._stages.restore(mark)
