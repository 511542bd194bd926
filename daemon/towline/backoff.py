"""How long to wait before the next attempt: longer each time, and at random, so that daemons do not return together."""

from __future__ import annotations

from tenacity import RetryCallState, Retrying, wait_random_exponential

#: The shortest delay and the longest, and the bound of the first one (seconds). Each bound is twice the one before.
LEAST, MOST, FIRST = 0.25, 30.0, 0.5


class Backoff:
    """Delays for failures in a row, as tenacity draws them ("full jitter": anything up to the bound)."""

    def __init__(self) -> None:
        self._retrying = Retrying(wait=wait_random_exponential(multiplier=FIRST, max=MOST, min=LEAST))

    def after(self, failures: int) -> float:
        """Seconds to wait after so many failures, this one among them."""
        state = RetryCallState(self._retrying, None, (), {})
        state.attempt_number = failures
        return float(self._retrying.wait(state))
