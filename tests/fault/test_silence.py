"""Lines that are dead and stay so: nothing is forwarded, nobody is told, and nothing comes to anybody's rescue."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.proxy import Proxy
from tests.support.wait import until
from towline import catch_up, log_reader, lookout, monitor
from towline.demo.server import Server
from towline.errors import SourceUnavailable, TargetUnavailable, TowlineError
from towline.replication import Replication
from towline.source.postgres import backlog, stream

ROUTES = "  - {from: public.*, into: replica.*}"


def until_unavailable(attempt: Replication, raised: list[TowlineError]) -> None:
    """Run the attempt until an end is given up, in a thread."""
    try:
        attempt.run(until_caught_up=False)
    except (SourceUnavailable, TargetUnavailable) as error:
        raised.append(error)


@pytest.mark.parametrize("up", [True, False], ids=["both ways", "towards the daemon"])
def test_a_dead_line_to_the_source_is_noticed(
    up: bool, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon gives it up by itself, as unavailable, though each end of the line still takes what the other sends.

    What the source has by then is carried by the next attempt. (Towards the server alone, it is the server that hears
    nothing, and ends the session: `wal_sender_timeout`.)
    """
    source, hub = new_database(pg18), new_database(hub18)
    raised: list[TowlineError] = []
    stop = threading.Event()
    with Proxy(pg18.port) as proxy:
        line = Line.make(tmp_path, proxy.dsn(source), hub, ROUTES)
        line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
        line.apply()
        line.run()
        direct = Line(source, hub, line.path, line.metrics)
        direct.at_source("INSERT INTO t VALUES (1)")
        monkeypatch.setattr(stream, "SILENCE", 1.0)
        attempt = line.replication(stop.is_set)

        thread = threading.Thread(target=until_unavailable, args=(attempt, raised))
        thread.start()
        try:
            until(lambda: direct.at_hub("SELECT id FROM replica.t") == [(1,)])
            proxy.hold(up=up)
            direct.at_source("INSERT INTO t VALUES (2)")
            thread.join(20)
            assert not thread.is_alive(), "it waits for a line that is dead"
            assert isinstance(raised[0], SourceUnavailable) and "has sent nothing" in raised[0].detail
        finally:
            stop.set()
            proxy.release()
            thread.join(20)
        line.run()
        assert direct.same("t", "replica.t") == 2


