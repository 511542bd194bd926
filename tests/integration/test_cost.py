"""What a row costs, in things that can be counted: calls, bytes and round trips. Seconds are left to `make bench`.

Each figure is the difference of two runs, of few changes and of many, over the difference in their number: what a run
costs in any case is not in it. Limits leave room, about twice what was found when they were written down. One that is
passed means that something happens for each row, or for each table, that did not: find it, or say here why it must be.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from bench.servers import run
from bench.workloads import SCHEMA
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.proxy import Proxy
from tests.support.wire import Message, Trap
from towline import catch_up
from towline.demo.server import Server
from towline.source.postgres import stream

FEW, MANY = 2_000, 20_000
TABLES = 50
#: Bytes around what the output plugin wrote: of the protocol's messages, or of a row of COPY.
AROUND = 40

INSERTS = """DO $$ BEGIN
    FOR b IN {first} / 100 .. ({first} + {count}) / 100 - 1 LOOP
        INSERT INTO orders SELECT * FROM bench_gen.orders(b * 100 + 1, b * 100 + 100);
        COMMIT;
    END LOOP;
END $$"""
UPDATES = """DO $$ BEGIN
    FOR i IN 1 .. {count} LOOP
        UPDATE orders SET quantity = quantity + 1 WHERE id = 1 + i % 100;
        IF i % 50 = 0 THEN COMMIT; END IF;
    END LOOP;
END $$"""
SPREAD = """DO $$ BEGIN
    FOR i IN {first} .. {first} + {count} - 1 LOOP
        EXECUTE format('INSERT INTO part_%s VALUES ($1, $2)', lpad((1 + i % 50)::text, 4, '0')) USING i, 'Part ' || i;
        IF i % 5 = 4 THEN COMMIT; END IF;
    END LOOP;
