"""A call to the target that takes long: what the daemon says of itself meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline import supervisor
from towline.demo.server import Server
from towline.replication import Replication
from towline.supervisor import Supervisor

#: Seconds without a sign of life after which /healthz says so, here.
LIVE = 4.0

#: A constraint that is checked at the commit, and waits for a lock that the test has.
SLOW = """
CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
  $$BEGIN PERFORM pg_advisory_xact_lock(42); RETURN NULL; END$$;
CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON replica.t DEFERRABLE INITIALLY DEFERRED
  FOR EACH ROW EXECUTE FUNCTION wait();
"""


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), "  - {from: public.t, into: replica.t}")
    line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    line.apply()
    line.run()
    return line


@contextmanager
def running(line: Line, announce: Callable[[str], None] = lambda point: None) -> Iterator[Replication]:
    """A daemon's attempt, in a thread of its own."""
    stop = threading.Event()
    replication = line.replication(stopping=stop.is_set, announce=announce)
    thread = threading.Thread(target=lambda: replication.run(until_caught_up=False))
    thread.start()
    try:
        until(lambda: replication.handle.pipeline is not None, 20)
        yield replication
    finally:
        stop.set()
        if replication.handle.pipeline is not None:
            replication.handle.pipeline.stop()
        thread.join(20)


def health(line: Line, replication: Replication) -> Supervisor:
    """The one that would answer /healthz for that attempt."""
    asked = Supervisor(line.path, line.config, lambda point: None)
    asked._attempt = replication
    return asked


def silent(replication: Replication) -> bool:
    """Whether the loop has not turned for longer than health allows."""
    pipeline = replication.handle.pipeline
    return pipeline is not None and time.monotonic() - pipeline.beat > LIVE + 1


def test_a_commit_that_takes_long(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lag grows, since nothing of it is durable; and the daemon lives, since the target works for it."""
    monkeypatch.setattr(supervisor, "_LIVE", LIVE)
    line.at_hub(SLOW)

    def lag() -> float:
        labels = {"pipeline": line.config.pipeline}
        return line.metrics.registry.get_sample_value("towline_lag_seconds", labels) or 0.0

    with running(line) as replication:
        with psycopg.connect(line.hub) as holder:
            holder.execute("SELECT pg_advisory_lock(42)")
            line.at_source("INSERT INTO t VALUES (1)")
            until(lambda: silent(replication), 20)
            assert health(line, replication).health().live
            assert lag() > 1.0
            assert line.at_hub("SELECT count(*) FROM replica.t") == [(0,)]
        until(lambda: line.at_hub("SELECT count(*) FROM replica.t") == [(1,)], 20)
        until(lambda: lag() == 0.0, 20)


def test_a_loop_that_hangs(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its session is there, and does nothing: that is no life."""
    monkeypatch.setattr(supervisor, "_LIVE", LIVE)
    go_on = threading.Event()

    def hang(point: str) -> None:
        if point == "committing":
            go_on.wait(30)

    with running(line, hang) as replication:
        assert health(line, replication).health().live
        line.at_source("INSERT INTO t VALUES (1)")
        try:
            until(lambda: silent(replication), 20)
            until(lambda: not health(line, replication).health().live, 5)
        finally:
            go_on.set()
