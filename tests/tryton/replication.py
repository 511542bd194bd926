"""Towline as an admin runs it, by its command line, with a daemon that is killed at random."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from towline.position import parse_lsn

TOWLINE = (sys.executable, "-m", "towline")
#: Seconds between two kills. The first ones meet the snapshot, which takes some ten seconds.
PAUSE = (1.0, 8.0)
STOPS_WITHIN = 10.0


class Replication:
    """One pipeline file, and at most one daemon of it."""

    def __init__(self, config: Path) -> None:
        self._config = config
        self._log = config.with_suffix(".log")
        self._daemon: subprocess.Popen[bytes] | None = None
        self.kills = 0

    def command(self, verb: str, *arguments: str, expect: Sequence[int] = (0,)) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end; its exit code must be one of ``expect``."""
        done = subprocess.run(
            [*TOWLINE, verb, str(self._config), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode in expect, f"towline {verb} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        return done

    def status(self) -> Any:
        """The fields of ``towline status --json``."""
        return json.loads(self.command("status", "--json").stdout)

    def start(self) -> None:
        """Start the daemon."""
        with self._log.open("ab") as log:
            self._daemon = subprocess.Popen([*TOWLINE, "run", str(self._config)], stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL the daemon, which must still run: nothing but us may end it."""
        daemon = self._running()
        daemon.kill()
        daemon.wait()
        self.kills += 1

    def stop(self) -> int:
        """SIGTERM the daemon; its exit code."""
        daemon = self._running()
        daemon.send_signal(signal.SIGTERM)
        return daemon.wait(STOPS_WITHIN)

    def end(self) -> None:
        """Let nothing go on, whatever happened."""
        if self._daemon is not None and self._daemon.poll() is None:
            self._daemon.kill()
            self._daemon.wait()

    def harass(self, work: subprocess.Popen[Any], chance: random.Random) -> None:
        """Kill and start the daemon again and again until ``work`` has ended."""
        while True:
            try:
                work.wait(chance.uniform(*PAUSE))
                return
            except subprocess.TimeoutExpired:
                self.kill()
                self.start()

    def caught_up(self, position: int) -> bool:
        """Whether every route streams and everything before ``position`` is durable at the target."""
        self._running()
        status = self.status()
        streaming = all(route["state"] == "streaming" for route in status["routes"])
        return streaming and parse_lsn(status["checkpoint"]["position"]) >= position

    def log_tail(self) -> str:
        """The end of the daemon's log."""
        return self._log.read_text("utf-8", "replace")[-4000:] if self._log.exists() else ""

    def _running(self) -> subprocess.Popen[bytes]:
        daemon = self._daemon
        assert daemon is not None
        assert daemon.poll() is None, f"the daemon ended by itself with {daemon.returncode}:\n{self.log_tail()}"
        return daemon
