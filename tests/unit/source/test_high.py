"""How far the stream is followed for what a snapshot saw."""

from __future__ import annotations

from datetime import UTC, datetime

from towline.change import Visibility
from towline.source.postgres.high import High, Look

AT = datetime(2026, 1, 31, tzinfo=UTC)
SEEN, LATER = Visibility(100, 100), Visibility(101, 101)


class Server:
    """Its log is flushed a step further at each question. ``asked``: how often it was."""

    def __init__(self, *flushed: int) -> None:
        self.flushed = list(flushed)
        self.asked = 0

    def __call__(self) -> int:
        self.asked += 1
        return self.flushed.pop(0) if len(self.flushed) > 1 else self.flushed[0]


def test_flushed() -> None:
    """Where all is flushed that was inserted, nobody waits."""
    server = Server(5000)
    assert High(server, lambda: 3600.0).of(Look(SEEN, 5000, 5000, AT)) == 5000
    assert server.asked == 0


def test_commits_that_are_flushed_later() -> None:
    """What is inserted may be a commit, which is flushed soon."""
    server = Server(4000, 4500, 5000)
    assert High(server, lambda: 3600.0).of(Look(SEEN, 5000, 4000, AT)) == 5000
    assert server.asked == 3


def test_log_that_nobody_flushes() -> None:
    """After the walwriter's time it is no commit."""
    assert High(Server(4000), lambda: 0.01).of(Look(SEEN, 5000, 4000, AT)) == 4000


def test_the_same_snapshot_has_the_same_position() -> None:
    """What is flushed meanwhile may end within a record; what the snapshot sees has ended before."""
    server = Server(4000)
    high = High(server, lambda: 3600.0)
    assert high.of(Look(SEEN, 4000, 4000, AT)) == 4000
    assert high.of(Look(SEEN, 9000, 8192, AT)) == 4000
    assert server.asked == 0


def test_another_snapshot_has_its_own() -> None:
    """A commit that only the later one sees may end where the log does."""
    high = High(Server(4000), lambda: 3600.0)
    assert high.of(Look(SEEN, 4000, 4000, AT)) == 4000
    assert high.of(Look(LATER, 5000, 5000, AT)) == 5000


def test_on_a_standby() -> None:
    """What is seen there may be a moment ahead of the position, and is in the next one."""
    high = High(Server(4000), lambda: 3600.0)
    assert high.of(Look(SEEN, 4000, 4000, AT, replayed=True)) == 4000
    assert high.of(Look(SEEN, 5000, 5000, AT, replayed=True)) == 5000
    assert high.of(Look(SEEN, 6000, 6000, AT)) == 6000