END $$"""


@dataclass(frozen=True)
class Cost:
    """Of one run. ``calls``: of Python's functions and of C's, in all threads. ``up``, ``down``: bytes to the target,
    and from the source. ``backlog``: of the calls, those of the thread that reads one. Of the batches: ``requests``,
    times that the target was asked to answer, and ``statements``.
    """

    changes: int
    calls: int
    backlog: int
    up: int
    down: int
    requests: int
    statements: int
    batches: int


class Counting:
    """A pipeline whose lines lead through proxies, at which messages and bytes are counted."""

    def __init__(self, line: Line, source: Proxy, target: Proxy) -> None:
        self.line = line
        self._source = source
        self._target = target

    def run(self, changes: int) -> Cost:
        """Catch up with so many changes."""
        kinds: Counter[str] = Counter()
        points: Counter[str] = Counter()
        calls: Counter[str] = Counter()
        asked: list[Counter[str]] = []
        batches: Counter[str] = Counter()

        def message(found: Message) -> bool:
            kinds[found.kind] += 1
            return False

        def event(frame: FrameType, what: str, argument: Any) -> None:
            calls[what] += 1
            if what in ("call", "c_call") and threading.current_thread().name.startswith("towline-backlog"):
                calls["backlog"] += 1

        def announce(point: str) -> None:
            points[point] += 1
            if point == "received":
                asked.append(kinds.copy())
            elif point == "committed" and asked:
                batches.update(kinds - asked.pop())

        self._target.trap(Trap(up=True, matches=message))
        up, down = self._target.sent_up, self._source.sent_down
        with profiling(event):
            self.line.replication(announce=announce).run(until_caught_up=True)
        self._target.disarm()
        return Cost(
            changes,
            calls["call"] + calls["c_call"],
            calls["backlog"],
            self._target.sent_up - up,
            self._source.sent_down - down,
            batches["S"] + batches["Q"],
            batches["E"] + batches["Q"],
            points["received"],
        )


class profiling:
    """Every call is told to ``event``, in threads that begin meanwhile too."""

    def __init__(self, event: Callable[[FrameType, str, Any], None]) -> None:
        self._event = event
        self._before = sys.getprofile()

    def __enter__(self) -> None:
        threading.setprofile(self._event)
        sys.setprofile(self._event)

    def __exit__(self, *exception: object) -> None:
        sys.setprofile(self._before)
        threading.setprofile(None)


@dataclass(frozen=True)
class Growth:
    """Between a run of few changes and one of many: for each change; of the latter, for each batch."""

    calls: float
    backlog: float
    up: float
    down: float
    requests: float
    statements: float

    @classmethod
    def of(cls, few: Cost, many: Cost) -> Growth:
        changes = many.changes - few.changes
        return cls(
            (many.calls - few.calls) / changes,
            (many.backlog - few.backlog) / changes,
            (many.up - few.up) / changes,
            (many.down - few.down) / changes,
            many.requests / many.batches,
            many.statements / many.batches,
        )


Making = Callable[[str, str], Counting]


@pytest.fixture
def counting(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Making]:
    """Makes a pipeline. ``base``: what is done at the source before; ``routes``: as `Line.make` has them."""
    monkeypatch.setattr(stream, "BURST_SECONDS", 60.0)  # under the profiler, the usual time would cut pieces short
    with ExitStack() as stack:

        def make(base: str, routes: str) -> Counting:
            source, hub = new_database(pg18), new_database(hub18)
            line = Line.make(tmp_path, source, hub, routes)
            line.at_source(SCHEMA.read_text("utf-8"))
            line.at_source(base)
            line.apply()
            line.run()
            near, far = stack.enter_context(Proxy(pg18.port)), stack.enter_context(Proxy(hub18.port, wire=True))
            text = line.path.read_text("utf-8")
            text = text.replace(f'"{source}"', f'"{near.dsn(source)}"').replace(f'"{hub}"', f'"{far.dsn(hub)}"')
            line.path.write_text(text, "utf-8")
            return Counting(line, near, far)

        yield make


def grown(counting: Counting, statement: str) -> Growth:
    """Few changes, then many."""
    costs = []
    for first, count in ((0, FEW), (FEW, MANY)):
        run(counting.line.source, statement.format(first=first, count=count))
        costs.append(counting.run(count))
    return Growth.of(*costs)


def test_inserted_rows(counting: Making) -> None:
    """A row is handled by its batch: no statement and no round trip is its own, few calls are, and it travels once."""
    made = counting("SELECT 1", "  - {from: public.orders, into: replica.orders}")
    growth = grown(made, INSERTS)
    ((row,),) = made.line.at_source("SELECT (sum(pg_column_size(o.*)) / count(*))::float8 FROM orders o")
    assert growth.calls < 16, growth
    assert growth.up < 1.5 * row, growth
    assert growth.down < 1.5 * row + AROUND, growth
    assert growth.requests < 12, growth
    assert growth.statements < 25, growth


def test_rows_of_a_backlog(counting: Making, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through SQL, a row is hardly looked at by itself. (What the stream had read until it was left is not counted.)"""
    monkeypatch.setattr(catch_up, "BOUNDS", catch_up.Bounds(enter=1, leave=1, follow=1 << 30, again=1 << 20))
    made = counting("SELECT 1", "  - {from: public.orders, into: replica.orders}")
    growth = grown(made, INSERTS)
    assert 0.1 < growth.backlog < 2.5, growth
    assert growth.requests < 12, growth


def test_hot_keys(counting: Making) -> None:
    """Of a key that changes often, a batch takes one row to the target."""
    base = "INSERT INTO orders SELECT * FROM bench_gen.orders(1, 100)"
    made = counting(base, "  - {from: public.orders, into: replica.orders}")
    growth = grown(made, UPDATES)
    assert growth.calls < 16, growth
    assert growth.up < 40, growth  # a row of 200 bytes for each of 100 keys, in some batches
    assert growth.requests < 8, growth
    assert growth.statements < 25, growth


def test_many_tables(counting: Making) -> None:
    """A table more in a batch is three round trips more at most (those of a COPY), and few statements."""
    tables = f"DROP TABLE orders CASCADE; DROP TABLE bench_marker; CALL bench_gen.make_tables({TABLES})"
    made = counting(tables, "  - {from: public.*, into: replica.*}")
    growth = grown(made, SPREAD)
    assert growth.calls < 60, growth
    assert growth.requests < 3 * TABLES + 12, growth
    assert growth.statements < 5 * TABLES, growth
