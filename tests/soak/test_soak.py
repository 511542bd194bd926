"""The long run's own rules: what it says of a part of itself, when it writes the page, and that nothing outlives it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.model.cases import LARGE
from tests.soak import __main__ as program
from tests.soak import jobs
from tests.soak.jobs import HISTORIES, Outcome
from tests.soak.page import BEGIN, END, Soak, markdown, replay

WANTED = tuple(jobs.names(2000))
FIGURES: dict[str, dict[str, int | str]] = {
    "convergence": {"histories": HISTORIES, "transactions": 90, "faults": 9},
    "model": {"states": 1, "histories": 1, "whole": "yes"},
    "fuzz": {"inputs": 1},
    "rules": {"a rule": 3},
}
BOUNDS = "--histories 2000 --states 5 --fuzz-minutes 10"
#: `make soak` with arguments, and the jobs that are to fail; returns the exit code.
Command = Callable[..., int]


def outcome(job: str, failure: str = "") -> Outcome:
    """Of a job that held, or did not."""
    return Outcome(job, 7, {} if failure else dict(FIGURES[job.split("/")[0]]), failure)


def soak(*left_out: str, failing: str = "") -> Soak:
    """A whole run but for those jobs."""
    told = [outcome(job, "no" if job == failing else "") for job in WANTED if job not in left_out]
    return Soak(told, 1, "2026-01-31", 60.0, 2, "1.0", "abc123", WANTED, BOUNDS)


def test_a_verdict_is_of_a_whole_run() -> None:
    """That nothing diverged is said when every job was run, and at least 2,000 histories were."""
    assert "**Nothing diverged.**" in markdown(soak()) and "at commit `abc123`" in markdown(soak())
    count = len(WANTED)
    assert f"**Not a whole run: {count - 1} of {count} jobs.**" in markdown(soak("rules"))
    cut_short = soak()
    for each in cut_short.outcomes:
        if "histories" in each.figures:
            each.figures["histories"] = 1
    assert "Not a whole run:" in markdown(cut_short)
    assert "Nothing diverged" not in markdown(replace(soak(), wanted=()))


def test_failures_are_counted() -> None:
    """In the verdict, in the row of their schema, and with a command that has the bounds of the run."""
    failing = next(job for job in WANTED if job.startswith("convergence/"))
    text = markdown(soak(failing=failing))
    _, schema, plugin, _ = failing.split("/")
    (row,) = [line for line in text.splitlines() if line.startswith(f"| {schema} | {plugin} |")]
    assert row.endswith("| 1 |")
    assert f"**1 jobs failed; {len(WANTED)} of {len(WANTED)} were run.**" in text
    assert f"--job '{failing}' --job-seed 7 {BOUNDS}" in text
    assert replay(outcome("rules"), BOUNDS).endswith(f'{BOUNDS}"')


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`make soak`, with jobs that are not done."""
    monkeypatch.setattr(program, "PAGE", tmp_path / "RELIABILITY.md")
    (tmp_path / "RELIABILITY.md").write_text(f"before\n{BEGIN}\n{END}\n")

    def call(*arguments: str, failing: str = "") -> int:
        monkeypatch.setattr(program, "_apart", lambda job, *rest: outcome(job, "no" if job == failing else ""))
        return program.main(arguments)

    return call


def test_what_a_whole_run_does(command: Command, tmp_path: Path) -> None:
    """Exit code 0, and the page; 1, and the page, when something did not hold."""
    page = tmp_path / "RELIABILITY.md"
    assert command() == 0
    assert page.read_text().startswith("before") and "Nothing diverged." in page.read_text()
    assert command(failing="rules") == 1
    assert "1 jobs failed" in page.read_text()


def test_what_a_part_does(command: Command, tmp_path: Path) -> None:
    """The page stays as it is; a file that is named says that it is a part."""
    page, part = tmp_path / "RELIABILITY.md", tmp_path / "part.md"
    for arguments in (["--only", "model"], ["--histories", "100"], ["--states", "10"], ["--fuzz-minutes", "1"]):
        assert command(*arguments, "--page", str(part)) == 0
        assert "Nothing diverged" not in part.read_text()
        assert command(*arguments) == 0
    assert "Soak" not in page.read_text()


def test_a_job_ends_with_who_started_it() -> None:
    """Whatever ends the parent, its end of the pipe is closed: the job does not go on alone."""
    case = next(iter(LARGE))
    arguments = ["--job", f"model/{case}", "--states", "1000000000", "--child"]
    job = subprocess.Popen(
        [sys.executable, "-m", "tests.soak", *arguments],
        cwd=program.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        assert job.stdin is not None and job.poll() is None
        job.stdin.close()
        assert job.wait(60) == 1
    finally:
        job.kill()
        job.wait()


def test_a_job_that_hangs_is_ended_and_named() -> None:
    """It is a failure, and says that it hung."""
    began = time.monotonic()
    code, output = program._Children().run([sys.executable, "-c", "import time; time.sleep(600)"], 0.5)
    assert code != 0 and "it hung" in output
    assert time.monotonic() - began < 60
