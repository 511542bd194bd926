"""What a run uses: CPU seconds of contender, source and target, split by kind of server process, and memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from bench import processes, settings
from bench.processes import Entry, Process

#: Part of a server process's title, and what it is called in results.
_KINDS = (
    ("walsender", "walsender"),
    ("tablesync", "tablesync worker"),
    ("parallel apply", "apply worker"),
    ("parallel worker", "parallel worker"),
    ("autovacuum", "autovacuum"),
    ("checkpointer", "checkpointer"),
    ("background writer", "background writer"),
    ("walwriter", "walwriter"),
    ("launcher", "launcher"),
)


@dataclass(frozen=True, slots=True)
class Used:
    """CPU seconds by part (consumer, source, target, harness) and by server process (``target apply worker``).

    ``peak``: bytes, the sum of the peaks of the contender's processes. ``anonymous``: peak bytes without shared memory,
    by server process. ``foreign``: cores that others used meanwhile, or the host took.
    """

    cpu: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)
    peak: int = 0
    anonymous: Mapping[str, int] = field(default_factory=dict)
    foreign: float = 0.0


class Meter:
    """Measures from its making to `stop`. ``roots``: pids of the postmasters, by name."""

    def __init__(self, roots: Mapping[str, int], ours: Collection[int], interval: float = 0.5) -> None:
        self._roots = dict(roots)
        self._ours = frozenset(ours)
        self._interval = interval
        self._consumer: Process | None = None
        self._consumer_base = 0.0
        self._peaks: dict[int, int] = {}
        self._anonymous: dict[str, int] = {}
        self._kind: dict[int, str] = {}
        self._last: dict[tuple[str, int], float] = {}
        found = processes.settled([os.getpid(), *self._roots.values()])
        self._base = {name: processes.cpu(pid, found) for name, pid in self._roots.items()}
        self._whole = processes.cpu(os.getpid(), found)
        self._first = {
            (name, pid): found[pid].own for name, root in self._roots.items() for pid in processes.tree(root, found)
        }
        self._machine = processes.machine()
        self._began = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="meter", daemon=True)
        self._thread.start()

    def watch(self, consumer: Process | None) -> None:
        """The contender's process: just started, or (with a steady load) running already. None: it has none."""
        if consumer is not None:
            self._consumer_base = processes.cpu(consumer.pid, processes.table())
        self._consumer = consumer

    def stop(self) -> Used:
        """End measuring."""
        self._over.set()
        self._thread.join()
        found = processes.settled([os.getpid(), *self._roots.values()])
        self._sample(found)
        seconds = time.monotonic() - self._began
        busy, stolen = (now - then for now, then in zip(processes.machine(), self._machine, strict=True))
        cpu = {name: processes.cpu(pid, found) - self._base[name] for name, pid in self._roots.items()}
        # The servers are children of ours (through their guards), as the contender is, and pgbench.
        whole = processes.cpu(os.getpid(), found) - self._whole
        cpu["consumer"] = self._consumer_cpu(found)
        cpu["harness"] = max(0.0, whole - sum(cpu.values()))
        kinds: dict[str, float] = {}
        for (name, pid), used in self._last.items():
            key = f"{name} {self._kind[pid]}"
            kinds[key] = kinds.get(key, 0.0) + used
        return Used(
            {name: round(used, 2) for name, used in cpu.items()},
            {name: round(used, 2) for name, used in sorted(kinds.items()) if used >= 0.05},
            sum(self._peaks.values()),
            dict(sorted(self._anonymous.items())),
            round((max(0.0, busy - whole) + stolen) / seconds, 2),
        )

    def _consumer_cpu(self, found: Mapping[int, Entry]) -> float:
        consumer = self._consumer
        if consumer is None:
            return 0.0
        used = consumer.cpu if consumer.status is not None else processes.cpu(consumer.pid, found)
        return (used or 0.0) - self._consumer_base

    def _watch(self) -> None:
        while not self._over.wait(self._interval):
            self._sample(processes.table())

    def _sample(self, found: Mapping[int, Entry]) -> None:
        if (consumer := self._consumer) is not None:
            for pid in processes.tree(consumer.pid, found):
                self._peaks[pid] = max(self._peaks.get(pid, 0), processes.memory(pid, "VmHWM"))
        for name, root in self._roots.items():
            for pid in processes.tree(root, found):
                title = processes.command_line(pid)
                if title or pid not in self._kind:
                    self._kind[pid] = "harness" if pid in self._ours else kind(title)
                self._last[name, pid] = found[pid].own - self._first.setdefault((name, pid), 0.0)
                key = f"{name} {self._kind[pid]}"
                self._anonymous[key] = max(self._anonymous.get(key, 0), processes.memory(pid, "RssAnon"))


def kind(title: str) -> str:
    """What a server process is, from its title."""
    for part, name in _KINDS:
        if part in title:
            return name
    if "logical replication" in title and "worker" in title:
        return "tablesync worker" if " sync " in title else "apply worker"
    return "backends" if title else "ended"


def await_quiet(patience: float) -> None:
    """Wait, not for ever, until others leave the machine alone."""
    deadline = time.monotonic() + patience
    before = processes.machine()
    while time.monotonic() < deadline:
        time.sleep(0.5)
        now = processes.machine()
        if (sum(now) - sum(before)) / 0.5 <= settings.MAX_FOREIGN:
            return
        before = now
