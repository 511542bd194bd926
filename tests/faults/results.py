"""What came out of the trials, by cell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Result:
    """One trial. ``failure``: what was not as it must be; "" when nothing was."""

    cell: str
    seed: int
    carried: int = 0
    lost: int = 0
    doubled: int = 0
    seconds: float = 0.0
    failure: str = ""

    @property
    def right(self) -> bool:
        """Nothing lost, nothing twice, and all else as it must be."""
        return not (self.failure or self.lost or self.doubled)

    @property
    def replay(self) -> str:
        """The command that runs it again."""
        return f'make faults FAULTS_ARGS="--cell {self.cell} --seed {self.seed}"'


class Kept:
    """Results in a file, a line of JSON each, so that a run that was interrupted can go on. None for no file."""

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
class Sum:
    """All trials of a cell, or of all cells. ``seconds``: the longest."""

    runs: int
    carried: int
    lost: int
    doubled: int
    seconds: float
    failures: int

    @classmethod
    def of(cls, results: Iterable[Result]) -> Sum:
        """Add up."""
        all_of = list(results)
        return cls(
            runs=len(all_of),
            carried=sum(each.carried for each in all_of),
            lost=sum(each.lost for each in all_of),
            doubled=sum(each.doubled for each in all_of),
            seconds=max((each.seconds for each in all_of), default=0.0),
            failures=sum(not each.right for each in all_of),
        )


def by_cell(results: Iterable[Result]) -> Mapping[str, Sum]:
    """The sums of each cell that was tried, by its name."""
    grouped: dict[str, list[Result]] = {}
    for result in results:
        grouped.setdefault(result.cell, []).append(result)
    return {name: Sum.of(group) for name, group in grouped.items()}
