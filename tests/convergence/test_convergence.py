"""Whatever is done at the source, and whatever befalls the pipeline, the target ends up with the source's rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.convergence.bench import Bench
from tests.convergence.histories import History, histories
from tests.convergence.schemas import SCHEMAS
from towline.demo.server import Server

#: Histories of each schema, over 100 in all; the same in every run. `make soak` runs many more, of its own choice.
EXAMPLES = {"pgoutput": 8, "wal2json": 3}


@pytest.fixture
def bench(request: pytest.FixtureRequest, hub18: Server, tmp_path: Path) -> Iterator[Bench]:
    """Databases for the schema and plugin that the test is parametrized with."""
    name, plugin = request.param
    server = request.getfixturevalue("pg18" if plugin == "pgoutput" else "pg15")
    made = Bench(SCHEMAS[name], plugin, server, hub18, tmp_path)
    try:
        yield made
    finally:
        made.close()


def cases() -> list[object]:
    return [
        pytest.param((name, plugin), id=f"{name}, {plugin}", marks=[pytest.mark.debian] if plugin == "wal2json" else [])
        for name, schema in SCHEMAS.items()
        for plugin in schema.plugins
    ]


@pytest.mark.parametrize("bench", cases(), indirect=True)
def test_histories_converge(bench: Bench) -> None:
    """Row for row after every run, whatever the faults; nothing is acknowledged too early; the books agree."""

    @settings(
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=EXAMPLES[bench.plugin],
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(histories(bench.schema))
    def converge(history: History) -> None:
        bench.play(history)

    converge()
    assert bench.histories >= EXAMPLES[bench.plugin] and bench.transactions > 0
    assert bench.counted > 0 or bench.schema.changing or bench.plugin == "wal2json"  # so few may all be of one phase
    assert not bench.schema.streamed or bench.parts() > 0
    assert not bench.schema.behind or bench.gulps > bench.histories
