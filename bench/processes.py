"""CPU seconds and memory of process trees, from /proc (Linux)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Entry:
    """A process: its parent, CPU seconds of its own, and those of its children that have ended and been waited for."""

    parent: int
    own: float
    reaped: float


def table() -> dict[int, Entry]:
    """Every process, by id."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := _entry(int(name))) is not None:
            found[int(name)] = entry
    return found


def _entry(pid: int) -> Entry | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything: what follows the last one is plain.
    fields = text[text.rindex(")") + 2 :].split()
    user, system, reaped_user, reaped_system = (int(field) / _TICK for field in fields[11:15])
    return Entry(int(fields[1]), user + system, reaped_user + reaped_system)


def tree(root: int, processes: Mapping[int, Entry]) -> set[int]:
    """A process and all that descend from it."""
    members = {root} & processes.keys()
    while more := {pid for pid, entry in processes.items() if entry.parent in members} - members:
        members |= more
    return members


def settled(roots: Collection[int]) -> dict[int, Entry]:
    """All processes, read again while members of the trees come and go: one that ends during a reading would count
    twice, by itself and in its parent.
    """
    processes = table()
    for _ in range(20):
        again = table()
        if all(tree(root, processes) == tree(root, again) for root in roots):
            return again
        processes = again
        time.sleep(0.01)
    return processes


def cpu(root: int, processes: Mapping[int, Entry]) -> float:
    """CPU seconds of a tree, with those of its members that have ended."""
    return sum(processes[pid].own + processes[pid].reaped for pid in tree(root, processes))


def command_line(pid: int) -> str:
    """Its command line; PostgreSQL's processes say there what they are. "" when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def memory(pid: int, field: str) -> int:
    """Bytes: ``VmHWM`` (the most that was ever resident) or ``RssAnon`` (without files and shared memory)."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


def machine() -> tuple[float, float]:
    """Seconds since boot, of all cores: busy, and stolen by the host."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    user, nice, system, _, _, irq, soft, stolen = (int(field) / _TICK for field in fields)
    return user + nice + system + irq + soft, stolen


class Process:
    """A contender's process, with its output in a file, in whose directory it is. ``cpu``: seconds, once it has ended.

    (The peak that wait4 tells is no use: it takes in what the parent had when it forked.)
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self.pid = self._process.pid
        self.cpu: float | None = None

    @property
    def status(self) -> int | None:
        """The exit status, once it has ended."""
        if self._process.returncode is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._process.returncode = os.waitstatus_to_exitcode(status)
                self.cpu = usage.ru_utime + usage.ru_stime
        return self._process.returncode

    def wait(self, timeout: float) -> int | None:
        """The exit status, or None when it has not ended in time."""
        deadline = time.monotonic() + timeout
        while self.status is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.status

    def stop(self, patience: float = 30.0) -> None:
        """SIGTERM to its group, then SIGKILL."""
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 10.0)):
            if self.status is None:
                os.killpg(self.pid, number)
                self.wait(seconds)

    def output(self, lines: int = 15) -> str:
        """The last lines of what it has written."""
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-lines:])
