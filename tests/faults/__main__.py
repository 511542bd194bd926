"""Runs the fault matrix: `make faults`.

    python -m tests.faults [--cell FAULT[/PHASE[/PLUGIN]]]... [--seed N] [--runs N] [--workers N] [--minutes N]
        [--page FILE] [--results FILE]

Without ``--cell`` all cells are run and docs/RELIABILITY.md is written. Exit code 1: some trial was not as it must be.
"""

from __future__ import annotations

import argparse
import os
import queue
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psycopg

from tests.faults.bench import Bench
from tests.faults.matrix import FAULTS, Cell, cells
from tests.faults.page import Run, write
from tests.faults.phases import PLUGINS, Phase
from tests.faults.results import Kept, Result, Sum
from tests.faults.trial import Trial
from towline.demo.scratch import Scratch
from towline.demo.server import ServerFailed
from towline.errors import TowlineError

#: What a trial may raise beside assertions: the matrix goes on with the next one, and says what happened.
FAILURES = (psycopg.Error, OSError, TowlineError, ServerFailed, subprocess.SubprocessError)
PAGE = Path(__file__).parents[2] / "docs" / "RELIABILITY.md"


class Runner:
    """Takes trials from a queue, in as many threads as there are workers, each with servers of its own."""

    def __init__(self, directory: Path, wanted: Sequence[tuple[Cell, int]], minutes: float, kept: Kept) -> None:
        self._kept = kept
        self._directory = directory
        self._queue: queue.SimpleQueue[tuple[Cell, int]] = queue.SimpleQueue()
        for each in wanted:
            self._queue.put(each)
        self._count = len(wanted)
        self._deadline = time.monotonic() + minutes * 60
        self._lock = threading.Lock()
        self.results: list[Result] = []
        self.versions: dict[str, str] = {}

    def run(self, workers: int) -> None:
        """Run all, or as many as the time allows."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _work(self, number: int) -> None:
        directory = self._directory / f"worker-{number}"
        directory.mkdir(mode=0o755)
        with Bench(directory) as bench:
            if number == 0:
                self.versions = bench.versions()
            while time.monotonic() < self._deadline:
                try:
                    cell, seed = self._queue.get_nowait()
                except queue.Empty:
                    return
                self._done(tried(bench, directory, cell, seed))

    def _done(self, result: Result) -> None:
        with self._lock:
            self.results.append(result)
            self._kept.add(result)
            state = "ok  " if result.right else "FAIL"
            print(
                f"{state} {len(self.results)}/{self._count} {result.cell} seed {result.seed}: {result.carried:,} rows, "
                f"{result.lost} lost, {result.doubled} doubled, {result.seconds:.1f} s",
                flush=True,
            )
            if not result.right:
                print(f"     {result.failure.strip()}\n     again: {result.replay}", flush=True)


def tried(bench: Bench, directory: Path, cell: Cell, seed: int) -> Result:
    """Run one trial; what goes wrong is in the result."""
    try:
        outcome = Trial(bench, directory, cell.phase, cell.plugin, seed, cell.fault.options, cell.fault.standby).run(
            cell.fault.hit
        )
    except AssertionError as error:
        return Result(cell.name, seed, failure=str(error) or "an assertion without a message")
    except FAILURES:
        return Result(cell.name, seed, failure=traceback.format_exc())
    account = outcome.account
    return Result(
        cell.name,
        seed,
        account.carried,
        account.lost,
        account.doubled,
        outcome.seconds,
        "; ".join(account.findings[:5]),
    )


def _turn(wanted: tuple[Cell, int]) -> tuple[int, int, int]:
    """Round after round, each fault in another phase: a run that is cut short has tried every fault."""
    cell, seed = wanted
    phases = list(Phase)
    turn = (phases.index(cell.phase) + FAULTS.index(cell.fault)) % len(phases)
    return seed, PLUGINS.index(cell.plugin), turn


def main(arguments: Sequence[str]) -> int:
    """See the module. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--cell", action="append", default=[], metavar="FAULT[/PHASE[/PLUGIN]]", help="with wildcards")
    parser.add_argument("--seed", type=int, default=1, help="of the first run of each cell")
    parser.add_argument("--runs", type=int, default=1, help="of each cell, each with the next seed")
    parser.add_argument("--workers", type=int, default=3, help="trials at a time, each with servers of its own")
    parser.add_argument("--minutes", type=float, default=120.0, help="begin no trial later than that")
    parser.add_argument("--page", type=Path, help="write the page there")
    parser.add_argument("--results", type=Path, help="keep results there; those that are there are not run again")
    parser.add_argument("--note", default="", help="a sentence about the run, for the page")
    options = parser.parse_args(arguments)
    kept = Kept(options.results)
    before = kept.read()
    seeds = tuple(range(options.seed, options.seed + options.runs))
    chosen = [cell for cell in cells(options.cell) if not cell.fault.root or os.geteuid() == 0]
    if not chosen:
        parser.error("no cell is of that name: FAULT, FAULT/PHASE or FAULT/PHASE/PLUGIN")
    there = {(result.cell, result.seed) for result in before}
    wanted = [(cell, seed) for seed in seeds for cell in chosen if (cell.name, seed) not in there]
    wanted.sort(key=_turn)
    begun = time.monotonic()
    with Scratch() as directory:
        runner = Runner(directory, wanted, options.minutes, kept)
        runner.run(options.workers)
    results, minutes = before + runner.results, (time.monotonic() - begun) / 60
    total = Sum.of(results)
    print(
        f"{len(runner.results)} of {len(wanted)} trials in {minutes:.1f} minutes; all {total.runs} results: "
        f"{total.carried:,} rows, {total.lost} lost, {total.doubled} doubled, {total.failures} not as they must be"
    )
    path = options.page or (PAGE if not options.cell else None)
    if path is not None:
        left_out = "the time was up" if len(runner.results) < len(wanted) else "it needs root" if os.geteuid() else ""
        run = Run(
            date=datetime.now(UTC).date().isoformat(),
            version=version("towline"),
            versions=runner.versions,
            machine=f"{os.cpu_count()} cores",
            seeds=seeds,
            note=options.note,
            left_out=left_out,
        )
        write(path, run, results)
    return 1 if total.failures or len(runner.results) < len(wanted) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
