"""When refused rows are too many to be the rows' fault."""

from __future__ import annotations

import pytest

from towline.breaker import WINDOW, Breaker, Limits
from towline.errors import QuarantineFlooded, QuarantineFull
from towline.target import Counts


def committed(breaker: Breaker, seen: int, quarantined: int) -> None:
    """A transaction with so many rows of route r."""
    breaker.committed({"r": Counts(seen=seen, upserted=seen - quarantined, quarantined=quarantined)})


def test_a_few_of_many() -> None:
    """Up to the share, and not beyond."""
    breaker = Breaker(Limits(0.1, 100, 1000))
    breaker.check("r", seen=1000, quarantined=100, opened=100)
    with pytest.raises(QuarantineFlooded, match="r: of its last 1000 rows"):
        breaker.check("r", seen=1000, quarantined=101, opened=101)


def test_few_rows_have_no_share() -> None:
    """A table that sees a row now and then may have a bad one; many small transactions count together."""
    breaker = Breaker(Limits(0.1, 100, 1000))
    for _ in range(33):
        breaker.check("r", seen=3, quarantined=3, opened=3)
        committed(breaker, 3, 3)
    with pytest.raises(QuarantineFlooded):
        breaker.check("r", seen=1, quarantined=1, opened=100)
    breaker.check("other", seen=1, quarantined=1, opened=1)


def test_the_past_is_forgotten() -> None:
    """Good rows of long ago do not excuse bad ones; nor do bad ones of then count for ever."""
    breaker = Breaker(Limits(0.1, 100, 10**6))
    for _ in range(100):
        committed(breaker, WINDOW // 10, 0)
    with pytest.raises(QuarantineFlooded):
        breaker.check("r", seen=2000, quarantined=1201, opened=1201)
    committed(breaker, 2000, 1200)
    for _ in range(12):
        committed(breaker, WINDOW // 10, 0)
    breaker.check("r", seen=0, quarantined=900, opened=2100)


def test_the_quarantine_has_room_for_so_many() -> None:
    """Whatever the share."""
    breaker = Breaker(Limits(1.0, 1, 10))
    breaker.check("r", seen=10, quarantined=10, opened=10)
    with pytest.raises(QuarantineFull, match="more than 10 rows"):
        breaker.check("r", seen=11, quarantined=11, opened=11)
