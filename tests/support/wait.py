"""Waiting for a condition, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

NAP = 0.02


def until(condition: Callable[[], T], timeout: float = 30.0, describe: str | Callable[[], object] = "") -> T:
    """Call ``condition`` until it returns something true, and return that. Fails the test after ``timeout`` seconds.

    ``describe`` says in the failure what was waited for, or is called to say how things stand.
    """
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            what = describe() if callable(describe) else describe or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {timeout:g} s: {what} (last: {result!r})")
        time.sleep(NAP)
