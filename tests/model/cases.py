"""Small worlds to explore, and the ways in which the rules can be broken."""

from __future__ import annotations

from tests.model.daemon import (
    AcknowledgesAtOnce,
    AcknowledgesFirst,
    Case,
    CheckpointFirst,
    NeverSettles,
    NoBarrier,
    RowsFirst,
    Rules,
    UnseenIgnored,
)
from tests.model.source import Plan, Write

ROWS = {"t": {"1": "a", "2": "a"}}

BOTH_KEYS = Plan((Write("t", "1", "b"), Write("t", "2", "b")))
MOVE_AND_DELETE = Plan((Write("t", "1", "c", to="3"), Write("t", "2")))
NEW = Plan((Write("t", "3", "e"),))
LATE = Plan((Write("t", "1", "b"), Write("t", "2", "b")), late_flush=True)
OLDER = Plan((Write("t", "1", "b"),), before=True)

#: What `make test` explores to the end, in seconds.
SMALL: dict[str, Case] = {
    "two transactions write the same keys": Case(ROWS, (BOTH_KEYS, MOVE_AND_DELETE), chunk_rows=2),
    "killed while a key changes": Case(ROWS, (MOVE_AND_DELETE,), kills=1),
    "visible before it is flushed": Case(ROWS, (LATE,), kills=1, killed_at=("committed",)),
    "older than the slot, and not visible yet": Case(ROWS, (OLDER, Plan((Write("t", "2", "c"),))), chunk_rows=2),
    "a transaction over two tables": Case(
        {"t": {"1": "a"}, "u": {"1": "a"}}, (Plan((Write("t", "1", "b"), Write("u", "1", "b"))),), chunk_rows=2
    ),
    "a table is emptied": Case(ROWS, (Plan((Write("t", "*"), Write("t", "3", "d"))),)),
    "one rolls back": Case(ROWS, (Plan((Write("t", "2", "z"),), abort=True), Plan((Write("t", "1", "b"),)))),
    "killed while a transaction comes in two halves": Case(
        ROWS, (BOTH_KEYS, MOVE_AND_DELETE), kills=1, streaming=True, split=True
    ),
    "the target crashes, and loses commits": Case(ROWS, (BOTH_KEYS, NEW), crashes=1, streaming=True),
    "the target crashes during the first copy": Case(ROWS, (BOTH_KEYS,), crashes=1),
}

#: What `make soak` explores beyond that, in minutes.
LARGE: dict[str, Case] = {
    "two transactions, row by row": Case(ROWS, (BOTH_KEYS, MOVE_AND_DELETE), split=True),
    "two transactions, killed": Case(ROWS, (BOTH_KEYS, MOVE_AND_DELETE), kills=1, chunk_rows=2),
    "two transactions, late chunks": Case(ROWS, (BOTH_KEYS, MOVE_AND_DELETE), chunk_rows=2, late=True, split=True),
    "visible before they are flushed": Case(
        ROWS, (LATE, Plan((Write("t", "1", "c"),), late_flush=True)), kills=1, chunk_rows=2, killed_at=("committed",)
    ),
    "killed twice": Case(ROWS, (MOVE_AND_DELETE,), kills=2, split=True),
    "three transactions, on the way": Case(
        ROWS,
        (BOTH_KEYS, MOVE_AND_DELETE, Plan((Write("t", "3", "e"), Write("t", "1", "e")))),
        kills=2,
        streaming=True,
        split=True,
    ),
    "three transactions": Case(
        ROWS, (Plan((Write("t", "1", "b"),)), MOVE_AND_DELETE, Plan((Write("t", "3", "e"),))), chunk_rows=2
    ),
    "over two tables, killed": Case(
        {"t": {"1": "a"}, "u": {"1": "a"}},
        (Plan((Write("t", "1", "b"), Write("u", "1", "b"))), Plan((Write("u", "1"), Write("t", "2", "c")))),
        chunk_rows=2,
        kills=1,
        killed_at=("committed",),
    ),
    "emptied and written to": Case(
        ROWS,
        (Plan((Write("t", "*"), Write("t", "1", "d"))), Plan((Write("t", "1", "e"), Write("t", "2", "e")))),
        kills=1,
        killed_at=("committed",),
        chunk_rows=2,
    ),
    "the target crashes after three transactions": Case(
        ROWS, (BOTH_KEYS, MOVE_AND_DELETE, NEW), crashes=1, streaming=True
    ),
    "the target crashes, and the daemon is killed": Case(
        ROWS, (BOTH_KEYS, NEW), crashes=1, kills=1, streaming=True, split=True
    ),
    "the target crashes during a first copy of two transactions": Case(ROWS, (BOTH_KEYS, MOVE_AND_DELETE), crashes=1),
    "the target crashes twice during the first copy": Case(ROWS, (BOTH_KEYS,), crashes=2, split=True),
    "older than the slot, killed": Case(ROWS, (OLDER, BOTH_KEYS), kills=1, chunk_rows=2),
}

#: A rule that is broken, the case that shows it, and what the explorer then says (a part of it).
BROKEN: dict[str, tuple[Rules, Case, str]] = {
    "rule 1: a chunk need not see what was applied": (
        Rules(snapshots=UnseenIgnored),
        Case(ROWS, (BOTH_KEYS,)),
        "it was b at the source",
    ),
    "rule 2: a chunk commits without the stream up to it": (
        Rules(follow=False),
        Case(ROWS, (BOTH_KEYS,)),
        "it was a at the source",
    ),
    "rule 2: what is visible and not flushed is not waited for": (
        Rules(await_flush=False),
        Case(ROWS, (LATE,)),
        "it was a at the source",
    ),
    "the barrier: what was committed before the slot": (
        Rules(snapshots=NoBarrier),
        Case(ROWS, (OLDER,)),
        "it was b at the source",
    ),
    "the barrier: what another life of the daemon applied": (
        Rules(snapshots=NoBarrier),
        Case(ROWS, (BOTH_KEYS,), kills=1),
        "it was b at the source",
    ),
    "acknowledged before it is durable": (
        Rules(pipeline=AcknowledgesFirst),
        Case(ROWS, (BOTH_KEYS,), kills=1, streaming=True),
        "was acknowledged",
    ),
    "acknowledged before it is durable: what is lost": (
        Rules(pipeline=AcknowledgesFirst, check_slot=False),
        Case(ROWS, (BOTH_KEYS,), kills=1, streaming=True),
        "a at the target",
    ),
    "an asynchronous commit is acknowledged at once": (
        Rules(pipeline=AcknowledgesAtOnce),
        Case(ROWS, (BOTH_KEYS, NEW), crashes=1, streaming=True),
        "was acknowledged",
    ),
    "an asynchronous commit is acknowledged at once: what is lost": (
        Rules(pipeline=AcknowledgesAtOnce, check_slot=False),
        Case(ROWS, (BOTH_KEYS, NEW), crashes=1, streaming=True),
        "at the target",
    ),
    "the loop rests on an asynchronous commit": (
        Rules(pipeline=NeverSettles),
        Case(ROWS, (BOTH_KEYS, NEW), crashes=1, streaming=True),
        "commits are not durable",
    ),
    "rows before the checkpoint: what is doubled": (
        Rules(target=RowsFirst),
        Case(ROWS, (BOTH_KEYS,), kills=1, streaming=True),
        "the ledger of t has 4 changes, the source made 2",
    ),
    "the checkpoint before the rows: what is lost": (
        Rules(target=CheckpointFirst),
        Case(ROWS, (BOTH_KEYS,), kills=1, streaming=True),
        "'1': 'a'",
    ),
}
