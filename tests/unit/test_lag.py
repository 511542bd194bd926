"""Lag in seconds and bytes."""

from __future__ import annotations

from towline.lag import LagClock


def test_idle_is_no_lag() -> None:
    """An idle source, all of whose log was applied, has no lag, however old the last commit is."""
    clock = LagClock()
    for second in range(3600):
        clock.sample(second, 500)
    assert clock.seconds(3600, 500) == 0
    assert clock.bytes(500) == 0


def test_behind_is_the_age_of_the_oldest_position_not_reached() -> None:
    """The lag counts from when the source got beyond what was reached."""
    clock = LagClock()
    for second, position in enumerate([100, 200, 300, 400]):
        clock.sample(second, position)
    assert clock.seconds(10, 200) == 8
    assert clock.bytes(200) == 200
    assert clock.seconds(10, 300) == 7
    assert clock.seconds(10, 400) == 0


def test_a_stuck_target_lags_more_every_second() -> None:
    """Nothing applied while the source goes on."""
    clock = LagClock()
    clock.sample(0, 100)
    assert clock.seconds(0, 100) == 0
    clock.sample(1, 200)
    assert [clock.seconds(now, 100) for now in (1, 2, 9)] == [0, 1, 8]


def test_a_silent_source_lags_too() -> None:
    """When the source cannot be asked any more, nobody knows: the lag grows from the last sample."""
    clock = LagClock(stale_after=10)
    clock.sample(0, 100)
    assert clock.seconds(9, 100) == 0
    assert clock.seconds(60, 100) == 60
    clock.sample(61, 100)
    assert clock.seconds(62, 100) == 0


def test_memory_is_bounded_and_the_oldest_stays_exact() -> None:
    """A target that is stuck for weeks does not make the samples grow."""
    clock = LagClock(keep=100)
    for second in range(100_000):
        clock.sample(second, second + 1)
    assert clock.seconds(100_000, 0) == 100_000
    assert len(clock._samples) <= 101
