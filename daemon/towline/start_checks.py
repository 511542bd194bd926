"""Whether an attempt may go on from the checkpoint: what that recorded, compared with what the source is now.

**Timelines.** A server that is promoted, or restored to a point in time, begins a new timeline at some position of the
old one. What the old server wrote beyond that position is not in the new one's history. So going on is right if and
only if the checkpoint's timeline is an ancestor of the source's, and was left at or after the checkpoint's position
and that of rows that were read from the source's tables again: else the target has transactions that the source has
lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from towline.errors import (
    ResyncUnfinished,
    SlotAhead,
    SlotMissing,
    SlotUnusable,
    SourceDatabaseReplaced,
    SourceReplaced,
    SourceRewound,
    SourceUnavailable,
    TimelineDiverged,
    TimelineUnrelated,
)
from towline.position import ZERO, format_lsn
from towline.source import Identity, SlotState
from towline.source.postgres import slot_checks
from towline.target import Checkpoint

#: For a timeline: its ancestors, each with the position at which it was left.
History = Callable[[int], Mapping[int, int]]


@dataclass(frozen=True, slots=True)
class SourceNow:
    """The source as it is found. ``position``: the end of its log; ``history`` is only called when timelines differ.

    ``slot_name`` and ``plugin``: what the pipeline file says now; ``slot``: the one of that name.
    """

    identity: Identity
    slot_name: str
    plugin: str
    slot: SlotState
    position: int
    history: History


def check_start(checkpoint: Checkpoint, now: SourceNow) -> bool:
    """Whether the source behind the address is the checkpoint's, and its slot still has all that follows it.

    Returns whether the checkpoint is to be noted as of the source's timeline, which is a later one. Raises
    ResyncUnfinished, SourceReplaced, SlotMissing, SlotUnusable, SlotAhead, each of which may be one of its kinds
    (going on would leave a silent gap); and SourceUnavailable or SlotSynchronized, which pass.
    """
    if checkpoint.position == ZERO:
        raise ResyncUnfinished("a resync has begun, and has not made the slot anew yet")
    promoted = _check_identity(checkpoint, now)
    slot, renamed = now.slot, now.slot_name != checkpoint.slot
    if not slot.exists:
        raise SlotMissing(
            f"replication slot {now.slot_name} does not exist; the checkpoint is at {format_lsn(checkpoint.position)}"
            + (f" of slot {checkpoint.slot}, which `source.slot` named before" if renamed else "")
        )
    if renamed:
        raise SlotUnusable(
            f"replication slot {now.slot_name} exists, and is not this pipeline's, which had {checkpoint.slot}",
            hint=f"Set `source.slot` back to {checkpoint.slot}; or name one that does not exist, and run "
            "`towline resync`.",
        )
    for plugin in (checkpoint.plugin, now.plugin):
        refused = slot_checks.problem(now.slot_name, slot, plugin=plugin, database=checkpoint.identity.database)
        if refused is not None:
            raise refused
    if slot.confirmed > checkpoint.position:
        raise SlotAhead(
            f"slot {now.slot_name} was confirmed up to {format_lsn(slot.confirmed)}, "
            f"the checkpoint is at {format_lsn(checkpoint.position)}"
        )
    return promoted


def _check_identity(checkpoint: Checkpoint, now: SourceNow) -> bool:
    """Whether this is the checkpoint's source, and on a later timeline."""
    was, here = checkpoint.identity, now.identity
    if was.system_identifier != here.system_identifier:
        raise SourceReplaced(
            f"the checkpoint is of database {was.database} on system {was.system_identifier}, "
            f"but the source is {here.database} on system {here.system_identifier}"
        )
    if was.database != here.database:
        raise SourceDatabaseReplaced(f"the checkpoint is of database {was.database}, the source is {here.database}")
    promoted = was.timeline != here.timeline
    if promoted:
        _check_timeline(checkpoint, here, now.history)
    if now.position < checkpoint.position:
        where = (
            f"the source's log ends at {format_lsn(now.position)}, "
            f"the checkpoint is at {format_lsn(checkpoint.position)}"
        )
        if here.in_recovery:
            raise SourceUnavailable(f"{where}: the source is a standby that has not replayed as much yet")
        raise SourceRewound(where)
    return promoted


def _check_timeline(checkpoint: Checkpoint, here: Identity, history: History) -> None:
    """What was read from the source's tables ahead of the checkpoint counts as well: it may be of lost transactions."""
    timeline = checkpoint.identity.timeline
    where = f"the source is on timeline {here.timeline}, the checkpoint is at {format_lsn(checkpoint.position)}"
    if checkpoint.ahead > checkpoint.position:
        where += f" (with rows that were read at {format_lsn(checkpoint.ahead)})"
    if here.timeline < timeline:
        raise TimelineUnrelated(f"{where} of the later timeline {timeline}")
    left_at = history(here.timeline).get(timeline)
    if left_at is None:
        raise TimelineUnrelated(f"{where} of timeline {timeline}, which is not in its history")
    if max(checkpoint.position, checkpoint.ahead) > left_at:
        raise TimelineDiverged(f"{where} of timeline {timeline}, which the source left at {format_lsn(left_at)}")
