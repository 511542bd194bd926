"""Savepoints: what the server refuses is undone there, and so is what is known of the session's stages."""

from __future__ import annotations

from collections.abc import Callable

import psycopg

from towline.errors import RowRefused
from towline.postgres.session import translate
from towline.target.postgres.executor import Executor
from towline.target.postgres.staging import Stages


class Savepoints:
    """Runs parts of a transaction so that they can fail."""

    def __init__(self, executor: Executor, stages: Stages) -> None:
        self._executor = executor
        self._stages = stages

    def attempt(self, name: str, queue: Callable[[], None]) -> RowRefused | None:
        """Run statements under a savepoint; if rows are refused, all is as before, and that error is returned.

        Other errors are raised, translated; the transaction is lost then. Those of what was queued before are raised as
        they are, to whoever queued it: there would be no savepoint yet to go back to.
        """
        self._executor.sync()
        mark = self._stages.mark()
        try:
            self._executor.run(f"SAVEPOINT {name}")
            queue()
            self._executor.run(f"RELEASE SAVEPOINT {name}")
            self._executor.sync()
            return None
        except psycopg.Error as error:
            self._executor.abandon()
            translated = translate(error, "target")
            if not isinstance(translated, RowRefused):
                raise translated from error
        try:
            self._executor.run(f"ROLLBACK TO SAVEPOINT {name}")
            self._executor.run(f"RELEASE SAVEPOINT {name}")
            self._executor.sync()
        except psycopg.Error as error:
            self._executor.abandon()
            raise translate(error, "target") from error
        self._stages.restore(mark)
        return translated
