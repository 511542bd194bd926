"""The fault matrix itself: it can tell lost and doubled rows from none, and its runner does not rot."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.__main__ import tried
from tests.faults.bench import Bench
from tests.faults.fault import REASONS
from tests.faults.matrix import FAULTS, cells
from tests.faults.page import SOAK, Run, page, soak_of
from tests.faults.phases import PLUGINS, Phase
from tests.faults.results import Result
from tests.faults.trial import Trial
from tests.faults.workload import transactions
from towline.demo.server import Server


@pytest.fixture
def bench(pg18: Server, pg15: Server, hub18: Server, scratch: Path) -> Bench:
    """A bench on the servers of the run."""
    return Bench.of(scratch, pgoutput=pg18, wal2json=pg15, target=hub18)


@pytest.mark.parametrize("how", ["lose", "double"])
def test_it_can_tell(how: str, bench: Bench, tmp_path: Path) -> None:
    """A daemon that loses the rows of a batch is found out, and one that applies them twice, idempotent as that is."""

    def hit(trial: Trial) -> None:
        trial.daemon.spoil("journal", how)

    account = Trial(bench, tmp_path, Phase.STREAMING, "pgoutput", seed=1).run(hit).account
    assert account.carried > 1000
    assert (account.lost > 0, account.doubled > 0) == (how == "lose", how == "double"), account


@pytest.mark.parametrize("name", ["kill/snapshot/wal2json", "target-commit-answer/committing/pgoutput"])
def test_some_cells(name: str, bench: Bench, tmp_path: Path) -> None:
    """What `make faults` does, for two cells."""
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
    assert transactions(3, 40) == transactions(3, 40) != transactions(4, 40)


RUN = Run("2026-01-31", "1.0", {"pgoutput": "18.1", "wal2json": "15.2", "target": "18.1"}, "2 cores", (1, 2), "A note.")


def test_the_page() -> None:
    """Sums by cell, the worst time, marks for empty cells, and a command for each failure; the soak part stays."""
    results = [
        Result("kill/streaming/pgoutput", 1, 1000, 0, 0, 0.5),
        Result("kill/streaming/pgoutput", 2, 1200, 0, 0, 2.25),
        Result("kill/committing/wal2json", 2, 100, 1, 0, 0.1),
        Result("pause/snapshot/pgoutput", 1, failure="no recovery: | a pipe\nsecond line"),
    ]
    text = page(RUN, results, "\nthe soak\n")
    (row,) = [line for line in text.splitlines() if "(`kill`)" in line]
    cells_of = [cell.strip() for cell in row.split("|")[2:-1]]
    assert len(cells_of) == len(Phase) * len(PLUGINS)
    assert cells_of[2] == "2 · 2,200 · 0 · 0 · 2.2"
    assert cells_of[7] == "**✗ 1 · 100 · 1 · 0 · 0.1**"
    assert cells_of[0] == "?"
    assert "seeds 1, 2. A note." in text
    assert "**2 trials were not as they must be**" in text
    assert '`make faults FAULTS_ARGS="--cell kill/committing/wal2json --seed 2"`' in text
    assert "second line" not in text
    assert soak_of(text) == "\nthe soak\n"
    assert page(RUN, results[:2], "\n").count("**Nothing was lost and nothing was applied twice.**") == 1


def test_a_page_without_soak() -> None:
    """The markers are there from the first page on."""
    text = page(RUN, [], soak_of("an old page"))
    assert text.endswith(f"{SOAK[0]}\n{SOAK[1]}\n")
