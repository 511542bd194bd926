"""The benchmark does not rot: each mode of a run, small, on servers that tests share; and it finds what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from bench.contender import Contender, Place
from bench.contenders import contenders
from bench.drain import Patience, drain
from bench.live import live
from bench.processes import Process
from bench.servers import Servers, run
from bench.stage import Stage
from bench.workloads import WORKLOADS, Workload
from towline.demo.server import Server

PATIENCE = Patience(run=60.0, quiet=0.0)


@pytest.fixture
def servers(pg18: Server, hub18: Server) -> Iterator[Servers]:
    """Source and target on servers of the run, which are left as they were."""
    with Servers(pg18, hub18) as made:
        yield made


def staged(servers: Servers, tmp_path: Path, workload: Workload, *taking: Contender) -> Stage:
    stage = Stage(servers, workload, workload.scaled(0.001), tmp_path)
    stage.build(taking)
    return stage


def test_streams(servers: Servers, tmp_path: Path) -> None:
    """All read the same log, one after the other, and the target is compared; what is spoilt is found."""
    everyone = contenders()
    taking = [everyone[name] for name in ("builtin", "towline-select", "sql-binary", "target-upsert")]
    stage = staged(servers, tmp_path, WORKLOADS["W1"], *taking)
    for contender in taking:
        result = drain(stage, contender, PATIENCE)
        assert (result.failure, result.changes) == ("", 1000), contender.name
        assert result.seconds > 0
        assert result.cpu["source" if contender.name == "sql-binary" else "target"] >= 0
        assert (result.first is not None) == (not contender.ends)
        assert bool(result.peak) or contender.name != "towline-select"
    spoilt = drain(stage, Spoilt(), PATIENCE)
    assert "999 rows of 1,000, other contents" in spoilt.failure


def test_live_and_snapshot(servers: Servers, tmp_path: Path) -> None:
    """A steady load is followed, with a latency for each row; tables are copied."""
    ours = contenders()["towline"]
    result = live(staged(servers, tmp_path, WORKLOADS["W5/500"], ours), ours, PATIENCE)
    assert result.failure == ""
    assert result.more["samples"] > 100
    assert 0 < result.latency["p50"] <= result.latency["p99"]
    result = drain(staged(servers, tmp_path, WORKLOADS["W6"], ours), ours, PATIENCE)
    assert (result.failure, result.changes) == ("", 5000)


class Spoilt(Contender):
    """Writes the rows of W1 to the target, but for one."""

    ends = True

    def __init__(self) -> None:
        super().__init__("spoilt", "", ["W1"])

    def prepare(self, place: Place) -> None:
        """Copy all but the last."""
        with psycopg.connect(place.source) as source:
            rows = source.execute("SELECT id FROM orders WHERE id < 1000").fetchall()
        run(
            place.target,
            "INSERT INTO orders SELECT id, '', '', '', 0, now(), true, 1, now(), NULL FROM unnest(%s::bigint[]) AS id",
            [key for (key,) in rows],
        )

    def start(self, place: Place) -> Process:
        """Nothing more."""
        return Process(["true"], place.log)
