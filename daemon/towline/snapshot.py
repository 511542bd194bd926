"""Snapshots beside the stream: which chunk next, and may it be used? Pure decisions, no I/O.

A route is ``pending`` (its rows are copied later; changes are skipped), ``copying`` (chunks in key order; all its
changes are applied, also to rows that are not copied yet) or ``streaming``. Routes are copied one after the other,
parents first.

Two rules make a chunk exact, without watermarks, locks or a second slot:

1. A chunk may be used only if every transaction applied (or skipped) so far is visible in the snapshot it was read in.
   A commit record can reach the log, and so this daemon, before the transaction becomes visible to others (it waits
   for a synchronous standby, say): a chunk read in between would bring back an older row for good.
2. A chunk commits in one target transaction with the stream up to the position read right after it (``Chunk.high``).
   What the snapshot saw is then applied too, so what is loaded is, at every commit, a state that the source really had.

What was committed before this process looked is unknown to rule 1's list. So the first chunks wait until a snapshot's
``xmin`` has reached the *barrier*: a number beyond those of all transactions that ran when this process began to listen
(a snapshot's own ``xmax`` only follows the newest that has ended). All of them have ended then, and are visible. The
same wait covers what committed before the slot was created, and, for a table added to the publication later, the
transactions that began before it was added.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from towline.change import Chunk, Cursor, Visibility
from towline.target import RouteState
from towline_transforms.route import Route
from towline_transforms.schema import TableName

PENDING, COPYING, STREAMING = "pending", "copying", "streaming"


def copy_order(routes: Sequence[Route]) -> tuple[Route, ...]:
    """The routes with the tables that others refer to first, as far as the foreign keys have no cycles.

    Depth-first, so that a cycle is cut where it is entered: its tables follow each other in the given order.
    """
    by_table: dict[TableName, list[Route]] = {}
    for route in routes:
        by_table.setdefault(route.into, []).append(route)
    ordered: dict[str, Route] = {}
    entered: set[TableName] = set()

    def visit(table: TableName) -> None:
        stack = [(table, iter(_parents(by_table, table)))]
        entered.add(table)
        while stack:
            current, parents = stack[-1]
            parent = next((name for name in parents if name not in entered), None)
            if parent is not None:
                entered.add(parent)
                stack.append((parent, iter(_parents(by_table, parent))))
                continue
            stack.pop()
            for route in by_table[current]:
                ordered[route.name] = route

    for route in routes:
        if route.into not in entered:
            visit(route.into)
    return tuple(ordered.values())


def _parents(by_table: Mapping[TableName, list[Route]], table: TableName) -> list[TableName]:
    keys = by_table[table][0].target.foreign_keys
    return sorted({key.referenced for key in keys if key.referenced in by_table and key.referenced != table})


#: Transactions that are remembered before those are dropped that a snapshot was seen to see.
_REMEMBERED = 10_000


class Snapshots:
    """Where each route's copying stands, and what may be loaded next.

    `past_barrier` may be called by another thread, before it reads the chunk that is asked for next.
    """

    def __init__(self, routes: Sequence[Route], states: Mapping[str, RouteState]) -> None:
        self._routes = copy_order(routes)
        self._states = {route.name: states.get(route.name) or RouteState(route.name, PENDING) for route in self._routes}
        self._barrier: int | None = None
        self._unseen: set[int] = set()
        self._prune_at = _REMEMBERED
        self._latest: Visibility | None = None
        self._active = self._compute_active()

    def _compute_active(self) -> frozenset[str]:
        return frozenset(name for name, state in self._states.items() if state.state != PENDING)

    @property
    def states(self) -> Mapping[str, RouteState]:
        """The state of every route, as of the last commit."""
        return self._states

    @property
    def active(self) -> frozenset[str]:
        """Routes to which changes are applied now; the others are pending."""
        return self._active

    @property
    def copying(self) -> frozenset[str]:
        """Routes that have a part of their rows."""
        return frozenset(name for name, state in self._states.items() if state.state == COPYING)

    @property
    def done(self) -> bool:
        """Whether every route is streaming."""
        return all(state.state == STREAMING for state in self._states.values())

    def next(self) -> tuple[Route, Cursor | None] | None:
        """The route to copy from, and after which key; None when every route is streaming."""
        for route in self._routes:
            state = self._states[route.name]
            if state.state != STREAMING:
                return route, state.cursor
        return None

    def listen(self, now: Visibility) -> None:
        """Set the barrier. ``now`` (`Tables.horizon`) was taken after this object began to hear of transactions."""
        self._barrier = now.xmax

    def past_barrier(self, seen: Visibility) -> bool:
        """Whether all that ran when `listen` was called has ended by this snapshot."""
        self._latest = seen
        return self._barrier is not None and seen.xmin >= self._barrier

    def applied(self, xids: Iterable[int]) -> None:
        """Note transactions that were applied, or skipped for pending routes."""
        if self.done:
            return
        self._unseen.update(xids)
        if len(self._unseen) >= self._prune_at and (latest := self._latest) is not None:
            # Chunks to come see what this snapshot sees, and more: while they wait, nothing piles up here.
            self._unseen = {xid for xid in self._unseen if not latest.sees(xid)}
            self._prune_at = max(_REMEMBERED, 2 * len(self._unseen))

    def accepts(self, chunk: Chunk) -> bool:
        """Rule 1. A chunk that is not accepted must be read again."""
        if not self.past_barrier(chunk.visibility):
            return False
        self._unseen = {xid for xid in self._unseen if not chunk.visibility.sees(xid)}
        return not self._unseen

    def after(self, route: Route, chunk: Chunk) -> RouteState:
        """The route's state once this chunk has committed."""
        state = self._states[route.name]
        return replace(
            state,
            state=STREAMING if chunk.upto is None else COPYING,
            cursor=chunk.upto,
            copied=state.copied + len(chunk.rows),
            estimate=max(state.estimate, route.source.row_estimate, state.copied + len(chunk.rows)),
        )

    def committed(self, state: RouteState) -> None:
        """A chunk was committed with this state."""
        self._states[state.route] = state
        self._active = self._compute_active()
        if self.done:
            self._unseen.clear()
