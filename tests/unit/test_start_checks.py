"""What is found at the start of an attempt decides whether it may go on: every mismatch has its own error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from towline.change import Format, Relation
from towline.errors import (
    Action,
    PublicationFiltered,
    PublicationLacksColumn,
    PublicationLacksOperation,
    PublicationLacksTable,
    PublicationMissing,
    PublicationNotViaRoot,
    ResyncUnfinished,
    SlotAhead,
    SlotInvalidated,
    SlotLost,
    SlotMissing,
    SlotOfAnotherDatabase,
    SlotOfAnotherPlugin,
    SlotSynchronized,
    SlotUnusable,
    SourceDatabaseReplaced,
    SourceQueryFailed,
    SourceReplaced,
    SourceRewound,
    SourceUnavailable,
    TimelineDiverged,
    TimelineUnrelated,
    TowlineError,
)
from towline.source import Identity, SlotState
from towline.source.postgres import published
from towline.source.postgres.timelines import parse_history
from towline.start_checks import SourceNow, check_start
from towline.target import Checkpoint
from towline_transforms.schema import Column, SqlType, Table, TableName, TypeKind

WAS = Identity("7", 2, "erp", 0)
SLOT = SlotState(True, 90, 80, plugin="pgoutput", database="erp", wal_status="reserved")
NOW = datetime(2026, 1, 1, tzinfo=UTC)
CHECKPOINT = Checkpoint(100, 1, WAS, "s", "pgoutput", None, NOW)


def history(timeline: int) -> Mapping[int, int]:
    """Timeline 3 left timeline 2 at 100; timeline 4 has another past."""
    return {3: {1: 50, 2: 100}, 4: {1: 50}}[timeline]


def now(
    identity: Identity = WAS,
    slot: SlotState = SLOT,
    position: int = 120,
    slot_name: str = "s",
    plugin: str = "pgoutput",
) -> SourceNow:
    return SourceNow(identity, slot_name, plugin, slot, position, history)


def test_all_is_well() -> None:
    """A slot that was confirmed less far than the checkpoint is the normal case; so is one exactly there."""
    for confirmed in (0, 90, 100):
        assert check_start(CHECKPOINT, now(slot=replace(SLOT, confirmed=confirmed))) is False
    assert check_start(CHECKPOINT, now(slot=replace(SLOT, wal_status="unreserved"))) is False
    assert check_start(CHECKPOINT, now(slot=replace(SLOT, wal_status="extended", invalidation=""))) is False


@pytest.mark.parametrize(
    ("found", "error"),
    [
        (now(replace(WAS, system_identifier="8")), SourceReplaced),
        (now(replace(WAS, database="crm")), SourceDatabaseReplaced),
        (now(replace(WAS, timeline=1)), TimelineUnrelated),
        (now(replace(WAS, timeline=4)), TimelineUnrelated),
        (now(position=99), SourceRewound),
        (now(replace(WAS, in_recovery=True), position=99), SourceUnavailable),
        (now(slot=SlotState(False)), SlotMissing),
        (now(slot=replace(SLOT, logical=False)), SlotUnusable),
        (now(slot=replace(SLOT, plugin="wal2json")), SlotOfAnotherPlugin),
        (now(slot=replace(SLOT, database="crm")), SlotOfAnotherDatabase),
        (now(slot=replace(SLOT, wal_status="lost")), SlotLost),
        (now(slot=replace(SLOT, wal_status="lost", invalidation="wal_removed")), SlotLost),
        (now(slot=replace(SLOT, wal_status="lost", invalidation="rows_removed")), SlotInvalidated),
        (now(slot=replace(SLOT, wal_status="lost", invalidation="idle_timeout")), SlotInvalidated),
        (now(slot=replace(SLOT, invalidation="conflict")), SlotInvalidated),
        (now(slot=replace(SLOT, synchronized=True)), SlotSynchronized),
        (now(slot=replace(SLOT, confirmed=101)), SlotAhead),
        (now(plugin="wal2json"), SlotOfAnotherPlugin),
        (now(slot_name="other"), SlotUnusable),
    ],
)
def test_a_mismatch(found: SourceNow, error: type[TowlineError]) -> None:
    """Each is its own error, none a kind of another's; what a person must decide halts."""
    with pytest.raises(error) as caught:
        check_start(CHECKPOINT, found)
    assert caught.type is error
    if error is not SourceUnavailable and error.action is Action.STOP:
        assert "towline resync" in error.remedy


