"""What the supervisor keeps from one attempt to the next."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from towline import first_look, replication, supervisor
from towline.adoption import Intake
from towline.backoff import Backoff
from towline.config import PipelineConfig, load
from towline.errors import SourceUnavailable, TargetUnavailable
from towline.first_look import FirstLook
from towline.handle import Handle
from towline.metrics import Metrics

FILE = """
pipeline: p
source: {kind: postgres, dsn: "host=nowhere"}
target: {kind: postgres, dsn: "host=nowhere"}
routes: [{from: public.*, into: copy.*}]
"""


Given = list[dict[str, Any]]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """What each attempt is given; the first two of them fail."""
    given: Given = []

    class Attempt:
        def __init__(self, config: object, **options: Any) -> None:
            given.append(options)
            self.handle, self.again = Handle(), False

        def run(self, *, until_caught_up: bool) -> None:
            if len(given) < 3:
                raise TargetUnavailable("it is down")

    monkeypatch.setattr(supervisor, "Replication", Attempt)
    monkeypatch.setattr(supervisor.Supervisor, "_watch", lambda self, wanted: None)
    monkeypatch.setattr(Backoff, "after", lambda self, failures: 0.0)
    return given


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A pipeline file."""
    path = tmp_path / "p.yaml"
    path.write_text(FILE, "utf-8")
    return path


@pytest.fixture
def first(path: Path, monkeypatch: pytest.MonkeyPatch) -> FirstLook:
    """A look that finds nothing to connect to."""
    monkeypatch.setattr(first_look, "take_in", _unreachable)
    return FirstLook(load(path))


def _unreachable(config: PipelineConfig) -> Intake:
    raise SourceUnavailable(f"{config.pipeline} has nowhere to look")


def test_what_attempts_have_in_common(path: Path, given: Given) -> None:
    """The breaker, the state of streaming and the clock are the daemon's, not the attempt's."""
    assert supervisor.Supervisor(path, load(path), lambda point: None)._attempts(True) == 0
    for name in ("breaker", "streaming", "clock"):
        assert len({id(options[name]) for options in given}) == 1 and len(given) == 3


def test_the_first_attempt_takes_the_first_look(path: Path, given: Given, first: FirstLook) -> None:
    """The others look again: what it has found may be long ago."""
    daemon = supervisor.Supervisor(path, first.config, lambda point: None, first)
    assert daemon._attempts(True) == 0
    assert [options["first"] for options in given] == [first, None, None]


def test_what_the_first_look_raises(first: FirstLook) -> None:
    """It is raised where the result is asked for."""
    with pytest.raises(SourceUnavailable, match="nowhere to look"):
        first.result()
    first.end()


def test_a_reload_waits_for_the_first_look(path: Path, given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both may change the publication. What the look has found is of no use then."""
    events: list[str] = []
    looking = threading.Event()

    def take_in(config: PipelineConfig) -> Intake:
        looking.set()
        reloading.wait(10)
        events.append("looked")
        raise SourceUnavailable("it is down")

    reloading = threading.Event()
    monkeypatch.setattr(first_look, "take_in", take_in)
    first = FirstLook(load(path))
    assert looking.wait(10)
    end = first.end

    def released() -> None:
        reloading.set()
        end()

    monkeypatch.setattr(first, "end", released)
    daemon = supervisor.Supervisor(path, first.config, lambda point: None, first)

    monkeypatch.setattr(daemon, "_read_configuration_again", lambda: events.append("read again"))
    daemon.request_reload()
    assert daemon._attempts(True) == 0
    assert events == ["looked", "read again"]
    assert [options["first"] for options in given] == [None, None, None]


def test_an_attempt_looks_again(first: FirstLook, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a table has changed, the next look is its own."""
    looks: list[str] = []

    def take_in(config: PipelineConfig) -> Intake:
        looks.append(config.pipeline)
        raise SourceUnavailable("it is down")

    monkeypatch.setattr(replication, "take_in", take_in)
    attempt = replication.Replication(
        first.config,
        metrics=Metrics("p"),
        stopping=lambda: False,
        role=lambda role: None,
        announce=lambda point: None,
        first=first,
    )
    for found in ([], ["p"], ["p", "p"]):
        with pytest.raises(SourceUnavailable):
            attempt._look()
        assert looks == found


def test_a_look_needs_half_of_the_modules() -> None:
    """What replicates is imported while it is taken: it is not there before."""
    loaded = "import sys, towline.cli.daemon; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout.split()
    assert "towline.first_look" in found
    assert {"towline.supervisor", "towline.replication", "towline.target.postgres.writer"}.isdisjoint(found)
