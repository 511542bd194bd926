"""Signals are answered outside of what they interrupt."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

import pytest

from tests.support.wait import until
from towline.signals import answered


def test_what_is_interrupted_may_hold_the_lock_that_the_answer_takes() -> None:
    """As the main thread does for a moment in the midst of waiting for an event."""
    lock, got = threading.Lock(), threading.Event()

    def answer() -> None:
        with lock:
            got.set()

    with answered({signal.SIGUSR1: answer}):
        with lock:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not got.wait(0.05)
        assert got.wait(10)


def test_each_signal_has_its_answer() -> None:
    """Also of those that come in one go; and what was there before is there again afterwards."""
    came: list[str] = []

    def before(number: int, frame: FrameType | None) -> None:
        came.append("before")

    replaced = signal.signal(signal.SIGUSR1, before)
    try:
        with answered({signal.SIGUSR1: lambda: came.append("one"), signal.SIGUSR2: lambda: came.append("two")}):
            for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR1):
                os.kill(os.getpid(), number)
                count = len(came) + 1
                until(lambda count=count: len(came) >= count)  # type: ignore[misc]
        assert came == ["one", "two", "one"]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert came[3:] == ["before"]
    finally:
        signal.signal(signal.SIGUSR1, replaced)


def test_insisting() -> None:
    """Whoever presses Ctrl-C twice does not want to wait."""
    once = threading.Event()
    with answered({signal.SIGINT: once.set}, insisting=True):
        os.kill(os.getpid(), signal.SIGINT)
        assert once.wait(10)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
