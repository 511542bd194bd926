"""Writes docs/RELIABILITY.md from results; its prose is in page.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tests.faults.fault import REASONS
from tests.faults.matrix import FAULTS, Cell, cells
from tests.faults.phases import PLUGINS, Phase
from tests.faults.results import CHANGED, Result, Sum, by_cell
from tests.faults.workload import ROWS

SOAK = ("<!-- soak:begin -->", "<!-- soak:end -->")
NOT_RUN = "?"


@dataclass(frozen=True, slots=True)
class Run:
    """What the page says of the run. ``versions``: of the servers, by role; ``left_out``: why cells were not run.
    ``note``: what else the reader should know of the run. ``commit``: of the code that ran; "" if that is not known.
    """

    date: str
    version: str
    versions: Mapping[str, str]
    machine: str
    seeds: tuple[int, ...]
    note: str = ""
    left_out: str = ""
    commit: str = ""


def expected() -> set[str]:
    """The names of all cells of a full run."""
    return {cell.name for cell in cells()}


def page(run: Run, results: Sequence[Result], soak: str) -> str:
    """The page. ``soak``: what stands between its markers, which is not ours."""
    prose = Template(Path(__file__).with_name("page.md").read_text("utf-8"))
    return prose.substitute(
        head=_head(run, results),
        rows=f"{4 * ROWS:,}",
        summary=_summary(results),
        table=_table(results),
        struck=_struck(results),
        legend=_legend(run),
        failures=_failures(results),
        soak=f"{SOAK[0]}{soak}{SOAK[1]}",
    )


def soak_of(text: str) -> str:
    """What stands between the markers of a page there is."""
    if SOAK[0] not in text:
        return "\n"
    return text.split(SOAK[0], 1)[1].split(SOAK[1], 1)[0]


def write(path: Path, run: Run, results: Sequence[Result]) -> None:
    """Write the page, and leave the part of the soak test as it was."""
    before = path.read_text("utf-8") if path.exists() else ""
    path.write_text(page(run, results, soak_of(before)), "utf-8")


def not_run() -> str:
    """The page of before the first run: what is tried and how, and no result."""
    prose = Template(Path(__file__).with_name("page.md").read_text("utf-8"))
    return prose.substitute(
        head=f"**Not run yet.** `make faults` writes this page, with {len(expected())} cells to be tried.",
        rows=f"{4 * ROWS:,}",
        summary="Not run yet.",
        table="Not run yet.",
        struck="",
        legend=_legend(None),
        failures="",
        soak=f"{SOAK[0]}\n{SOAK[1]}",
    )


def _head(run: Run, results: Sequence[Result]) -> str:
    total = Sum.of(results)
    code = f" at commit `{run.commit}`" if run.commit else ""
    if CHANGED in run.commit:
        code = f" at commit `{run.commit.replace(CHANGED, '')}` with changes that are in no commit"
    return (
        f"Written by `make faults`. The run shown is of {run.date}: Towline {run.version}{code};\nsource PostgreSQL "
        f"{run.versions['pgoutput']} for pgoutput and {run.versions['wal2json']} for wal2json, target PostgreSQL "
        f"{run.versions['target']}; {run.machine}; "
        f"seed{'s' if len(run.seeds) > 1 else ''} {', '.join(map(str, run.seeds))}."
        f"{' ' if run.note else ''}{run.note}\n\n"
        f"{_verdict(run, results)} {total.runs:,} trials carried {total.carried:,} rows;\n"
        f"lost: {total.lost:,}; doubled: {total.doubled:,}; the longest recovery took {total.seconds:.1f} s."
    )


def _verdict(run: Run, results: Sequence[Result]) -> str:
    """Only of a run that is complete it is said that nothing was lost."""
    failures = Sum.of(results).failures
    wanted = expected()
    there = {(result.cell, result.seed) for result in results}
    run_whole = {name for name in wanted if all((name, seed) in there for seed in run.seeds)}
    count = f"{len(run_whole)} of {len(wanted)} cells were run."
    if failures:
        return f"**{failures} trials were not as they must be**: see below the table. {count}"
    if run_whole == wanted:
        return f"**Nothing was lost and nothing was applied twice.** {count}"
    why = ""
    if run.left_out:
        rows = sorted({name.split("/")[0] for name in wanted - run_whole})
        why = (
            f" ({run.left_out}: {', '.join(f'`{row}`' for row in rows[:12])}{' and others' if len(rows) > 12 else ''})"
        )
    return f"**Not all of the matrix: {count.removesuffix('.')}**{why}."


def _struck(results: Sequence[Result]) -> str:
    """How many trials struck at each point."""
    times = Counter(result.point.split(" ")[0] for result in results if result.point)
    points = [point for phase in Phase for point in phase.points]
    return "Struck at: " + ", ".join(f"`{point}` {times[point]} times" for point in points) + "."


def _summary(results: Sequence[Result]) -> str:
    """A line for each fault."""
    lines = ["| fault | | cells | runs | rows | lost | doubled | seconds |", "|---|---|---|---|---|---|---|---|"]
    group = ""
    for fault in FAULTS:
        if fault.group != group:
            group = fault.group
            lines.append(f"| **{group}** |" + " |" * 7)
        wanted = [Cell(fault, phase, plugin) for phase in Phase for plugin in PLUGINS]
        names = {cell.name for cell in wanted if not cell.reason}
        found = [result for result in results if result.cell in names]
        total, cells_run = Sum.of(found), len({result.cell for result in found})
        state = "**✗**" if total.failures else "ok" if cells_run == len(names) else NOT_RUN
        lines.append(
            f"| {fault.title} (`{fault.name}`) | {state} | {cells_run} of {len(names)} | {total.runs} | "
            f"{total.carried:,} | {total.lost} | {total.doubled} | {total.seconds:.1f} |"
        )
    return "\n".join(lines)


def _table(results: Sequence[Result]) -> str:
    sums = by_cell(results)
    columns = [(phase, plugin) for phase in Phase for plugin in PLUGINS]
    lines = [
        "| fault | " + " | ".join(f"{phase} {plugin[0]}" for phase, plugin in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    group = ""
    for fault in FAULTS:
        if fault.group != group:
            group = fault.group
            lines.append(f"| **{group}** |" + " |" * len(columns))
        shown = (_cell(Cell(fault, phase, plugin), sums) for phase, plugin in columns)
        lines.append(f"| `{fault.name}` | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _cell(cell: Cell, sums: Mapping[str, Sum]) -> str:
    if cell.reason:
        return cell.reason
    if cell.name not in sums:
        return NOT_RUN
    found = sums[cell.name]
    text = f"{found.runs} · {found.carried:,} · {found.lost} · {found.doubled} · {found.seconds:.1f}"
    return f"**✗ {text}**" if found.failures else text


def _legend(run: Run | None) -> str:
    used = {fault.reason(phase, plugin) for fault in FAULTS for phase in Phase for plugin in PLUGINS} - {""}
    lines = [f"- **{mark}**: {REASONS[mark]}." for mark in sorted(used)]
    why = f": {run.left_out}" if run is not None and run.left_out else ""
    lines.append(f"- **{NOT_RUN}**: not run, or not all of it{why}.")
    lines.append("- **✗**: not as it must be; the list below the table says what and how to replay it.")
    lines.append(
        "- Where a row says that the pipeline halts, a cell is right when it halts with that code and nothing is"
    )
    lines.append("  lost after the remedy.")
    return "\n".join(lines)


def _failures(results: Sequence[Result]) -> str:
    wrong = [result for result in results if not result.right]
    if not wrong:
        return ""
    lines = ["", "### What was not as it must be", ""]
    for result in wrong:
        what = result.failure.strip().splitlines()[0] if result.failure else ""
        lines.append(
            f"- `{result.cell}` at {result.point}, {result.lost} lost, {result.doubled} doubled: {what[:200]}\n"
            f"  Again: `{result.replay}`"
        )
    return "\n".join([*lines, ""])
