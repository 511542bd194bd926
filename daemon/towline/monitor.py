"""Watches the source from a connection of its own: how far it is ahead, and how much log the slot retains."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from towline.errors import TowlineError
from towline.lag import LagClock
from towline.logs import event
from towline.metrics import Metrics
from towline.source import Tables

log = logging.getLogger(__name__)

#: How long the source may take to say how it is (seconds): its line may be dead.
ANSWER = 60.0


class Monitor:
    """A thread that samples once a second, and goes on when the source is away: then the lag grows, as it should.

    ``spooled``: how many transactions under way are kept, and how many bytes of disk they take. ``restart`` is told the
    slot's restart position whenever it was looked at.
    ``sampled`` is told the end of the log each time, with the restart position that was seen last.
    ``pulse`` is called each time, whether the source answers or not.
    ``reached``: the position up to which the target has everything; None while nobody knows, when the slot tells what
    was acknowledged. ``clock``: of an earlier monitor, to go on from what that saw.
    """

    def __init__(
        self,
        connect: Callable[[], Tables],
        reached: Callable[[], int | None],
        metrics: Metrics,
        *,
        spooled: Callable[[], tuple[int, int]] = lambda: (0, 0),
        restart: Callable[[int], None] = lambda position: None,
        clock: LagClock | None = None,
        look: Callable[[Tables], None] = lambda tables: None,
        pulse: Callable[[], None] = lambda: None,
        sampled: Callable[[int, int], None] = lambda position, restart: None,
        every: float = 1.0,
        slot_every: int = 10,
    ) -> None:
        self._connect = connect
        self._reached = reached
        self._metrics = metrics
        self._spooled = spooled
        self._restart = restart
        self._look = look
        self._pulse = pulse
        self._sampled = sampled
        self._every = every
        self._slot_every = slot_every
        self._clock = clock if clock is not None else LagClock()
        self._confirmed = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="towline-monitor", daemon=True)

    def start(self) -> None:
        """Begin to sample."""
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        tables: Tables | None = None
        turn = restart = 0
        try:
            while not self._stop.wait(self._every if turn else 0):
                try:
                    if tables is None:
                        tables = self._connect()
                    with tables.within(ANSWER):
                        position = tables.position()
                        if self._stop.is_set():
                            return
                        self._clock.sample(time.monotonic(), position)
                        if turn % self._slot_every == 0:
                            slot = tables.slot()
                            self._confirmed = slot.confirmed
                            self._metrics.slot(slot.retained_bytes, slot.restart)
                            self._restart(slot.restart)
                            restart = slot.restart
                        self._sampled(position, restart)
                        self._look(tables)
                except TowlineError as error:
                    event(log, logging.DEBUG, "source_not_sampled", code=error.code)
                    if tables is not None:
                        tables.close()
                        tables = None
                turn += 1
                self._pulse()
                self._metrics.spool(*self._spooled())
                reached = self._reached()
                if reached is None:  # all that is known is what was acknowledged: at most so late
                    reached = self._confirmed
                if reached:
                    self._metrics.lag(self._clock.bytes(reached), self._clock.seconds(time.monotonic(), reached))
        finally:
            self._metrics.spool(0, 0)
            if tables is not None:
                tables.close()
