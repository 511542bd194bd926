"""The fault matrix itself: it can tell lost and doubled rows from none, and its runner does not rot."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults import __main__ as program
from tests.faults import runner
from tests.faults.bench import Bench
from tests.faults.fault import REASONS
from tests.faults.matrix import FAULTS, Cell, cells
from tests.faults.of_rows import QUARANTINE, none_aside, refuse
from tests.faults.page import SOAK, Run, expected, not_run, page, soak_of
from tests.faults.phases import PLUGINS, Phase
from tests.faults.results import CHANGED, Kept, Result, commit_of
from tests.faults.runner import Runner, tried
from tests.faults.trial import Trial
from tests.faults.workload import transactions
from towline.demo.server import Server

#: `make faults` with arguments, and the cells that are to fail; returns the exit code.
Command = Callable[..., int]


@pytest.fixture
def bench(pg18: Server, pg15: Server, hub18: Server, scratch: Path) -> Bench:
    """A bench on the servers of the run."""
    return Bench.of(scratch, pgoutput=pg18, wal2json=pg15, target=hub18)


@pytest.mark.parametrize("how", ["lose", "double"])
def test_it_can_tell(how: str, bench: Bench, tmp_path: Path) -> None:
    """A daemon that loses the rows of a batch is found out, and one that applies them twice, idempotent as that is."""

    def hit(trial: Trial) -> None:
        trial.daemon.spoil("journal", how)

    account = Trial(bench, tmp_path, Phase.STREAMING, "pgoutput", "1").run(hit).account
    assert account.carried > 1000
    assert (account.lost > 0, account.doubled > 0) == (how == "lose", how == "double"), account


def test_it_can_tell_of_verify(bench: Bench, tmp_path: Path) -> None:
    """A difference that verify reports while it is struck fails the trial, whatever else is lost."""

    def hit(trial: Trial) -> None:
        trial.at("target", "DELETE FROM replica.sale; DELETE FROM replica.journal; DELETE FROM hub.open_sale")

    with pytest.raises(AssertionError, match="verify ended with exit code 4"):
        Trial(bench, tmp_path, Phase.VERIFYING, "pgoutput", "1").run(hit)


def test_a_backlog_that_is_streamed_is_found_out(bench: Bench, tmp_path: Path) -> None:
    """A trial that is to be far behind fails when the daemon reads from the stream all the same."""

    def stream(trial: Trial) -> None:
        trial.edit("plugin:", 'catch_up: "off", plugin:')

    trial = Trial(bench, tmp_path, Phase.STREAMING, "pgoutput", "1", far_behind=True, prepare=stream)
    with pytest.raises(AssertionError, match="does not read through SQL"):
        trial.run(Trial.over)


def test_a_row_that_is_set_aside_is_found_out(bench: Bench, tmp_path: Path) -> None:
    """A trial of a fault that is none of the rows' fails when one was set aside."""
    trial = Trial(bench, tmp_path, Phase.STREAMING, "pgoutput", "1", options=QUARANTINE)
    with pytest.raises(AssertionError, match=r"filled by an outage: .*23514"):
        trial.run(none_aside(lambda trial: refuse(trial, "NEW.id % 10 = 3")))


SAMPLE = [
    "kill/snapshot/wal2json",
    "target-commit-answer/committing/pgoutput",
    "behind-cut/applying/wal2json",
    "column-dropped/verifying/pgoutput",
]


@pytest.mark.parametrize("name", SAMPLE)
def test_some_cells(name: str, bench: Bench, tmp_path: Path) -> None:
    """What `make faults` does, for a few cells."""
    (cell,) = cells([name])
    result = tried(bench, tmp_path, cell, seed=1)
    assert result.right, f"{result.failure}; {result.replay}"
    assert result.carried > 1000


