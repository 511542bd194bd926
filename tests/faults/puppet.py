"""A process of the daemon, of verify or of resync, whose strings the harness holds: see `tests.fault.strings`.

The processes are forked by a server that has imported everything (multiprocessing's): a fresh interpreter would spend
most of a trial's time on imports.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

from tests.support.wait import until

DAEMON, VERIFY, RESYNC = "tests.fault.daemon", "tests.faults.verifier", "tests.faults.resyncer"

_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload([DAEMON, VERIFY, RESYNC])


def _become(module: str, arguments: list[str], log: str, *pipes: Any) -> None:
    """In the new process: run a module's ``main``. ``pipes``: DupFd, for its standard input and output."""
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 2)
    for place, pipe in enumerate(pipes):
        descriptor = pipe.detach()
        os.dup2(descriptor, place)
        os.close(descriptor)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 (for as long as the process lives)
    sys.exit(importlib.import_module(module).main(arguments))


class Puppet:
    """``module`` run on a pipeline file; ``pause``: the point to wait at first, and at which passing of it.

    ``options``: more arguments of the module's.
    """

    def __init__(
        self, module: str, config: Path, log: Path, pause: tuple[str, int] | None = None, *options: str
    ) -> None:
        self._log = log
        at = [pause[0], str(pause[1])] if pause is not None else []
        log.touch()
        told, self._commands = os.pipe()
        heard, said = os.pipe()
        self.process = _forking.Process(
            target=_become,
            args=(module, [str(config), *options, "--strings", *at], str(log), DupFd(told), DupFd(said)),
            daemon=True,
        )
        self.process.start()
        os.close(told)
        os.close(said)
        self._heard = os.fdopen(heard, "r")
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="puppet", daemon=True)
        self._listener.start()

    # ---- its strings -----------------------------------------------------------------------------------------

    def pause_at(self, point: str, count: int) -> None:
        """Have it wait the count-th time that it passes the point from now on."""
        self._tell(f"pause {point} {count}")

    def await_paused(self, timeout: float) -> str:
        """Wait until it waits; the point's name."""
        return self._await("paused", timeout)

    def go(self) -> None:
        """Let it go on, if it waits."""
        if self.alive:
            self._tell("go")

    def clock(self, seconds: float, timeout: float = 20.0) -> None:
        """Set its clock of day forward, or back."""
        self._tell(f"clock {seconds}")
        self._await("clock", timeout)

    def spoil(self, table: str, how: str) -> None:
        """Have it lose the next rows of the table, or apply them twice."""
        self._tell(f"spoil {table} {how}")

    def _tell(self, line: str) -> None:
        os.write(self._commands, line.encode() + b"\n")

    def _await(self, word: str, timeout: float) -> str:
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"not within {timeout:g} s: {word}; {self.log()}") from None
        assert answer.startswith(word), f"{answer or 'it ended'} instead of {word}: {self.log()}"
        return answer.removeprefix(word).strip()

    def _listen(self) -> None:
        for line in self._heard:
            self._answers.put(line.strip())
        self._answers.put("")

    # ---- the process -----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process.is_alive()

    def log(self) -> str:
        """What it has written, the last of it."""
        return self._log.read_text("utf-8", "replace")[-6000:]

    def logged(self, words: str) -> int:
        """How often it has written that."""
        return self._log.read_text("utf-8", "replace").count(words)

    def await_logged(self, words: str, times: int = 1, timeout: float = 60.0) -> None:
        """Wait until it has written that so often."""
        until(
            lambda: self.logged(words) >= times or not self.alive,
            timeout,
            lambda: f"{words!r} in the log: {self.log()}",
        )
        assert self.logged(words) >= times, f"it ended without {words!r}: {self.log()}"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self.process.pid is not None
        if self.alive:
            os.kill(self.process.pid, number)

    def await_exit(self, timeout: float = 60.0) -> int:
        """The exit code; negative for a signal."""
        self.process.join(timeout)
        code = self.process.exitcode
        assert code is not None, f"it did not end within {timeout:g} s:\n{self.log()}"
        return code

    def kill(self) -> None:
        """SIGKILL, and wait for the end. May be called twice."""
        self.process.kill()
        self.process.join()
        self._listener.join()
        if not self._heard.closed:
            self._heard.close()
            os.close(self._commands)

    def stop(self) -> None:
        """SIGTERM: it must end by itself within 10 s, with exit code 0."""
        self.signal(signal.SIGTERM)
        code = self.await_exit(15.0)
        assert code == 0, f"exit code {code} after SIGTERM: {self.log()}"
