"""When a line on which an answer is waited for is taken for dead."""

from __future__ import annotations

import pytest

from towline.silent_line import SilentLine


def looks(line: SilentLine, *seen: tuple[float | None, int | None, bool | None]) -> list[bool]:
    """What it says to looks ten seconds apart."""
    return [line.dead(10.0 * turn, *look) for turn, look in enumerate(seen)]


@pytest.mark.parametrize(
    ("seen", "dead"),
    [
        ([(1.0, 5, False)] * 4, [False, False, False, True]),
        ([(1.0, 5, None)] * 6, [False, False, False, False, False, True]),  # it cannot be asked
        ([(1.0, 5, True)] * 6, [False] * 6),
        ([(None, 5, False)] * 6, [False] * 6),  # nothing is waited for
        ([(1.0, None, False)] * 6, [False] * 6),  # a Unix socket
        ([(1.0, 5, False)] * 3 + [(1.0, 6, False)] * 3, [False] * 6),  # a byte came
        ([(1.0, 5, False)] * 3 + [(9.0, 5, False)] * 3, [False] * 6),  # another wait
        ([(1.0, 5, False), (1.0, 5, True)] * 3, [False] * 6),
        ([(1.0, 5, False)] * 2 + [(1.0, 5, None)] + [(1.0, 5, False)], [False, False, False, True]),
    ],
)
def test_dead(seen: list[tuple[float | None, int | None, bool | None]], dead: list[bool]) -> None:
    """When for long enough nothing passes and the other end does nothing, or says nothing."""
    assert looks(SilentLine(25.0, 45.0), *seen) == dead


def test_reset() -> None:
    """What was seen before does not count."""
    line = SilentLine(25.0)
    assert not line.dead(0.0, 1.0, 5, False)
    line.reset()
    assert not line.dead(30.0, 1.0, 5, False)
    assert line.dead(60.0, 1.0, 5, False)


def test_moved() -> None:
    """Bytes on a line that was silent are a sign of life."""
    line = SilentLine(25.0)
    assert not line.moved(5)
    line.dead(0.0, 1.0, 5, False)
    assert not line.moved(5)
    assert line.moved(6)
