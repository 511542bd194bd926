"""Whether a replication slot, as the server shows it, can be read by a pipeline: decided once, for every verb."""

from __future__ import annotations

from towline.errors import (
    SlotInvalidated,
    SlotLost,
    SlotMissing,
    SlotOfAnotherDatabase,
    SlotOfAnotherPlugin,
    SlotSynchronized,
    SlotUnusable,
    TowlineError,
)
from towline.source import SlotState

#: What ``invalidation_reason`` (from version 17 on) and ``conflicting`` (16) mean.
_REASONS = {
    "rows_removed": "rows of the catalogs that it needs were removed",
    "conflict": "it was in conflict with what the primary did",
    "wal_level_insufficient": "the primary's wal_level was lowered",
    "idle_timeout": "nobody read it for longer than idle_replication_slot_timeout",
}


def problem(name: str, slot: SlotState, *, plugin: str, database: str) -> TowlineError | None:
    """What keeps the slot from being read for that plugin and database; None when nothing does.

    Whether somebody else reads it, and where it stands, is not looked at.
    """
    if not slot.exists:
        return SlotMissing(f"replication slot {name} does not exist")
    if not slot.logical:
        return SlotUnusable(f"replication slot {name} is a physical one")
    if slot.database != database:
        return SlotOfAnotherDatabase(
            f"replication slot {name} belongs to another database, {slot.database}, the source is {database}"
        )
    if slot.plugin != plugin:
        return SlotOfAnotherPlugin(f"replication slot {name} is of plugin {slot.plugin}, the pipeline of {plugin}")
    if slot.invalidation not in ("", "wal_removed"):
        reason = _REASONS.get(slot.invalidation, slot.invalidation)
        return SlotInvalidated(f"replication slot {name} was invalidated: {reason}")
    if slot.wal_status == "lost":
        return SlotLost(f"replication slot {name} was invalidated: the source has removed log that it needs")
    if slot.synchronized:
        return SlotSynchronized(f"replication slot {name} is that of a standby, which follows its primary's")
    return None
