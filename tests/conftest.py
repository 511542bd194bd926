"""Servers and databases for every test that needs them. A server is started when the first test asks for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase, create_database, drop_database
from towline.demo.programs import ProgramsMissing, debian_bindir, embedded_bindir
from towline.demo.scratch import Scratch
from towline.demo.server import Server

DEBIAN_PACKAGES = (
    "This test needs Debian's PostgreSQL 15 with wal2json: apt-get install postgresql-15 postgresql-15-wal2json "
    "(`make test` does it when run as root on Debian)."
)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for the run, readable by the servers' user; removed at the end, or by the next run."""
    with Scratch() as path:
        yield path


@pytest.fixture(scope="session")
def pg18(scratch: Path) -> Iterator[Server]:
    """PostgreSQL 18 from the wheel: the usual source."""
    with Server(scratch / "pg18", embedded_bindir(), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def hub18(scratch: Path) -> Iterator[Server]:
    """A second PostgreSQL 18: a target that can be stopped while the source goes on."""
    with Server(scratch / "hub18", embedded_bindir(), durable=False) as server:
        yield server


@pytest.fixture(scope="session")
def pg15(scratch: Path) -> Iterator[Server]:
    """PostgreSQL 15 from Debian, with wal2json. Tests that use it are marked ``debian``."""
    try:
        bindir = debian_bindir(15)
    except ProgramsMissing:
        pytest.fail(DEBIAN_PACKAGES, pytrace=False)
    if not (bindir.parent / "lib" / "wal2json.so").is_file():
        pytest.fail(DEBIAN_PACKAGES, pytrace=False)
    server = Server(scratch / "pg15", bindir, durable=False)
    if server.knows("output_plugin_libraries"):
        server.configure(output_plugin_libraries="pgoutput, test_decoding, wal2json")
    with server:
        yield server


@pytest.fixture
def new_database() -> Iterator[NewDatabase]:
    """Makes databases; each is dropped after the test, with the replication slots in it."""
    made: list[tuple[Server, str]] = []

    def make(server: Server, name: str | None = None) -> str:
        made.append((server, create_database(server, name)))
        return server.dsn(made[-1][1])

    yield make
    for server, name in reversed(made):
        with suppress(psycopg.errors.InvalidCatalogName):  # the test dropped it itself
            drop_database(server, name)


#: Folders with the longest tests first.
LONGEST_FIRST = ("fault", "convergence", "faults", "integration")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and by the servers they ask for. Long ones come first."""
    for item in items:
        if _folder(item) in ("unit", "integration", "fault", "faults"):
            item.add_marker(_folder(item))
        if "pg15" in getattr(item, "fixturenames", ()):
            item.add_marker("debian")
    items[:] = _dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(Path(__file__).parent).parts[0]


def _dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """Long tests in turn to each worker's share of them, then the other files; xdist cuts the list evenly.

    So all workers end with short tests, and there is something to take over for one that ends early.
    """
    rank = {folder: number for number, folder in enumerate(LONGEST_FIRST)}
    runs: list[list[pytest.Item]] = []
    for item in sorted(items, key=lambda item: rank.get(_folder(item), len(rank))):
        if runs and runs[-1][0].path == item.path and _folder(item) not in LONGEST_FIRST[:3]:
            runs[-1].append(item)  # its file may have fixtures for all of its tests
        else:
            runs.append([item])
    return [item for share in range(workers) for run in runs[share::workers] for item in run]
