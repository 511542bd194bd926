"""What is made of the ledger's gain and the log's sum: equal, different, or not to be told."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.wait import until
from tests.unit.test_running_sums import FORM, RELATION, ROUTE, piece
from towline.change import DELETE, INSERT, UPDATE, Piece
from towline.differences import Keys, Operations, Report, RouteOperations, RouteReport
from towline.errors import NotSetUp, SourceTableChanged, TowlineError
from towline.key_sum import OperationSum, change_of
from towline.operations_verifier import NotEstablished, OperationsVerifier, gain
from towline.target import LedgerRange, Noted, NotedRoute

HOUR = datetime(2026, 5, 4, 3, tzinfo=UTC)
FIRST = piece(10, (1, [(INSERT, 1), (INSERT, 2)]))
SECOND = piece(20, (2, [(UPDATE, 1)]), (3, [(DELETE, 2), (INSERT, 3)]))


def total(*pieces: Piece) -> OperationSum:
    """What a ledger adds up to that noted these."""
    found = OperationSum()
    for rowset in (rowset for each in pieces for rowset in each.rowsets):
        found += OperationSum(len(rowset), change_of(rowset).operations)
    return found


def noted_range(*pieces: Piece, hour: int = 0, begin: int = 5) -> LedgerRange:
    found = total(*pieces)
    return LedgerRange(HOUR + timedelta(hours=hour), begin, FORM, found.changes, found.sum)


def streaming(*ranges: LedgerRange) -> NotedRoute:
    return NotedRoute("streaming", "v1", ranges)


@dataclass
class Log:
    """A log in memory; what it holds back grows with each look."""

    kept: Sequence[Piece] = (SECOND,)
    growth: int = 0
    error: TowlineError | None = None
    bytes: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)
    closed: int = 0

    def held(self) -> int:
        self.bytes += self.growth
        return self.bytes

    def pieces(self, after: int, upto: int) -> Iterator[Piece]:
        assert not self.closed
        self.asked.append((after, upto))
        yield from self.kept
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1


@dataclass
class InMemory:
    """A ledger of which two looks are given."""

    looks: list[Noted]

    def noted(self, since: Noted | None = None) -> Noted:
        return self.looks.pop(0)


BEFORE = Noted(10, {"t": streaming(noted_range(FIRST))})
AFTER = Noted(20, {"t": streaming(noted_range(FIRST, SECOND))})


def found(log: Log, before: Noted = BEFORE, after: Noted = AFTER) -> Operations:
    verifier = OperationsVerifier(lambda: log, InMemory([before, after]), [(ROUTE, RELATION)], look=0.001)
    verifier.begin()
    try:
        return verifier.end()
    finally:
        verifier.close()


def test_equal() -> None:
    """The log is read between the two checkpoints, once, and what the ledger gained is what it holds."""
    log = Log()
    operations = found(log)
    assert (operations.begin, operations.end, operations.state) == (10, 20, Keys.EQUAL)
    assert operations.routes == (RouteOperations("t", Keys.EQUAL, 3, 3),)
    assert (log.asked, log.closed) == ([(10, 20)], 1)


@pytest.mark.parametrize(
    "kept",
    [
        (),
        (FIRST, SECOND),
        (SECOND, SECOND),
        (piece(20, (2, [(UPDATE, 1)]), (3, [(DELETE, 2), (INSERT, 4)])),),
        (piece(20, (2, [(INSERT, 1)]), (3, [(DELETE, 2), (INSERT, 3)])),),
    ],
    ids=["lost at the source", "one lost", "counted twice", "another key", "another operation"],
)
def test_differs(kept: Sequence[Piece]) -> None:
    """Any change too few or too many, of another key, or another operation on it."""
    assert found(Log(kept)).state is Keys.DIFFER


def test_a_batch_that_the_ledger_lost() -> None:
    """The checkpoint moved on, and the ledger has nothing of it."""
    (route,) = found(Log(), after=replace(AFTER, routes=BEFORE.routes)).routes
    assert (route.state, route.log, route.ledger) == (Keys.DIFFER, 3, 0)


def test_gains_over_hours() -> None:
    """What the hour under way gained, and the hours since; a route without a row has gained all that it has now."""
    later = streaming(noted_range(FIRST, SECOND), noted_range(FIRST, hour=1, begin=20), noted_range(SECOND, hour=3))
    assert gain(streaming(noted_range(FIRST)), later, FORM) == total(SECOND, FIRST, SECOND)
    assert gain(streaming(), later, FORM) == total(FIRST, SECOND, FIRST, SECOND)
    assert gain(streaming(), streaming(), FORM) == OperationSum()


OTHER_FORM = replace(noted_range(FIRST, SECOND), form="text (id bigint)")
NO_SUM = replace(noted_range(FIRST, SECOND), operations=None)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (None, streaming(), "first copy"),
        (NotedRoute("copying", "v1"), streaming(), "first copy"),
        (streaming(), NotedRoute("pending", "v1"), "first copy"),
        (streaming(), NotedRoute("streaming", "v2"), "copied meanwhile"),
        (streaming(noted_range(FIRST)), streaming(OTHER_FORM), "not of the keys"),
        (streaming(noted_range(FIRST)), streaming(NO_SUM), "not of the keys"),
        (streaming(noted_range(FIRST)), streaming(noted_range(FIRST), noted_range(SECOND, hour=-1)), "set back"),
        (streaming(noted_range(FIRST)), streaming(), "removed"),
        (streaming(noted_range(FIRST)), streaming(noted_range(SECOND, begin=10)), "removed"),
        (streaming(noted_range(FIRST)), streaming(noted_range(SECOND, hour=1)), "removed"),
    ],
)
def test_what_cannot_be_compared(before: NotedRoute | None, after: NotedRoute, reason: str) -> None:
    """A route of which the ledger's gain is not what it noted of the log."""
    with pytest.raises(NotEstablished, match=reason):
        gain(before, after, FORM)
    log = Log()
    looks = [Noted(at, {} if each is None else {"t": each}) for at, each in ((10, before), (20, after))]
    operations = found(log, *looks)
    assert (operations.state, log.asked, log.closed) == (Keys.UNKNOWN, [], 1)
    assert reason in operations.routes[0].reason


