"""The first look at both ends, taken in a thread of its own while the rest of the daemon is loaded.

Until it replicates a daemon spends most of its time importing modules, which keeps one core busy and no server, and
then waits for some thirty answers of either server, one after the other, which keep no core busy here.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future

from towline.adoption import Intake
from towline.config import PipelineConfig
from towline.intake import take_in

#: How long one thread may keep the interpreter from another one that has its answer (seconds).
SWITCH = 0.001


class FirstLook:
    """Begins to look at the ends that a configuration names."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self._found: Future[Intake] = Future()
        sys.setswitchinterval(SWITCH)
        threading.Thread(target=self._run, name="towline-first-look", daemon=True).start()

    def result(self) -> Intake:
        """What was found, waited for. Raises what `take_in` raised."""
        return self._found.result()

    def _run(self) -> None:
        try:
            self._found.set_result(take_in(self.config))
        except BaseException as error:
            self._found.set_exception(error)
