"""The real `towline` command, as a process of its own, on the demo's pipeline file."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from towline.demo import guard


class Towline:
    """Runs verbs with the pipeline file ``file``; the daemon's log goes to the file ``log``."""

    def __init__(self, file: Path, log: Path) -> None:
        self._file = file
        self._log = log
        self._daemon: subprocess.Popen[bytes] | None = None

    def verb(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end; its output, stderr included, is the result's ``stdout``."""
        return subprocess.run(
            self._command(name),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            start_new_session=True,  # Ctrl-C in the terminal is for the demo
        )

    def start(self) -> None:
        """Start the daemon. It ends with this process, however that ends."""
        with open(self._log, "ab") as log:
            self._daemon = subprocess.Popen(
                [sys.executable, "-I", "-S", guard.__file__, "-1", "-1", "", *self._command("run")],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the daemon is there."""
        return self._daemon is not None and self._daemon.poll() is None

    def stop(self, timeout: float = 15.0) -> int:
        """Stop the daemon with SIGTERM, as a service manager would; returns its exit code. May be called twice."""
        daemon = self._daemon
        if daemon is None:
            return 0
        daemon.terminate()
        with suppress(subprocess.TimeoutExpired):  # closing the guard's input ends it, whatever it does
            daemon.wait(timeout)
        if daemon.stdin is not None:
            daemon.stdin.close()
        return daemon.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines that the daemon wrote."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    def _command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "towline", verb, str(self._file)]