def test_every_cell_is_run_or_says_why() -> None:
    """A cell that is not run has a mark, and each mark is explained; names are unique."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    for fault in FAULTS:
        marks = {fault.reason(phase, plugin) for phase in Phase for plugin in PLUGINS}
        assert marks <= {"", *REASONS}
        assert "" in marks, f"{fault.name} is never run"
    assert len({cell.name for cell in cells()}) == len(list(cells()))


def test_cells_are_chosen_by_name() -> None:
    """A fault, a phase of it, one cell; wildcards."""
    assert {cell.phase for cell in cells(["kill"])} == set(Phase)
    assert [cell.name for cell in cells(["kill/*/wal2json"])] == [f"kill/{phase}/wal2json" for phase in Phase]
    assert [cell.name for cell in cells(["kill/snapshot/pgoutput"])] == ["kill/snapshot/pgoutput"]
    assert not list(cells(["nonsense"]))


def test_a_seed_says_what_is_written() -> None:
    """The same seed makes the same transactions, another one others."""
    assert transactions("kill/snapshot/pgoutput:3", 40) == transactions("kill/snapshot/pgoutput:3", 40)
    assert transactions("kill/snapshot/pgoutput:3", 40) != transactions("kill/snapshot/pgoutput:4", 40)
    assert transactions("kill/snapshot/pgoutput:3", 40) != transactions("kill/snapshot/wal2json:3", 40)


@pytest.mark.parametrize("seed", [1, 2, 7])
def test_one_run_strikes_at_every_point(seed: int) -> None:
    """Whatever its seed, one run of all cells strikes at all points of each phase, with either plugin."""
    struck: dict[tuple[Phase, str], Counter[str]] = {}
    for cell in cells():
        struck.setdefault((cell.phase, cell.plugin), Counter())[cell.point(seed)] += 1
    for (phase, plugin), times in struck.items():
        assert set(times) == set(phase.points), (phase, plugin)
        assert min(times.values()) >= sum(times.values()) // len(phase.points) // 2, (phase, plugin, times)


def test_seeds_of_a_cell_go_through_its_points() -> None:
    """With as many runs as there are points a cell has been struck at each."""
    for cell in cells():
        points = cell.fault.points(cell.phase)
        assert {cell.point(seed) for seed in range(5, 5 + len(points))} == set(points)


# ---- the page ------------------------------------------------------------------------------------------------------

RUN = Run(
    *("2026-01-31", "1.0", {"pgoutput": "18.1", "wal2json": "15.2", "target": "18.1"}, "2 cores", (1, 2), "A note."),
    commit="abc123",
)
NOTHING_LOST = "**Nothing was lost and nothing was applied twice.**"


def whole(*seeds: int) -> list[Result]:
    """A run of everything in which nothing went wrong."""
    return [Result(cell.name, seed, 10, point=f"{cell.point(seed)} 1") for seed in seeds for cell in cells()]


def test_the_page() -> None:
    """Sums by cell and by fault, the worst time, marks for empty cells, commands for failures; the soak part stays."""
    results = [
        Result("kill/streaming/pgoutput", 1, 1000, 0, 0, 0.5, point="received 1"),
        Result("kill/streaming/pgoutput", 2, 1200, 0, 0, 2.25, point="received 2"),
        Result("kill/committing/wal2json", 2, 100, 1, 0, 0.1, point="committing 1"),
        Result("pause/snapshot/pgoutput", 1, failure="no recovery: | a pipe\nsecond line", point="chunk-read 3"),
    ]
    text = page(RUN, results, "\nthe soak\n")
    summary, row = [line for line in text.splitlines() if "`kill`" in line]
    assert [cell.strip() for cell in summary.split("|")[2:-1]] == ["**✗**", "2 of 12", "3", "2,300", "1", "0", "2.2"]
    cells_of = [cell.strip() for cell in row.split("|")[2:-1]]
    assert len(cells_of) == len(Phase) * len(PLUGINS)
    assert cells_of[2] == "2 · 2,200 · 0 · 0 · 2.2"
    assert cells_of[7] == "**✗ 1 · 100 · 1 · 0 · 0.1**"
    assert cells_of[0] == "?"
    assert "seeds 1, 2. A note." in text and "at commit `abc123`" in text
    assert "`received` 2 times" in text and "`chunk-read` 1 times" in text and "`applied` 0 times" in text
    assert "**2 trials were not as they must be**" in text and NOTHING_LOST not in text
    assert '`make faults FAULTS_ARGS="--cell kill/committing/wal2json --seed 2"`' in text
    assert "second line" not in text
    assert soak_of(text) == "\nthe soak\n"


def test_a_verdict_is_of_a_whole_run() -> None:
    """That nothing was lost is said when every cell was run with every seed; of anything less, how much it is."""
    text = page(RUN, whole(1, 2), "\n")
    assert f"{NOTHING_LOST} {len(expected())} of {len(expected())} cells were run." in text
    for part in (whole(1, 2)[:-1], whole(1), []):
        text = page(RUN, part, "\n")
        count = len(expected()) - 1 if len(part) > len(expected()) else 0
        assert NOTHING_LOST not in text and f"{count} of {len(expected())} cells were run" in text
    mounting = {cell.name for cell in cells() if cell.fault.root}
    text = page(replace(RUN, left_out="it takes root"), [r for r in whole(1, 2) if r.cell not in mounting], "\n")
    assert NOTHING_LOST not in text and "(it takes root: `" in text and "`target-disk-full`" in text


def test_a_page_without_soak() -> None:
    """The markers are there from the first page on."""
    assert page(RUN, [], soak_of("an old page")).endswith(f"{SOAK[0]}\n{SOAK[1]}\n")
    assert NOTHING_LOST not in not_run() and not_run().endswith(f"{SOAK[0]}\n{SOAK[1]}\n")


# ---- the runner ----------------------------------------------------------------------------------------------------


class NoBench(Bench):
    """Without servers."""

    def mend(self) -> None:
        raise KeyError("a defect of the harness")


def test_every_trial_has_a_result(tmp_path: Path) -> None:
    """Whatever a trial raises, it is a trial that failed, with the command that replays it."""
    (cell,) = cells(["kill/applying/pgoutput"])
    result = tried(NoBench(tmp_path), tmp_path, cell, 3)
    assert not result.right and "a defect of the harness" in result.failure
    assert (result.cell, result.seed, result.point.split()[0]) == (cell.name, 3, cell.point(3))


def test_a_worker_goes_on_after_a_trial_that_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that fails is noted, and the next one is run, with servers that nobody has touched."""
    benches: list[Bench] = []

    def failing(bench: Bench, directory: Path, cell: Cell, seed: int, watch: object) -> Result:
        benches.append(bench)
        return Result(cell.name, seed, failure="no" if len(benches) == 1 else "")

    monkeypatch.setattr(runner, "tried", failing)
    wanted = [(cell, 1) for cell in cells(["kill"])]
    kept = tmp_path / "kept"
    run = Runner(tmp_path, wanted, 1.0, Kept(kept, "abc"), "abc")
    run.run(1)
    assert len(run.results) == len(wanted) and not run.broken
    assert len({id(bench) for bench in benches}) == 2
    assert {result.commit for result in run.results} == {"abc"}
    assert len(Kept(kept, "abc").read()) == len(wanted) - 1


