"""verify reads the log again: the ledger noted each change once, or it is found that it did not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import sql

from tests.integration.test_ledger import TABLES, await_applied, await_known, writing
from tests.integration.test_pipeline import PLUGINS, made
from tests.support.databases import NewDatabase
from tests.support.line import Line, running
from tests.support.wait import until
from towline import catch_up, plan
from towline.cli import cli
from towline.demo.server import Server
from towline.differences import Keys, Operations
from towline.operations_verifier import OperationsVerifier
from towline.source.postgres.tables import PostgresTables
from towline.target.postgres.compare import CompareSession
from towline.verify import keep_log

__all__ = ["made"]

#: What changes of every kind there are, without and with consequence.
CHANGES = (
    "INSERT INTO plain SELECT n, 'n' FROM generate_series(5001, 5100) n",
    "UPDATE plain SET note = 'm' WHERE id <= 10; UPDATE plain SET id = id + 100000 WHERE id <= 5",
    "DELETE FROM plain WHERE id BETWEEN 11 AND 13",
    "BEGIN; INSERT INTO plain VALUES (6001); ROLLBACK",
    "BEGIN; INSERT INTO plain VALUES (6002); SAVEPOINT s; INSERT INTO plain VALUES (6003); ROLLBACK TO s; COMMIT",
    "UPDATE pair SET a = a + 100 WHERE a = 1; UPDATE whole SET id = id * 1.00 WHERE id < 3",
    "TRUNCATE pair; INSERT INTO pair VALUES ('n', 'ü', 7)",
    "CREATE TABLE other (id int PRIMARY KEY); INSERT INTO other SELECT generate_series(1, 100)",
)


@contextmanager
def watching(line: Line, **options: Any) -> Iterator[OperationsVerifier]:
    """What verify does beside comparing rows, between its begin and its end."""
    with plan.prepare(line.config) as prepared:
        relations = {relation.name: relation for relation in prepared.relations}
        routes = [(route, relations[route.source.name]) for route in prepared.routes]
        pipeline = line.config.pipeline
        with (
            closing(CompareSession(line.hub, schema="towline", pipeline=pipeline, routes=routes)) as session,
            closing(PostgresTables(line.source, slot=line.config.source.slot)) as tables,
            closing(
                OperationsVerifier(lambda: keep_log(line.config, tables, routes), session, routes, **options)
            ) as verifier,
        ):
            verifier.begin()
            yield verifier


def changed(line: Line) -> None:
    for statements in CHANGES:
        line.at_source(statements)


def copies(line: Line) -> list[tuple[Any, ...]]:
    """The temporary slots at the source."""
    return line.at_source(
        "SELECT slot_name::text FROM pg_replication_slots WHERE temporary AND database = current_database()"
    )


def by_route(operations: Operations) -> dict[str, tuple[Keys, int | None, int | None]]:
    return {each.route: (each.state, each.log, each.ledger) for each in operations.routes}


def copied(line: Line) -> Line:
    """Tables, with their first copy."""
    line.at_source(TABLES)
    line.apply()
    line.run()
    return line


@PLUGINS
def test_each_change_was_noted_once(made: Line, server: str, plugin: str) -> None:
    """Of every kind of change, by daemons that follow each other; nothing of it is left at the source."""
    copied(made)
    with watching(made) as verifier:
        ((copy,),) = copies(made)
        assert copy.startswith(f"{made.config.source.slot[:30]}_verify_")
        with closing(PostgresTables(made.source, slot=made.config.source.slot)) as tables:
            assert not tables.slot().catching_up
        changed(made)
        made.run()
        made.at_source("INSERT INTO plain VALUES (7001); UPDATE plain SET note = 'again' WHERE id = 7001")
        made.run()
        # Of what is not applied yet, nothing is expected.
        made.at_source("INSERT INTO plain VALUES (8001), (8002)")
        operations = verifier.end()
    assert operations.state is Keys.EQUAL, list(operations.lines())
    rows = {"public.plain": 100 + 10 + 2 * 5 + 3 + 1 + 2, "public.whole": 2 * 29}  # changed keys count twice
    found = by_route(operations)
    assert {name: found[name] for name in rows} == {name: (Keys.EQUAL, n, n) for name, n in rows.items()}
    assert found["public.pair"][0] is Keys.EQUAL
    until(lambda: copies(made) == [], 10.0)


@PLUGINS
def test_equal_under_load(made: Line, server: str, plugin: str) -> None:
    """A whole verification beside the daemon, while sessions write: changes of all routes, each noted once."""
    made.at_source(TABLES)
    made.apply()
    with running(made):
        await_known(made)
        with writing(made.source, sessions=2):
            for _ in range(3):
                until(lambda: equal_with_changes(made), 60.0)
        await_applied(made)
    report = made.verify()
    assert (report.exit_code, report.operations.state if report.operations else None) == (0, Keys.UNKNOWN)
    assert list(report.lines())[-2] == "operations not established: nothing was applied meanwhile"


def equal_with_changes(line: Line) -> bool:
    """Verify; whether the log had changes meanwhile. Fails the test when anything differs."""
    report = line.verify()
    assert report.exit_code == 0, list(report.lines())
    assert report.operations is not None
    return report.operations.state is Keys.EQUAL and all(route.log for route in report.operations.routes)


@PLUGINS
def test_a_lost_batch_is_found(made: Line, server: str, plugin: str) -> None:
    """The checkpoint moves on over changes that nobody applied: only the routes that they are of differ."""
    copied(made)
    with watching(made) as verifier:
        made.at_source("UPDATE plain SET note = 'lost' WHERE id <= 7")
        made.at_hub("UPDATE towline.checkpoint SET position = %s", made.at_source("SELECT pg_current_wal_lsn()")[0][0])
        made.at_source("UPDATE plain SET note = 'there' WHERE id <= 2; DELETE FROM whole WHERE id = 1")
        made.run()
        operations = verifier.end()
    assert by_route(operations) == {
        "public.plain": (Keys.DIFFER, 9, 2),
        "public.whole": (Keys.EQUAL, 1, 1),
        "public.pair": (Keys.EQUAL, 0, 0),
    }


@pytest.mark.parametrize(
    "falsify",
    [
        "UPDATE towline.ledger SET operation_sum = mod(operation_sum + 1, 18446744073709551616)",
        "UPDATE towline.ledger SET seen = seen + 1, filtered = filtered + 1",
    ],
)
def test_a_ledger_that_was_tampered_with_is_found(made: Line, falsify: str) -> None:
    """By its sum, and by its figures; and not what was so before."""
    copied(made)
    made.at_hub(falsify)
    with watching(made) as verifier:
        made.at_source("DELETE FROM plain WHERE id < 9")
        made.run()
        assert verifier.end().state is Keys.EQUAL
    with watching(made) as verifier:
        made.at_hub(falsify + " WHERE route = 'public.plain'")
        made.at_source("DELETE FROM whole WHERE id < 9")
        made.run()
        states = {route: found[0] for route, found in by_route(verifier.end()).items()}
    assert states == {"public.plain": Keys.DIFFER, "public.whole": Keys.EQUAL, "public.pair": Keys.EQUAL}


def test_the_verb_ends_with_its_code(made: Line) -> None:
    """Exit code 4, the error's code in words, and the state in JSON, though all rows are right."""
    made.at_source(TABLES)
    made.apply()
    stop = threading.Event()

    def tamper() -> None:
        with psycopg.connect(made.hub, autocommit=True) as connection:
            while not stop.wait(0.01):
                connection.execute(
                    "UPDATE towline.ledger SET operation_sum = mod(operation_sum + 1, 18446744073709551616) "
                    "WHERE route = 'public.plain'"
                )

    tampering = threading.Thread(target=tamper)
    with running(made), writing(made.source, sessions=1):
        await_known(made)
        until(lambda: equal_with_changes(made), 60.0)
        tampering.start()
        try:
            shown = until(lambda: verified(made, 4), 60.0)
            report = json.loads(until(lambda: verified(made, 4, "--json"), 60.0))
        finally:
            stop.set()
            tampering.join()
    assert "  TL-604: public.plain: the log and the ledger have " in shown
    assert shown.splitlines()[-1].endswith(" compared, 0 differ; operations of 1 of 3 routes differ")
    assert report["differing"] == 0
    assert report["operations"]["state"] == "differs"
    states = {route["route"]: route["state"] for route in report["operations"]["routes"]}
    assert states == {"public.pair": "equal", "public.plain": "differs", "public.whole": "equal"}


