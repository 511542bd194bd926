"""Did the ledger note each change of the log, once? Asked of the part of the log that comes while `verify` runs.

A source keeps no history of its rows, but it keeps its log for who asks in time. So it is asked when `verify` begins
(`KeptLog`), and when it ends the log is read once more, by the decoder that the daemon uses:

    what the ledger's sums over operations (`towline.key_sum`) gain from one checkpoint to a later one is what the log
    between the two adds up to.

Checkpoint and ledger are read together, in one snapshot of the target. The log is kept from before the first such look:
the slot, where it begins, is never ahead of a checkpoint. Rows of a table that is copied are no changes of the log.

It holds log back at the source's disk, and has it decoded there once more. So there is a bound (`MOST`), beyond which
the log is let go, and nothing is established.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from towline.change import Relation
from towline.differences import Keys, Operations, RouteOperations
from towline.errors import TowlineError
from towline.key_sum import OperationSum, changes_of, key_form
from towline.source import KeptLog
from towline.target import Ledger, Noted, NotedRoute
from towline_transforms.route import Route
from towline_transforms.schema import TableName

#: Bytes of log that are held back, as long as the longest gulp of a backlog (`towline.catch_up.Bounds`); and how often
#: to look how many they are (seconds).
MOST = 512 << 20
LOOK = 2.0
#: How long a look may take before the source is given up (seconds).
_ANSWER_WITHIN = 10.0


class NotEstablished(Exception):
    """Why a route's sums cannot be compared."""


class OperationsVerifier:
    """``keep`` has the source keep its log, and raises what is in the way. ``most``: see `MOST`."""

    def __init__(
        self,
        keep: Callable[[], KeptLog],
        ledger: Ledger,
        routes: Sequence[tuple[Route, Relation]],
        *,
        most: int = MOST,
        look: float = LOOK,
    ) -> None:
        self._keep = keep
        self._ledger = ledger
        self._routes = routes
        self._most = most
        self._look = look
        self._log: KeptLog | None = None
        self._before = Noted(0, {})
        self._reason = ""
        self._stop = threading.Event()
        self._guard = threading.Thread(target=self._watch, name="towline-kept-log", daemon=True)

    def begin(self) -> None:
        """What the source's log holds from here on is looked at. Raises what reading the ledger does."""
        try:
            self._log = self._keep()
        except TowlineError as error:
            self._reason = f"the log cannot be read again: {error.detail}"
            return
        self._before = self._ledger.noted()
        self._guard.start()

    def end(self) -> Operations:
        """What was found since. Raises what reading the ledger does."""
        self._stop_watching()
        if self._reason or self._log is None:
            return Operations(reason=self._reason)
        before, after = self._before, self._ledger.noted(self._before)
        if after.position <= before.position:
            return Operations(before.position, before.position, reason="nothing was applied meanwhile")
        gains: dict[str, OperationSum] = {}
        reasons: dict[str, str] = {}
        for route, relation in self._routes:
            was, now = before.routes.get(route.name), after.routes.get(route.name)
            try:
                gains[route.name] = gain(was, now, key_form(relation))
            except NotEstablished as reason:
                reasons[route.name] = str(reason)
        try:
            sums = self._read(self._log, before.position, after.position) if gains else {}
        except TowlineError as error:
            return Operations(before.position, after.position, reason=f"the log cannot be read again: {error.detail}")
        found = (
            RouteOperations(route.name, reason=reasons[route.name])
            if route.name in reasons
            else compared(route.name, sums.get(relation.name, OperationSum()), gains[route.name])
            for route, relation in self._routes
        )
        return Operations(before.position, after.position, tuple(found))

    def close(self) -> None:
        """Let the log go."""
        self._stop_watching()
        if self._log is not None:
            self._log.close()

    def _read(self, log: KeptLog, after: int, upto: int) -> dict[TableName, OperationSum]:
        """What the log adds up to, by table."""
        sums: dict[TableName, OperationSum] = {}
        for piece in log.pieces(after, upto):
            for rowset, change in zip(piece.rowsets, changes_of(piece.rowsets), strict=True):
                name = rowset.relation.name
                sums[name] = sums.get(name, OperationSum()) + OperationSum(len(rowset), change.operations)
        return sums

    # ---- the bound -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """In a thread of its own: a route may take long."""
        log = self._log
        assert log is not None
        try:
            while log.held() <= self._most:
                if self._stop.wait(self._look):
                    return
            self._reason = f"the source would have held back more than {self._most >> 20} MB of log for it"
        except TowlineError as error:
            self._reason = f"the log cannot be read again: {error.detail}"
        log.close()

    def _stop_watching(self) -> None:
        self._stop.set()
        if self._guard.is_alive():
            self._guard.join(_ANSWER_WITHIN)
            if self._guard.is_alive() and self._log is not None:
                self._log.close()
                self._guard.join(_ANSWER_WITHIN)


def gain(before: NotedRoute | None, after: NotedRoute | None, form: str) -> OperationSum:
    """What a route's ledger has noted between two looks. ``form``: of its keys. Raises NotEstablished."""
    if before is None or after is None or {before.state, after.state} != {"streaming"}:
        raise NotEstablished("its first copy is not complete")
    if before.version != after.version:
        raise NotEstablished("it was copied meanwhile")
    latest = before.ranges[-1] if before.ranges else None
    gained = OperationSum()
    for noted in after.ranges:
        if noted.form != form or noted.operations is None:
            raise NotEstablished("the ledger's sum is not of the keys that it has now")
        if latest is not None and noted.hour < latest.hour:
            raise NotEstablished("the target's clock was set back")
        if latest is not None and noted.hour == latest.hour:
            if noted.begin != latest.begin or latest.operations is None:
                raise NotEstablished("rows of the ledger were removed")
            gained -= OperationSum(latest.seen, latest.operations)
        gained += OperationSum(noted.seen, noted.operations)
    if latest is not None and all(noted.hour != latest.hour for noted in after.ranges):
        raise NotEstablished("rows of the ledger were removed")
    return gained


def compared(route: str, log: OperationSum, ledger: OperationSum) -> RouteOperations:
    """What is true of a route when both are known."""
    state = Keys.EQUAL if log == ledger else Keys.DIFFER
    return RouteOperations(route, state, log.changes, ledger.changes)
