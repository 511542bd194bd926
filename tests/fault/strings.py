"""The strings by which a test moves a daemon: paused at a point of its loop, its clock set, or made to go wrong.

In the daemon's process, and there only in tests; the other end is `tests.faults.puppet`. Commands come as lines on
standard input, answers go to standard output:

| command | what happens |
|---|---|
| ``pause POINT COUNT`` | the COUNT-th time that POINT is passed: answers ``paused POINT``, and waits for ``go`` |
| ``go`` | goes on |
| ``clock SECONDS`` | the clock of day is that much off from now on; answers ``clock`` |
| ``spoil TABLE lose`` | the next rows of the table get lost: can the harness tell? |
| ``spoil TABLE double`` | they come twice: can it tell that, too? |

The monotonic clock stays as it is: a jump of the clock of day does not touch it on any system.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TextIO

from towline.change import Piece
from towline.source.postgres.stream import PostgresStream


class Strings:
    """Follows the commands of a stream, in a thread; `announce` is to be called at the points."""

    def __init__(self, commands: TextIO, answers: TextIO, point: str, count: int) -> None:
        self._commands = commands
        self._answers = answers
        self._point, self._left = point, count
        self._go = threading.Event()
        self._lock = threading.Lock()
        self._verbs: dict[str, Callable[..., None]] = {
            "pause": self._pause,
            "go": self._go.set,
            "clock": self._clock,
            "spoil": spoil,
        }

    def pull(self) -> Strings:
        """Begin to follow."""
        threading.Thread(target=self._follow, name="strings", daemon=True).start()
        return self

    def announce(self, point: str) -> None:
        """The point is passed: wait there if the test says so."""
        with self._lock:
            if point != self._point:
                return
            self._left -= 1
            if self._left > 0:
                return
            self._point = ""
            self._go.clear()
        self._answer(f"paused {point}")
        self._go.wait()

    def _follow(self) -> None:
        for line in self._commands:
            verb, *arguments = line.split()
            self._verbs[verb](*arguments)
        os.kill(os.getpid(), signal.SIGKILL)  # the test is gone

    def _pause(self, point: str, count: str) -> None:
        with self._lock:
            self._point, self._left = point, int(count)

    def _clock(self, seconds: str) -> None:
        real = time.time
        time.time = lambda: real() + float(seconds)
        self._answer("clock")

    def _answer(self, line: str) -> None:
        print(line, file=self._answers, flush=True)


def spoil(table: str, how: str) -> None:
    """From now on, once: lose the rows of the table in a piece, or give the piece twice.

    It is done where the stream hands pieces over: what came from there the daemon accounts for itself (TL-602).
    """
    poll = PostgresStream.poll
    again: list[Piece] = []
    done = threading.Event()

    def spoiled(self: PostgresStream, timeout: float) -> Piece | None:
        piece = again.pop() if again else poll(self, timeout)
        if piece is None or done.is_set():
            return piece
        others = tuple(rowset for rowset in piece.rowsets if rowset.relation.name.name != table)
        if len(others) == len(piece.rowsets):
            return piece
        done.set()
        if how == "lose":
            return replace(piece, rowsets=others)
        again.append(piece)
        return piece

    PostgresStream.poll = spoiled  # type: ignore[method-assign]


def pulled(point: str = "", count: str = "0") -> Strings:
    """Strings of this process's standard input and output, first to be paused at that point."""
    return Strings(sys.stdin, sys.stdout, point, int(count)).pull()