def verified(line: Line, code: int, *options: str) -> str:
    """What the verb prints when it ends with that code."""
    result = CliRunner().invoke(cli, ["verify", str(line.path), *options])
    return result.stdout if result.exit_code == code else ""


def test_a_transaction_that_came_in_parts(made: Line) -> None:
    """The daemon gets it while it is under way, verify once it has committed: it is the same, without what was rolled
    back.
    """
    ((database,),) = made.at_source("SELECT current_database()")
    limit = sql.SQL("ALTER DATABASE {} SET logical_decoding_work_mem = '64kB'")
    made.at_source(limit.format(sql.Identifier(database)))
    copied(made)
    with watching(made) as verifier:
        made.at_source(
            "BEGIN; INSERT INTO plain SELECT n, 'n' FROM generate_series(10001, 70000) n; SAVEPOINT s;"
            "UPDATE plain SET note = 'undone'; ROLLBACK TO s; DELETE FROM plain WHERE id < 11; COMMIT"
        )
        made.run()
        operations = verifier.end()
    assert by_route(operations)["public.plain"] == (Keys.EQUAL, 60_010, 60_010)
    streamed = "SELECT stream_txns > 0 FROM pg_stat_replication_slots WHERE slot_name = %s"
    until(lambda: made.at_source(streamed, made.config.source.slot) == [(True,)], 10.0)


