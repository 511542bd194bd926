"""One timed run: from the start of the contender until the target holds every change, compared with the source."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
from psycopg import sql

from bench import processes, settings
from bench.contender import Contender, Place
from bench.contents import differences
from bench.meter import Meter, await_quiet
from bench.processes import Process
from bench.results import Result
from bench.servers import BenchFailed, Servers, Statement
from bench.stage import Stage
from bench.workloads import END, START

#: Seconds that changes may come after the marker that follows them, if a contender applies out of order.
SETTLE: Final = 60.0
_NAP: Final = 0.01
_READING: Final = "SELECT 1 FROM pg_replication_slots WHERE database = %s AND slot_name <> %s AND active"

Through = Callable[[Place], Place]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: that a run may take, and to wait before it until others leave the machine alone."""

    run: float = 900.0
    quiet: float = 20.0


@dataclass(slots=True)
class Course:
    """When what happened in a run (monotonic): a slot was read, the first change was visible, all was done.

    ``start``: CPU seconds of the contender's process until it read the slot.
    """

    began: float
    reading: float | None = None
    start: float = 0.0
    first: float | None = None
    end: float = 0.0

    def since(self, at: float | None) -> float | None:
        """Seconds from the beginning."""
        return None if at is None else round(at - self.began, 3)


class Watcher:
    """Tells by cheap queries whether a slot is read, and whether the first and the last change are visible."""

    def __init__(self, place: Place, contender: Contender) -> None:
        self._place = place
        self._table, self._key = (sql.Identifier(name) for name in contender.visible)
        self._connection = psycopg.connect(place.target, autocommit=True)
        self._source = psycopg.connect(place.source, autocommit=True)
        self._count_after = 0.0

    @property
    def pids(self) -> tuple[int, int]:
        """Of the server processes that answer, which are not to be counted."""
        return self._connection.info.backend_pid, self._source.info.backend_pid

    def close(self) -> None:
        """End the sessions."""
        self._connection.close()
        self._source.close()

    def reading(self) -> bool:
        """Whether someone reads a slot."""
        return self._source.execute(_READING, (settings.DATABASE, settings.BASE_SLOT)).fetchone() is not None

    def begun(self) -> bool:
        """Whether something has arrived."""
        return self._has(1) if self._place.workload.mode == "snapshot" else self._marked(START)

    def finished(self) -> bool:
        """Whether all has."""
        if self._place.workload.mode != "snapshot":
            return self._marked(END)
        if time.monotonic() < self._count_after or not self._has(self._place.size):
            return False
        began = time.monotonic()
        count = self._one(sql.SQL("SELECT count(*) FROM {}").format(self._table))
        self._count_after = time.monotonic() + 2 * (time.monotonic() - began)
        return int(count or 0) >= self._place.size

    def _marked(self, number: int) -> bool:
        return self._one("SELECT 1 FROM bench_marker WHERE id = %s", number) is not None

    def _has(self, key: int) -> bool:
        query = sql.SQL("SELECT 1 FROM {} WHERE {} = {}").format(self._table, self._key, sql.Literal(key))
        return self._one(query) is not None

    def _one(self, query: Statement, *parameters: Any) -> Any:
        row = self._connection.execute(query, parameters or None).fetchone()
        return row[0] if row is not None else None


def roots(servers: Servers) -> dict[str, int]:
    """The postmasters, for a meter."""
    return {"source": servers.source.pid, "target": servers.target.pid}


def ignored(process: Process | None) -> None:
    """For who does not want to know what was started."""


def drain(
    stage: Stage,
    contender: Contender,
    patience: Patience,
    *,
    through: Through = lambda place: place,
    started: Callable[[Process | None], None] = ignored,
) -> Result:
    """Run it, and measure. A run that does not end as it must is a result with a failure.

    ``through``: what becomes of the place before, ``started``: told of the contender's process.
    """
    result = Result(
        stage.workload.name,
        contender.name,
        0,
        0.0,
        stage.size,
        stage.changes,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        more={"wal": stage.wal},
    )
    process: Process | None = None
    place: Place | None = None
    try:
        place = through(stage.place(contender))
        contender.prepare(place)
        await_quiet(patience.quiet)
        with closing(Watcher(place, contender)) as watcher:
            meter = Meter(roots(place.servers), watcher.pids)
            course = Course(time.monotonic())
            try:
                process = contender.start(place)
                meter.watch(process)
                started(process)
                _await(contender, process, watcher, course, patience.run)
            finally:
                used = meter.stop()
        result = replace(
            result,
            seconds=round(course.end - course.began, 3),
            reading=course.since(course.reading),
            first=course.since(course.first),
            cpu=used.cpu,
            kinds=used.kinds,
            peak=used.peak,
            anonymous=used.anonymous,
            foreign=used.foreign,
            more={**result.more, "start_cpu": round(course.start, 2)},
        )
        return replace(result, failure=compare(stage, contender, place))
    except (BenchFailed, psycopg.Error) as error:
        return replace(result, failure=str(error) or type(error).__name__)
    finally:
        if process is not None:
            process.stop()
        if place is not None:
            contender.clean(place)
            shutil.rmtree(place.directory)


def _await(contender: Contender, process: Process | None, watcher: Watcher, course: Course, timeout: float) -> None:
    """Follow the run until all is done. Raises BenchFailed."""
    while True:
        now = time.monotonic()
        if process is not None and (status := process.status) is not None:
            if status or not contender.ends:
                raise BenchFailed(f"{contender.name} ended with {status}: {process.output()}")
            course.end = now
            return
        if course.reading is None and watcher.reading():
            course.reading = time.monotonic()
            course.start = processes.cpu(process.pid, processes.table()) if process is not None else 0.0
        if not contender.ends:
            if course.first is None and watcher.begun():
                course.first = time.monotonic()
            if course.first is not None and watcher.finished():
                course.end = time.monotonic()
                return
        if now > course.began + timeout:
            raise BenchFailed(f"{contender.name} was not done in time: {process.output() if process else ''}")
        # A look that costs much is taken less often.
        time.sleep(max(_NAP, 5 * (time.monotonic() - now)))


def compare(stage: Stage, contender: Contender, place: Place) -> str:
    """What differs, in words; "" when nothing."""
    counted = contender.count(place)
    if counted is not None and counted != stage.changes:
        return f"{counted:,} changes were counted, of {stage.changes:,}"
    expected = stage.expected(contender.pairs(stage.workload))
    deadline = time.monotonic() + (0.0 if contender.ends else SETTLE)
    while found := differences(expected, place.target):
        if time.monotonic() > deadline:
            return "contents differ: " + "; ".join(found[:5])
        time.sleep(0.5)
    return ""
