"""The first look at both ends, taken in a thread of its own while the rest of the daemon is loaded.

Until it replicates a daemon spends most of its time importing modules, which keeps one core busy and no server, and
then waits for some thirty answers of either server, one after the other, which keep no core busy here.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, wait

from towline.adoption import Intake
from towline.config import PipelineConfig
from towline.intake import take_in

#: How long one thread may keep the interpreter from another one that has its answer (seconds).
SWITCH = 0.001


class FirstLook:
    """Begins to look at the ends that a configuration names."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self._found: Future[Intake] | None = Future()
        sys.setswitchinterval(SWITCH)
        threading.Thread(target=self._run, args=(self._found,), name="towline-first-look", daemon=True).start()

    def result(self) -> Intake:
        """What was found, waited for. Raises what `take_in` raised. To be asked for once: it is not kept."""
        found, self._found = self._found, None
        assert found is not None
        return found.result()

    def end(self) -> None:
        """Wait until it is over, whatever it has found: a look may extend the publication, as others do, too."""
        if self._found is not None:
            wait([self._found])

    def _run(self, found: Future[Intake]) -> None:
        try:
            found.set_result(take_in(self.config))
        except BaseException as error:
            found.set_exception(error)
