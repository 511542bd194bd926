"""Notices, while the stream goes on, what the log does not tell: changes of catalogs, that `apply` was run, and
whether the target is at work.

A table that is dropped, renamed or moved leaves no trace in the log, nor does one whose columns change while nobody
writes to it. So the catalogs are looked at every now and then, by a query that is cheap.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import psycopg

from towline.config import PipelineConfig
from towline.errors import TowlineError
from towline.intake import Intake
from towline.postgres.session import connect, translating
from towline.source import Tables
from towline.target.postgres import source_tables
from towline.target.postgres.writer import Session

#: A session that waits for its client is no sign that the client lives.
_WORKING = """
SELECT FROM pg_catalog.pg_stat_activity
WHERE pid = %s AND backend_start = %s AND state = 'active' AND wait_event_type IS DISTINCT FROM 'Client'
"""

#: The source's catalog is looked at in each so many calls (seconds).
_EVERY = 2


class Lookout:
    """For one attempt. ``notice`` is called, once, in the thread that calls `look`.

    ``working``: the attempt's own session with the target. ``worked``: when it was last found at work in a statement,
    on the monotonic clock: however long one takes, the daemon that waits for it is none that hangs.
    """

    def __init__(
        self, config: PipelineConfig, intake: Intake, notice: Callable[[], None], working: Callable[[], Session | None]
    ) -> None:
        self._working = working
        self.worked = 0.0
        self._config = config
        self._intake = intake
        self._notice = notice
        self._target: psycopg.Connection[Any] | None = None
        self._turn = 0
        self.noticed = False

    def look(self, tables: Tables) -> None:
        """Compare both ends with what the attempt began with. Raises what the source's session does."""
        if self.noticed:
            return
        self._turn += 1
        changed = self._turn % _EVERY == 0 and (
            tables.footprint(self._intake.oids, self._config.source.publication) != self._intake.footprint
        )
        if changed or self._revision() != self._intake.revision:
            self.noticed = True
            self._notice()

    def _revision(self) -> int:
        """How often `apply` was run; what it was before, when the target cannot be asked (the loop will notice)."""
        config = self._config
        try:
            with translating("target"):
                return source_tables.revision(self._session(), config.target.schema_name, config.pipeline)
        except TowlineError:
            self.close()
            return self._intake.revision

    def pulse(self) -> None:
        """See whether the attempt's session is at work. Says nothing when the target cannot be asked."""
        if (working := self._working()) is None:
            return
        try:
            with translating("target"):
                if self._session().execute(_WORKING, working).fetchone() is not None:
                    self.worked = time.monotonic()
        except TowlineError:
            self.close()

    def _session(self) -> psycopg.Connection[Any]:
        if self._target is None:
            dsn, name = self._config.target.dsn.get_secret_value(), f"towline {self._config.pipeline} lookout"
            self._target = connect(dsn, application_name=name, side="target", search_path=None)
        return self._target

    def close(self) -> None:
        """End the session with the target."""
        target, self._target = self._target, None
        if target is not None:
            with contextlib.suppress(psycopg.Error):
                target.close()
