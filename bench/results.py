"""What came out of the runs: a line of JSON each, so that a run that was interrupted can go on."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.settings import MAX_FOREIGN


@dataclass(frozen=True, slots=True)
class Result:
    """One run of one contender.

    ``seconds``: until the target held the last change; ``reading``: until a slot was read; ``first``: until the target
    held the first change. ``cpu``: seconds by part (consumer, source, target, harness); ``kinds``: by server process.
    ``peak`` and ``anonymous``: bytes. ``latency``: milliseconds by quantile. ``more``: what only some runs have.
    ``failure``: why the run does not count, "" when it does.
    """

    workload: str
    contender: str
    round: int
    scale: float
    size: int
    changes: int
    failure: str = ""
    seconds: float = 0.0
    reading: float | None = None
    first: float | None = None
    cpu: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)
    peak: int = 0
    anonymous: Mapping[str, int] = field(default_factory=dict)
    latency: Mapping[str, float] = field(default_factory=dict)
    foreign: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""
    server: str = ""
    transport: str = ""

    @property
    def key(self) -> tuple[str, str, int, float, str, str]:
        """Which run it is."""
        return self.workload, self.contender, self.round, self.scale, self.server.split(".")[0], self.transport

    @property
    def rate(self) -> float:
        """Changes a second."""
        return self.changes / self.seconds if self.seconds else 0.0

    @property
    def pace(self) -> float:
        """Changes a second, from when the slot is read: without the start."""
        seconds = self.seconds - (self.reading or 0.0)
        return self.changes / seconds if seconds > 0 else 0.0

    @property
    def disturbed(self) -> bool:
        """Whether others took too much of the machine meanwhile."""
        return self.foreign > MAX_FOREIGN

    def micros(self, part: str) -> float:
        """Microseconds of CPU a change, of ``consumer``, ``source`` or ``target``."""
        return 1e6 * self.cpu.get(part, 0.0) / self.changes if self.changes else 0.0


class Kept:
    """Results in a file. None: in no file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def read(self) -> list[Result]:
        """What is there."""
        if self._path is None or not self._path.exists():
            return []
        return [Result(**json.loads(line)) for line in self._path.read_text("utf-8").splitlines()]

    def add(self, result: Result) -> None:
        """Append one."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of some runs."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, results: Iterable[Result], pick: Callable[[Result], float | None]) -> Spread | None:
        """Of what ``pick`` finds in each; None when it finds nothing."""
        values = [value for result in results if (value := pick(result)) is not None]
        return cls(statistics.median(values), min(values), max(values)) if values else None


def counted(results: Iterable[Result]) -> Sequence[Result]:
    """Those that count: that did not fail, and that were not disturbed, when there are others."""
    right = [result for result in results if not result.failure]
    quiet = [result for result in right if not result.disturbed]
    return quiet if len(quiet) >= (len(right) + 1) // 2 else right


def grouped(results: Iterable[Result]) -> dict[str, dict[str, list[Result]]]:
    """By workload, then by contender, in the order in which they came first."""
    groups: dict[str, dict[str, list[Result]]] = {}
    for result in results:
        groups.setdefault(result.workload, {}).setdefault(result.contender, []).append(result)
    return groups
