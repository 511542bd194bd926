"""Connections that are lost while a pipeline is being prepared: an outage like any other, to be tried again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from towline import plan
from towline.demo.server import Server
from towline.errors import Action, TowlineError

ATTEMPTS = 60
TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'towline %%'
AND random() < 0.2
"""


@contextmanager
def sessions_ended(dsn: str) -> Iterator[None]:
    """Sessions of Towline in that database are ended at any moment, again and again."""
    done = threading.Event()

    def end_them() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not done.is_set():
                connection.execute(TERMINATE)

    thread = threading.Thread(target=end_them)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(20)


@pytest.mark.parametrize("end", ["source", "hub"])
def test_every_failure_is_an_outage(
    end: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Wherever the connection is lost while routes are checked and steps are planned, the error says: try again."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), "  - {from: public.*, into: replica.*}")
    line.at_source("".join(f"CREATE TABLE t{n} (id int PRIMARY KEY, v numeric);" for n in range(30)))
    line.apply()
    failures: list[TowlineError] = []
    with sessions_ended(getattr(line, end)):
        for _ in range(ATTEMPTS):
            try:
                with plan.prepare(line.config) as prepared:
                    plan.steps(prepared)
            except TowlineError as error:
                failures.append(error)
    assert failures
    assert [error for error in failures if error.action is not Action.RETRY] == []
