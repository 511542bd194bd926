"""Copies tables again over what the target has: `towline resync`.

For when the stream cannot go on from the checkpoint (the slot is gone, lost or ahead, or the source is another server),
and for single routes whose rows are in doubt. What is done here is only to say so, durably: the daemon does the
copying, beside the stream as ever, and then removes what vanished at the source meanwhile (`towline.sweeper`). Until
then the target keeps its rows, and can be read.

It may be killed at any point, and run again. Once begun, the position is 0/0 (`ResyncUnfinished`), so that no daemon
goes on from a slot that was made anew before the checkpoint says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from towline import plan as planning
from towline.errors import (
    AlreadyRunning,
    NotSetUp,
    SlotInUse,
    SlotOfAnotherDatabase,
    SlotSynchronized,
    SlotUnusable,
    SourceUnavailable,
    TowlineError,
)
from towline.handle import stream_name
from towline.plan import Prepared
from towline.position import format_lsn
from towline.postgres.session import translating
from towline.source import SlotState, Step
from towline.source.postgres import setup as source_setup
from towline.source.postgres import slot_checks
from towline.source.postgres.tables import PostgresTables
from towline.source.postgres.timelines import Timelines
from towline.start_checks import SourceNow, check_start
from towline.target import Checkpoint
from towline.target.postgres import control
from towline.target.postgres.resync import ResyncState
from towline_transforms.dialect.room import obstacle


@dataclass(frozen=True, slots=True)
class Resync:
    """What is to be done. ``reason``: why the stream cannot go on; None when it can, and keeps its position.

    ``obstacles``: where the copying stops if a unique value has gone from row to row, and why (see `dialect.room`).
    """

    routes: tuple[str, ...]
    reason: TowlineError | None
    drop_slot: bool
    slot: str
    checkpoint: Checkpoint
    obstacles: tuple[str, ...] = ()

    def lines(self) -> Iterator[str]:
        """The plan, for people."""
        count, at = _count(self.routes), format_lsn(self.checkpoint.position)
        if self.reason is not None:
            yield f"{self.reason.code}: {self.reason.detail}"
            yield "the stream cannot go on from the checkpoint, so:"
            if self.drop_slot:
                yield f"- source: drop the replication slot {self.slot}"
            yield f"- source: make the replication slot {self.slot}, and what the publication lacks"
            if self.checkpoint.slot != self.slot:
                yield f"  (the slot {self.checkpoint.slot} is left as it is: drop it where it exists)"
            yield f"- target: set the checkpoint, now at {at}, to where the new slot begins"
        else:
            yield f"slot and checkpoint are in order, and stay: the stream goes on from {at}"
        shown = ", ".join(self.routes[:10]) + (f" and {len(self.routes) - 10} more" if len(self.routes) > 10 else "")
        yield f"- target: have {count} copied again over what is there: {shown}"
        yield "- target: then remove the rows that the source no longer has"
        for each in self.obstacles:
            yield f"note: {each}"


def plan(prepared: Prepared, routes: Collection[str] = ()) -> Resync:
    """What `execute` would do for the routes of those names, or all. Changes nothing.

    Raises NotSetUp without a checkpoint; what keeps a slot from being made anew (it is another database's, or a
    physical one); and with routes, what keeps the stream from going on, since that takes all of them.
    """
    config = prepared.config
    with translating("target"):
        if "checkpoint" not in control.present(prepared.target, config.target.schema_name):
            raise NotSetUp(f"the target has no control tables in schema {config.target.schema_name}")
    with _tables(prepared) as tables:
        slot = tables.slot()  # before the checkpoint: a daemon that runs moves both, and never the slot beyond it
        with translating("target"):
            checkpoint = control.read_checkpoint(prepared.target, config.target.schema_name, config.pipeline)
        if checkpoint is None:
            raise NotSetUp("the target has no checkpoint of this pipeline")
        reason = _reason(prepared, checkpoint, tables, slot)
    if reason is not None and routes:
        raise reason
    every = tuple(route.name for route in prepared.routes)
    chosen = tuple(name for name in every if not routes or name in routes)
    again = [route for route in prepared.routes if route.name in chosen]
    obstacles = tuple(
        f"route {route.name} stops (TL-403) at a row whose unique value another row has still: {found}"
        for route in again
        if (found := obstacle(route, again)) is not None
    )
    return Resync(chosen, reason, reason is not None and slot.exists, config.source.slot, checkpoint, obstacles)


def execute(prepared: Prepared, resync: Resync, report: Callable[[str], None]) -> None:
    """Do it. Raises AlreadyRunning while a daemon runs that would have to give its slot up, SlotInUse, and what the
    two ends raise.
    """
    config = prepared.config
    state = ResyncState(prepared.target, config.target.schema_name, config.pipeline)
    if resync.reason is None:
        state.mark(resync.routes)
        woken = state.wake_daemon()
        report(f"target: {_count(resync.routes)} marked to be copied again")
        report("the daemon begins now" if woken else "the copying begins with the daemon: `towline run`")
        return
    if not state.lock():
        raise AlreadyRunning("a daemon runs this pipeline, or another resync", hint="Stop it first.")
    state.begin(resync.routes, slot=config.source.slot, plugin=config.source.plugin)
    report(f"target: {_count(resync.routes)} marked to be copied again")
    if resync.drop_slot:
        _drop_slot(prepared, resync)
        report(f"source: replication slot {resync.slot} dropped")

    def done(step: Step) -> None:
        report(f"source: {step.title}")

    planning.apply_source(prepared, done)
    with _tables(prepared) as tables:
        position = tables.slot().confirmed
        identity, standing = planning.source_identity(config, tables), planning.standing(prepared)
        publication = standing.oid if standing is not None else None
        state.finish(position=position, identity=identity, publication=publication)
    report(f"target: checkpoint set to {format_lsn(position)}")
    report("the copying begins with the daemon: `towline run`")


def _count(routes: Collection[str]) -> str:
    return "1 route" if len(routes) == 1 else f"{len(routes)} routes"


def _reason(prepared: Prepared, checkpoint: Checkpoint, tables: PostgresTables, slot: SlotState) -> TowlineError | None:
    """What keeps the stream from going on. Raises what making the slot anew would not mend, or must not."""
    source = prepared.config.source
    identity = planning.source_identity(prepared.config, tables)
    refused = slot_checks.problem(source.slot, slot, plugin=source.plugin, database=identity.database)
    if refused is not None and type(refused) in (SlotUnusable, SlotOfAnotherDatabase, SlotSynchronized):
        raise refused
    if slot.exists and source.slot != checkpoint.slot:
        raise SlotUnusable(
            f"replication slot {source.slot} exists, and is not this pipeline's, which had {checkpoint.slot}",
            hint="Name a slot that does not exist as `source.slot`; or drop this one, if nobody needs it.",
        )

    def history(timeline: int) -> dict[int, int]:
        dsn, name = source.dsn.get_secret_value(), f"towline {source.slot}"
        with Timelines(dsn, application_name=name, of=identity) as timelines:
            return timelines.history(timeline)

    try:
        check_start(checkpoint, SourceNow(identity, source.slot, source.plugin, slot, tables.position(), history))
    except SourceUnavailable:
        raise
    except TowlineError as reason:
        return reason
    standing = planning.standing(prepared)
    return None if standing is None else standing.made_anew(checkpoint.publication)


def _drop_slot(prepared: Prepared, resync: Resync) -> None:
    """Drop the slot; a stream of this pipeline that a dead daemon has left behind is ended before."""
    with _tables(prepared) as tables:
        tables.end_walsender(stream_name(resync.checkpoint))
        if (pid := tables.slot().active_pid) != 0:
            raise SlotInUse(f"the process {pid} is streaming from the replication slot {resync.slot}")
    source_setup.drop_slot(prepared.source, resync.slot)


@contextmanager
def _tables(prepared: Prepared) -> Iterator[PostgresTables]:
    source = prepared.config.source
    tables = PostgresTables(source.dsn.get_secret_value(), slot=source.slot)
    try:
        yield tables
    finally:
        tables.close()
