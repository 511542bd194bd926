"""What the project has set itself, and whether the results meet it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench.contenders import REFERENCE
from bench.results import Result, Spread, counted, grouped

Groups = Mapping[str, Mapping[str, Sequence[Result]]]
#: The figure that a target is about, or None when there is none.
Figure = Callable[[Groups], float | None]


@dataclass(frozen=True, slots=True)
class Target:
    """``limit``: at least that, or at most with ``most``. ``unit`` follows the figure.

    ``running``: the same from when the contenders begin to read, for the table; it decides nothing.
    """

    what: str
    figure: Figure
    limit: float
    unit: str
    most: bool = False
    running: Figure | None = None

    def row(self, groups: Groups) -> str:
        """A row of the table."""
        found = self.figure(groups)
        sign = "≤" if self.most else "≥"
        if found is None:
            return f"| {self.what} | {sign} {self.limit:g}{self.unit} | not measured | | |"
        met = found <= self.limit if self.most else found >= self.limit
        verdict = "met" if met else "**no**"
        running = self.running(groups) if self.running is not None else None
        apart = "" if running is None else f"{running:,.2f}{self.unit}"
        return f"| {self.what} | {sign} {self.limit:g}{self.unit} | {found:,.2f}{self.unit} | {verdict} | {apart} |"


def _median(groups: Groups, workload: str, contender: str, pick: Callable[[Result], float | None]) -> float | None:
    spread = Spread.of(counted(groups.get(workload, {}).get(contender, [])), pick)
    return spread.median if spread is not None else None


def _ratio(workload: str, contender: str, to: str, pick: Callable[[Result], float | None]) -> Figure:
    def figure(groups: Groups) -> float | None:
        ours, theirs = (_median(groups, workload, name, pick) for name in (contender, to))
        return ours / theirs if ours is not None and theirs else None

    return figure


def _faster(workload: str, contender: str = "towline", to: str = REFERENCE) -> Figure:
    return _ratio(workload, contender, to, lambda result: result.rate)


def _rate(what: str, limit: float, workload: str, contender: str = "towline") -> Target:
    """Changes a second, against those of built-in replication."""
    running = _ratio(workload, contender, REFERENCE, lambda result: result.pace)
    return Target(what, _faster(workload, contender), limit, " ×", running=running)


def _of(workload: str, pick: Callable[[Result], float | None]) -> Figure:
    return lambda groups: _median(groups, workload, "towline", pick)


def _latency(quantile: str) -> Callable[[Result], float | None]:
    return lambda result: result.latency.get(quantile)


TARGETS: Sequence[Target] = (
    _rate("W1, rows/s", 1.5, "W1"),
    _rate("W1 through a SELECT with expressions, rows/s", 1.15, "W1", "towline-select"),
    _rate("W2, changes/s", 1.5, "W2"),
    _rate("W3, changes/s", 4.0, "W3"),
    _rate("W4, rows/s", 1.2, "W4"),
    Target("W4, peak memory of the daemon", _of("W4", lambda result: result.peak / 2**20), 256, " MB", most=True),
    Target("W5 at 500/s, p50", _of("W5/500", _latency("p50")), 5, " ms", most=True),
    Target("W5 at 500/s, p99", _of("W5/500", _latency("p99")), 25, " ms", most=True),
    Target("W5 at 2,000/s, p99", _of("W5/2000", _latency("p99")), 50, " ms", most=True),
    _rate("W6, rows/s", 1.3, "W6"),
    Target("W1, CPU of the daemon a row", _of("W1", lambda result: result.micros("consumer")), 4, " µs", most=True),
    Target(
        "the same, without its start",
        _of("W1", lambda result: 1e6 * (result.cpu["consumer"] - result.more.get("start_cpu", 0.0)) / result.changes),
        4,
        " µs",
        most=True,
    ),
    Target(
        "idle, CPU of the daemon, of a core",
        _of("idle", lambda result: 100 * result.cpu["consumer"] / result.seconds),
        1,
        " %",
        most=True,
    ),
    Target("W1, rows/s of Debezium Engine", _faster("W1", to="debezium"), 6, " ×"),
    Target(
        "W1, peak memory of Debezium Engine",
        _ratio("W1", "towline", "debezium", lambda result: result.peak),
        0.25,
        " ×",
        most=True,
    ),
)


def table(results: Iterable[Result]) -> str:
    """All of them. Ratios are to built-in replication as text, where nothing else is said."""
    groups = grouped(results)
    lines = [
        "| | target | measured | | once it reads |",
        "|---|---|---|---|---|",
        *(target.row(groups) for target in TARGETS),
    ]
    return "\n".join(lines) + "\n"
