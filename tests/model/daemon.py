"""The daemon's own loop and rules over a source and a target in memory, with every choice left to an explorer.

What is explored is the code itself: `Pipeline`, `Snapshots`, `High`, `Visibility`, `MemoryTarget`. Only what is beyond
the loop is made up here: the server (`tests.model.source`), the stream's thread, the chunk reader's thread, the kill,
and the crash of the target. Choices are made where the daemon looks at the world, and before and after what it commits;
what happens at the source between two such places is the same as if it happened at the second one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import numpy as np

from tests.model.explorer import Telling, Violated
from tests.model.source import Logged, Plan, State, States, World, Write
from towline.change import DELETE, INSERT, UPDATE, Chunk, Cursor, Piece, Relation, RowSet, Transaction, Visibility
from towline.errors import TargetUnavailable
from towline.frame import Frame, frame_row, key_values
from towline.pipeline import Pipeline
from towline.snapshot import PENDING, STREAMING, Snapshots
from towline.source import Identity
from towline.source.postgres.high import High
from towline.target import Checkpoint, Committed, RouteState
from towline.target.memory import MemoryStore, MemoryTarget
from towline_transforms.route import Assignment, OnDelete, OnTruncate, Route

NOW = datetime(2026, 1, 1, tzinfo=UTC)
#: Where a kill makes a difference that no other place makes: before, at and after what is committed.
KILLED_AT = ("received", "chunk-read", "committing", "committed", "acknowledged")
#: Where a crash of the target does: before a commit, after it and after it is acknowledged.
CRASHED_AT = ("committing", "committed", "acknowledged")


class Killed(BaseException):
    """The daemon is no more; not to be caught by it."""


class UnseenIgnored(Snapshots):
    """Without rule 1: a chunk is used whatever its snapshot did not see."""

    def accepts(self, chunk: Chunk) -> bool:
        return self.past_barrier(chunk.visibility)


class NoBarrier(Snapshots):
    """Without the barrier: what was committed before this daemon listened is taken to be visible."""

    def past_barrier(self, seen: Visibility) -> bool:
        return True


class AcknowledgesFirst(Pipeline):
    """The checkpoint follows the acknowledgement."""

    def _commit(self, *, synchronous: bool) -> None:
        self._stream.acknowledge(self.reached)
        super()._commit(synchronous=synchronous)


class AcknowledgesAtOnce(Pipeline):
    """What is committed is acknowledged, however it was."""

    def _commit(self, *, synchronous: bool) -> None:
        super()._commit(synchronous=synchronous)
        if not synchronous:
            self._stream.acknowledge(self.checkpoint)


class NeverSettles(Pipeline):
    """What was committed asynchronously waits for the next transaction, whenever that comes."""

    def _hurried(self) -> bool:
        return super()._hurried() or self._unflushed


class ModelTarget(MemoryTarget):
    """Says what it commits, and has the properties checked then."""

    line: Line

    @property
    def closed(self) -> bool:
        """Whether its session is gone."""
        return self._closed.is_set()

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool = True) -> Committed:
        committed = super().commit(position, commit_time, synchronous=synchronous)
        self.line.committed("committed" if synchronous else "committed asynchronously")
        return committed


class RowsFirst(ModelTarget):
    """Rows are durable before the checkpoint, in a transaction of their own."""

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool = True) -> Committed:
        committed = MemoryTarget.commit(self, self._checkpoint().position, commit_time)
        self.line.may_be_killed("between rows and checkpoint")
        self._store.checkpoint = replace(self._checkpoint(), position=position)
        return committed


class CheckpointFirst(ModelTarget):
    """The checkpoint is durable before the rows."""

    def commit(self, position: int, commit_time: datetime | None, *, synchronous: bool = True) -> Committed:
        self._store.checkpoint = replace(self._checkpoint(), position=position)
        self.line.may_be_killed("between checkpoint and rows")
        return MemoryTarget.commit(self, position, commit_time)


@dataclass(frozen=True)
class Rules:
    """The code under test, or what it would be with one of its rules broken.

    ``follow``: rule 2. ``await_flush``: `High` waits for what is visible and not flushed yet. ``check_slot``: an
    acknowledgement of what is not durable is a violation in itself.
    """

    snapshots: type[Snapshots] = Snapshots
    pipeline: type[Pipeline] = Pipeline
    target: type[ModelTarget] = ModelTarget
    follow: bool = True
    await_flush: bool = True
    check_slot: bool = True


@dataclass(frozen=True)
class Case:
    """A small world. ``initial``: rows by table and key. ``kills``: how many times the daemon may be killed.

    ``crashes``: how many times the target may crash, at ``crashed_at``; any number of commits that are not durable is
    undone then. Without crashes all commits are synchronous.
    ``streaming``: the tables were copied before; then the ledger is checked, too. ``split``: transactions may come in
    two pieces. ``late``: a chunk that was read may be handed over at any later time.
    """

    initial: States
    plans: tuple[Plan, ...]
    chunk_rows: int = 1
    kills: int = 0
    streaming: bool = False
    split: bool = False
    late: bool = False
    killed_at: tuple[str, ...] = KILLED_AT
    crashes: int = 0
    crashed_at: tuple[str, ...] = CRASHED_AT
    routes: tuple[Route, ...] = field(init=False)

    def __post_init__(self) -> None:
        made = World(self.initial, ())
        object.__setattr__(self, "routes", tuple(_route(made.relations[name]) for name in self.initial))

    def tell(self, rules: Rules) -> Callable[[Telling], None]:
        """For `explore`."""
        return lambda telling: Line(self, rules, telling).run()


class Line:
    """Source, daemon and target of one history."""

    def __init__(self, case: Case, rules: Rules, telling: Telling) -> None:
        self.case, self.rules, self.telling = case, rules, telling
        self.world = World(case.initial, case.plans)
        identity = Identity("1", 1, "model", 180000)
        self.store = MemoryStore(Checkpoint(self.world.start, 0, identity, "slot", "pgoutput", None, NOW))
        if case.streaming:
            rows = self.world.state_at(self.world.start)
            for route in case.routes:
                self.store.states[route.name] = RouteState(route.name, STREAMING)
                whole = [(_key(key), frame_row([key.encode(), v.encode()])) for key, v in rows[route.name].items()]
                self.store.rows[route.name] = dict(whole)
        self.confirmed = self.world.start
        self.kills, self.crashes = case.kills, case.crashes
        self.attempt: Attempt | None = None

    def run(self) -> None:
        """To the end of the history. Raises Violated."""
        while True:
            self.attempt = Attempt(self)
            try:
                self.attempt.run()
                return
            except Killed:
                self.kills -= 1
                self.telling.note("the daemon starts again")
            except TargetUnavailable:
                self.telling.note("the next attempt begins")
            finally:
                self.attempt.target.close()

    def may_be_killed(self, point: str) -> None:
        """A point at which a kill is a choice."""
        if self.kills and self.telling.choose(("", f"the daemon is killed: {point}"), lambda: (point, self.state())):
            raise Killed

    def announce(self, point: str) -> None:
        """What the loop passes."""
        if point in self.case.killed_at:
            self.may_be_killed(point)
        if point in self.case.crashed_at:
            self.may_crash(point)

    def may_crash(self, point: str) -> None:
        """A point at which the target may crash: the daemon hears of it when it next asks something of the target."""
        if not self.crashes:
            return
        assert self.attempt is not None
        losses = range(len(self.store.unflushed) + 1)
        options = ("", *(f"the target crashes: {point}, and loses the last {lost} commits" for lost in losses))
        if choice := self.telling.choose(options, lambda: (point, self.state())):
            self.crashes -= 1
            self.store.crash(choice - 1)
            self.attempt.target.close()
            self.committed("has come back")

    # ---- properties ------------------------------------------------------------------------------------------

    def rows(self, route: Route) -> State:
        """What the target has."""
        return {
            (values := key_values(row[2:]))[0].decode(): values[1].decode()  # type: ignore[union-attr]
            for row in self.store.rows.get(route.name, {}).values()
        }

    def committed(self, what: str) -> None:
        """What is loaded is, at every commit and after every crash, the state that the source had at the checkpoint."""
        assert self.store.checkpoint is not None
        position = self.store.checkpoint.position
        truth = self.world.state_at(position)
        self.telling.note(f"{what} at {position}: {', '.join(map(self._shown, self.case.routes))}")
        for route in self.case.routes:
            state = self.store.states.get(route.name)
            rows = self.rows(route)
            for key in sorted(rows.keys() | truth[route.name].keys()):
                loaded = state is not None and (
                    state.state == STREAMING or (state.cursor is not None and (key,) <= state.cursor)
                )
                should, does = truth[route.name].get(key), rows.get(key)
                if does != should and (loaded or does is not None):
                    raise Violated(
                        f"{route.name}.{key} is {does} at the target; at {position} it was {should} at the source"
                    )

    def quiescent(self) -> None:
        """Nothing is left to do: the target has what the source has, durable, and counted it once."""
        if self.store.unflushed:
            raise Violated(f"all is done, and {len(self.store.unflushed)} commits are not durable")
        for route in self.case.routes:
            should, rows = self.world.visible()[route.name], self.rows(route)
            if rows != should:
                raise Violated(f"all is done, and {route.name} is {rows} at the target, {should} at the source")
            if self.case.streaming:
                changes = [w for entry in self.world.log for w in entry.writes if w.table == route.name]
                should_see = sum(1 if write.to is None else 2 for write in changes)
                seen = self.store.ledger[route.name].seen if route.name in self.store.ledger else 0
                if seen != should_see:
                    raise Violated(f"the ledger of {route.name} has {seen} changes, the source made {should_see}")

    def _shown(self, route: Route) -> str:
        state = self.store.states.get(route.name)
        upto = "not copied" if state is None or state.state == PENDING else "all"
        if state is not None and state.cursor is not None:
            upto = f"up to {state.cursor[0]}"
        rows = " ".join(f"{key}={value}" for key, value in sorted(self.rows(route).items()))
        return f"{route.name}[{upto}] {rows or '-'}"

    def state(self) -> object:
        """Equal for equal states of everything."""
        assert self.attempt is not None and self.store.checkpoint is not None
        committed = tuple(map(self._held, [*self.store.unflushed, self.store]))
        left = self.kills, self.crashes
        return self.world.key(), committed, self.confirmed, left, self.attempt.state()

    def _held(self, store: MemoryStore) -> object:
        """What a store has of rows, states and checkpoint, and of the ledger where that is checked."""
        ledger = tuple(counts.seen for counts in store.ledger.values()) if self.case.streaming else ()
        return _position(store), _frozen(store.rows), frozenset(store.states.values()), ledger


class Attempt:
    """One life of the daemon: stream and chunk reader, for the loop that is under test."""

    def __init__(self, line: Line) -> None:
        self.line, self.world, self.telling = line, line.world, line.telling
        case, rules = line.case, line.rules
        self.target = rules.target(line.store, case.routes)
        self.target.line = line
        self.target.acquire(0)
        checkpoint = self.target.open()
        self.start = max(checkpoint.position, line.confirmed)
        self.taken, self.half = self.start, False
        self.idle_position = self.awaited_position = self.received_position = 0
        self.rested = False  # the loop was given nothing, so that it rests
        self.said_ready = False  # and the loop has not acted on it yet
        self.snapshots = rules.snapshots(case.routes, self.target.states())
        self.asked: tuple[Relation, Cursor | None, int] | None = None
        self.chunk: Chunk | None = None
        self.high = High(self._flush, lambda: 3600.0)
        self.pipeline = rules.pipeline(
            stream=cast(Any, self),
            target=self.target,
            reader=self,
            reread=cast(Any, None),
            snapshots=self.snapshots,
            relations=tuple(self.world.relations.values()),
            position=checkpoint.position,
            chunk_rows=case.chunk_rows,
            checkpoint_seconds=0,
            observer=cast(Any, self),
            announce=line.announce,
            synchronous_every=math.inf if case.crashes else 0,
        )

    def run(self) -> None:
        """As `Replication` does: the stream is open, then comes the barrier, then the loop."""
        while True:
            actions = self.world.actions()
            choice = self.telling.choose(["the daemon listens", *(label for label, _ in actions)], self.line.state)
            if not choice:
                break
            actions[choice - 1][1]()
        self.snapshots.listen(self.world.horizon())
        self.pipeline.run()

    # ---- the stream ------------------------------------------------------------------------------------------

    def poll(self, timeout: float) -> Piece | None:
        """A piece, None, or something that happens at the source or in the chunk reader first."""
        while True:
            in_loop = sys._getframe(1).f_code.co_name == "run"
            waiting = [entry for entry in self.world.log[: self.world.flushed] if entry.end > self.taken]
            options: list[tuple[str, Callable[[], Piece | None]]] = []
            together = next((n for n, entry in enumerate(waiting) if n and _empties(entry)), len(waiting))
            counts = (1,) if self.half else sorted({1, together} if waiting else set())
            for count in counts:
                names = ", ".join(f"T{entry.number}" for entry in waiting[:count])
                rest = "the rest of " if self.half else ""
                options.append((f"{rest}{names} received", partial(self._piece, waiting[:count])))
            if self.line.case.split and waiting and not self.half and len(waiting[0].writes) > 1:
                options.append((f"the first half of T{waiting[0].number} received", partial(self._first, waiting[0])))
            if self.chunk is not None and in_loop:
                options.append(("nothing received", lambda: None))
            end = self.world.position(self.world.flushed)
            if not waiting and self.idle_position < end:
                options.append(("the source has no more", partial(self._idle_at, end)))
            happening: list[tuple[str, Callable[[], None]]] = list(self.world.actions())
            if self.asked is not None and not self.world.locked(self.asked[0].name.name):
                happening.append(("a chunk is read", self._read))
            if not options and not happening and self.target.closed:
                raise TargetUnavailable("a heartbeat finds that the session is gone")
            if not options and not happening and self.line.store.unflushed and in_loop and not self.rested:
                self.rested = True
                return None
            if not options and not happening:
                if not (self.world.over and self.snapshots.done and in_loop):
                    raise Violated("the daemon waits for ever")
                self.line.quiescent()
                self.pipeline.stop()
                return None
            labels = [label for label, _ in options] + [label for label, _ in happening]
            choice = self.telling.choose(labels, self.line.state)
            self.rested = self.said_ready = False
            if choice < len(options):
                return options[choice][1]()
            happening[choice - len(options)][1]()

    @property
    def ready(self) -> bool:
        """What is flushed at the source may have been received, or not."""
        waiting = any(entry.end > self.taken for entry in self.world.log[: self.world.flushed])
        asked = self.line.case.crashes and waiting
        self.said_ready = bool(asked and self.telling.choose(("", "a piece is ready"), self.line.state))
        return self.said_ready

    def _idle_at(self, position: int) -> None:
        self.idle_position = position

    def _piece(self, entries: Sequence[Logged]) -> Piece:
        first = entries[0].writes
        if self.half:
            first = first[1:]
        changes = [(entries[0], write) for write in first]
        changes += [(entry, write) for entry in entries[1:] for write in entry.writes]
        self.taken, self.half, self.idle_position = entries[-1].end, False, 0
        return self._made(changes, entries, entries[-1].end)

    def _first(self, entry: Logged) -> Piece:
        self.half, self.idle_position = True, 0
        return self._made([(entry, entry.writes[0])], [entry], None)

    def _made(self, changes: Sequence[tuple[Logged, Write]], entries: Sequence[Logged], end: int | None) -> Piece:
        rows: dict[str, list[tuple[int, int, list[bytes | None]]]] = {}
        firsts: dict[int, int] = {}
        truncated: list[Relation] = []
        for order, (entry, write) in enumerate(changes):
            firsts.setdefault(entry.number, order)
            into = rows.setdefault(write.table, [])
            if write.key == "*":  # it begins its piece, as the gatherer has it
                assert order == 0
                truncated.append(self.world.relations[write.table])
                continue
            key = (write.to or write.key).encode()
            if write.value is None or write.to is not None:
                into.append((DELETE, order, [write.key.encode(), None]))
            if write.value is not None:
                into.append((UPDATE if write.to else INSERT, order, [key, write.value.encode()]))
        rowsets = tuple(
            RowSet(
                self.world.relations[table],
                Frame.of_values([values for _, _, values in found], 2),
                # An insert of a key that is there is an update; which it is nobody asks but who sees inserts only.
                np.array([UPDATE if op == INSERT else op for op, _, _ in found], np.uint8),
                np.array([order for _, order, _ in found], np.int64),
            )
            for table, found in rows.items()
            if found
        )
        transactions = tuple(
            Transaction(entry.xid, entry.end - 1, NOW, firsts.get(entry.number, 0)) for entry in entries
        )
        return Piece(rowsets, transactions, end, tuple(truncated))

    def acknowledge(self, position: int) -> None:
        """The slot moves on."""
        durable = _position([*self.line.store.unflushed, self.line.store][0])
        if self.line.rules.check_slot and position > durable:
            raise Violated(f"{position} was acknowledged, {durable} is durable")
        self.line.confirmed = max(self.line.confirmed, position)

    # ---- the chunk reader ------------------------------------------------------------------------------------

    def request(self, route: Route, relation: Relation, after: Cursor | None, limit: int) -> Future[Chunk]:
        """Whoever asks for a chunk gets it when the explorer says so."""
        self.asked, self.chunk = (relation, after, limit), None
        return cast("Future[Chunk]", self)

    def done(self) -> bool:
        """Whether the chunk is there, as a future has it."""
        if self.chunk is None:
            return False
        late = self.line.case.late
        return not (late and self.telling.choose(("the chunk is taken", "the chunk is late"), self.line.state))

    def result(self) -> Chunk:
        """The chunk, as a future has it."""
        assert self.chunk is not None
        chunk, self.chunk = self.chunk, None
        return chunk

    def _read(self) -> None:
        assert self.asked is not None
        relation, after, limit = self.asked
        look = self.world.look(NOW)
        table = relation.name.name
        keys = [key for key in sorted(self.world.visible()[table]) if after is None or (key,) > after][:limit]
        rows = [(key, self.world.visible()[table][key]) for key in keys]
        frame = Frame.of_values([[key.encode(), value.encode()] for key, value in rows], 2)
        upto = (keys[-1],) if len(keys) == limit else None
        high = self.high.of(look) if self.line.rules.await_flush else look.flushed
        if not self.line.rules.follow:
            high = 0
        self.chunk = Chunk(relation, frame, upto, look.visibility, high, NOW)
        self.asked = None
        self.telling.note(f"  it has {' '.join(f'{k}={v}' for k, v in rows) or 'no rows'} of {table}, high is {high}")

    def _flush(self) -> int:
        self.world.flush()
        return self.world.position(self.world.flushed)

    # ---- the observer ----------------------------------------------------------------------------------------

    def committed(self, committed: Committed, flushed: int) -> None:
        """As `Observer` has it."""
        self.said_ready = False

    def route_state(self, state: RouteState) -> None:
        """As `Observer` has it."""

    def state(self) -> object:
        """Equal for equal states of the process."""
        loop, copying, transaction = self.pipeline, self.snapshots, self.target._transaction
        places = []
        frame = sys._getframe()
        while (back := frame.f_back) is not None:
            frame = back
            if frame.f_globals.get("__name__") == "towline.pipeline":
                places.append((frame.f_code.co_name, frame.f_lineno))
        return (
            tuple(places),
            (loop.checkpoint, loop.flushed, loop._unflushed, loop.reached, loop._chunk is not None),
            (self.rested, self.said_ready, self.target.closed),
            _shown_chunk(loop._ready.chunk) if loop._ready is not None else None,
            (copying._barrier, frozenset(copying._unseen), frozenset(copying._states.values())),
            (self.taken, self.half, self.idle_position, self.high._settled),
            (self.asked and self.asked[0].name, self.asked and self.asked[1], _shown_chunk(self.chunk)),
            transaction
            and (_frozen(transaction.rows), frozenset(transaction.touched), frozenset(transaction.truncated)),
        )


def _position(store: MemoryStore) -> int:
    assert store.checkpoint is not None
    return store.checkpoint.position


def _empties(entry: Logged) -> bool:
    return any(write.key == "*" for write in entry.writes)


def _shown_chunk(chunk: Chunk | None) -> object:
    return chunk and (chunk.relation.name, chunk.rows.data, chunk.upto, chunk.visibility, chunk.high)


def _frozen(rows: dict[str, dict[bytes, bytes]]) -> frozenset[tuple[str, frozenset[bytes]]]:
    return frozenset((name, frozenset(each.values())) for name, each in rows.items() if each)


def _key(key: str) -> bytes:
    return frame_row([key.encode()])[2:]


def _route(relation: Relation) -> Route:
    columns = relation.table.columns
    return Route(
        name=relation.name.name,
        source=relation.table,
        target=relation.table,
        select=None,
        columns=tuple(column.name for column in columns),
        assignments=tuple(Assignment(column.name, column.name, frozenset({column.name})) for column in columns),
        key=("id",),
        filtered=False,
        filter_sources=frozenset(),
        pseudo=(),
        on_delete=OnDelete.DELETE,
        mark_column=None,
        on_truncate=OnTruncate.DELETE,
    )