def test_a_table_that_was_changed_meanwhile(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """A column that was added to a table that is copied as it is: the log is of another table than verify knows."""
    routes = "  - {from: public.plain, into: replica.plain, on_schema_change: ignore}"
    line = copied(Line.make(tmp_path, new_database(pg18), new_database(hub18), routes))
    with watching(line) as verifier:
        line.at_source("ALTER TABLE plain ADD COLUMN more int; UPDATE plain SET more = 1, note = 'm' WHERE id < 5")
        line.run()
        operations = verifier.end()
    assert line.at_hub("SELECT count(*) FROM replica.plain WHERE note = 'm'") == [(4,)]
    assert operations.state is Keys.UNKNOWN
    assert operations.reason == ("the log cannot be read again: public.plain has a column more that was added since")


def test_a_table_that_was_copied_meanwhile(made: Line) -> None:
    """A resync: of its route nothing is established, of the others it is."""
    copied(made)
    with watching(made) as verifier:
        assert CliRunner().invoke(cli, ["resync", str(made.path), "public.whole", "--yes"]).exit_code == 0
        made.at_source("DELETE FROM plain WHERE id < 9")
        made.run()
        operations = verifier.end()
    assert by_route(operations)["public.plain"] == (Keys.EQUAL, 8, 8)
    assert by_route(operations)["public.whole"] == (Keys.UNKNOWN, None, None)


@PLUGINS
def test_a_partition_that_was_made_meanwhile(
    request: pytest.FixtureRequest,
    hub18: Server,
    new_database: NewDatabase,
    tmp_path: Path,
    server: str,
    plugin: str,
) -> None:
    """Its changes are those of the table at its root, as they are to the daemon, though it had no partition before."""
    routes = "  - {from: public.parted, into: replica.parted}"
    source = new_database(request.getfixturevalue(server))
    line = Line.make(tmp_path, source, new_database(hub18), routes, plugin=plugin)
    line.at_source("CREATE TABLE parted (id int PRIMARY KEY) PARTITION BY RANGE (id)")
    line.apply()
    line.run()
    with watching(line) as verifier:
        line.at_source("CREATE TABLE part PARTITION OF parted FOR VALUES FROM (0) TO (100)")
        line.at_source("INSERT INTO parted SELECT generate_series(1, 20)")
        line.run()
        operations = verifier.end()
    assert by_route(operations) == {"public.parted": (Keys.EQUAL, 20, 20)}, operations


def test_the_source_keeps_no_more_log_than_the_bound(made: Line) -> None:
    """Beyond it the copy of the slot is dropped while verify goes on."""
    copied(made)
    with watching(made, most=1 << 20, look=0.01) as verifier:
        made.at_source("INSERT INTO plain SELECT n, repeat('x', 100) FROM generate_series(10001, 30000) n")
        until(lambda: copies(made) == [], 10.0)
        made.run()
        assert verifier.end().reason == "the source would have held back more than 1 MB of log for it"


def test_a_server_on_which_a_copy_is_not_safe(made: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """None is made there, and all else is verified."""
    copied(made)
    monkeypatch.setitem(catch_up.SINCE, 18, 189999)
    report = made.verify()
    assert (report.exit_code, report.rows) == (0, 4000)
    assert report.operations is not None
    assert "a copy of a slot is not safe" in report.operations.reason
