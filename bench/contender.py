"""What takes part: it brings the source's changes to the target, or shows how fast a part of that can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import settings
from bench.contents import Pair, whole
from bench.processes import Process
from bench.servers import Servers
from bench.workloads import MARKER, Workload


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run happens. ``source``, ``target``: DSNs; the slot is there when the mode is not ``snapshot``.

    ``remote_target`` and ``remote_source``: the same, as seen from the other end, when a line with a delay lies
    between. ``start``, ``end``: positions of the log between which the changes are, as text. ``directory``: scratch.
    """

    servers: Servers
    workload: Workload
    size: int
    directory: Path
    source: str
    target: str
    remote_source: str
    remote_target: str
    start: str = ""
    end: str = ""

    @property
    def tables(self) -> tuple[str, ...]:
        """All that is published."""
        return (*self.workload.tables, MARKER)

    @property
    def log(self) -> Path:
        """Where the contender's output goes."""
        return self.directory / "output"


class Contender:
    """One of those that take part. What is here suits most; `start` is each one's own.

    ``ends``: its process ends by itself when all is done (else the target is watched). ``staged``: it has something to
    do before the changes are made, which every run then finds in its target. ``visible``: table and key column at the
    target that show which orders have arrived.
    """

    plugin = "pgoutput"
    slot = settings.RUN_SLOT
    ends = False
    staged = False
    ceiling = False
    visible = ("orders", "id")

    def __init__(self, name: str, title: str, workloads: Sequence[str]) -> None:
        self.name = name
        self.title = title
        self._workloads = frozenset(workloads)

    def takes(self, workload: Workload) -> bool:
        """Whether it is part of a whole run of that workload."""
        return workload.name in self._workloads

    def can(self, workload: Workload) -> bool:
        """Whether it can be asked for, for that workload."""
        return self.takes(workload)

    def missing(self) -> str:
        """What this machine lacks for it; "" when nothing."""
        return ""

    def stage(self, place: Place) -> None:
        """Before the changes are made. Not timed."""

    def prepare(self, place: Place) -> None:
        """Before each run. Not timed."""

    def start(self, place: Place) -> Process | None:
        """Begin to replicate. None: the servers do it, without a process of ours."""
        raise NotImplementedError

    def clean(self, place: Place) -> None:
        """After each run: remove what would keep the databases from being dropped."""

    def pairs(self, workload: Workload) -> Sequence[Pair]:
        """What of the source must be found at the target; nothing, for those that write nothing there."""
        return [whole(table) for table in workload.tables]

    def count(self, place: Place) -> int | None:
        """How many changes it has counted itself, for those that only do that."""
        return None
