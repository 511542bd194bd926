"""A source of a few keys and transactions, apart from I/O: what is logged, what is flushed, and what is visible.

A transaction begins (it has a number from then on), its commit record enters the log, it becomes visible to others: in
this order, at any distance. Its record is flushed before it is visible, but for transactions with ``late_flush``
(``synchronous_commit = off``). Of two transactions that write one key, the later one waits with its write until the
other one is visible, as row locks have it; TRUNCATE waits for all, and all wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from tests.unit.source.rows import relation
from towline.change import Relation, Visibility
from towline.source.postgres.high import Look

START = 100_000
STEP = 16
FIRST_XID = 100

#: The rows of a table: key and value.
State = dict[str, str]
#: The states of all tables.
States = dict[str, State]


@dataclass(frozen=True)
class Write:
    """``value`` None: a delete, which is nothing without a row. ``to``: the row's new key. ``key`` '*': TRUNCATE."""

    table: str
    key: str
    value: str | None = None
    to: str | None = None

    @property
    def keys(self) -> set[tuple[str, str]]:
        """What it locks."""
        return {(self.table, self.key), (self.table, self.to or self.key)}


@dataclass(frozen=True)
class Plan:
    """A transaction that will be. ``before``: its commit record is older than the slot. ``abort``: it rolls back."""

    writes: tuple[Write, ...]
    late_flush: bool = False
    before: bool = False
    abort: bool = False

    @cached_property
    def locks(self) -> frozenset[tuple[str, str]]:
        """The rows that it locks."""
        return frozenset(key for write in self.writes for key in write.keys)

    def excludes(self, other: Plan) -> bool:
        """Whether one has to wait with its writes until the other is visible."""
        if self.locks & other.locks:
            return True
        mine, theirs = ({table for table, _ in plan.locks} for plan in (self, other))
        return bool(mine & theirs) and any(key == "*" for _, key in self.locks | other.locks)


@dataclass(frozen=True)
class Logged:
    """A transaction's commit in the log. ``writes``: those that did something."""

    number: int
    xid: int
    writes: tuple[Write, ...]
    end: int


Action = tuple[str, Callable[[], None]]


def written(states: States, writes: Sequence[Write]) -> States:
    """The states after some writes; what was given is left as it is."""
    after = {table: dict(rows) for table, rows in states.items()}
    for write in writes:
        rows = after[write.table]
        if write.key == "*":
            rows.clear()
        elif write.value is None:
            rows.pop(write.key, None)
        else:
            if write.to is not None:
                rows.pop(write.key, None)
            rows[write.to or write.key] = write.value
    return after


class World:
    """The source's server. ``initial``: the rows of each table, which are older than anything here."""

    def __init__(self, initial: States, plans: Sequence[Plan]) -> None:
        self.initial = initial
        self.plans = plans
        self.relations = {name: _relation(name) for name in initial}
        self.begun: list[int] = []
        self.log: list[Logged] = []
        self.flushed = 0
        self.ended: set[int] = set()
        for number, plan in enumerate(plans):
            if plan.before:
                self.begun.append(number)
                self._log(number)
        self.flushed = len(self.log)
        #: Where the slot begins.
        self.start = self.position(self.flushed)

    # ---- what happens ----------------------------------------------------------------------------------------

    def actions(self) -> list[Action]:
        """Everything that may happen next, with how it is told."""
        found: list[Action] = []
        for number, plan in enumerate(self.plans):
            name = f"T{number}"
            if number in self.ended:
                continue
            if number not in self.begun:
                found.append((f"{name} begins", lambda n=number: self.begun.append(n)))  # type: ignore[misc]
            elif plan.abort:
                found.append((f"{name} rolls back", lambda n=number: self.ended.add(n)))  # type: ignore[misc]
            elif not self._is_logged(number):
                if self._has_locks(number):
                    found.append((f"{name} is logged", lambda n=number: self._log(n)))  # type: ignore[misc]
            elif plan.late_flush or self._is_flushed(number):
                found.append((f"{name} becomes visible", lambda n=number: self.ended.add(n)))  # type: ignore[misc]
        if self.flushed < len(self.log):
            found.append(("the log is flushed", self.flush))
        return found

    def flush(self) -> None:
        """Write the log out."""
        self.flushed = len(self.log)

    def _log(self, number: int) -> None:
        states = self.state_at(self.position(len(self.log)))
        done = []
        for write in self.plans[number].writes:
            if write.key == "*" or write.value is not None or write.key in states[write.table]:
                if write.to is not None and (write.key not in states[write.table] or write.to in states[write.table]):
                    write = Write(write.table, write.key, write.value)
                done.append(write)
                states = written(states, [write])
        xid = FIRST_XID + self.begun.index(number)
        self.log.append(Logged(number, xid, tuple(done), self.position(len(self.log) + 1)))
        if not self.plans[number].late_flush:
            self.flush()

    def _is_logged(self, number: int) -> bool:
        return any(entry.number == number for entry in self.log)

    def _is_flushed(self, number: int) -> bool:
        return any(entry.number == number for entry in self.log[: self.flushed])

    def _has_locks(self, number: int) -> bool:
        mine = self.plans[number]
        return not any(entry.number not in self.ended and mine.excludes(self.plans[entry.number]) for entry in self.log)

    # ---- what can be known -----------------------------------------------------------------------------------

    @staticmethod
    def position(entries: int) -> int:
        """Where the log ends with so many entries."""
        return START + STEP * entries

    def state_at(self, position: int) -> States:
        """The rows after all commits that end at or before the position."""
        states = self.initial
        for entry in self.log:
            if entry.end <= position:
                states = written(states, entry.writes)
        return states

    def visible(self) -> States:
        """The rows that a snapshot taken now sees."""
        states = self.initial
        for entry in self.log:
            if entry.number in self.ended:
                states = written(states, entry.writes)
        return states

    def look(self, now: object) -> Look:
        """What a transaction that begins now sees of transactions and log."""
        running = {FIRST_XID + place for place, number in enumerate(self.begun) if number not in self.ended}
        ended = [FIRST_XID + place for place, number in enumerate(self.begun) if number in self.ended]
        xmax = max(ended, default=FIRST_XID - 1) + 1
        listed = frozenset(xid for xid in running if xid < xmax)
        seen = Visibility(min(listed, default=xmax), xmax, listed)
        return Look(seen, self.position(len(self.log)), self.position(self.flushed), now)  # type: ignore[arg-type]

    def horizon(self) -> Visibility:
        """See `Tables.horizon`."""
        seen = self.look(None).visibility
        return Visibility(seen.xmin, max(seen.xmax, FIRST_XID + len(self.begun)), seen.in_progress)

    def locked(self, table: str) -> bool:
        """Whether a TRUNCATE keeps readers away from the table."""
        return any(
            entry.number not in self.ended and any(write.key == "*" and write.table == table for write in entry.writes)
            for entry in self.log
        )

    @property
    def over(self) -> bool:
        """Whether all transactions have ended, and are flushed."""
        return len(self.ended) == len(self.plans) and self.flushed == len(self.log)

    def key(self) -> object:
        """Equal for equal states of the source."""
        return tuple(self.begun), tuple(entry.number for entry in self.log), self.flushed, frozenset(self.ended)


@cache
def _relation(name: str) -> Relation:
    return relation(name, ["id:text", "v:text"], ["id"])
