"""What a soak consists of: jobs, each in a process of its own, that a name, a seed and a bound repeat."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.convergence.bench import Bench
from tests.convergence.histories import History, histories
from tests.convergence.schemas import SCHEMAS
from tests.fuzz.decoders import DECODERS
from tests.fuzz.mutations import MUTATIONS, Mutation
from tests.model.cases import BROKEN, LARGE, SMALL
from tests.model.daemon import Rules
from tests.model.explorer import explore
from towline.demo.programs import debian_bindir, embedded_bindir
from towline.demo.scratch import Scratch
from towline.demo.server import Server

#: Inputs of one round of fuzzing; the next round has another seed.
ROUND = 500
#: Histories of one job.
HISTORIES = 40


@dataclass(frozen=True)
class Bounds:
    """``seconds``: how long a job fuzzes. ``states``: tellings of a case of the model.

    ``until``: the time (`time.time`) after which no more histories are begun.
    """

    seconds: float
    states: int
    until: float = math.inf


@dataclass
class Outcome:
    """What a job found. ``figures``: what the page shows of it. ``failure``: empty when all held."""

    job: str
    seed: int
    figures: dict[str, int | str] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0

    def as_json(self) -> dict[str, object]:
        """For another process."""
        return asdict(self)


def names(total: int) -> list[str]:
    """All jobs. ``total``: histories of all schemas, in rounds of `HISTORIES` in turn."""
    benches = [f"{name}/{plugin}" for name, schema in SCHEMAS.items() for plugin in schema.plugins]
    rounds = range(1, 1 - (-total // (len(benches) * HISTORIES)))
    return [
        "rules",
        *(f"fuzz/{name}" for name in DECODERS),
        *(f"model/{name}" for name in LARGE | SMALL),
        *(f"convergence/{bench}/{number}" for number in rounds for bench in benches),
    ]


def run(job: str, number: int, bounds: Bounds) -> Outcome:
    """Do a job. Raises what makes it fail, hypothesis' account of the smallest failing example included."""
    outcome = Outcome(job, number)
    began = time.monotonic()
    kind, _, rest = job.partition("/")
    _KINDS[kind](rest, number, bounds, outcome)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _converge(name: str, number: int, bounds: Bounds, outcome: Outcome) -> None:
    schema_name, plugin, _ = name.split("/")
    schema = SCHEMAS[schema_name]
    programs = embedded_bindir() if plugin == "pgoutput" else debian_bindir(15)
    with Scratch() as directory:
        source = Server(directory / "source", programs, durable=False)
        if source.knows("output_plugin_libraries"):
            source.configure(output_plugin_libraries="pgoutput, test_decoding, wal2json")
        with source, Server(directory / "hub", embedded_bindir(), durable=False) as hub:
            bench = Bench(schema, plugin, source, hub, Path(directory))

            @seed(number)
            @settings(
                database=None,
                deadline=None,
                max_examples=HISTORIES,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
            )
            @given(histories(schema))
            def converge(history: History) -> None:
                if time.time() < bounds.until:
                    bench.play(history)

            try:
                converge()
            finally:
                bench.close()
    outcome.figures = {"histories": bench.histories, "transactions": bench.transactions, "faults": bench.faults}


def _fuzz(name: str, number: int, bounds: Bounds, outcome: Outcome) -> None:
    deadline = time.monotonic() + bounds.seconds
    tried = 0
    while time.monotonic() < deadline:

        @seed(number + tried)
        @settings(database=None, deadline=None, max_examples=ROUND, suppress_health_check=list(HealthCheck))
        @given(MUTATIONS)
        def fuzz(mutations: list[Mutation]) -> None:
            nonlocal tried
            tried += 1
            DECODERS[name].try_one(mutations)

        fuzz()
    outcome.figures = {"inputs": tried}


def _model(name: str, number: int, bounds: Bounds, outcome: Outcome) -> None:
    explored = explore((LARGE | SMALL)[name].tell(Rules()), bounds.states)
    assert not explored.violation, f"\n{explored}"
    outcome.figures = {
        "states": explored.states,
        "histories": explored.histories,
        "whole": "yes" if explored.whole else "no",
    }


def _rules(name: str, number: int, bounds: Bounds, outcome: Outcome) -> None:
    for rule, (rules, case, violation) in BROKEN.items():
        explored = explore(case.tell(rules), shortest=True)
        print(f"\n{rule}\n{explored}", flush=True)
        assert violation in explored.violation, f"{rule}: the exploration finds nothing wrong"
        outcome.figures[rule] = len(explored.events)


_KINDS: dict[str, Callable[[str, int, Bounds, Outcome], None]] = {
    "convergence": _converge,
    "fuzz": _fuzz,
    "model": _model,
    "rules": _rules,
}
