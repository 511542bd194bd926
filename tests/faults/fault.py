"""What a row of the matrix is: a fault, the cells in which it makes sense, and why it does not in the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.faults.phases import Phase
from tests.faults.trial import Trial

#: Why a cell is empty: the mark in the table, and what the legend says of it.
REASONS: Mapping[str, str] = {
    "a": "no chunk is read in this phase",
    "b": "it would not meet verify, only the daemon: that is what the other columns show",
    "d": "those of verify have rows of their own",
    "e": "PostgreSQL sends transactions that are under way with pgoutput only",
    "f": "not tried: the standby has no copy of the slot yet, or verify ends with the server that it reads from",
    "h": "wal2json reads no publication",
    "i": "verify does not run in this phase",
    "j": "tried while it is streamed: later the transaction has ended",
    "g": "the source for wal2json is PostgreSQL 15, and slots are copied to standbys from 17 on",
    "k": "the source for wal2json is PostgreSQL 15, and standbys decode from 16 on",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault. ``name``: for the command line. ``group`` and ``title``: for the page.

    ``hit`` puts it in while someone waits at the phase's point, lets that go on (`Trial.go`), ends it and says so
    (`Trial.over`). ``empty``: the phases in which there is nothing to try, with the mark of `REASONS`. ``wal2json``:
    the mark of that plugin's cells where it cannot be tried with it. ``options``: what the pipeline file says under
    ``defaults``. ``passings``: by phase, at one of how many passings of its point it is put in, when later ones would
    not meet what it changes. ``standby``: its source has one, with a copy of the slot; ``from_standby``: the daemon
    reads from one. ``far_behind``: the daemon reads the log through SQL when it strikes. ``root``: it mounts a file
    system. ``small_spool``: the daemon's spool is on one of 1 MB. ``prepare``: what it needs before the pipeline is set
    up.
    """

    name: str
    group: str
    title: str
    hit: Callable[[Trial], None]
    empty: Mapping[Phase, str] = field(default_factory=dict)
    wal2json: str = ""
    options: str = ""
    passings: Mapping[Phase, int] = field(default_factory=dict)
    standby: bool = False
    from_standby: bool = False
    far_behind: bool = False
    root: bool = False
    small_spool: bool = False
    prepare: Callable[[Trial], None] | None = None

    def reason(self, phase: Phase, plugin: str) -> str:
        """The mark of a cell that is empty; "" for one that is to be run."""
        return (self.wal2json if plugin == "wal2json" else "") or self.empty.get(phase, "")

    def points(self, phase: Phase) -> tuple[str, ...]:
        """Where it may strike in the phase. While tables are copied the whole backlog comes with the first chunk."""
        return phase.points[:1] if self.far_behind and phase is Phase.SNAPSHOT else phase.points
