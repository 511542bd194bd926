"""When refused rows are too many to be the rows' fault."""

from __future__ import annotations

import itertools

import pytest

from towline.breaker import WINDOW, Breaker, Limits
from towline.errors import QuarantineFlooded, QuarantineFull
from towline.target import Counts

_keys = itertools.count(1)


def refuse(breaker: Breaker, rows: int, *, seen: int, route: str = "r") -> None:
    """So many more rows are set aside, of a transaction with so many changes."""
    for opened in range(1, rows + 1):
        breaker.refused(route, b"%d" % next(_keys), seen=seen, opened=opened)


def commit(breaker: Breaker, seen: int, rows: int) -> None:
    """A transaction with so many changes of route r, of which so many rows are set aside."""
    breaker.begin()
    refuse(breaker, rows, seen=seen)
    breaker.committed({"r": Counts(seen=seen, upserted=seen - rows, quarantined=rows)})


def test_a_few_of_many() -> None:
    """Up to the share, and not beyond; what was rolled back does not count."""
    breaker = Breaker(Limits(0.1, 100, 1000))
    refuse(breaker, 100, seen=1000)
    breaker.begin()
    refuse(breaker, 100, seen=1000)
    with pytest.raises(QuarantineFlooded, match="r: in its last 1000 changes the target refuses 101 rows"):
        refuse(breaker, 1, seen=1000)


def test_few_rows_have_no_share() -> None:
    """A table that sees a row now and then may have a bad one; many small transactions count together."""
    breaker = Breaker(Limits(0.1, 100, 1000))
    for _ in range(33):
        commit(breaker, 3, 3)
    with pytest.raises(QuarantineFlooded):
        refuse(breaker, 1, seen=1)
    refuse(breaker, 1, seen=1, route="other")


def test_a_row_counts_once() -> None:
    """One row that goes from good to bad again and again is one bad row."""
    breaker = Breaker(Limits(0.1, 100, 1000))
    for _ in range(200):
        breaker.begin()
        breaker.refused("r", b"hot", seen=2, opened=1)
        breaker.refused("r", b"hot", seen=2, opened=1)
        breaker.committed({"r": Counts(seen=2, quarantined=2)})
    for _ in range(WINDOW // 100 + 1):
        commit(breaker, 100, 10)
    with pytest.raises(QuarantineFlooded):
        refuse(breaker, 2000, seen=1000)


def test_the_past_is_forgotten() -> None:
    """Good rows of long ago do not excuse bad ones; nor do bad ones of then count for ever."""
    breaker = Breaker(Limits(0.1, 100, 10**6))
    for _ in range(100):
        commit(breaker, WINDOW // 10, 0)
    with pytest.raises(QuarantineFlooded):
        refuse(breaker, 1201, seen=2000)
    commit(breaker, 2000, 1200)
    for _ in range(12):
        commit(breaker, WINDOW // 10, 0)
    breaker.begin()
    refuse(breaker, 900, seen=0)


def test_the_quarantine_has_room_for_so_many() -> None:
    """Whatever the share."""
    breaker = Breaker(Limits(1.0, 1, 10))
    refuse(breaker, 10, seen=10)
    with pytest.raises(QuarantineFull, match="more than 10 rows"):
        breaker.refused("r", b"x", seen=11, opened=11)


def test_what_others_have_noted() -> None:
    """It is asked for when another daemon may have been at work, and not else."""
    breaker = Breaker(Limits(0.1, 100, 1000))
    assert not breaker.remembers(7)
    breaker.recall("r", seen=90, rows=90)
    with pytest.raises(QuarantineFlooded, match="last 180 changes the target refuses 91 rows"):
        refuse(breaker, 1, seen=90)
    assert breaker.remembers(8) and breaker.remembers(8)
    with pytest.raises(QuarantineFlooded):
        refuse(breaker, 1, seen=90)
    assert not breaker.remembers(10)
    breaker.recall("r", seen=100 * WINDOW, rows=WINDOW)  # of the latest of them it is not known: the average
    breaker.begin()
    refuse(breaker, WINDOW // 10 - WINDOW // 100, seen=0)
    with pytest.raises(QuarantineFlooded):
        refuse(breaker, 1, seen=0)
