"""A process of the daemon, or of verify, whose strings the harness holds: see `tests.fault.strings`."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.support.wait import until

ROOT = Path(__file__).parents[2]


class Puppet:
    """``module`` run on a pipeline file; ``pause``: the point to wait at first, and at which passing of it."""

    def __init__(self, module: str, config: Path, log: Path, pause: tuple[str, int] | None = None) -> None:
        self._log = log
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
        at = [pause[0], str(pause[1])] if pause is not None else []
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, str(config), "--strings", *at],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
            )
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
        if self.process.poll() is None:
            self._tell("go")

    def clock(self, seconds: float, timeout: float = 20.0) -> None:
        """Set its clock of day forward, or back."""
        self._tell(f"clock {seconds}")
        self._await("clock", timeout)

    def spoil(self, table: str, how: str) -> None:
        """Have it lose the next rows of the table, or apply them twice."""
        self._tell(f"spoil {table} {how}")

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def _await(self, word: str, timeout: float) -> str:
        try:
            answer = self._answers.get(timeout=timeout)
        except queue.Empty:
            raise AssertionError(f"not within {timeout:g} s: {word}; {self.log()}") from None
        assert answer.startswith(word), f"{answer or 'it ended'} instead of {word}: {self.log()}"
        return answer.removeprefix(word).strip()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(line.decode().strip())
        self._answers.put("")

    # ---- the process -----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return self.process.poll() is None

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
        self.process.send_signal(number)

    def await_exit(self, timeout: float = 60.0) -> int:
        """The exit code; negative for a signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end within {timeout:g} s:\n{self.log()}") from None

    def kill(self) -> None:
        """SIGKILL, and wait for the end. May be called twice."""
        if self.alive:
            self.signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue

    def stop(self) -> None:
        """SIGTERM: it must end by itself within 10 s, with exit code 0."""
        self.signal(signal.SIGTERM)
        code = self.await_exit(15.0)
        assert code == 0, f"exit code {code} after SIGTERM: {self.log()}"