@pytest.mark.parametrize(("position", "right"), [(99, True), (100, True), (101, False)])
def test_a_promotion(position: int, right: bool) -> None:
    """Going on is right iff the old timeline was left at or after the checkpoint; then the new one is noted."""
    checkpoint = replace(CHECKPOINT, position=position)
    promoted = now(replace(WAS, timeline=3))
    if right:
        assert check_start(checkpoint, promoted) is True
        return
    with pytest.raises(TimelineDiverged):
        check_start(checkpoint, promoted)


def test_rows_that_were_read_ahead() -> None:
    """They may be of transactions that the new primary does not have, though the checkpoint is before these."""
    promoted = now(replace(WAS, timeline=3))
    assert check_start(replace(CHECKPOINT, position=99, ahead=100), promoted) is True
    assert check_start(replace(CHECKPOINT, ahead=101), now()) is False
    with pytest.raises(TimelineDiverged, match="with rows that were read at 0/65"):
        check_start(replace(CHECKPOINT, position=99, ahead=101), promoted)


def test_a_slot_that_the_file_names_anew() -> None:
    """What is missing is the one that the file names now, whatever the checkpoint was of."""
    with pytest.raises(SlotMissing, match=r"slot new does not exist; the checkpoint is at 0/64 of slot s, which"):
        check_start(CHECKPOINT, now(slot=SlotState(False), slot_name="new"))
    with pytest.raises(SlotUnusable, match="slot new exists, and is not this pipeline's, which had s"):
        check_start(CHECKPOINT, now(slot_name="new"))


def test_two_promotions_at_once() -> None:
    """The place that counts is where the checkpoint's own timeline was left, not the newest one."""
    checkpoint = replace(CHECKPOINT, identity=replace(WAS, timeline=1), position=51)
    with pytest.raises(TimelineDiverged):
        check_start(checkpoint, now(replace(WAS, timeline=3), slot=replace(SLOT, confirmed=40)))
    assert check_start(replace(checkpoint, position=50), now(replace(WAS, timeline=3), replace(SLOT, confirmed=40)))


def test_an_unfinished_resync() -> None:
    """Whatever the source is: there is no position to go on from."""
    with pytest.raises(ResyncUnfinished):
        check_start(replace(CHECKPOINT, position=0), now())


def test_history_files() -> None:
    """As the server writes them; anything else is refused."""
    text = "1\t0/3000148\tno recovery target specified\n\n# by hand\n2\t1/A0000028\tat restore point\n"
    assert parse_history(text) == {1: 0x3000148, 2: 0x1A0000028}
    assert parse_history("") == {}
    for wrong in ("1", "x\t0/1\t", "1\tnowhere\t"):
        with pytest.raises(SourceQueryFailed):
            parse_history(wrong)


INT4 = SqlType(23, "pg_catalog", "int4", TypeKind.BASE)
T, PART = TableName("public", "t"), TableName("public", "t_1")


def relation(partitions: tuple[TableName, ...] = ()) -> Relation:
    columns = (Column("id", INT4, not_null=True), Column("n", INT4))
    return Relation(Table(T, columns, identity=("id",), partitions=partitions), columns, Format.TEXT)


@pytest.mark.parametrize(
    ("found", "tables", "error"),
    [
        ([("", True)], [("public", "t", ["id", "n", "more"], None)], None),
        ([("", True)], [("public", "t", None, None)], None),  # before version 15
        ([], [], PublicationMissing),
        ([("deletes, truncates", True)], [("public", "t", None, None)], PublicationLacksOperation),
        ([("", True)], [("public", "other", None, None)], PublicationLacksTable),
        ([("", True)], [("public", "t", ["id"], None)], PublicationLacksColumn),
        ([("", True)], [("public", "t", ["id", "n"], "(id > 0)")], PublicationFiltered),
        ([("", False)], [("public", "t_1", ["id", "n"], None)], PublicationNotViaRoot),
    ],
)
def test_publications(
    found: list[tuple[object, ...]], tables: list[tuple[object, ...]], error: type[TowlineError] | None
) -> None:
    """What a publication leaves out would be lost without a word: each way has its own error."""
    problem = published.problem("p", found, tables, [relation((PART,))])
    assert type(problem) is (error or type(None))
