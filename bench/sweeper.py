"""Runs sweeps, and puts what came out into charts and tables."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from bench import charts
from bench.charts import Curve, Panel
from bench.contender import Contender, Place
from bench.contenders import REFERENCE
from bench.drain import Patience, drain
from bench.line import delayed
from bench.results import Kept, Result, Spread, counted
from bench.runner import line
from bench.servers import Servers
from bench.stage import Stage
from bench.sweeps import Point, Sweep


class SweepRunner:
    """``results``: those that were kept, and those of this run. Rounds go over all points of a sweep's contenders."""

    def __init__(
        self,
        servers: Servers,
        directory: Path,
        contenders: Sequence[Contender],
        kept: Kept,
        *,
        rounds: int,
        scale: float,
        patience: Patience,
    ) -> None:
        self._servers = servers
        self._directory = directory
        self._contenders = contenders
        self._kept = kept
        self._rounds = rounds
        self._scale = scale
        self._patience = patience
        self._version = servers.version()
        self.results = kept.read()

    def run(self, sweep: Sweep, until: float) -> None:
        """All points, from little to much; none is begun after ``until`` (monotonic) but the first."""
        for point in sweep.points:
            if point is not sweep.points[0] and time.monotonic() > until:
                print(f"{sweep.name}: the time is up before {point.x:,.10g} {sweep.x}", flush=True)
                return
            self._point(sweep, point)

    def _point(self, sweep: Sweep, point: Point) -> None:
        there = {result.key for result in self.results if not result.failure}
        wanted = [
            (contender, empty)
            for number in range(1, self._rounds + 1)
            for contender in self._contenders
            if (empty := self._empty(point, contender, number)).key not in there
        ]
        if not wanted:
            return
        size = point.workload.scaled(self._scale)
        stage = Stage(self._servers, point.workload, size, self._directory)
        stage.build(self._contenders)
        print(f"{sweep.name}: {point.x:,.10g} {sweep.x}, {size:,} rows", flush=True)
        with nullcontext(_same) if point.delay is None else delayed(self._servers, point.delay) as through:
            for contender, empty in wanted:
                result = drain(stage, contender, self._patience, through=through)
                result = replace(
                    result,
                    round=empty.round,
                    scale=empty.scale,
                    server=empty.server,
                    transport=empty.transport,
                    more={**result.more, "sweep": sweep.name, "x": point.x},
                )
                self.results.append(result)
                self._kept.add(result)
                print(f"  {result.round} {line(result)}", flush=True)
        stage.clear()

    def _empty(self, point: Point, contender: Contender, number: int) -> Result:
        return Result(
            point.workload.name,
            contender.name,
            number,
            self._scale,
            0,
            0,
            server=self._version,
            transport="tcp" if point.delay is not None else self._servers.transport,
        )


def _same(place: Place) -> Place:
    return place


def of(sweep: Sweep, results: Iterable[Result]) -> list[Result]:
    """The results of one sweep."""
    return [result for result in results if result.more.get("sweep") == sweep.name]


def memory(result: Result) -> float | None:
    """MB that the contender takes: its processes', or those of the server process that works for it."""
    own = result.peak or result.anonymous.get("target apply worker", 0)
    return own / 2**20 if own else None


def chart(path: Path, sweep: Sweep, results: Sequence[Result], everyone: Mapping[str, Contender]) -> None:
    """Throughput and memory. Raises ChartsMissing."""
    shown = []
    for title, pick in (
        ("thousand changes/s", lambda result: result.pace / 1000),
        ("peak memory, MB", memory),
    ):
        curves = []
        for name in dict.fromkeys(result.contender for result in results):
            points = []
            for x, runs in _by_x(results, name).items():
                if (spread := Spread.of(runs, pick)) is not None:
                    points.append((x, spread.median, spread.low, spread.high))
            curves.append(Curve(everyone[name].title if name in everyone else name, points, name == REFERENCE))
        shown.append(Panel(title, sweep.x, curves, sweep.log_x))
    charts.panels(path, shown)


def table(sweep: Sweep, results: Sequence[Result], everyone: Mapping[str, Contender]) -> str:
    """Changes a second, and memory, of each contender for each point."""
    names = list(dict.fromkeys(result.contender for result in results))
    titles = [everyone[name].title if name in everyone else name for name in names]
    head = [sweep.x, *(f"{title}: changes/s" for title in titles), *(f"{title}: MB" for title in titles)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
    found = {name: _by_x(results, name) for name in names}
    for x in sorted({x for by_x in found.values() for x in by_x}):
        cells = [f"{x:,.10g}"]
        for pick in (lambda result: result.pace, memory):
            for name in names:
                spread = Spread.of(found[name].get(x, []), pick)
                cells.append(f"{spread.median:,.0f}" if spread is not None else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _by_x(results: Iterable[Result], name: str) -> dict[float, Sequence[Result]]:
    grouped: dict[float, list[Result]] = {}
    for result in results:
        if result.contender == name:
            grouped.setdefault(float(result.more["x"]), []).append(result)
    return {x: counted(runs) for x, runs in sorted(grouped.items())}
