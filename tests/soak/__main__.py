"""The long run: `make soak`.

    python -m tests.soak [--histories N] [--fuzz-minutes N] [--states N] [--seed N] [--workers N] [--minutes N]
                         [--page FILE] [--only PREFIX]... [--job NAME --job-seed N]

Each job has a process of its own, which ends with this one however that ends, and servers if it needs some. ``--only
model`` leaves the others out; ``--job`` does one in this process, as a failed one says it is to be repeated, with its
bounds. docs/RELIABILITY.md is written after a run of everything with bounds as they are, another file whenever
``--page`` names it. Exit code 1: something did not hold, or was not run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.faults.results import commit_of
from tests.soak import jobs
from tests.soak.jobs import Bounds, Outcome
from tests.soak.page import HISTORIES, Soak, markdown, replay, write

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "RELIABILITY.md"
DEFAULTS = Bounds(seconds=600, states=150_000)
#: A job that takes longer hangs (seconds, on any machine).
HANGS = 3600.0
#: What a job that fails has said last is shown, and kept (characters).
TAIL = 6000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="The long run of Towline's tests.")
    parser.add_argument("--histories", type=int, default=HISTORIES, help="generated histories, in all")
    parser.add_argument("--fuzz-minutes", type=float, default=DEFAULTS.seconds / 60, help="minutes of fuzzing, in all")
    parser.add_argument("--states", type=int, default=DEFAULTS.states, help="histories told of a case of the model")
    parser.add_argument("--seed", type=int, default=None, help="of everything that is generated (random)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs at a time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no more histories after so long")
    parser.add_argument("--page", type=Path, default=None, help="write the result between the markers of this file")
    parser.add_argument("--only", action="append", default=[], metavar="PREFIX", help="jobs whose names begin so")
    parser.add_argument("--list", action="store_true", help="name the jobs")
    parser.add_argument("--job", help="do this one, here")
    parser.add_argument("--job-seed", type=int, default=1)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, default=math.inf, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    names = jobs.names(given.histories)
    if given.list:
        print("\n".join(names))
        return 0
    wanted = [name for name in names if not given.only or name.startswith(tuple(given.only))]
    fuzzing = sum(1 for name in names if name.startswith("fuzz/"))
    bounds = Bounds(given.fuzz_minutes * 60 / fuzzing, given.states, given.until)
    if given.child:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if given.job:
        return _one(given.job, given.histories, given.job_seed, bounds, given.result)
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1 << 31)
    whole = not given.only and (given.histories, given.fuzz_minutes, given.states, given.minutes) == (
        *(HISTORIES, DEFAULTS.seconds / 60, DEFAULTS.states, math.inf),
    )
    given.until = time.time() + given.minutes * 60
    print(f"{len(wanted)} jobs, {given.workers} at a time, seed {seed}", flush=True)
    began = time.monotonic()
    outcomes = _all(wanted, seed, given)
    soak = Soak(
        sorted(outcomes, key=lambda outcome: wanted.index(outcome.job)),
        seed,
        datetime.now(UTC).date().isoformat(),
        (time.monotonic() - began) / 60,
        os.cpu_count() or 1,
        version("towline"),
        commit=commit_of(ROOT),
        wanted=tuple(names),
        bounded=not whole and not given.only,
        bounds=f"--histories {given.histories} --states {given.states} --fuzz-minutes {given.fuzz_minutes:g}",
    )
    print("\n" + markdown(soak))
    page = given.page or (PAGE if whole and not soak.left_out else None)
    if page is not None:
        write(page, soak)
    return 1 if soak.failures or len(outcomes) < len(wanted) else 0


def _end_with_parent() -> None:
    """Whoever started this process holds its standard input open, and lives no more when that ends."""
    while os.read(0, 4096):
        pass
    os._exit(1)  # a server that it has started ends with it


def _one(job: str, total: int, seed: int, bounds: Bounds, result: Path | None) -> int:
    if job not in jobs.names(total):
        print(f"there is no job {job!r}; --list names them", file=sys.stderr)
        return 2
    outcome = jobs.run(job, seed, bounds)
    print(outcome.figures, flush=True)
    if result is not None:
        result.write_text(json.dumps(outcome.as_json()), "utf-8")
    return 0


def _all(wanted: Sequence[str], seed: int, given: argparse.Namespace) -> list[Outcome]:
    """All jobs, some at a time."""
    waiting: queue.SimpleQueue[tuple[int, str]] = queue.SimpleQueue()
    for number, job in enumerate(wanted):
        waiting.put((number, job))
    outcomes: list[Outcome] = []
    lock = threading.Lock()
    children = _Children()

    def work(directory: Path) -> None:
        while not children.ended:
            try:
                number, job = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = _apart(job, seed + 1_000_003 * number, given, directory / f"{number}.json", children)
            if children.ended:
                return
            with lock:
                outcomes.append(outcome)
                bounds = f"--histories {given.histories} --states {given.states} --fuzz-minutes {given.fuzz_minutes:g}"
                again = replay(outcome, bounds)
                said = f"FAIL {outcome.job}: {again}\n{outcome.failure}" if outcome.failure else ""
                print(said or f"ok   {outcome.job}: {outcome.figures} in {outcome.seconds:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        threads = [threading.Thread(target=work, args=(Path(directory),)) for _ in range(given.workers)]
        before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # also when this process is told to end: what it started ends with it
            children.end()
            for thread in threads:
                thread.join()
            signal.signal(signal.SIGTERM, before)
    return outcomes


class _Children:
    """The processes of jobs under way. Their servers end when they do, whatever ends them."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self.ended = False

    def run(self, command: Sequence[str], timeout: float) -> tuple[int, str]:
        """Exit code and output of a process, or of one that `end` has ended. After so many seconds it is killed."""
        with self._lock:
            if self.ended:
                return 0, ""
            child = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])},
                stdin=subprocess.PIPE,  # held open: its end tells the job that nobody waits for it any more
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
            self._running.add(child)
        assert child.stdout is not None and child.stdin is not None
        try:
            output = self._heard(child, timeout)
        finally:
            child.stdin.close()
            child.stdout.close()
        with self._lock:
            self._running.discard(child)
        return child.returncode, output

    @staticmethod
    def _heard(child: subprocess.Popen[str], timeout: float) -> str:
        """What it says until it ends; `communicate` would close its standard input at once."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(timeout, kill)
        timer.start()
        try:
            assert child.stdout is not None
            said = child.stdout.read()
            child.wait()
        finally:
            timer.cancel()
        return said + (f"\nkilled: it hung for {timeout:.0f} s" if late.is_set() else "")

    def end(self) -> None:
        """End all, and let none begin."""
        with self._lock:
            self.ended = True
            for child in self._running:
                child.terminate()


def _apart(job: str, seed: int, given: argparse.Namespace, result: Path, children: _Children) -> Outcome:
    """Do a job in a process of its own."""
    command = [sys.executable, "-m", "tests.soak", "--job", job, "--job-seed", str(seed), "--result", str(result)]
    command += ["--histories", str(given.histories), "--fuzz-minutes", str(given.fuzz_minutes)]
    command += ["--states", str(given.states), "--until", str(given.until), "--child"]
    code, output = children.run(command, _patience(job, given))
    if code == 0 and result.exists():
        return Outcome(**json.loads(result.read_text("utf-8")))
    return Outcome(job, seed, failure=output[-TAIL:] or f"exit code {code}")


def _patience(job: str, given: argparse.Namespace) -> float:
    """Seconds after which a job hangs. What is fuzzed has its own bound, and no more than that again and some."""
    if job.startswith("fuzz/"):
        return float(given.fuzz_minutes) * 60 * 2 + HANGS / 6
    return HANGS


if __name__ == "__main__":
    sys.exit(main())
