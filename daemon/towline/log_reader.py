"""How an attempt reads the source's log: the stream or, while the target is far behind, a backlog."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from towline import catch_up
from towline.catch_up import CatchUp
from towline.change import Relation
from towline.config import PipelineConfig
from towline.errors import TowlineError
from towline.logs import event
from towline.metrics import Metrics
from towline.position import format_lsn
from towline.silent_line import SilentLine
from towline.source import Identity, Tables
from towline.source.postgres.backlog import Backlog
from towline.source.postgres.catch_up_stream import CatchUpStream
from towline.source.postgres.slot_copy import SlotCopy
from towline.source.postgres.stream import PostgresStream
from towline.source.postgres.tables import PostgresTables
from towline.spooling import Spooling

log = logging.getLogger(__name__)

#: How long a backlog is waited for while the source says that it does nothing for it, and while it cannot be asked
#: (seconds).
SILENCE, UNASKED = 60.0, 300.0


class LogReader:
    """Opens what is to be read from, and tells of its changes. For one attempt.

    ``name``: the application name of the sessions that read, see `towline.handle.stream_name`.
    """

    def __init__(
        self,
        config: PipelineConfig,
        relations: tuple[Relation, ...],
        *,
        identity: Identity,
        tables: PostgresTables,
        name: str,
        spooling: Spooling,
        decision: CatchUp,
        metrics: Metrics,
        announce: Callable[[str], None],
    ) -> None:
        self._config = config
        self._relations = relations
        self._identity = identity
        self._tables = tables
        self._name = name
        self._spooling = spooling
        self._decision = decision
        self._metrics = metrics
        self._announce = announce
        self._published = self._partitioned = self._streamed = False
        self._line = SilentLine(SILENCE, UNASKED)
        self._at_work: bool | None = None
        self._stream: PostgresStream | CatchUpStream | None = None

    def open(self, position: int) -> PostgresStream | CatchUpStream:
        """Begin to read at the position, which is durable. Raises what PostgresStream raises; where the target is far
        behind, only NotSetUp and SourceUnavailable, and `poll` the rest.
        """
        slot, end = self._tables.slot(), self._tables.position()
        sample = end, slot.restart
        off = self._config.source.catch_up == "off"
        if off or self._identity.in_recovery or not catch_up.possible(self._identity.server_version):
            self._stream = self._open_stream(position, position)
            self._metrics.mode("stream")
            return self._stream
        # Only pgoutput can do without the stream at first: of wal2json's, that finds out what it has to be asked for.
        # And it is the stream that says at once when somebody else has the slot.
        straight = self._config.source.plugin == "pgoutput" and not slot.active_pid
        stream = CatchUpStream(
            position,
            stream=self._open_stream,
            backlog=self._open_backlog,
            decision=self._decision,
            switches=self,
            sample=sample if straight else (0, 0),
            announce=self._announce,
        )
        stream.sampled(*sample)
        self._metrics.mode("stream")
        self._stream = stream
        return stream

    def spooled(self) -> tuple[int, int]:
        """How many transactions under way are kept, and how many bytes of files they take."""
        return self._stream.spooled if self._stream is not None else (0, 0)

    def sampled(self, end: int, restart: int) -> None:
        """Where the source's log ends, and the slot's restart position."""
        if isinstance(self._stream, CatchUpStream):
            self._stream.sampled(end, restart)

    def look(self, tables: Tables) -> None:
        """Ask the source whether it is at work for a backlog that is waited for. Raises SourceUnavailable."""
        if (waiting := self._waiting()) is not None:
            self._at_work = tables.at_work(*waiting.backend)

    def pulse(self) -> None:
        """Give up a backlog that will never come."""
        at_work, self._at_work = self._at_work, None
        waiting = self._waiting()
        since, traffic = (waiting.waiting, waiting.traffic) if waiting is not None else (None, None)
        if self._line.dead(time.monotonic(), since, traffic, at_work) and waiting is not None:
            event(
                log,
                logging.WARNING,
                "source_silent",
                pipeline=self._config.pipeline,
                detail="the source is not at work for the backlog that is waited for: the line between them is dead",
            )
            waiting.hang_up()
            self._line.reset()

    def _waiting(self) -> SlotCopy | None:
        stream = self._stream
        return stream.waiting if isinstance(stream, CatchUpStream) else None

    def close(self) -> None:
        """Nothing is read any more."""
        if self._stream is not None:
            self._stream.close()
        self._metrics.mode("")

    # ---- the two ways ----------------------------------------------------------------------------------------

    def _open_stream(self, start: int, durable: int) -> PostgresStream:
        config = self._config
        spool = self._spooling.open(self._identity.server_version, *self._log())
        stream = PostgresStream(
            config.source.dsn.get_secret_value(),
            slot=config.source.slot,
            publication=config.source.publication,
            plugin=config.source.plugin,
            relations=self._relations,
            start=start,
            max_rows=config.batch.max_rows,
            max_bytes=config.batch.max_bytes,
            resolve=self._tables.root_of,
            application_name=self._name,
            spool=spool,
            server=self._identity,
            acknowledged=durable,
            publication_checked=self._published,
        )
        self._published = True
        self._partitioned, self._streamed = stream.partitioned, spool is not None
        return stream

    def _open_backlog(self, start: int, durable: int) -> Backlog:
        config = self._config
        if not self._published:  # nor was a stream opened
            self._check_published()
            self._streamed = self._spooling.asks(self._identity.server_version, *self._log())
        return Backlog(
            config.source.dsn.get_secret_value(),
            slot=config.source.slot,
            publication=config.source.publication,
            plugin=config.source.plugin,
            relations=self._relations,
            start=start,
            max_rows=config.batch.max_rows,
            max_bytes=config.batch.max_bytes,
            resolve=self._tables.root_of,
            application_name=self._name,
            server=self._identity,
            acknowledged=durable,
            decision=self._decision,
            partitioned=self._partitioned,
            streamed=self._streamed,
        )

    def _log(self) -> tuple[int, int]:
        """The slot's restart position, and where the log ends."""
        return self._tables.slot().restart, self._tables.position()

    def _check_published(self) -> None:
        """Before the log is read, since it may have grown further than the publication goes: raises NotSetUp."""
        _, lacking = self._tables.publication(self._config.source.publication, self._relations)
        if lacking is not None:
            raise lacking
        self._published = True

    # ---- what is told ----------------------------------------------------------------------------------------

    def catching_up(self, position: int, behind: int) -> None:
        """See `towline.source.postgres.catch_up_stream.Switches`."""
        self._metrics.mode("catch_up")
        lsn = format_lsn(position)
        event(log, logging.INFO, "catching_up", pipeline=self._config.pipeline, lsn=lsn, behind_bytes=behind)

    def refused(self, position: int, error: TowlineError) -> None:
        """See `towline.source.postgres.catch_up_stream.Switches`."""
        event(
            log,
            logging.WARNING,
            "catch_up_refused",
            pipeline=self._config.pipeline,
            lsn=format_lsn(position),
            code=error.code,
            detail=f"{error.detail}: the backlog is streamed",
        )

    def streaming(self, position: int, caught_up: bool) -> None:
        """See `towline.source.postgres.catch_up_stream.Switches`."""
        self._metrics.mode("stream")
        name = "caught_up" if caught_up else "streaming"
        event(log, logging.INFO, name, pipeline=self._config.pipeline, lsn=format_lsn(position))
