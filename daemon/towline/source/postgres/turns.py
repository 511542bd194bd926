"""Two sessions that decode the log by turns: while one's gulp is read, the other decodes the next.

    session   gulps
    first     decode 1 │ read 1 │ pass over 2, decode 3        │ read 3 │ …
    second    pass over 1, decode 2      │ read 2 │ pass over 3, decode 4        │ …

Passing over a stretch of the log costs the source a tenth of decoding it, and lets it decode all the while. Gulps are
divided by position: the first contains every transaction whose commit record was read before the statement ended, the
next passes over all whose commit record starts before the position that was asked for. One whose record lies across it,
or behind the header of the page that it ends in, may come with both; the reader skips it the second time.

A server without a slot or a connection to spare has one session, which takes all the turns. The reader's, but for
`cancel` and `hang_up`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from towline.source.postgres.slot_copy import Refused, SlotCopy


class Turns:
    """``connect``: opens a session; ``options``: what is asked of the plugin. All raises what `SlotCopy` raises."""

    def __init__(self, connect: Callable[[], SlotCopy], options: Mapping[str, str]) -> None:
        self._connect = connect
        self._options = options
        self._sessions: list[SlotCopy] = []
        self._alone = False
        #: The session whose gulp is read.
        self.reading: SlotCopy | None = None
        #: The one that decodes the next gulp, if one was begun.
        self.next: SlotCopy | None = None

    def open(self) -> SlotCopy:
        """The first session, which has no copy yet."""
        self.reading = self._connect()
        self._sessions.append(self.reading)
        return self.reading

    def begin(self, upto: int) -> None:
        """Have the gulp up to the position decoded by the session whose turn it is, and which stands before it."""
        assert self.reading is not None
        self.reading.begin(upto, self._options)

    def begin_next(self, after: int, upto: int) -> None:
        """Have the gulp between the positions decoded meanwhile, if there is another session or can be one."""
        other = next((session for session in self._sessions if session is not self.reading), None)
        if other is None and not self._alone:
            other = self._second()
        if other is not None:
            other.begin(upto, self._options, after)
            self.next = other

    def _second(self) -> SlotCopy | None:
        """Another session, with a copy; None, from then on, when the server has none to spare."""
        try:
            other = self._connect()
            try:
                other.copy()
            except BaseException:
                other.close()
                raise
        except Refused:
            self._alone = True
            return None
        self._sessions.append(other)
        return other

    def swap(self) -> SlotCopy:
        """The next gulp is read now; its session."""
        assert self.next is not None
        self.reading, self.next = self.next, None
        return self.reading

    def cancel(self) -> None:
        """End what is under way at the server; may be called from another thread."""
        for session in tuple(self._sessions):
            session.cancel()

    def hang_up(self) -> None:
        """End waits that nothing else will end; may be called from another thread."""
        for session in tuple(self._sessions):
            session.hang_up()

    def close(self) -> None:
        """End the sessions, what they decode, and so the copies."""
        for session in self._sessions:
            if not session.done:
                session.cancel()
            session.close()
