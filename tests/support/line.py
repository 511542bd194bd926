"""A whole pipeline in the test's own process: source database, hub database, pipeline file, and the real parts
between."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import sql

from tests.support.sessions import rows
from tests.support.wait import until
from towline import plan
from towline.config import PipelineConfig, load
from towline.differences import Report
from towline.metrics import Metrics
from towline.position import parse_lsn
from towline.replication import Replication
from towline.streaming import Streaming
from towline.target.postgres.writing_session import Session
from towline.verify import verify

_numbers = itertools.count(1)


@dataclass
class Line:
    """What one test replicates. ``routes``: YAML, indented like a list under ``routes:``."""

    source: str
    hub: str
    path: Path
    metrics: Metrics

    @classmethod
    def make(
        cls,
        directory: Path,
        source: str,
        hub: str,
        routes: str,
        *,
        plugin: str = "pgoutput",
        streaming: str = "auto",
        catch_up: str = "auto",
        more: str = "",
    ) -> Line:
        """Write the pipeline file; nothing is created yet."""
        name = f"line-{os.getpid()}-{next(_numbers)}"
        path = directory / f"{name}.yaml"
        path.write_text(
            f"pipeline: {name}\n"
            f'source: {{kind: postgres, dsn: "{source}", plugin: {plugin}, streaming: {streaming}, '
            f"catch_up: {catch_up}}}\n"
            f'target: {{kind: postgres, dsn: "{hub}"}}\n'
            f"web: {{port: 0}}\ncheckpoint_seconds: 0.5\n{more}\nroutes:\n{routes}\n",
            "utf-8",
        )
        return cls(source, hub, path, Metrics(name))

    @property
    def config(self) -> PipelineConfig:
        return load(self.path)

    def apply(self) -> None:
        """`towline apply`."""
        with plan.prepare(self.config) as prepared:
            plan.apply(prepared, lambda step: None)

    def run(self) -> None:
        """`towline run --until-caught-up`, with no second try: an error is raised."""
        self.replication().run(until_caught_up=True)

    def replication(
        self,
        stopping: Any = lambda: False,
        announce: Callable[[str], None] = lambda point: None,
        streaming: Streaming | None = None,
        predecessor: Session | None = None,
    ) -> Replication:
        """An attempt that the test runs itself."""
        return Replication(
            self.config,
            metrics=self.metrics,
            stopping=stopping,
            role=lambda role: None,
            announce=announce,
            streaming=streaming,
            predecessor=predecessor,
        )

    def verify(self, **options: Any) -> Report:
        """`towline verify`."""
        with plan.prepare(self.config) as prepared:
            return verify(prepared, **options)

    def at_source(self, statement: str | sql.Composable, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement at the source, committed."""
        return rows(self.source, statement, parameters)

    def at_hub(self, statement: str | sql.Composable, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run a statement at the hub, committed."""
        return rows(self.hub, statement, parameters)

    def same(self, source_table: str, hub_table: str, order: str = "1") -> int:
        """Both tables print the same rows; returns how many. Fails the test otherwise."""
        query = "SELECT t::text FROM {} t ORDER BY " + order
        there, here = self.at_source(query.format(source_table)), self.at_hub(query.format(hub_table))
        assert here == there
        return len(here)


@contextmanager
def running(line: Line) -> Iterator[list[BaseException]]:
    """The pipeline runs in a thread while the block does; its error is given, and raised at the end."""
    stop = threading.Event()
    attempt = line.replication(stop.is_set)
    failed: list[BaseException] = []

    def body() -> None:
        try:
            attempt.run(until_caught_up=False)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield failed
    finally:
        stop.set()
        if attempt.handle.pipeline is not None:
            attempt.handle.pipeline.stop()
        thread.join(20)
        assert not thread.is_alive()
        if failed:
            raise failed[0]


def caught_up(line: Line) -> None:
    """Wait until all that the source has is durable at the hub, and copied."""
    end = parse_lsn(line.at_source("SELECT pg_current_wal_flush_lsn()")[0][0])

    def reached() -> bool:
        position = parse_lsn(line.at_hub("SELECT position::text FROM towline.checkpoint")[0][0])
        copied = line.at_hub("SELECT bool_and(state = 'streaming') FROM towline.route_state") == [(True,)]
        return position >= end and copied

    until(reached, 30)
