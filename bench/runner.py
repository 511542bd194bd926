"""A whole run: workload after workload, and in each of them round after round, every contender in its turn."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.contender import Contender
from bench.drain import Patience, drain
from bench.live import live
from bench.results import Kept, Result
from bench.servers import Servers
from bench.stage import Stage
from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run. ``chosen``: contenders were named, and take part wherever they can.

    ``minutes``: for all; each workload has its share, by weight, and begins no round beyond it but the first.
    """

    workloads: Sequence[Workload]
    contenders: Sequence[Contender]
    chosen: bool
    rounds: int
    scale: float
    minutes: float
    patience: Patience


class Runner:
    """``results``: those that were kept, and those of this run."""

    def __init__(self, servers: Servers, directory: Path, plan: Plan, kept: Kept) -> None:
        self._servers = servers
        self._directory = directory
        self._plan = plan
        self._kept = kept
        self._version = servers.version()
        self.results = kept.read()
        self._began = time.monotonic()

    def run(self) -> None:
        """Run all that is not among the results."""
        plan = self._plan
        whole = sum(workload.weight for workload in plan.workloads)
        share = 0.0
        for workload in plan.workloads:
            share += workload.weight / whole
            taking = [each for each in plan.contenders if self._takes(each, workload)]
            for each in taking:
                if missing := each.missing():
                    print(f"{workload.name}: {each.name} is left out: {missing}", flush=True)
            taking = [each for each in taking if not each.missing()]
            self._workload(workload, taking, self._began + share * plan.minutes * 60)
        print(f"{(time.monotonic() - self._began) / 60:.1f} minutes", flush=True)

    def _takes(self, contender: Contender, workload: Workload) -> bool:
        return contender.can(workload) if self._plan.chosen else contender.takes(workload)

    def _workload(self, workload: Workload, contenders: Sequence[Contender], until: float) -> None:
        size = workload.scaled(self._plan.scale)
        stage: Stage | None = None
        there = {result.key for result in self.results if not result.failure}
        for number in range(1, self._plan.rounds + 1):
            if number > 1 and time.monotonic() > until:
                print(f"{workload.name}: no round {number}, the time is up", flush=True)
                break
            for contender in contenders:
                empty = Result(
                    workload.name,
                    contender.name,
                    number,
                    self._plan.scale,
                    0,
                    0,
                    server=self._version,
                    transport=self._servers.transport,
                )
                if empty.key in there:
                    continue
                if workload.mode in ("live", "idle"):
                    stage = self._build(workload, size, [contender])
                    result = live(stage, contender, self._plan.patience)
                    stage.clear()
                else:
                    stage = stage or self._build(workload, size, contenders)
                    result = drain(stage, contender, self._plan.patience)
                self._done(
                    replace(
                        result,
                        round=number,
                        scale=self._plan.scale,
                        server=self._version,
                        transport=self._servers.transport,
                    )
                )
        if stage is not None:
            stage.clear()

    def _build(self, workload: Workload, size: int, contenders: Sequence[Contender]) -> Stage:
        began = time.monotonic()
        stage = Stage(self._servers, workload, size, self._directory)
        stage.build(contenders)
        seconds = time.monotonic() - began
        print(f"{workload.name}: {workload.title}; {size:,} {workload.unit}, made in {seconds:.1f} s", flush=True)
        return stage

    def _done(self, result: Result) -> None:
        self.results.append(result)
        self._kept.add(result)
        print(f"  {result.round} {line(result)}", flush=True)


def line(result: Result) -> str:
    """A result, in a line for whoever waits."""
    if result.failure:
        return f"{result.contender:20} does not count: {result.failure}"
    cpu = ", ".join(f"{part} {result.cpu.get(part, 0.0):.1f}" for part in ("consumer", "source", "target"))
    what = f"{result.rate:9,.0f}/s in {result.seconds:.1f} s" if result.changes else f"{result.seconds:.0f} s"
    if result.latency:
        what = "p50 {p50} p95 {p95} p99 {p99} max {max} ms".format(**result.latency)
    memory = f", {result.peak / 2**20:,.0f} MB" if result.peak else ""
    disturbed = f"  DISTURBED by {result.foreign} cores" if result.disturbed else ""
    return f"{result.contender:20} {what}; CPU s: {cpu}{memory}{disturbed}"