@pytest.mark.parametrize(
    ("up", "sources"),
    [(True, False), (False, False), (True, True)],
    ids=["both ways", "towards the daemon", "both lines"],
)
def test_a_dead_line_to_the_target_is_noticed(
    up: bool,
    sources: bool,
    pg18: Server,
    hub18: Server,
    new_database: NewDatabase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever is lost on it, statement or answer: the target says on another line that it has nothing to do, and the
    daemon gives the dead one up. Meanwhile the lag grows. The next attempt ends the session that was left behind. The
    line to the source may be as dead.
    """
    source, hub = new_database(pg18), new_database(hub18)
    raised: list[TowlineError] = []
    stop = threading.Event()
    monkeypatch.setattr(lookout, "SILENCE", 3.0)
    monkeypatch.setattr(lookout, "ANSWER", 1.0)
    monkeypatch.setattr(monitor, "ANSWER", 1.0)
    with Proxy(hub18.port) as proxy, Proxy(pg18.port) as before:
        line = Line.make(tmp_path, before.dsn(source), proxy.dsn(hub), ROUTES)
        line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
        line.apply()
        direct = Line(source, hub, line.path, line.metrics)
        attempt = line.replication(stop.is_set)

        def lag() -> float:
            labels = {"pipeline": line.config.pipeline}
            return line.metrics.registry.get_sample_value("towline_lag_seconds", labels) or 0.0

        thread = threading.Thread(target=until_unavailable, args=(attempt, raised))
        thread.start()
        try:
            direct.at_source("INSERT INTO t VALUES (1)")
            until(lambda: direct.at_hub("SELECT id FROM replica.t") == [(1,)])
            until(lambda: lag() == 0.0)
            proxy.deaden(up=up)
            direct.at_source("INSERT INTO t VALUES (2)")
            until(lambda: lag() > 1.5, 10)
            if sources:
                before.deaden()
            thread.join(20)
            assert not thread.is_alive(), "it waits for a line that is dead"
            assert isinstance(raised[0], TargetUnavailable)
            again = line.replication(predecessor=attempt.handle.session)
            again.run(until_caught_up=True)  # with the dead line as it is
        finally:
            stop.set()
            proxy.cut()
            before.cut()
            thread.join(20)
        assert direct.same("t", "replica.t") == 2


def test_a_dead_line_under_a_backlog_is_noticed(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is read through SQL, the source says on another line that it is not at work for it."""
    source, hub = new_database(pg18), new_database(hub18)
    raised: list[TowlineError] = []
    stop = threading.Event()
    monkeypatch.setattr(catch_up, "BOUNDS", catch_up.Bounds(enter=1 << 20, leave=1 << 16, follow=1 << 30, again=1000))
    monkeypatch.setattr(backlog, "AHEAD", 1 << 16)
    monkeypatch.setattr(log_reader, "SILENCE", 2.0)
    monkeypatch.setattr(monitor, "ANSWER", 1.0)
    with Proxy(pg18.port, window=32 * 1024) as proxy, psycopg.connect(hub) as lock:
        line = Line.make(tmp_path, proxy.dsn(source), hub, ROUTES, more="batch: {max_rows: 100}")
        line.at_source("CREATE TABLE t (id int PRIMARY KEY, v text)")
        line.at_source("INSERT INTO t VALUES (-1)")
        line.apply()
        line.run()
        direct = Line(source, hub, line.path, line.metrics)
        with psycopg.connect(source, autocommit=True) as writer:
            writer.execute("UPDATE t SET v = 'changed'")
            for n in range(100):
                insert = "INSERT INTO t SELECT n, repeat('x', 3000) FROM generate_series(%s::int, %s::int) n"
                writer.execute(insert, (100 * n, 100 * n + 99))
        lock.execute("SELECT FROM replica.t FOR UPDATE")
        attempt = line.replication(stop.is_set)

        thread = threading.Thread(target=until_unavailable, args=(attempt, raised))
        thread.start()
        try:
            sending = "query LIKE 'COPY (SELECT data FROM pg_logical_slot_get%' AND wait_event = 'ClientWrite'"
            until(lambda: direct.at_source(f"SELECT pid FROM pg_stat_activity WHERE {sending}"))
            proxy.deaden()
            lock.rollback()
            thread.join(30)
            assert not thread.is_alive(), "it waits for a line that is dead"
            assert isinstance(raised[0], SourceUnavailable)
        finally:
            stop.set()
            proxy.cut()
            thread.join(20)
        direct.run()
        assert direct.same("t", "replica.t") == 10_001


def test_a_slow_line_to_the_target_is_not_a_dead_one(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target waits for rows for much longer than a silence may last; but they arrive, if slowly."""
    source, hub = new_database(pg18), new_database(hub18)
    with Proxy(hub18.port, window=32 * 1024) as proxy:
        line = Line.make(tmp_path, source, proxy.dsn(hub), ROUTES)
        line.at_source("CREATE TABLE t (id int PRIMARY KEY, v text)")
        line.apply()
        line.run()
        direct = Line(source, hub, line.path, line.metrics)
        monkeypatch.setattr(lookout, "SILENCE", 1.0)
        direct.at_source("INSERT INTO t SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n")
        began = time.monotonic()
        line.replication(lambda: False, lambda point: proxy.delay(0.2 if point == "begun" else 0)).run(
            until_caught_up=True
        )
        assert time.monotonic() - began > 4.0
        assert direct.same("t", "replica.t") == 5000
