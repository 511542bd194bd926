"""Signals, answered outside of what they interrupt.

A Python signal handler runs in the main thread between any two of its steps, whatever locks it holds: to set an event
that the main thread is just about to wait for can be a deadlock. So the handlers here take no lock; the interpreter
writes the signal's number to a socket, and a thread that reads there acts on it.

Source: https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType


@contextmanager
def answered(answers: Mapping[signal.Signals, Callable[[], None]], *, insisting: bool = False) -> Iterator[None]:
    """Within the block, call the answer, in a thread of its own, whenever a signal comes; one after the other.

    ``insisting``: the second SIGINT raises KeyboardInterrupt in the main thread, wherever that is. To be entered in the
    main thread.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    interrupts = 0

    def handler(number: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        if insisting and interrupts > 1:
            raise KeyboardInterrupt

    def listen() -> None:
        while numbers := ours.recv(64):
            for number in numbers:
                if (answer := answers.get(signal.Signals(number))) is not None:
                    answer()

    listener = threading.Thread(target=listen, name="towline-signals", daemon=True)
    with ours:
        with theirs:
            woken = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
            before = {number: signal.signal(number, handler) for number in answers}
            listener.start()
            try:
                yield
            finally:
                for number, replaced in before.items():
                    signal.signal(number, replaced)
                signal.set_wakeup_fd(woken)
        listener.join()
