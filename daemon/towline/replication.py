"""Replication: everything opened, checked and run, from the lock to the last acknowledgement.

An attempt ends by being stopped, by having caught up, or with a coded error; then everything of it is closed. Nothing
is carried over to the next attempt but what the target has made durable; what the supervisor keeps (of the spool, the
lag, the breaker of the quarantine) are decisions, which are made anew where it is lost.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from towline import spooling
from towline.adoption import Intake
from towline.breaker import Breaker, Limits
from towline.catch_up import CatchUp
from towline.change import Chunk, Relation
from towline.chunk_reader import BackgroundChunkReader
from towline.config import PipelineConfig
from towline.errors import ColumnAdded, LedgerImbalance, NotSetUp, SourceTableChanged, TowlineError
from towline.first_look import FirstLook
from towline.frame import Frame
from towline.handle import Handle, stream_name
from towline.intake import take_in
from towline.lag import LagClock
from towline.log_reader import LogReader
from towline.logs import event
from towline.lookout import Lookout
from towline.metrics import Metrics
from towline.monitor import Monitor
from towline.pipeline import Pipeline
from towline.plan import Prepared, unapplied
from towline.position import before_page_header, format_lsn
from towline.recounter import Recounter
from towline.republish import interruption
from towline.snapshot import STREAMING, Snapshots
from towline.source import Identity, Stream, Tables
from towline.source.postgres import identity as identities
from towline.source.postgres.findings import FAILOVER_SINCE
from towline.source.postgres.standby import StandbyStream
from towline.source.postgres.tables import PostgresTables
from towline.source.postgres.timelines import Timelines, identify
from towline.spooling import Spooling
from towline.start_checks import SourceNow, check_start
from towline.streaming import Streaming
from towline.sweeper import Sweeper
from towline.table_changes import TableChanges
from towline.target import Checkpoint
from towline.target.postgres.writer import PostgresTarget
from towline.target.postgres.writing_session import Session

log = logging.getLogger(__name__)


class Replication:
    """One attempt, for one configuration."""

    def __init__(
        self,
        config: PipelineConfig,
        *,
        metrics: Metrics,
        stopping: Callable[[], bool],
        role: Callable[[str], None],
        announce: Callable[[str], None],
        predecessor: Session | None = None,
        streaming: Streaming | None = None,
        catch_up: CatchUp | None = None,
        clock: LagClock | None = None,
        breaker: Breaker | None = None,
        first: FirstLook | None = None,
    ) -> None:
        self._clock = clock
        self._first = first
        self._breaker = breaker or Breaker()
        self._predecessor = predecessor
        self._streaming = streaming or Streaming()
        self._spooling = Spooling(config, self._streaming)
        self._catch_up = catch_up or CatchUp()
        #: Whether the attempt ended because another one can do better.
        self.again = False
        self._config = config
        self._metrics = metrics
        self._stopping = stopping
        self._role = role
        self._announce = announce
        self._expected: Identity | None = None
        self.handle = Handle()
        self._changes = TableChanges(config, metrics, announce)

    def run(self, *, until_caught_up: bool) -> None:
        """Replicate until stopped (or caught up with where the source is now). Raises the coded errors.

        When a table has changed, everything before that is applied; then it begins anew, at once, with another look at
        both ends.
        """
        while self._attempt(until_caught_up) and not self._stopping():
            self._announce("looking-again")

    def _attempt(self, until_caught_up: bool) -> bool:
        """Returns whether to look at both ends again, and go on."""
        self._expected = None
        with ExitStack() as stack:
            intake = self._look()
            self._spooling.check(intake.prepared.source_catalog.server_version)
            target = self._target(stack, intake.prepared)
            if not target.acquire(0.0):
                if not self._stand_by(target):
                    return False
                intake = take_in(self._config)  # it may have been long
                target.reroute(intake.prepared.routes, intake.prepared.relations)
            return self._replicate(stack, intake, target, until_caught_up)

    def _look(self) -> Intake:
        """Look at both ends; or wait for the look that was begun before the attempt."""
        first, self._first = self._first, None
        return first.result() if first is not None else take_in(self._config)

    def _target(self, stack: ExitStack, prepared: Prepared) -> PostgresTarget:
        config = self._config
        limits = config.quarantine
        self._breaker.limits = Limits(limits.max_share, limits.min_rows, limits.max_open)
        target = PostgresTarget(
            config.target.dsn.get_secret_value(),
            pipeline=config.pipeline,
            schema=config.target.schema_name,
            routes=prepared.routes,
            relations=prepared.relations,
            predecessor=self._predecessor,
            breaker=self._breaker,
        )
        stack.callback(target.close)
        self.handle.target, self.handle.pipeline, self.handle.lookout = target, None, None
        return target

    def _stand_by(self, target: PostgresTarget) -> bool:
        """Be the standby until the lock is free. False: stopped meanwhile."""
        self._role("standby")
        event(log, logging.INFO, "standby", pipeline=self._config.pipeline)
        while not self._stopping():
            if target.acquire(1.0):
                return True
        return False

    def _tables(self) -> PostgresTables:
        """A session with the source, which is the one that was found at the start: a dsn may name several servers."""
        tables = PostgresTables(self._config.source.dsn.get_secret_value(), slot=self._config.source.slot)
        if (expected := self._expected) is None:
            return tables
        try:
            identities.same(expected, tables.identity())
        except TowlineError:
            tables.close()
            raise
        return tables

    def _timelines(self, of: Identity) -> Timelines:
        source = self._config.source
        return Timelines(source.dsn.get_secret_value(), application_name=f"towline {source.slot}", of=of)

    def _check_start(
        self, checkpoint: Checkpoint, tables: PostgresTables, target: PostgresTarget, looked_at: Identity
    ) -> Identity:
        """See `towline.start_checks`; notes the source's timeline when it is a later one. Returns the identity.

        ``looked_at``: the server of which the catalog was read.
        """
        source = self._config.source
        identity = identify(tables, source.dsn.get_secret_value(), application_name=f"towline {source.slot}")
        identities.same(identity, looked_at)
        slot = tables.slot()

        def history(timeline: int) -> Mapping[int, int]:
            with self._timelines(identity) as timelines:
                return timelines.history(timeline)

        if check_start(checkpoint, SourceNow(identity, source.slot, source.plugin, slot, tables.position(), history)):
            target.note_timeline(identity.timeline)
            event(
                log,
                logging.WARNING,
                "timeline_followed",
                pipeline=self._config.pipeline,
                detail=f"the source is on timeline {identity.timeline}, and has all that the target has",
                lsn=format_lsn(checkpoint.position),
            )
        if source.failover and not slot.failover and identity.server_version >= FAILOVER_SINCE:
            event(
                log,
                logging.WARNING,
                "slot_not_for_failover",
                pipeline=self._config.pipeline,
                slot=checkpoint.slot,
                remedy="No standby keeps a copy of the slot: stop the daemon, run `towline apply`, and start again.",
            )
        if slot.wal_status == "unreserved":
            event(
                log,
                logging.WARNING,
                "slot_unreserved",
                pipeline=self._config.pipeline,
                slot=checkpoint.slot,
                remedy="The slot will be lost at the source's next checkpoint unless it catches up: raise "
                "max_slot_wal_keep_size.",
            )
        return identity

    def _replicate(self, stack: ExitStack, intake: Intake, target: PostgresTarget, until_caught_up: bool) -> bool:
        config, prepared = self._config, intake.prepared
        checkpoint = target.open()
        tables = self._tables()
        stack.callback(tables.close)
        identity = self._check_start(checkpoint, tables, target, intake.server)
        self._expected = identity
        standing = intake.publication
        if standing is not None and (anew := standing.made_anew(checkpoint.publication)) is not None:
            raise anew
        name = stream_name(checkpoint)
        if tables.end_walsender(name):
            event(log, logging.WARNING, "abandoned_walsender_ended", pipeline=config.pipeline, slot=config.source.slot)
        if new := unapplied(prepared.routes, target.states()):
            raise NotSetUp(new)
        self._changes.adopt(intake, target)
        until = before_page_header(tables.position()) if until_caught_up else None
        if intake.halt is not None:
            until = before_page_header(intake.halt_at)
        if intake.halt is not None and intake.at_once:
            raise self._changes.halted(intake, intake.halt, checkpoint.position)
        log_reader = LogReader(
            config,
            prepared.relations,
            identity=identity,
            tables=tables,
            name=name,
            spooling=self._spooling,
            decision=self._catch_up,
            metrics=self._metrics,
            announce=self._announce,
        )
        try:
            stream: Stream = log_reader.open(checkpoint.position)
        except NotSetUp:
            # It may be about a table that has changed since it was looked at.
            if tables.footprint(intake.oids, config.source.publication) == intake.footprint:
                raise
            return True
        stack.callback(log_reader.close)
        if (interrupted := interruption(config.source.publication, intake.interrupted)) is not None:
            raise interrupted
        if identity.in_recovery:
            stream = StandbyStream(stream, self._timelines(identity), identity.timeline)
            stack.callback(stream.close)
        if checkpoint.publication is None and standing is not None and standing.oid is not None:
            target.note_publication(standing.oid)
        target.read_ahead(tables.position())
        snapshots = Snapshots(prepared.routes, target.states())
        snapshots.listen(tables.horizon())
        reader = BackgroundChunkReader(self._tables, snapshots)
        stack.callback(reader.close)

        def reread(relation: Relation, keys: Frame) -> Chunk:
            return tables.fetch(relation, keys)

        sweeper = Sweeper(
            config,
            self._tables,
            prepared.routes,
            prepared.relations,
            snapshots.states,
            epoch=checkpoint.epoch,
            shown=lambda: pipeline.shown,
            copied=lambda: snapshots.done,
            failed=lambda: pipeline.stop(),
            observer=self._metrics,
        )
        stack.callback(sweeper.close)
        target.copied_again(lambda: sweeper.routes, sweeper.marked, lambda: snapshots.copying)
        pipeline = Pipeline(
            stream=stream,
            target=target,
            reader=reader,
            reread=reread,
            snapshots=snapshots,
            relations=prepared.relations,
            position=checkpoint.position,
            chunk_rows=config.snapshot.chunk_rows,
            checkpoint_seconds=config.checkpoint_seconds,
            observer=self._metrics,
            announce=self._announce,
            unfinished=lambda: sweeper.unfinished,
            copying=intake.halt is None,
        )
        for state in snapshots.states.values():
            self._metrics.route_state(state)
        self._metrics.quarantine(target.quarantined)

        lookout = Lookout(config, intake, pipeline.stop, target)
        stack.callback(lookout.end)

        def look(tables: Tables) -> None:
            lookout.look(tables)
            log_reader.look(tables)

        def pulse() -> None:
            lookout.pulse()
            log_reader.pulse()

        def restart_position(position: int) -> None:
            if self._spooling.resumes(position):
                self.again = True
                pipeline.stop()

        monitor = Monitor(
            self._tables,
            lambda: pipeline.shown,
            self._metrics,
            clock=self._clock,
            spooled=log_reader.spooled,
            sampled=log_reader.sampled,
            restart=restart_position,
            look=look,
            pulse=pulse,
            slot_every=1 if self._streaming.suspended else 10,
        )
        monitor.start()
        stack.callback(monitor.close)
        for route, checksum in target.sums.checksums().items():
            self._metrics.checksum(route, checksum)
        recounter = Recounter(self._tables, target.sums, lambda: snapshots.done)
        recounter.start()
        stack.callback(recounter.close)
        self.handle.pipeline, self.handle.lookout = pipeline, lookout
        if self._stopping():  # asked to stop while nobody could be told
            return False
        self._role("active")
        event(
            log,
            logging.INFO,
            "replicating",
            pipeline=config.pipeline,
            lsn=format_lsn(checkpoint.position),
            epoch=checkpoint.epoch,
            routes_to_copy=sum(1 for state in snapshots.states.values() if state.state != STREAMING),
        )
        if intake.halt is None:
            sweeper.start()
        try:
            pipeline.run(until)
            if sweeper.error is not None:
                raise sweeper.error
        except spooling.Failed as error:
            self._spooling.failed(error)
            raise
        except LedgerImbalance as error:
            self._metrics.imbalance(error.route, error.rows)
            raise
        except SourceTableChanged as change:
            final = intake.halt or (change if isinstance(change, ColumnAdded) else None)
            if final is not None:
                raise self._changes.halted(intake, final, pipeline.checkpoint) from change
            self._changes.progressed(change, pipeline.checkpoint)
            return True
        if intake.halt is not None and not self._stopping() and not lookout.noticed and not self.again:
            raise self._changes.halted(intake, intake.halt, pipeline.checkpoint)
        return lookout.noticed
