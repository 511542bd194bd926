"""All faults, all cells, and which of them an expression chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from tests.faults import (
    of_backlogs,
    of_daemon,
    of_lines,
    of_pairs,
    of_rows,
    of_schemas,
    of_servers,
    of_standbys,
    of_starts,
    of_verify,
)
from tests.faults.fault import Fault
from tests.faults.phases import PLUGINS, Phase

_ALL = (
    *(*of_daemon.FAULTS, *of_verify.FAULTS, *of_lines.FAULTS, *of_servers.FAULTS, *of_pairs.FAULTS),
    *(*of_backlogs.FAULTS, *of_starts.FAULTS, *of_schemas.FAULTS, *of_rows.FAULTS, *of_standbys.FAULTS),
)
_GROUPS = list(dict.fromkeys(fault.group for fault in _ALL))
#: In the order of the page: group by group.
FAULTS: tuple[Fault, ...] = tuple(sorted(_ALL, key=lambda fault: _GROUPS.index(fault.group)))


@dataclass(frozen=True, slots=True)
class Cell:
    """A fault in a phase, with a plugin."""

    fault: Fault
    phase: Phase
    plugin: str

    @property
    def name(self) -> str:
        """As the command line takes it."""
        return f"{self.fault.name}/{self.phase}/{self.plugin}"

    def point(self, seed: int) -> str:
        """Where the fault strikes: the points of a phase take turns, from row to row and from seed to seed."""
        points = self.fault.points(self.phase)
        return points[(FAULTS.index(self.fault) + PLUGINS.index(self.plugin) + seed) % len(points)]

    @property
    def reason(self) -> str:
        """The mark of a cell in which there is nothing to try; "" for others."""
        return self.fault.reason(self.phase, self.plugin)


def cells(chosen: Sequence[str] = ()) -> Iterator[Cell]:
    """The cells that are to be run; ``chosen``: patterns of names, FAULT[/PHASE[/PLUGIN]], one of which must match."""
    for fault in FAULTS:
        for phase in Phase:
            for plugin in PLUGINS:
                cell = Cell(fault, phase, plugin)
                if not cell.reason and (not chosen or any(_matches(cell, pattern) for pattern in chosen)):
                    yield cell


def _matches(cell: Cell, pattern: str) -> bool:
    parts = pattern.split("/")
    return all(fnmatchcase(each, part) for each, part in zip(cell.name.split("/"), parts, strict=False))
