"""When a backlog is read through SQL, and how much at a time."""

from __future__ import annotations

import pytest

from towline.catch_up import AGAIN_AFTER, BARREN_AFTER, FAILURES, Bounds, CatchUp, possible

BOUNDS = Bounds(enter=1000, leave=100, least=200, most=800, follow=500)


@pytest.mark.parametrize(
    ("end", "position", "restart", "entered"),
    [
        (10_000, 9_001, 9_001, False),  # near
        (10_000, 9_000, 9_000, True),
        (10_000, 9_000, 8_500, True),
        (10_000, 9_000, 8_499, False),  # too much would be decoded again
        (0, 9_000, 8_900, False),  # nobody has looked at the source yet
    ],
)
def test_enter(end: int, position: int, restart: int, entered: bool) -> None:
    """Only far behind, and not when what is decoded again for it would be long."""
    assert CatchUp(BOUNDS).enter(0.0, end, position, restart) is entered


@pytest.mark.parametrize(
    ("version", "answer"),
    [(130020, False), (130021, True), (150012, False), (150013, True), (170005, True), (180000, True)],
)
def test_releases(version: int, answer: bool) -> None:
    """Not those that would let go of what decoding still needs."""
    assert possible(version) is answer


def test_what_is_decoded_again_is_less_than_the_backlog() -> None:
    """A short backlog does not make up for a restart position that is further behind."""
    bounds = Bounds(enter=100, leave=10, least=200, most=800, follow=500)
    assert CatchUp(bounds).enter(0.0, 1_200, 1_000, 800)
    assert not CatchUp(bounds).enter(0.0, 1_200, 1_000, 799)


@pytest.mark.parametrize(
    ("end", "position", "restart", "upto"),
    [
        (10_000, 5_000, 5_000, 5_200),  # the least
        (10_000, 5_000, 4_800, 5_400),  # twice as long as what is decoded again
        (10_000, 5_000, 4_000, 5_800),  # the most
        (10_000, 9_750, 9_750, 10_000),  # what would be left is near the end: all at once
        (10_000, 9_900, 9_900, 10_000),
        (10_000, 9_901, 9_901, 0),  # near the end
        (10_000, 5_000, 2_999, 0),  # the restart position does not follow
    ],
)
def test_gulp(end: int, position: int, restart: int, upto: int) -> None:
    """Between two bounds, and none near the end or where the restart position stays behind."""
    assert CatchUp(BOUNDS).gulp(end, position, restart) == upto


@pytest.mark.parametrize(
    ("yielded", "size"),
    [
        (0, 800),  # nothing is known: twice as long as what is decoded again
        (200, 800),
        (150, 600),  # four times the messages
        (101, 404),
        (99, 400),  # at least as long
        (1, 400),
    ],
)
def test_sparse_log_is_not_followed_by_a_gulp_of_many_changes(yielded: int, size: int) -> None:
    """It may become dense at any place; what is decoded again bounds how short gulps get."""
    bounds = Bounds(enter=1_000, leave=100, least=200, most=1_000, follow=500, sparse=4)
    assert CatchUp(bounds).gulp(10_000, 5_000, 4_600, yielded) == 5_000 + size


def test_gulps_in_sparse_log_have_the_least() -> None:
    """However little came."""
    bounds = Bounds(least=200, most=1_000, leave=100, sparse=4)
    assert CatchUp(bounds).gulp(10_000, 5_000, 4_900, 1) == 5_200


def test_it_does_not_come_and_go() -> None:
    """Between the bounds for entering and for leaving, it stays as it is."""
    catch_up = CatchUp(BOUNDS)
    for behind in (999, 500, 100):
        assert not catch_up.enter(0.0, 10_000, 10_000 - behind, 10_000 - behind)
        assert catch_up.gulp(10_000, 10_000 - behind, 10_000 - behind)
    for restart in (501, 1000, 2000):
        assert not catch_up.enter(0.0, 10_000, 5_000, 5_000 - restart)
        assert catch_up.gulp(10_000, 5_000, 5_000 - restart)


def test_a_refusal_is_believed_for_a_while() -> None:
    """Then it is tried again."""
    catch_up = CatchUp(BOUNDS)
    catch_up.refused(50.0)
    assert not catch_up.enter(49.0 + AGAIN_AFTER, 9_000, 0, 0)
    assert catch_up.enter(50.0 + AGAIN_AFTER, 9_000, 0, 0)


def test_what_yields_nothing_is_left_to_the_stream() -> None:
    """For a while, which takes nothing away from a refusal."""
    catch_up = CatchUp(Bounds(enter=1000, barren=300))
    assert not catch_up.barren(50.0, 299)
    assert catch_up.enter(50.0, 9_000, 0, 0)
    assert catch_up.barren(50.0, 300)
    assert not catch_up.enter(49.0 + BARREN_AFTER, 9_000, 0, 0)
    assert catch_up.enter(50.0 + BARREN_AFTER, 9_000, 0, 0)
    catch_up.refused(60.0)
    assert catch_up.barren(61.0, 300)
    assert not catch_up.enter(61.0 + BARREN_AFTER, 9_000, 0, 0)


def test_the_slot_is_moved_now_and_then() -> None:
    """Each time costs the source."""
    catch_up = CatchUp(Bounds(confirm=100))
    assert not catch_up.confirm(1_099, 1_000)
    assert catch_up.confirm(1_100, 1_000)
    catch_up = CatchUp(Bounds(confirm=100, leave=10))
    assert catch_up.confirm(1_010, 1_000, beginning=True)
    assert not catch_up.confirm(1_009, 1_000, beginning=True)


def test_failures_that_get_nowhere() -> None:
    """Several in a row are taken for a refusal, unless a gulp was read between them."""
    catch_up = CatchUp(BOUNDS)
    for _ in range(FAILURES * 2):
        catch_up.failed(0.0)
        catch_up.gulped()
    assert catch_up.enter(1.0, 9_000, 0, 0)
    for _ in range(FAILURES):
        assert catch_up.enter(1.0, 9_000, 0, 0)
        catch_up.failed(1.0)
    assert not catch_up.enter(2.0, 9_000, 0, 0)
