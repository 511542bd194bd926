"""Servers and databases for every test that needs them. A server is started when the first test asks for it."""

from __future__ import annotations

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by their folder, and by the servers they ask for."""
    for item in items:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        if folder in ("unit", "integration", "fault", "faults"):
            item.add_marker(folder)
        if "pg15" in getattr(item, "fixturenames", ()):
            item.add_marker("debian")
