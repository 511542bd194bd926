"""Whether an attempt may go on from the checkpoint: what that recorded, compared with what the source is now."""

from __future__ import annotations

from towline.errors import SlotAhead, SlotMissing, SlotUnusable, SourceReplaced
from towline.position import format_lsn
from towline.source import Identity, SlotState
from towline.target import Checkpoint


def check_start(checkpoint: Checkpoint, now: Identity, slot: SlotState) -> None:
    """Whether the source behind the address is the checkpoint's, and its slot still has all that follows it.

    Raises SourceReplaced, SlotMissing, SlotUnusable or SlotAhead: going on would leave a silent gap.
    """
    was = checkpoint.identity
    if (was.system_identifier, was.database) != (now.system_identifier, now.database):
        raise SourceReplaced(
            f"the checkpoint is of database {was.database} on system {was.system_identifier}, "
            f"but the source is {now.database} on system {now.system_identifier}"
        )
    if was.timeline != now.timeline:
        raise SourceReplaced(
            f"the source is on timeline {now.timeline}, the checkpoint is of timeline {was.timeline}: "
            "a standby was promoted, or the server was restored to an earlier time"
        )
    if not slot.exists:
        raise SlotMissing(
            f"replication slot {checkpoint.slot} does not exist; the checkpoint is at {format_lsn(checkpoint.position)}"
        )
    if slot.plugin != checkpoint.plugin:
        raise SlotUnusable(f"slot {checkpoint.slot} is of plugin {slot.plugin}, the checkpoint of {checkpoint.plugin}")
    if slot.database != now.database:
        raise SlotUnusable(f"slot {checkpoint.slot} belongs to database {slot.database}, the source is {now.database}")
    if slot.wal_status == "lost":
        raise SlotUnusable(f"slot {checkpoint.slot} was invalidated: the source has removed log that it needs")
    if slot.confirmed > checkpoint.position:
        raise SlotAhead(
            f"slot {checkpoint.slot} was confirmed up to {format_lsn(slot.confirmed)}, "
            f"the checkpoint is at {format_lsn(checkpoint.position)}"
        )
