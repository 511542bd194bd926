"""Delays between attempts."""

from __future__ import annotations

from towline.backoff import FIRST, LEAST, MOST, Backoff


def test_delays_grow_and_are_drawn() -> None:
    """Within bounds that double up to the longest, and not the same for everybody."""
    backoff = Backoff()
    for failures in (1, 2, 3, 6, 7, 20, 5000):
        drawn = [backoff.after(failures) for _ in range(200)]
        bound = min(MOST, FIRST * 2 ** min(failures - 1, 30))
        assert min(drawn) >= LEAST
        assert max(drawn) <= bound
        assert len(set(drawn)) > 20
        assert max(drawn) > 0.8 * bound
