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


class Monitor:
    """A thread that samples once a second, and goes on when the source is away: then the lag grows, as it should."""

    def __init__(
        self,
        connect: Callable[[], Tables],
        reached: Callable[[], int],
        metrics: Metrics,
        *,
        every: float = 1.0,
        slot_every: int = 10,
    ) -> None:
        self._connect = connect
        self._reached = reached
        self._metrics = metrics
        self._every = every
        self._slot_every = slot_every
        self._clock = LagClock()
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
        turn = 0
        try:
            while not self._stop.wait(self._every if turn else 0):
                try:
                    if tables is None:
                        tables = self._connect()
                    self._clock.sample(time.monotonic(), tables.position())
                    if turn % self._slot_every == 0:
                        slot = tables.slot()
                        self._metrics.slot(slot.retained_bytes, slot.restart)
                except TowlineError as error:
                    event(log, logging.DEBUG, "source_not_sampled", code=error.code)
                    if tables is not None:
                        tables.close()
                        tables = None
                turn += 1
                reached = self._reached()
                self._metrics.lag(self._clock.bytes(reached), self._clock.seconds(time.monotonic(), reached))
        finally:
            if tables is not None:
                tables.close()
