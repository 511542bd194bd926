"""Notices, while the stream goes on, what the log does not tell: changes of catalogs, that `apply` was run, and
whether the target is at work. Where it is not, though the loop waits for it, the line is dead: it is hung up.

A table that is dropped, renamed or moved leaves no trace in the log, nor does one whose columns change while nobody
writes to it. So the catalogs are looked at every now and then, by a query that is cheap.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg

from towline.adoption import Intake
from towline.config import PipelineConfig
from towline.errors import TargetUnavailable, TowlineError
from towline.logs import event
from towline.postgres.line import within
from towline.postgres.session import connect, translating
from towline.silent_line import SilentLine
from towline.source import Tables
from towline.target.postgres import source_tables
from towline.target.postgres.writer import PostgresTarget

log = logging.getLogger(__name__)

#: A session that waits for its client is no sign that the client lives. (disabled: track_activities is off.)
_WORKING = """
SELECT FROM pg_catalog.pg_stat_activity
WHERE pid = %s AND backend_start = %s AND state IN ('active', 'disabled') AND wait_event_type IS DISTINCT FROM 'Client'
"""

#: The source's catalog is looked at in each so many calls (seconds).
_EVERY = 2
#: How long the target may take to answer a question of the look-out's own (seconds): its line may be dead, too.
ANSWER = 10.0
#: How long the loop waits for a target that says each time that it does nothing, with nothing passing on the line
#: (seconds). As long as ``tcp_user_timeout``, and shorter than what /healthz allows.
SILENCE = 60.0


class Lookout:
    """For one attempt. ``notice`` is called, once, in the thread that calls `look`.

    ``target``: that of the attempt. ``worked``: when its session was last found at work in a statement, or receiving,
    on the monotonic clock: however long one takes, the daemon that waits for it is none that hangs.
    """

    def __init__(
        self, config: PipelineConfig, intake: Intake, notice: Callable[[], None], target: PostgresTarget
    ) -> None:
        self._attempt = target
        self._line = SilentLine(SILENCE)
        self.worked = 0.0
        self._config = config
        self._intake = intake
        self._notice = notice
        self._target: psycopg.Connection[Any] | None = None
        self._turn = 0
        self.noticed = False
        self._ended = False

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
            with translating("target"), within(session := self._session(), ANSWER):
                return source_tables.revision(session, config.target.schema_name, config.pipeline)
        except TowlineError:
            self.close()
            return self._intake.revision

    def pulse(self) -> None:
        """See whether the attempt's session is at work. Says nothing when the target cannot be asked."""
        if (working := self._attempt.session) is None:
            return
        called, traffic = self._attempt.called, self._attempt.traffic
        try:
            with translating("target"), within(session := self._session(), ANSWER):
                at_work = session.execute(_WORKING, working).fetchone() is not None
        except TowlineError:
            self._line.reset()
            self.close()
            return
        now = time.monotonic()
        if at_work or self._line.moved(traffic):
            self.worked = now
        if self._line.dead(now, called, traffic, at_work):
            self._hang_up()

    def _hang_up(self) -> None:
        """The loop waits for what was lost on the line: end that, so that the next attempt takes another one."""
        event(
            log,
            logging.WARNING,
            "target_silent",
            pipeline=self._config.pipeline,
            detail=f"for {SILENCE:.0f} s the target has had nothing to do, and the daemon waits for its answer: "
            "the line between them is dead",
        )
        self._attempt.close()
        self._line.reset()

    def _session(self) -> psycopg.Connection[Any]:
        if self._target is None:
            dsn, name = self._config.target.dsn.get_secret_value(), f"towline {self._config.pipeline} lookout"
            self._target = connect(dsn, application_name=name, side="target", search_path=None)
            if self._ended:  # the attempt did not wait for the answer of a line that may be dead
                self.close()
                raise TargetUnavailable("the attempt has ended")
        return self._target

    def end(self) -> None:
        """Look no more. May be called from another thread, in the middle of a look."""
        self._ended = True
        self.close()

    def close(self) -> None:
        """End the session with the target."""
        target, self._target = self._target, None
        if target is not None:
            with contextlib.suppress(psycopg.Error):
                target.close()
