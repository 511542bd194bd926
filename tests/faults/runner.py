"""Runs trials, some at a time, and loses none of them: whatever a trial raises is in its result."""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.matrix import Cell
from tests.faults.results import Kept, Result
from tests.faults.trial import Trial

#: Who ends this process with all that it started may reach a trial first: so long a failure waits to be believed.
_DOUBT = 1.0

Watch = Callable[[Trial], None]


class Runner:
    """Takes trials from a queue, in as many threads as there are workers, each with servers of its own.

    ``results``: of the trials that ran to their end. ``broken``: what went wrong outside of trials.
    """

    def __init__(
        self, directory: Path, wanted: Sequence[tuple[Cell, int]], minutes: float, kept: Kept, commit: str = ""
    ) -> None:
        self._kept = kept
        self._commit = commit
        self._directory = directory
        self._queue: queue.SimpleQueue[tuple[Cell, int]] = queue.SimpleQueue()
        for each in wanted:
            self._queue.put(each)
        self._count = len(wanted)
        self._deadline = time.monotonic() + minutes * 60
        self._lock = threading.RLock()  # a signal may come while it is held
        self._stop = threading.Event()
        self._under_way: set[Trial] = set()
        self.results: list[Result] = []
        self.broken: list[str] = []

    def run(self, workers: int) -> None:
        """Run all, or as many as the time allows. However it ends, no worker is left afterwards."""
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(workers)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            self.stop()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def stop(self) -> None:
        """Begin no more trials, end those under way, and store none of them: they say nothing."""
        self._stop.set()
        with self._lock:
            for trial in self._under_way:
                trial.abandon()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def _work(self, number: int) -> None:
        turn = 0
        try:
            while self._wanted():
                turn += 1
                directory = self._directory / f"worker-{number}-{turn}"
                directory.mkdir(mode=0o755)
                with Bench(directory) as bench:
                    self._use(bench, directory)
        except Exception:  # a worker that ends without a word would take its share of the trials with it
            if not self.stopped:
                with self._lock:
                    self.broken.append(traceback.format_exc())
                    print(self.broken[-1], flush=True)

    def _wanted(self) -> bool:
        return not self.stopped and not self._queue.empty() and time.monotonic() < self._deadline

    def _use(self, bench: Bench, directory: Path) -> None:
        """Run trials until one fails: the next one gets other servers, since nobody knows what it left."""
        while self._wanted():
            try:
                cell, seed = self._queue.get_nowait()
            except queue.Empty:
                return
            if not self._done(tried(bench, directory, cell, seed, self._watch)):
                return

    def _watch(self, trial: Trial) -> None:
        with self._lock:
            self._under_way = {trial, *(each for each in self._under_way if not each.over_and_done)}
            if self.stopped:
                trial.abandon()

    def _done(self, result: Result) -> bool:
        if self._stop.wait(0 if result.right else _DOUBT):
            return False
        with self._lock:
            result = replace(result, commit=self._commit)
            self.results.append(result)
            self._kept.add(result)
            state = "ok  " if result.right else "FAIL"
            print(
                f"{state} {len(self.results)}/{self._count} {result.cell} seed {result.seed} at {result.point}: "
                f"{result.carried:,} rows, {result.lost} lost, {result.doubled} doubled, {result.seconds:.1f} s",
                flush=True,
            )
            if not result.right:
                print(f"     {result.failure.strip()}\n     again: {result.replay}", flush=True)
        return result.right


def tried(bench: Bench, directory: Path, cell: Cell, seed: int, watch: Watch = lambda trial: None) -> Result:
    """Run one trial; what goes wrong is in the result. ``watch`` is given the trial before it begins."""
    point = cell.point(seed)
    try:
        fault = cell.fault
        trial = Trial(
            *(bench, directory, cell.phase, cell.plugin, f"{cell.name}:{seed}"),
            point=point,
            passings=fault.passings.get(cell.phase, 0),
            options=fault.options,
            standby=fault.standby,
            from_standby=fault.from_standby,
            far_behind=fault.far_behind,
            small_spool=fault.small_spool,
            prepare=fault.prepare,
        )
        point = f"{trial.point} {trial.passing}"
        watch(trial)
        outcome = trial.run(fault.hit)
    except AssertionError as error:
        return Result(cell.name, seed, failure=str(error) or traceback.format_exc(), point=point)
    except Exception:  # what a trial raises is its result, whatever it is: the matrix goes on with the next one
        return Result(cell.name, seed, failure=traceback.format_exc(), point=point)
    account = outcome.account
    return Result(
        cell.name,
        seed,
        account.carried,
        account.lost,
        account.doubled,
        outcome.seconds,
        "; ".join(account.findings[:5]),
        point,
    )
