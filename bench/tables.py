"""Results as Markdown tables: medians, with least and most in parentheses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from bench.contender import Contender
from bench.contenders import REFERENCE
from bench.results import Result, Spread, counted, grouped
from bench.workloads import WORKLOADS, Workload

Runs = Mapping[str, Sequence[Result]]


def tables(results: Iterable[Result], everyone: Mapping[str, Contender]) -> str:
    """A table for each workload."""
    groups = grouped(results)
    parts = []
    for name, workload in WORKLOADS.items():
        if name in groups:
            size = next(result.size for runs in groups[name].values() for result in runs)
            parts.append(f"### {name}: {workload.title}\n\n{size:,} {workload.unit}.\n")
            parts.append(table(workload, groups[name], everyone) + "\n")
    return "\n".join(parts).rstrip() + "\n"


def table(workload: Workload, runs: Runs, everyone: Mapping[str, Contender]) -> str:
    """The table of one workload."""
    shapes = {"live": (_LIVE, _live), "idle": (_IDLE, _idle)}
    head, row = shapes.get(workload.mode, (_STREAM, _stream))
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    reference = Spread.of(counted(runs.get(REFERENCE, [])), lambda result: result.rate)
    order = list(everyone)
    for name in sorted(runs, key=lambda name: (order.index(name) if name in order else len(order), name)):
        title = everyone[name].title if name in everyone else name
        right = counted(runs[name])
        if not right:
            lines.append(f"| {title} | failed: {_short(runs[name][-1].failure)} |" + " |" * (len(head) - 2))
            continue
        cells = row(right, reference)
        lines.append(f"| {title} | " + " | ".join([*cells, _runs(runs[name], right)]) + " |")
    return "\n".join(lines)


_STREAM = (
    *("", "rows/s", "of built-in, text", "started after s", "CPU µs a row: consumer", "source", "target", "all"),
    *("peak MB", "runs"),
)
_LIVE = ("", "p50 ms", "p95 ms", "p99 ms", "max ms", "CPU, cores: consumer", "source", "target", "peak MB", "runs")
_IDLE = ("", "CPU, % of a core: consumer", "source", "target", "peak MB", "runs")
_PARTS = ("consumer", "source", "target")


def _stream(runs: Sequence[Result], reference: Spread | None) -> list[str]:
    rate = Spread.of(runs, lambda result: result.rate)
    ratio = f"{rate.median / reference.median:.2f} ×" if rate and reference else ""
    return [
        _spread(runs, lambda result: result.rate, 0),
        f"**{ratio}**" if ratio else "",
        _start(runs),
        *(_median(runs, lambda result, part=part: result.micros(part), 1) for part in _PARTS),  # type: ignore[misc]
        _median(runs, lambda result: sum(map(result.micros, _PARTS)), 1),
        _memory(runs),
    ]


def _live(runs: Sequence[Result], reference: Spread | None) -> list[str]:
    del reference
    return [
        *(_spread(runs, lambda result, at=at: result.latency.get(at), 1) for at in ("p50", "p95", "p99", "max")),  # type: ignore[misc]
        *(_median(runs, _cores(part), 2) for part in _PARTS),
        _memory(runs),
    ]


def _idle(runs: Sequence[Result], reference: Spread | None) -> list[str]:
    del reference
    return [
        *(_spread(runs, lambda result, part=part: 100 * _cores(part)(result), 2) for part in _PARTS),  # type: ignore[misc]
        _memory(runs),
    ]


def _cores(part: str) -> Callable[[Result], float]:
    return lambda result: result.cpu.get(part, 0.0) / result.seconds if result.seconds else 0.0


def _start(runs: Sequence[Result]) -> str:
    """Seconds, and CPU seconds of the contender, until it read the slot."""
    seconds = _median(runs, lambda result: result.reading, 1)
    used = _median(runs, lambda result: result.more.get("start_cpu") or None, 1)
    return f"{seconds} ({used} of CPU)" if used else seconds


def _memory(runs: Sequence[Result]) -> str:
    return _median(runs, lambda result: result.peak / 2**20 or None, 0)


def _spread(runs: Sequence[Result], pick: Callable[[Result], float | None], digits: int) -> str:
    spread = Spread.of(runs, pick)
    if spread is None:
        return ""
    middle = f"{spread.median:,.{digits}f}"
    return middle if len(runs) == 1 else f"{middle} ({spread.low:,.{digits}f}–{spread.high:,.{digits}f})"


def _median(runs: Sequence[Result], pick: Callable[[Result], float | None], digits: int) -> str:
    spread = Spread.of(runs, pick)
    return f"{spread.median:,.{digits}f}" if spread is not None else ""


def _runs(runs: Sequence[Result], right: Sequence[Result]) -> str:
    failed = sum(bool(result.failure) for result in runs)
    disturbed = sum(result.disturbed for result in right)
    notes = [f"{failed} failed"] if failed else []
    notes += [f"{disturbed} disturbed"] if disturbed else []
    return f"{len(right)} ({', '.join(notes)})" if notes else str(len(right))


def _short(text: str) -> str:
    return text.strip().replace("|", "/").replace("\n", " ")[:120]