def test_nothing_was_applied() -> None:
    """Without a daemon there is nothing to compare, and the log is not read."""
    log = Log()
    operations = found(log, after=BEFORE)
    assert (operations.state, operations.reason) == (Keys.UNKNOWN, "nothing was applied meanwhile")
    assert (log.asked, log.closed) == ([], 1)


def test_a_log_that_cannot_be_read() -> None:
    """Neither kept nor, later, read: not established, and no error of verify's."""

    def refuse() -> Log:
        raise NotSetUp("the source is a standby")

    verifier = OperationsVerifier(refuse, InMemory([]), [(ROUTE, RELATION)])
    verifier.begin()
    assert verifier.end().reason == "the log cannot be read again: the source is a standby"
    verifier.close()
    log = Log(error=SourceTableChanged("t has no column id"))
    operations = found(log)
    assert (operations.state, log.closed) == (Keys.UNKNOWN, 1)
    assert operations.reason == "the log cannot be read again: t has no column id"


def test_the_log_is_let_go_beyond_the_bound() -> None:
    """At once, however long the rest takes, and it is not read."""
    log = Log(growth=40 << 20)
    verifier = OperationsVerifier(lambda: log, InMemory([BEFORE, AFTER]), [(ROUTE, RELATION)], most=1 << 27, look=0.001)
    verifier.begin()
    until(lambda: log.closed == 1, 10.0)
    operations = verifier.end()
    assert (operations.state, log.asked, log.bytes) == (Keys.UNKNOWN, [], 160 << 20)
    assert operations.reason == "the source would have held back more than 128 MB of log for it"
    verifier.close()


def test_the_report_says_so() -> None:
    """An exit code only for what differs; in words and as JSON."""
    rows = RouteReport("a", rows=5), RouteReport("b", rows=5), RouteReport("c", rows=5)
    equal = RouteOperations("a", Keys.EQUAL, 1200, 1200)
    unknown = RouteOperations("b", reason="it was copied meanwhile")
    lost, other = RouteOperations("b", Keys.DIFFER, 3, 2), RouteOperations("c", Keys.DIFFER, 4, 4)
    nothing = Report("p", rows, operations=Operations(16, 16, reason="nothing was applied meanwhile"))
    assert nothing.exit_code == 0
    assert list(nothing.lines())[-2] == "operations not established: nothing was applied meanwhile"
    some = Report("p", rows, operations=Operations(16, 32, (equal, unknown)))
    assert some.exit_code == 0
    assert list(some.lines())[-3:-1] == [
        "operations equal: the log has 1,200 changes of routes from 0/10 to 0/20",
        "  b: not established, it was copied meanwhile",
    ]
    wrong = Report("p", rows, operations=Operations(16, 32, (equal, lost, other)))
    assert wrong.exit_code == 4
    assert list(wrong.lines())[-4:] == [
        "operations differ: the log has 1,207 changes of routes from 0/10 to 0/20",
        "  TL-604: b: the log and the ledger have 3 and 2",
        "  TL-604: c: the log and the ledger have as many, but other ones",
        "verified: 15 rows compared, 0 differ; operations of 2 of 3 routes differ",
    ]
    assert json.loads(json.dumps(wrong.as_dict()))["operations"] == {
        "state": "differs",
        "from": "0/10",
        "to": "0/20",
        "reason": None,
        "routes": [
            {"route": "a", "state": "equal", "log": 1200, "ledger": 1200, "reason": None},
            {"route": "b", "state": "differs", "log": 3, "ledger": 2, "reason": None},
            {"route": "c", "state": "differs", "log": 4, "ledger": 4, "reason": None},
        ],
    }
    assert Report("p", rows).as_dict()["operations"] is None
