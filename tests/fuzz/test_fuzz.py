"""Decoders over streams that are wrong: coded errors or rows, and nothing else. `make soak` does it for minutes."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.decoders import DECODERS
from tests.fuzz.mutations import MUTATIONS, Mutation


@pytest.mark.parametrize("name", DECODERS)
def test_nothing_but_coded_errors(name: str) -> None:
    """Whatever is done to the bytes: no other exception, no hang, memory in proportion, and no row that is not one."""

    @settings(derandomize=True, database=None, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
    @given(MUTATIONS)
    def fuzz(mutations: list[Mutation]) -> None:
        DECODERS[name].try_one(mutations)

    fuzz()


@pytest.mark.parametrize(
    ("name", "mutations"),
    [
        # A row that is malformed, in a transaction before the place where the table is found changed.
        ("messages of the walsender", [("flip a bit", 14, 231, 0), ("flip a bit", 49, 734, 0)]),
    ],
)
def test_what_was_found(name: str, mutations: list[tuple[str, int, int, int]]) -> None:
    """What long runs have found stays mended."""
    DECODERS[name].try_one([Mutation(*mutation) for mutation in mutations])
