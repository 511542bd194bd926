"""Runs the fault matrix: `make faults`.

    python -m tests.faults [--cell FAULT[/PHASE[/PLUGIN]]]... [--seed N] [--runs N] [--workers N] [--minutes N]
        [--page FILE] [--results FILE] [--list]

Without ``--cell``, and when every trial was run, docs/RELIABILITY.md is written; ``--page`` writes what there is
elsewhere. Exit code 1: some trial was not as it must be, or was not run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from tests.faults.bench import versions
from tests.faults.matrix import FAULTS, Cell, cells
from tests.faults.page import Run, expected, write
from tests.faults.phases import PLUGINS, Phase
from tests.faults.results import Kept, Sum, commit_of
from tests.faults.runner import Runner
from towline.demo.scratch import Scratch

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "RELIABILITY.md"


def _turn(wanted: tuple[Cell, int]) -> tuple[int, int, int]:
    """Round after round, each fault in another phase: a run that is cut short has tried every fault."""
    cell, seed = wanted
    phases = list(Phase)
    turn = (phases.index(cell.phase) + FAULTS.index(cell.fault)) % len(phases)
    return seed, PLUGINS.index(cell.plugin), turn


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--cell", action="append", default=[], metavar="FAULT[/PHASE[/PLUGIN]]", help="with wildcards")
    parser.add_argument("--seed", type=int, default=1, help="of the first run of each cell")
    parser.add_argument("--runs", type=int, default=1, help="of each cell, each with the next seed")
    parser.add_argument("--workers", type=int, default=4, help="trials at a time, each with servers of its own")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no trial later than that")
    parser.add_argument("--page", type=Path, help="write the page there")
    parser.add_argument(
        "--results", type=Path, help="keep results there; what was right there, of this commit, is not run again"
    )
    parser.add_argument("--note", default="", help="a sentence about the run, for the page")
    parser.add_argument("--list", action="store_true", help="name the cells")
    return parser


def main(arguments: Sequence[str]) -> int:
    """See the module. Returns the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    root = os.geteuid() == 0
    named = list(cells(options.cell))
    chosen = [cell for cell in named if root or not cell.fault.root]
    if not named:
        parser.error("no cell is of that name: FAULT, FAULT/PHASE or FAULT/PHASE/PLUGIN; --list names them")
    if options.list:
        print("\n".join(cell.name + (" (as root)" if cell.fault.root else "") for cell in named))
        return 0
    if not chosen:
        parser.error(f"only root can run it: {', '.join(sorted({cell.fault.name for cell in named}))} mounts a tmpfs")
    seeds = tuple(range(options.seed, options.seed + options.runs))
    wanted = sorted(((cell, seed) for seed in seeds for cell in chosen), key=_turn)
    commit = commit_of(ROOT)
    kept = Kept(options.results, commit)
    before = {(result.cell, result.seed): result for result in kept.read()}
    there = [before[cell.name, seed] for cell, seed in wanted if (cell.name, seed) in before]
    left = [(cell, seed) for cell, seed in wanted if (cell.name, seed) not in before]
    run = Run(
        date=datetime.now(UTC).date().isoformat(),
        version=version("towline"),
        versions=versions(),
        machine=f"{os.cpu_count()} cores",
        seeds=seeds,
        note=options.note,
        left_out="" if root else "it takes root",
        commit=commit,
    )
    begun = time.monotonic()
    with Scratch() as directory:
        runner = Runner(directory, left, options.minutes, kept, commit)
        with _ended_by_signals(runner):
            runner.run(options.workers)
    results, minutes = there + runner.results, (time.monotonic() - begun) / 60
    total = Sum.of(results)
    print(
        f"{len(runner.results)} of {len(left)} trials in {minutes:.1f} minutes; all {total.runs} results: "
        f"{total.carried:,} rows, {total.lost} lost, {total.doubled} doubled, {total.failures} not as they must be"
    )
    all_run = len(results) == len(wanted)
    path = options.page or (PAGE if not options.cell and all_run else None)
    if path is not None:
        write(path, run, results)
        print(f"{path} was written: {len({each.cell for each in results})} of {len(expected())} cells")
    elif not options.cell:
        print(f"{PAGE} was left as it is: not every trial was run")
    return 1 if total.failures or runner.broken or not all_run else 0


@contextmanager
def _ended_by_signals(runner: Runner) -> Iterator[None]:
    """The first SIGINT or SIGTERM ends the run in good order; a second one does what it always does."""
    before: dict[signal.Signals, Any] = {}

    def end(number: int, frame: FrameType | None) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        print("ending; no trial that is under way is kept", flush=True)
        runner.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