def test_a_worker_that_breaks_is_heard_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong beside the trials does not pass for a run that is done."""
    monkeypatch.setattr(runner, "Bench", None)
    run = Runner(tmp_path, [(cell, 1) for cell in cells(["kill"])], 1.0, Kept(None, ""))
    run.run(2)
    assert len(run.broken) == 2 and not run.results


def test_a_run_that_is_ended_keeps_nothing_of_what_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that fails because everything is ended is no failure; all workers are gone afterwards."""
    begun = threading.Event()

    class UnderWay:
        over_and_done = False
        abandoned = threading.Event()

        def abandon(self) -> None:
            self.abandoned.set()

    def hanging(bench: Bench, directory: Path, cell: Cell, seed: int, watch: Callable[[object], None]) -> Result:
        trial = UnderWay()
        watch(trial)
        begun.set()
        assert trial.abandoned.wait(20)
        return Result(cell.name, seed, failure="its server was ended")

    monkeypatch.setattr(runner, "tried", hanging)
    kept = tmp_path / "kept"
    run = Runner(tmp_path, [(cell, 1) for cell in cells(["kill"])], 1.0, Kept(kept, "abc"), "abc")
    thread = threading.Thread(target=run.run, args=(2,))
    thread.start()
    assert begun.wait(20)
    run.stop()
    thread.join(20)
    assert not thread.is_alive() and run.stopped
    assert not run.results and not run.broken and not kept.exists()


