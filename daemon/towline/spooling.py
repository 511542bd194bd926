"""The spool of one attempt: whether there is one, and what becomes of it when it is full, or cannot be used.

At the start of a daemon a directory that cannot be used is an error for a person (`SpoolUnusable`), also for one that
will only stand by. Later it is none: replication does not need the spool, so that the source keeps large transactions
itself as long as this lasts (see `towline.streaming`).
"""

from __future__ import annotations

import logging

from towline.config import PipelineConfig
from towline.errors import SpoolCorrupt, SpoolFailed, SpoolFull, SpoolUnusable, TowlineError
from towline.logs import event
from towline.position import format_lsn
from towline.source import Finding
from towline.source.postgres.spool import Spool, probe
from towline.streaming import Streaming

log = logging.getLogger(__name__)

#: With these an attempt ends, and the next one does without.
Failed = (SpoolFull, SpoolFailed, SpoolCorrupt)


def wanted(config: PipelineConfig, server_version: int) -> bool:
    """Whether a source of that version is to send transactions while they are under way."""
    source = config.source
    return source.streaming != "off" and source.plugin == "pgoutput" and server_version >= 140000


def findings(config: PipelineConfig, server_version: int) -> list[Finding]:
    """What `check` has to say. A warning: the daemon may be meant to run on another machine, or as another user."""
    try:
        if wanted(config, server_version):
            probe(config.spool.directory)
    except (SpoolFull, SpoolUnusable) as error:
        return [Finding(error.code, False, f"{error.detail}, on this machine and for this user", error.advice)]
    return []


class Spooling:
    """Decides with ``streaming``, which outlives the attempt."""

    def __init__(self, config: PipelineConfig, streaming: Streaming) -> None:
        self._config = config
        self._streaming = streaming

    def check(self, server_version: int) -> None:
        """See, once in the life of a daemon, whether the directory can be used. Raises SpoolUnusable."""
        if self._streaming.checked or not wanted(self._config, server_version):
            return
        try:
            probe(self._config.spool.directory)
        except SpoolFull as error:
            self._without(error)
        self._streaming.checked = True

    def asks(self, server_version: int, restart: int, position: int) -> bool:
        """Whether the source is to send transactions while they are under way, if the spool can be made.

        ``restart``: the slot's restart position; ``position``: the end of the log now.
        """
        return wanted(self._config, server_version) and self._streaming.begin(restart, position)

    def open(self, server_version: int, restart: int, position: int) -> Spool | None:
        """Where transactions under way are kept; None when the source is not to send them, see `asks`."""
        if not self.asks(server_version, restart, position):
            return None
        try:
            return Spool(self._config.spool.directory, self._config.spool.max_bytes)
        except (SpoolFull, SpoolUnusable) as error:
            self._without(error)
            return None

    def failed(self, error: TowlineError) -> None:
        """The attempt ends with one of `Failed`."""
        self._streaming.spool_full()
        self._tell(error)

    def resumes(self, restart: int) -> bool:
        """Whether the source may send transactions under way again, which it did not for a while."""
        if not self._streaming.suspended:
            return False
        try:
            probe(self._config.spool.directory)
        except (SpoolFull, SpoolUnusable):
            return False
        if not self._streaming.passed(restart):
            return False
        event(log, logging.INFO, "streaming_resumed", pipeline=self._config.pipeline, restart=format_lsn(restart))
        return True

    def _without(self, error: TowlineError) -> None:
        self._streaming.spool_unusable()
        self._tell(error)

    def _tell(self, error: TowlineError) -> None:
        what = "spool_full" if isinstance(error, SpoolFull) else "spool_failed"
        event(log, logging.WARNING, what, pipeline=self._config.pipeline, code=error.code, detail=error.detail)
