"""Puts results into docs/PERFORMANCE.md: between markers, so that what people write around them stays."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from bench import charts, sweeper, targets
from bench.contender import Contender
from bench.results import Result
from bench.servers import Servers
from bench.sweeps import Sweep
from bench.tables import tables

__all__ = ["Machine", "replaced", "tables", "write_data", "write_parts", "write_runs", "write_sweep"]


@dataclass(frozen=True, slots=True)
class Machine:
    """What ran it."""

    processor: str
    cores: int
    memory: int
    system: str
    server: str
    transport: str

    @classmethod
    def here(cls, servers: Servers) -> Machine:
        """This one."""
        models = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
        total = next((line for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), "MemTotal: 0 kB")
        return cls(
            models[0].split(":", 1)[1].strip() if models else platform.machine(),
            os.cpu_count() or 1,
            int(total.split()[1]) * 1024,
            f"{platform.system()} {platform.release()}",
            servers.version(),
            servers.transport,
        )

    def text(self) -> str:
        """In words."""
        how = "Unix sockets" if self.transport == "socket" else "TCP on loopback"
        return (
            f"PostgreSQL {self.server} at both ends, reached over {how}; Python {platform.python_version()}; "
            f"{self.cores} cores\n({self.processor}) and {self.memory / 2**30:.0f} GB hold source, contender and "
            f"target; {self.system}."
        )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text between its markers ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``.

    Raises ValueError when it has none.
    """
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"the page has no place for {name}")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def write_parts(path: Path, parts: Mapping[str, str]) -> None:
    """Replace parts of a page; a page that is not there begins as the markers alone."""
    text = path.read_text("utf-8") if path.exists() else "# Performance\n"
    for name, part in parts.items():
        if f"<!-- bench:{name} -->" not in text:
            text += f"\n<!-- bench:{name} -->\n<!-- /bench:{name} -->\n"
        text = replaced(text, name, part)
    path.write_text(text, "utf-8")


def beside(path: Path) -> Path:
    """Where charts and data of a page are."""
    directory = path.parent / path.stem.lower()
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write_data(path: Path, results: Sequence[Result]) -> None:
    """Results, a line of JSON each."""
    path.write_text("".join(json.dumps(asdict(result)) + "\n" for result in results), "utf-8")


def write_runs(
    path: Path, machine: Machine, results: Sequence[Result], everyone: Mapping[str, Contender], note: str = ""
) -> None:
    """What a run of the workloads gives: head, targets, tables, chart and data."""
    directory = beside(path)
    write_data(directory / "workloads.jsonl", results)
    chart = directory / "workloads.svg"
    try:
        charts.workloads(chart, results, everyone)
    except charts.ChartsMissing as error:
        print(f"no chart: {error}")
    scales = sorted({result.scale for result in results})
    scaled = "" if scales == [1.0] else f" **Sizes scaled by {', '.join(f'{scale:g}' for scale in scales)}.**"
    head = (
        f"Written by `make bench` on {datetime.now(UTC).date().isoformat()}, with Towline {version('towline')}. "
        f"{machine.text()}{scaled}{' ' if note else ''}{note}"
    )
    image = f"![Changes a second, and CPU a change]({directory.name}/{chart.name})"
    parts = {
        "head": head,
        "targets": targets.table(results),
        "workloads": f"{image}\n\n{tables(results, everyone)}",
    }
    write_parts(path, parts)


def write_sweep(
    path: Path, machine: Machine, sweep: Sweep, results: Sequence[Result], everyone: Mapping[str, Contender]
) -> None:
    """What a sweep gives: chart, table and data."""
    directory = beside(path)
    write_data(directory / f"{sweep.name}.jsonl", results)
    chart = directory / f"{sweep.name}.svg"
    try:
        sweeper.chart(chart, sweep, results, everyone)
    except charts.ChartsMissing as error:
        print(f"no chart: {error}")
    scales = sorted({result.scale for result in results})
    scaled = "" if scales == [1.0] else f", sizes scaled by {', '.join(f'{scale:g}' for scale in scales)}"
    text = (
        f"![{sweep.title}]({directory.name}/{chart.name})\n\n{sweeper.table(sweep, results, everyone)}\n"
        f"({datetime.now(UTC).date().isoformat()}, PostgreSQL {machine.server}{scaled})"
    )
    write_parts(path, {sweep.name: text})