def test_kept_results_hold_for_their_commit_only(tmp_path: Path) -> None:
    """Failures, other commits, changed code and torn lines are run again."""
    kept = Kept(tmp_path / "kept", "abc")
    for result in (
        Result("a", 1, commit="abc"),
        Result("b", 1, commit="def"),
        Result("c", 1, commit="abc", failure="no"),
        Result("d", 1, commit="abc", lost=1),
    ):
        kept.add(result)
    with (tmp_path / "kept").open("a") as file:
        file.write('{"cell": "e", "se')
    assert [result.cell for result in kept.read()] == ["a"]
    changed = Kept(tmp_path / "kept", f"abc{CHANGED}")
    changed.add(Result("f", 1, commit=f"abc{CHANGED}"))
    assert not [result for result in changed.read() if result.cell == "f"]
    assert commit_of(tmp_path) == ""


# ---- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`make faults`, with trials that are not run: all are right but those that are named."""
    monkeypatch.setattr(program, "PAGE", tmp_path / "RELIABILITY.md")
    monkeypatch.setattr(program, "versions", lambda: RUN.versions)
    monkeypatch.setattr(program, "commit_of", lambda root: "abc123")
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def call(*arguments: str, failing: Sequence[str] = ()) -> int:
        def result(bench: Bench, directory: Path, cell: Cell, seed: int, watch: object) -> Result:
            return Result(
                cell.name, seed, 1, failure="no" if cell.name in failing else "", point=f"{cell.point(seed)} 1"
            )

        monkeypatch.setattr(runner, "tried", result)
        return program.main(arguments)

    return call


def test_a_whole_run_writes_the_page(command: Command, tmp_path: Path) -> None:
    """Exit code 0 and the page with its verdict; the part of the soak stays."""
    page_file = tmp_path / "RELIABILITY.md"
    page_file.write_text(not_run().replace(f"{SOAK[0]}\n", f"{SOAK[0]}\nsoaked\n"))
    assert command() == 0
    assert NOTHING_LOST in page_file.read_text() and "\nsoaked\n" in page_file.read_text()


def test_a_whole_run_with_failures_says_so(command: Command, tmp_path: Path) -> None:
    """Exit code 1; the page is written, and has the failure."""
    assert command(failing=["kill/applying/wal2json"]) == 1
    text = (tmp_path / "RELIABILITY.md").read_text()
    assert "**1 trials were not as they must be**" in text and "--cell kill/applying/wal2json --seed 1" in text


def test_a_part_of_a_run_leaves_the_page_alone(command: Command, tmp_path: Path) -> None:
    """Some cells, or not all in time: the page of the last whole run stays. ``--page`` gets what there is."""
    assert command("--cell", "kill") == 0
    assert command("--minutes", "0") == 1
    assert not (tmp_path / "RELIABILITY.md").exists()
    assert command("--cell", "kill", "--page", str(tmp_path / "part.md")) == 0
    text = (tmp_path / "part.md").read_text()
    assert NOTHING_LOST not in text and f"12 of {len(expected())} cells were run" in text


def test_a_run_goes_on(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With results of this commit only the rest is run, and those are on the page with it."""
    kept = tmp_path / "kept"
    command("--results", str(kept), failing=["kill/applying/wal2json"])
    capsys.readouterr()
    assert command("--results", str(kept)) == 0
    assert "1 of 1 trials" in capsys.readouterr().out
    assert NOTHING_LOST in (tmp_path / "RELIABILITY.md").read_text()


def test_names_of_cells(command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They are listed; a wrong name is refused, and so, for another reason, what takes root."""
    assert command("--list") == 0
    assert len(capsys.readouterr().out.splitlines()) == len(expected())
    with pytest.raises(SystemExit):
        command("--cell", "nonsense")
    assert "no cell is of that name" in capsys.readouterr().err
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(SystemExit):
        command("--cell", "target-disk-full")
    assert "only root" in capsys.readouterr().err
