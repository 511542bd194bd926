"""Shall a backlog be read through SQL rather than from the stream, and how much of it at a time?

A walsender sends change by change, and costs the source much more than the same log decoded by one SQL statement. But
a statement yields nothing before it has decoded all that it is asked for, and each begins at the slot's restart
position, which stays where the oldest transaction began that was under way when the server last wrote down which were
(every 15 seconds, and at checkpoints). So it pays when the target is far behind, with large *gulps*, and while the
restart position follows. The first gulp is small, so that the target soon has something to do; while the restart
position stays, each next one is twice as long as what is decoded again for it. Or as long, where the log was *sparse*
before, as it is after a checkpoint, when whole pages are in it: where that ends, a gulp twice as long may be many times
the changes, and the target would have nothing to do until all of them are decoded.

A transaction that is larger than a gulp yields nothing until its end is read, and is decoded again for each gulp on the
way. So where the stream brings such a transaction while it is under way, a stretch of log that yields nothing is the
last; what is not routed the stream passes over as cheaply.

Sizes are bytes of the source's log; times are seconds of any one steady clock.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """``enter``, ``leave``: how far behind it begins and ends. ``least``, ``most``: of a gulp.

    ``follow``: it begins only if the restart position is not further behind than that, and ends when it is more than
    `RESTART_LEFT` times as far. ``again``: nor does it begin if what is decoded again is more than so many times the
    backlog. ``barren``: it ends when as much of the log has yielded nothing, if the stream has large transactions sent
    while they are under way. ``sparse``: so many times as long as the messages of the last gulp may the next one be
    (which, if each of two sessions reads gulps twice as long as all before, is nine times as long as that gulp was).
    ``confirm``: how far the slot itself may stand behind what is durable; moving it takes the source a pass over the
    log from the restart position on. (At the beginning no further than ``leave``: a copy brings all that again.)
    """

    enter: int = 32 << 20
    leave: int = 4 << 20
    least: int = 16 << 20
    most: int = 512 << 20
    follow: int = 256 << 20
    again: int = 1
    barren: int = 16 << 20
    sparse: int = 16
    confirm: int = 256 << 20


BOUNDS = Bounds()

#: By major version: the first release in which a slot that is advanced keeps what transactions under way need of the
#: catalogs (commit aaf9e95 of PostgreSQL, April 2025), as a server's version number. Newer ones always did.
SINCE = {13: 130021, 14: 140018, 15: 150013, 16: 160009, 17: 170005}

#: See `Bounds.follow`.
RESTART_LEFT = 4
#: After the source has refused it, and after so many attempts that failed within it without getting anywhere, it is
#: tried again after so many seconds.
FAILURES, AGAIN_AFTER = 2, 600.0
#: After log that yielded nothing.
BARREN_AFTER = 10.0


def possible(server_version: int) -> bool:
    """Whether a server of that version number can be read so: see `SINCE`."""
    return server_version >= SINCE.get(server_version // 10000, 0)


class CatchUp:
    """Lives as long as the daemon, over all its attempts."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = BOUNDS if bounds is None else bounds
        self._not_before = 0.0
        self._failures = 0

    def enter(self, now: float, end: int, position: int, restart: int) -> bool:
        """Whether to begin, at ``position``, while the log ends at ``end`` and the slot restarts at ``restart``."""
        bounds = self._bounds
        behind, before = end - position, position - restart
        return (
            now >= self._not_before and behind >= bounds.enter and before <= min(bounds.follow, behind * bounds.again)
        )

    def gulp(self, end: int, position: int, restart: int, yielded: int = 0) -> int:
        """Up to where to read next; 0: leave it to the stream from here on.

        A gulp is twice as long as what has to be decoded again for it, between the bounds. ``yielded``: bytes of the
        messages of the gulp read last; 0: nothing, or none was read. Where they were few, it is as long.
        """
        bounds = self._bounds
        behind, before = end - position, position - restart
        if behind < bounds.leave or before > bounds.follow * RESTART_LEFT:
            return 0
        size = 2 * before
        if yielded:
            size = min(size, max(before, yielded * bounds.sparse))
        size = min(max(size, bounds.least), bounds.most)
        return end if behind <= size + bounds.leave else position + size

    def confirm(self, durable: int, confirmed: int, *, beginning: bool = False) -> bool:
        """Whether it is time to move the slot. ``beginning``: it is about to be copied."""
        return durable - confirmed >= (self._bounds.leave if beginning else self._bounds.confirm)

    def gulped(self) -> None:
        """A gulp was read."""
        self._failures = 0

    def barren(self, now: float, size: int) -> bool:
        """Whether so much log that has yielded nothing is enough: then what follows is the stream's for a while."""
        enough = size >= self._bounds.barren
        if enough:
            self._not_before = max(self._not_before, now + BARREN_AFTER)
        return enough

    def refused(self, now: float) -> None:
        """The source does not let us."""
        self._not_before = now + AGAIN_AFTER

    def failed(self, now: float) -> None:
        """An attempt ended with an error while it caught up."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._failures = 0
            self.refused(now)
