"""Shall the source send large transactions while they are under way? Not for a while after the spool was full.

Likewise after it failed.

The transactions that filled the spool may be under way still, so that none of them could be applied and nothing would
get out of it: to wait for room would be to wait for ever. Instead the stream starts again at the checkpoint, and the
source is not asked for transactions under way: it keeps them itself, as it does for every client that does not ask, and
sends each when it has committed. That goes on until the slot's restart position has passed the end of the log as it
was then. The source needs nothing of before its restart position: every transaction of which something was in the
spool has ended by then, and what committed of them is durable at the target.

Kept in memory only. A daemon that forgets it by a restart may find the spool full once more.
"""

from __future__ import annotations


class Streaming:
    """Lives as long as the daemon, over all its attempts; positions are in the source's log."""

    def __init__(self) -> None:
        self.checked = False  # whether the spool's directory was seen to be of use
        self.suspended = False
        self._upto: int | None = None  # the end of the log after the spool was full; None: not known yet

    def spool_full(self) -> None:
        """The attempt under way found the spool full, or no longer usable."""
        self.suspended, self._upto = True, None

    def spool_unusable(self) -> None:
        """The spool could not be made: nothing is in it, so that there is nothing to wait for but a better one."""
        self.suspended, self._upto = True, 0

    def begin(self, restart: int, position: int) -> bool:
        """An attempt begins: whether it may ask for transactions under way.

        ``restart``: the slot's restart position; ``position``: the end of the log now.
        """
        if self.suspended and self._upto is None:
            self._upto = position
        self.passed(restart)
        return not self.suspended

    def passed(self, restart: int) -> bool:
        """Whether the restart position, as it is now, lets a suspension end."""
        if self._upto is None or restart < self._upto:
            return False
        self.suspended, self._upto = False, None
        return True
