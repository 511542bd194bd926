"""Is a line dead, on which an answer is waited for? Decided from what is seen of it now and then; no I/O.

The other end, asked on another line, says whether the session is at work. One that is not, while its client waits and
no byte passes, will never answer. Times are seconds of any one steady clock.
"""

from __future__ import annotations

import math


class SilentLine:
    """``limit``: how long a line may be silent while the other end says that it has nothing to do.

    ``unasked``: likewise, while the other end cannot be asked at all.
    """

    def __init__(self, limit: float, unasked: float = math.inf) -> None:
        self._limit = limit
        self._unasked = unasked
        self._since: tuple[float, float, int] | None = None  # since when, in which wait, with so many bytes passed

    def dead(self, now: float, waiting: float | None, traffic: int | None, at_work: bool | None) -> bool:
        """What is seen now: since when an answer is waited for (None: none is), how many bytes have passed so far
        (None: nobody knows), and whether the other end is at work (None: it could not be asked).
        """
        if waiting is None or traffic is None or at_work:
            self._since = None
        elif self._since is None or self._since[1:] != (waiting, traffic):
            self._since = now, waiting, traffic
        else:
            return now - self._since[0] > (self._unasked if at_work is None else self._limit)
        return False

    def reset(self) -> None:
        """Begin anew: what is seen next is on another line, or comes after a time of which nothing is known."""
        self._since = None

    def moved(self, traffic: int | None) -> bool:
        """Whether bytes have passed since it was silent."""
        return self._since is not None and self._since[2] != traffic
