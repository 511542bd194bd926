"""When the source is asked for transactions under way, and when not."""

from __future__ import annotations

from towline.streaming import Streaming


def test_from_the_start() -> None:
    """Nothing speaks against it."""
    streaming = Streaming()
    assert streaming.begin(restart=100, position=500)
    assert not streaming.suspended
    assert not streaming.passed(200)


def test_after_a_full_spool() -> None:
    """Not until the slot's restart position has passed the end of the log as it was then."""
    streaming = Streaming()
    streaming.begin(restart=100, position=500)
    streaming.spool_full()
    assert not streaming.passed(600)  # of the attempt that failed: where the log ended is not known yet
    assert not streaming.begin(restart=100, position=700)
    assert not streaming.passed(699)
    assert not streaming.begin(restart=699, position=900)  # another attempt changes nothing
    assert streaming.suspended
    assert streaming.passed(700)
    assert not streaming.suspended
    assert not streaming.passed(800)
    assert streaming.begin(restart=800, position=900)


def test_without_a_spool() -> None:
    """What was never used need not be waited for."""
    streaming = Streaming()
    streaming.begin(restart=100, position=500)
    streaming.spool_unusable()
    assert streaming.suspended
    assert streaming.passed(100)
    assert not streaming.suspended


def test_at_the_next_attempt() -> None:
    """It may also be found at the beginning of one, and be full again."""
    streaming = Streaming()
    for base in (0, 1000):
        streaming.spool_full()
        assert not streaming.begin(restart=base, position=base + 500)
        assert streaming.begin(restart=base + 500, position=base + 900)
