"""What the benchmark makes of its results."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import sweeper, targets
from bench.contenders import contenders, variant
from bench.live import quantiles
from bench.meter import kind
from bench.page import replaced, write_parts
from bench.profiling import Samples
from bench.results import Kept, Result, Spread, counted
from bench.sweeps import SWEEPS
from bench.tables import tables
from bench.workloads import WORKLOADS


def result(workload: str, contender: str, seconds: float, **more: object) -> Result:
    return Result(workload, contender, 1, 1.0, 1000, 1000, seconds=seconds, **more)  # type: ignore[arg-type]


def test_results_are_kept(tmp_path: Path) -> None:
    """What was written is read again, and is the same run."""
    kept = Kept(tmp_path / "results")
    one = result("W1", "builtin", 2.0, cpu={"source": 1.5}, latency={"p50": 1.0}, more={"wal": 7}, server="15.2")
    kept.add(one)
    assert Kept(tmp_path / "results").read() == [one]
    assert one.key == ("W1", "builtin", 1, 1.0, "15", "")
    assert Kept(None).read() == []


def test_what_counts() -> None:
    """Failed runs do not; disturbed ones only when there are not enough others."""
    quiet, loud = result("W1", "a", 1.0), result("W1", "a", 3.0, foreign=0.5)
    failed = result("W1", "a", 0.1, failure="contents differ")
    assert counted([quiet, loud, failed]) == [quiet]
    assert counted([quiet, loud, loud, failed]) == [quiet, loud, loud]
    assert counted([failed]) == []
    assert Spread.of([quiet, loud], lambda each: each.seconds) == Spread(2.0, 1.0, 3.0)


def test_tables() -> None:
    """Medians, ratios to the built-in replication, microseconds a row; what failed says so."""
    text = tables(
        [
            result("W1", "builtin", 2.0, cpu={"source": 0.5, "target": 1.0}),
            result("W1", "towline", 1.0, cpu={"consumer": 0.25}, reading=0.5, peak=3 * 2**20),
            result("W1", "towline", 0.5, cpu={"consumer": 0.25}, reading=0.5, peak=3 * 2**20),
            result("W1", "debezium", 0.5, failure="no | Java\nat all"),
            result("W5/500", "towline", 60.0, latency={"p50": 2.0, "p95": 3.0, "p99": 4.0, "max": 9.5}),
        ],
        contenders(),
    )
    (ours,) = [line for line in text.splitlines() if line.startswith("| Towline |") and "×" in line]
    cells = [cell.strip() for cell in ours.split("|")[2:-1]]
    assert cells == ["1,500 (1,000–2,000)", "**3.00 ×**", "0.5", "250.0", "0.0", "0.0", "250.0", "3", "2"]
    assert "| failed: no / Java at all |" in text
    assert "| Towline | 2.0 | 3.0 | 4.0 | 9.5 | 0.00 | 0.00 | 0.00 |  | 1 |" in text
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {11}


def test_targets() -> None:
    """Met, not met, not measured."""
    text = targets.table([result("W1", "builtin", 2.0), result("W1", "towline", 1.0, cpu={"consumer": 0.01})])
    assert "| W1, rows/s | ≥ 1.5 × | 2.00 × | met |" in text
    assert "| W1, CPU of the daemon a row | ≤ 4 µs | 10.00 µs | **no** |" in text
    assert "| W2, changes/s | ≥ 1.5 × | not measured | |" in text


def test_the_page_keeps_what_people_write(tmp_path: Path) -> None:
    """Only what is between markers is replaced."""
    path = tmp_path / "PERFORMANCE.md"
    write_parts(path, {"head": "first"})
    path.write_text(path.read_text("utf-8").replace("# Performance", "# Performance\n\nBy hand."), "utf-8")
    write_parts(path, {"head": "second", "columns": "third"})
    text = path.read_text("utf-8")
    assert "first" not in text
    assert text.index("By hand.") < text.index("second") < text.index("third")
    with pytest.raises(ValueError, match="no place for tail"):
        replaced(text, "tail", "")


def test_the_page_has_places_for_everything() -> None:
    """docs/PERFORMANCE.md has markers for all that is put there."""
    text = (Path(__file__).parents[2] / "docs" / "PERFORMANCE.md").read_text("utf-8")
    for name in ("head", "targets", "workloads", *SWEEPS):
        assert replaced(text, name, "x") != text


def test_sweeps_go_from_little_to_much() -> None:
    """Each point is another workload, and has its place along the axis."""
    names = [point.workload.name for sweep in SWEEPS.values() for point in sweep.points]
    assert len(set(names)) == len(names)
    for sweep in SWEEPS.values():
        assert [point.x for point in sweep.points] == sorted({point.x for point in sweep.points})


def test_the_table_of_a_sweep() -> None:
    """A row for each point; memory of a contender without a process is its server process's."""
    sweep = SWEEPS["columns"]
    results = [
        result("columns/2", "builtin", 2.0, anonymous={"target apply worker": 4 * 2**20}, more={"x": 2.0}),
        result("columns/5", "towline", 1.0, peak=80 * 2**20, more={"x": 5.0}),
    ]
    rows = sweeper.table(sweep, results, contenders()).splitlines()[2:]
    assert rows == ["| 2 | 500 |  | 4 |  |", "| 5 |  | 1,000 |  | 80 |"]


def test_variants() -> None:
    """They name settings of the pipeline file; anything else is refused."""
    made = variant("select-large=batch.max_rows=50000,source.plugin=wal2json")
    assert (made.name, made.plugin, made.slot) == ("towline-select-large", "wal2json", "towline_towline_select_large")
    assert made.can(WORKLOADS["W1"])
    assert not made.can(WORKLOADS["W2"])
    with pytest.raises(ValueError, match="not NAME=PATH=VALUE"):
        variant("large")


@pytest.mark.parametrize(
    ("title", "what"),
    [
        ("postgres: walsender postgres bench [local] START_REPLICATION", "walsender"),
        ("postgres: logical replication worker for subscription 16400", "apply worker"),
        ("postgres: logical replication apply worker for subscription 16400", "apply worker"),
        ("postgres: logical replication worker for subscription 16400 sync 16385", "tablesync worker"),
        ("postgres: logical replication tablesync worker for subscription 16400 sync 16385", "tablesync worker"),
        ("postgres: logical replication launcher", "launcher"),
        ("postgres: postgres bench [local] idle", "backends"),
    ],
)
def test_kinds_of_server_processes(title: str, what: str) -> None:
    """They are told apart by their titles, of versions 15 and 18."""
    assert kind(title) == what


def test_quantiles() -> None:
    """Milliseconds."""
    assert quantiles([]) == {}
    assert quantiles([number / 1000 for number in range(100)]) == {"p50": 50.0, "p95": 95.0, "p99": 99.0, "max": 99.0}


def test_samples() -> None:
    """py-spy's raw form, by thread and function, whatever the line."""
    samples = Samples.read(
        "thread (7): MainThread 5\n"
        "thread (7): MainThread;main (a.py:1);work (a.py:9) 3\n"
        "thread (7): MainThread;main (a.py:2) 1\n"
        "thread (8): reader;work (a.py:8);work (a.py:9) 4"
    )
    assert (samples.whole, samples.own["MainThread"]) == (8, {"work (a.py)": 3, "main (a.py)": 1})
    assert samples.within["MainThread"]["main (a.py)"] == samples.within["reader"]["work (a.py)"] == 4
    assert "reader,  50.0 %: functions, themselves\n   50.0 %  work (a.py)" in samples.text()
