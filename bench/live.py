"""Runs that last a given time: latency under a steady load, and what a contender uses when nothing happens."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

import psycopg
from psycopg import sql

from bench import settings
from bench.contender import Contender, Place
from bench.drain import Patience, Watcher, compare, ignored, roots
from bench.meter import Meter, Used, await_quiet
from bench.processes import Process
from bench.results import Result
from bench.servers import BenchFailed, rows, value
from bench.stage import Stage
from bench.workloads import END, HOT_KEYS, START, mark

_INSERT: Final = (
    "INSERT INTO orders SELECT o.* FROM nextval('bench_gen.live_id') AS n(i), LATERAL bench_gen.orders(i, i) AS o;\n"
)
_UPDATE: Final = (
    f"\\set k random(1, {HOT_KEYS})\nUPDATE orders SET quantity = quantity + 1, amount = amount + 0.25 WHERE id = :k;\n"
)
#: The first order that a live load inserts.
FIRST: Final = 1_000_001
#: Seconds between two looks at the target. What is seen between them counts as seen at the second.
LOOK: Final = 0.001
#: Part of the load's time that is not measured, at its begin.
WARM_UP: Final = 1 / 6
_IDLE_BEFORE: Final = 3.0


def live(
    stage: Stage,
    contender: Contender,
    patience: Patience,
    *,
    started: Callable[[Process | None], None] = ignored,
) -> Result:
    """A run of a workload whose mode is ``live`` or ``idle``; ``stage`` is to be one made for this run.

    ``started``: told of the contender's process.
    """
    result = Result(
        stage.workload.name,
        contender.name,
        0,
        0.0,
        stage.size,
        0,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    process: Process | None = None
    place: Place | None = None
    try:
        place = stage.place(contender)
        contender.prepare(place)
        mark(place.servers, START)
        await_quiet(patience.quiet)
        with closing(Watcher(place, contender)) as watcher:
            process = contender.start(place)
            started(process)
            _await(watcher.begun, process, patience.run)
            if stage.workload.mode == "idle":
                return _with(result, _idle(place, process, watcher), seconds=float(stage.size))
            outcome = _Load(place, contender, process, watcher).run(patience.run)
        result = _with(result, outcome.used, seconds=outcome.seconds)
        result = replace(result, changes=outcome.changes, latency=quantiles(outcome.late), more=outcome.more)
        return replace(result, failure=outcome.failure or compare(stage, contender, place))
    except (BenchFailed, psycopg.Error) as error:
        return replace(result, failure=str(error) or type(error).__name__)
    finally:
        if process is not None:
            process.stop()
        if place is not None:
            contender.clean(place)
            shutil.rmtree(place.directory)


def _with(result: Result, used: Used, seconds: float) -> Result:
    return replace(
        result,
        seconds=round(seconds, 3),
        cpu=used.cpu,
        kinds=used.kinds,
        peak=used.peak,
        anonymous=used.anonymous,
        foreign=used.foreign,
    )


def _await(condition: Callable[[], bool], process: Process | None, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.status is not None:
            raise BenchFailed(f"ended with {process.status}: {process.output()}")
        if time.monotonic() > deadline:
            raise BenchFailed(f"not in time: {process.output() if process is not None else ''}")
        time.sleep(0.02)


def _idle(place: Place, process: Process | None, watcher: Watcher) -> Used:
    """Leave everything alone for a while."""
    time.sleep(_IDLE_BEFORE)
    meter = Meter(roots(place.servers), watcher.pids)
    meter.watch(process)
    time.sleep(place.size)
    return meter.stop()


def quantiles(late: Sequence[float]) -> Mapping[str, float]:
    """Milliseconds, of delays in seconds."""
    if not late:
        return {}
    ordered = sorted(late)

    def at(part: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)

    return {"p50": at(0.50), "p95": at(0.95), "p99": at(0.99), "max": round(1000 * ordered[-1], 2)}


@dataclass(frozen=True, slots=True)
class _Outcome:
    used: Used
    seconds: float
    changes: int
    late: Sequence[float]
    failure: str = ""
    more: Mapping[str, float] = field(default_factory=dict)


class _Load:
    """pgbench at a given rate, while the target is looked at all the time."""

    def __init__(self, place: Place, contender: Contender, process: Process | None, watcher: Watcher) -> None:
        self._place = place
        self._process = process
        self._watcher = watcher
        table, key = (sql.Identifier(name) for name in contender.visible)
        self._query = sql.SQL("SELECT {} FROM {} WHERE {} > %s").format(key, table, key)

    def run(self, timeout: float) -> _Outcome:
        """Run the load, and wait until all has arrived."""
        seconds = self._place.size
        with psycopg.connect(self._place.target, autocommit=True) as looking:
            meter = Meter(roots(self._place.servers), [*self._watcher.pids, looking.info.backend_pid])
            meter.watch(self._process)
            began = time.time()
            load = self._start(seconds)
            try:
                seen, used, end = self._look(looking, load, meter, began + seconds + timeout)
            finally:
                if load.poll() is None:
                    load.terminate()
                load.wait()
        if load.returncode:
            raise BenchFailed(f"pgbench failed: {(self._place.directory / 'pgbench').read_text()[-2000:]}")
        commits = rows(
            self._place.source,
            "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM orders WHERE id >= %s",
            FIRST,
        )
        inside = [(key, at) for key, at in commits if began + seconds * WARM_UP <= at <= began + seconds]
        late = [seen[key] - at for key, at in inside if key in seen]
        updates = value(
            self._place.source,
            "SELECT coalesce(sum(quantity), 0) - (SELECT sum(quantity) FROM bench_gen.orders(1, %s)) FROM orders"
            " WHERE id <= %s",
            HOT_KEYS,
            HOT_KEYS,
        )
        changes = int(updates) + len(commits)
        failure = f"{len(inside) - len(late)} rows never arrived" if len(late) < len(inside) else ""
        more = {
            "samples": len(late),
            "rate": round(changes / seconds, 1),
            "caught_up": round(end - began - seconds, 2),
        }
        return _Outcome(used, float(seconds), changes, late, failure, more)

    def _start(self, seconds: int) -> subprocess.Popen[bytes]:
        place = self._place
        scripts = []
        for name, text in (("insert.sql", _INSERT), ("update.sql", _UPDATE)):
            (place.directory / name).write_text(text)
            scripts += ["-f", str(place.directory / name)]
        host = str(place.servers.source.directory) if place.servers.transport == "socket" else "127.0.0.1"
        with (place.directory / "pgbench").open("wb") as log:
            return subprocess.Popen(
                [
                    *(place.servers.program("pgbench"), "-n", "-h", host, "-p", str(place.servers.source.port)),
                    *("-U", "postgres", "-c", "8", "-j", "1", "-R", str(place.workload.rate), "-T", str(seconds)),
                    *("-M", "prepared", *scripts, settings.DATABASE),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _look(
        self, looking: psycopg.Connection, load: subprocess.Popen[bytes], meter: Meter, deadline: float
    ) -> tuple[dict[int, float], Used, float]:
        """When each order was first seen; what was used until the load's end; when the last change was there."""
        seen: dict[int, float] = {}
        low = FIRST - 1
        used: Used | None = None
        cursor = looking.cursor(binary=True)
        while True:
            over = used is not None and self._watcher.finished()
            found = cursor.execute(self._query, (low,), prepare=True).fetchall()
            now = time.time()
            for (key,) in found:
                seen.setdefault(key, now)
            while low + 1 in seen:
                low += 1
            if over and used is not None:
                return seen, used, now
            if used is None and load.poll() is not None:
                used = meter.stop()
                mark(self._place.servers, END)
            if self._process is not None and self._process.status is not None:
                raise BenchFailed(f"ended with {self._process.status}: {self._process.output()}")
            if now > deadline:
                raise BenchFailed("not all changes arrived in time")
            time.sleep(LOOK)
