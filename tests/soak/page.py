"""The summary of a soak: for the terminal, and as a part of docs/RELIABILITY.md between two markers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from tests.faults.results import CHANGED
from tests.soak.jobs import Outcome

BEGIN, END = "<!-- soak:begin -->", "<!-- soak:end -->"

#: Histories of a full run.
HISTORIES = 2000

_CONVERGENCE = (
    "Transactions of generated statements run against a pipeline that is killed, and cut off, at generated "
    "places: while tables are copied, between the points of its loop, inside its batches. After each run the "
    "target is compared row for row, the ledger must balance, and the slot must not be ahead of the "
    "checkpoint. A history that fails is made as small as can be (`tests/convergence`)."
)
_RULES = (
    "The loop, and the rules of snapshots and checkpoints, over a source and a target in memory, in every "
    "order in which transactions are logged, flushed and seen, chunks read, pieces received, and the daemon "
    "killed, or the target crashed (`tests/model`). In none does the target show what the source never had, or end "
    "with other rows."
)
_FUZZED = (
    "Captured streams with bits, bytes, lengths and whole messages changed, lost, repeated and mixed up. What "
    "came out were coded errors, or rows whose bytes are as they must be; in time, and in memory in proportion "
    "(`tests/fuzz`)."
)


@dataclass(frozen=True)
class Soak:
    """A run. ``commit``: of the code that ran, if known. ``wanted``: the names of all jobs of a full run.

    ``bounds``: what the jobs were told on the command line. ``bounded``: that is not what a full run tells them.
    """

    outcomes: Sequence[Outcome]
    seed: int
    day: str
    minutes: float
    cores: int
    version: str
    commit: str = ""
    wanted: tuple[str, ...] = ()
    bounds: str = ""
    bounded: bool = False

    @property
    def left_out(self) -> int:
        """Jobs of a full run that were not run to their end."""
        return len(set(self.wanted) - {outcome.job for outcome in self.outcomes})

    @property
    def failures(self) -> list[Outcome]:
        """Jobs in which something did not hold."""
        return [outcome for outcome in self.outcomes if outcome.failure]

    def of(self, kind: str) -> list[Outcome]:
        """The outcomes of one kind of job that held."""
        return [each for each in self.outcomes if each.job.split("/")[0] == kind and not each.failure]

    def sum(self, kind: str, figure: str) -> int:
        """A figure over all jobs of a kind."""
        return sum(int(each.figures.get(figure, 0)) for each in self.of(kind))


def markdown(soak: Soak) -> str:
    """The section, without its markers."""
    done = ", ".join(
        (
            f"{soak.sum('convergence', 'histories'):,} generated histories",
            f"{soak.sum('convergence', 'transactions'):,} transactions",
            f"{soak.sum('convergence', 'faults'):,} kills and cut connections",
            f"{soak.sum('model', 'states'):,} states of the model",
            f"{soak.sum('fuzz', 'inputs'):,} wrong inputs to the decoders",
        )
    )
    code = f" at commit `{soak.commit.replace(CHANGED, '')}`" if soak.commit else ""
    code += " with changes that are in no commit" if CHANGED in soak.commit else ""
    lines = [
        "## Soak",
        "",
        f"Written by `make soak`. The run shown is of {soak.day}: Towline {soak.version}{code}; {soak.cores} cores; "
        f"{soak.minutes:.0f} minutes; seed {soak.seed}.",
        "",
        f"**{_verdict(soak)}** {done}.",
        "",
        "### Histories that converge",
        "",
        *wrap(_CONVERGENCE, 120),
        "",
        "| schema | plugin | histories | transactions | faults | jobs that failed |",
        "|---|---|---|---|---|---|",
    ]
    sums: dict[tuple[str, str], Counter[str]] = {}
    for each in soak.of("convergence"):
        _, schema, plugin, _ = each.job.split("/")
        sums.setdefault((schema, plugin), Counter()).update({name: int(n) for name, n in each.figures.items()})
    for each in soak.failures:
        if each.job.startswith("convergence/"):
            _, schema, plugin, _ = each.job.split("/")
            sums.setdefault((schema, plugin), Counter()).update(failed=1)
    for (schema, plugin), figures in sums.items():
        shown = " | ".join(f"{figures[name]:,}" for name in ("histories", "transactions", "faults"))
        lines.append(f"| {schema} | {plugin} | {shown} | {figures['failed']} |")
    lines += [
        "",
        "### The rules, explored",
        "",
        *wrap(_RULES, 120),
        "",
        "| case | states | histories to their end | all orders |",
        "|---|---|---|---|",
    ]
    for each in soak.of("model"):
        name, told = each.job.split("/", 1)[1], each.figures
        lines.append(f"| {name} | {told['states']:,} | {told['histories']:,} | {told['whole']} |")
    lines += ["", "With one rule broken the same exploration finds a history that shows it:", ""]
    lines += ["| broken | events of the shortest history that shows it |", "|---|---|"]
    for each in soak.of("rules"):
        lines += [f"| {rule} | {events} |" for rule, events in each.figures.items()]
    lines += [
        "",
        "### Decoders, fuzzed",
        "",
        *wrap(_FUZZED, 120),
        "",
        "| decoder | inputs | minutes |",
        "|---|---|---|",
    ]
    lines += [
        f"| {each.job.split('/', 1)[1]} | {each.figures['inputs']:,} | {each.seconds / 60:.1f} |"
        for each in soak.of("fuzz")
    ]
    for each in soak.failures:
        lines += ["", f"**Failed:** `{each.job}`, to be repeated with `{replay(each, soak.bounds)}`"]
    return "\n".join(lines) + "\n"


def _verdict(soak: Soak) -> str:
    """Only of a run that is complete it is said that nothing diverged."""
    done = len(soak.wanted) - soak.left_out
    if soak.failures:
        return f"{len(soak.failures)} jobs failed; {done} of {len(soak.wanted)} were run."
    if soak.left_out or not soak.wanted:
        return f"Not a whole run: {done} of {len(soak.wanted)} jobs."
    if soak.bounded:
        return f"Not a whole run: {soak.bounds}."
    if (told := soak.sum("convergence", "histories")) < HISTORIES:
        return f"Not a whole run: {told:,} of {HISTORIES:,} histories."
    return "Nothing diverged."


def replay(outcome: Outcome, bounds: str = "") -> str:
    """The command that does the same again; ``bounds``: those of the run, which say what a job is."""
    more = f" {bounds}" if bounds else ""
    return f"make soak SOAK_ARGS=\"--job '{outcome.job}' --job-seed {outcome.seed}{more}\""


def write(page: Path, soak: Soak) -> None:
    """Put the section between its markers; where there is no page yet, make one that has nothing else.

    Raises ValueError when the page has no markers.
    """
    text = page.read_text("utf-8") if page.exists() else f"# Reliability\n\n{BEGIN}\n{END}\n"
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for the result of a soak")
    page.write_text(f"{head}{BEGIN}\n{markdown(soak)}{END}{tail}", "utf-8")
