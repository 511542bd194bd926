"""What came out of the trials, by cell."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

#: In place of a name for what is not committed.
CHANGED = "+"


@dataclass(frozen=True, slots=True)
class Result:
    """One trial. ``failure``: what was not as it must be; "" when nothing was. ``point``: where the fault
    struck, and at which passing of it. ``commit``: of which state of the code it tells.
    """

    cell: str
    seed: int
    carried: int = 0
    lost: int = 0
    doubled: int = 0
    seconds: float = 0.0
    failure: str = ""
    point: str = ""
    commit: str = ""

    @property
    def right(self) -> bool:
        """Nothing lost, nothing twice, and all else as it must be."""
        return not (self.failure or self.lost or self.doubled)

    @property
    def replay(self) -> str:
        """The command that runs it again."""
        return f'make faults FAULTS_ARGS="--cell {self.cell} --seed {self.seed}"'


class Kept:
    """Results in a file, a line of JSON each, so that a run that was interrupted can go on. None for no file.

    Only what still tells something is read: of the same commit, and right. What failed is run again.
    """

    def __init__(self, path: Path | None, commit: str) -> None:
        self._path = path
        self._commit = commit

    def read(self) -> list[Result]:
        """What is there, and holds."""
        if self._path is None or not self._path.exists():
            return []
        results = []
        for line in self._path.read_text("utf-8").splitlines():
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError):  # the end of a run that was killed, or of another version of this
                continue
            if result.right and result.commit == self._commit and CHANGED not in result.commit:
                results.append(result)
        return results

    def add(self, result: Result) -> None:
        """Append one."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(result)) + "\n")


def commit_of(root: Path) -> str:
    """The commit that is checked out; marked as changed when the code is not that of any commit; "" without git."""
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--", "daemon", "transforms", "tests")
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + (CHANGED if changed else "")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()


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
