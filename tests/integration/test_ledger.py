"""The ledger's sums over source keys: whatever happens, they are what the source's own table adds up to."""

from __future__ import annotations

import itertools
import json
import random
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
from click.testing import CliRunner, Result

from tests.integration.test_pipeline import PLUGINS, made
from tests.support.databases import NewDatabase
from tests.support.line import Line, running
from tests.support.wait import until
from towline import plan
from towline.cli import cli
from towline.demo.server import Server
from towline.differences import Keys
from towline.key_sum import key_form
from towline.position import parse_lsn
from towline.running_sums import Running
from towline.source.postgres.tables import PostgresTables
from towline.target.postgres.control import LedgerRow, read_ledger, read_running

__all__ = ["made"]

TABLES = """
CREATE TABLE plain (id int PRIMARY KEY, note text);
CREATE TABLE pair (note text, b text NOT NULL, a bigint NOT NULL);
CREATE UNIQUE INDEX pair_ab ON pair (a, b); ALTER TABLE pair REPLICA IDENTITY USING INDEX pair_ab;
CREATE TABLE whole (id numeric PRIMARY KEY, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
INSERT INTO plain SELECT n, 'n' FROM generate_series(1, 3000) n;
INSERT INTO pair SELECT 'n', 'ü' || n, n % 7 FROM generate_series(1, 500) n;
INSERT INTO whole SELECT n / 10.0, 'n' FROM generate_series(1, 500) n;
"""


def known(line: Line) -> dict[str, Running]:
    """The running sums that the ledger has."""
    with psycopg.connect(line.hub, autocommit=True) as connection:
        return read_running(connection, "towline", line.config.pipeline)


def rows_of(line: Line) -> list[LedgerRow]:
    with psycopg.connect(line.hub, autocommit=True) as connection:
        return read_ledger(connection, "towline", line.config.pipeline)


def counted(line: Line) -> dict[str, Running]:
    """What the source's tables add up to now."""
    with (
        plan.prepare(line.config) as prepared,
        closing(PostgresTables(line.source, slot=line.config.source.slot)) as tables,
    ):
        relations = {relation.name: relation for relation in prepared.relations}
        return {
            route.name: Running(tables.count_keys(relation, lambda seen: None).keys, key_form(relation))
            for route in prepared.routes
            if (relation := relations[route.source.name])
        }


def await_known(line: Line) -> None:
    """Wait until every route's running sum is known."""
    routes = [name for (name,) in line.at_hub("SELECT route FROM towline.route_state")]
    until(
        lambda: all((found := known(line).get(name)) and found.total is not None for name in routes),
        30.0,
        lambda: f"the sums of {routes}: {known(line)}",
    )


def await_applied(line: Line) -> None:
    end = parse_lsn(str(line.at_source("SELECT pg_current_wal_flush_lsn()")[0][0]))
    until(lambda: parse_lsn(str(line.at_hub("SELECT position FROM towline.checkpoint")[0][0])) >= end, 30.0)


#: Every session that writes has a range of keys for itself.
_ranges = itertools.count(1)


@contextmanager
def writing(dsn: str, sessions: int = 3) -> Iterator[None]:
    """Sessions that insert, delete, rekey and update, in transactions of several statements, some of them slow."""
    stop = threading.Event()

    def body(number: int) -> None:
        chosen = random.Random(number)
        with psycopg.connect(dsn) as connection:
            made = 10_000 * next(_ranges)
            while not stop.is_set():
                made += 1
                old = chosen.randrange(1, 3001)
                connection.execute("INSERT INTO plain VALUES (%s)", (made,))
                connection.execute("DELETE FROM plain WHERE id = %s", (old,))
                if stop.wait(chosen.choice([0.0, 0.001, 0.02])):
                    break
                if chosen.random() < 0.5:
                    connection.execute("UPDATE plain SET id = id + 1000000, note = 'm' WHERE id = %s", (made,))
                    connection.execute("UPDATE pair SET a = a + 1 WHERE b = %s AND a < 9", (f"ü{old % 500}",))
                connection.execute("UPDATE whole SET id = id * 1.00 WHERE id = %s", (old / 10,))
                if chosen.random() < 0.1:
                    connection.rollback()
                else:
                    connection.commit()
            connection.rollback()

    threads = [threading.Thread(target=body, args=(number,)) for number in range(sessions)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@PLUGINS
def test_sums_follow_the_source_from_a_count_under_load(made: Line, server: str, plugin: str) -> None:
    """Tables are copied and counted while they are written to; then the sums are exactly the source's."""
    made.at_source(TABLES)
    made.apply()
    with writing(made.source), running(made):
        await_known(made)
        before = rows_of(made)
    with running(made):
        await_applied(made)
    assert known(made) == counted(made)
    assert {row.route for row in before} == {"public.plain", "public.pair", "public.whole"}
    # What is known outlives the daemon, and is followed by the next one; an empty table adds up to nothing.
    made.at_source(
        "UPDATE plain SET id = -id; DELETE FROM pair WHERE a > 3; TRUNCATE whole; INSERT INTO whole VALUES (7)"
    )
    made.run()
    assert known(made) == counted(made)
    assert known(made)["public.whole"].total.keys == 1  # type: ignore[union-attr]


def test_ranges_add_up(made: Line) -> None:
    """What the changes of a range did to the keys is the difference of the running sums before and after it."""
    made.at_source(TABLES)
    made.apply()
    with running(made):
        await_known(made)
    before, copied = known(made), {row.route: row for row in rows_of(made)}
    made.at_hub("UPDATE towline.ledger SET hour = hour - interval '1 hour'")
    made.at_source("DELETE FROM plain WHERE id <= 10; UPDATE plain SET note = 'x'; INSERT INTO pair VALUES ('', '', 0)")
    made.run()
    later = {row.route: row for row in rows_of(made) if row.keys is not None}
    assert set(later) == {"public.plain", "public.pair"}
    for route, row in later.items():
        start, end = before[route].total, row.running.total
        assert start is not None
        assert end is not None
        assert row.keys == end - start
        assert row.from_position >= copied[route].to_position
        assert row.operations not in (None, 0)
        assert row.running == known(made)[route]
    assert later["public.plain"].keys is not None
    assert later["public.plain"].keys.keys == -10
    assert known(made) == counted(made)


def test_the_verb_shows_ranges_and_finds_what_was_tampered_with(made: Line) -> None:
    """By route and range, as a table and as JSON; a ledger that does not add up is an error, with its code."""
    made.at_source(TABLES)
    made.apply()
    with running(made):
        await_known(made)
    made.at_hub(
        "UPDATE towline.ledger SET hour = hour - interval '1 hour', applied_at = applied_at - interval '1 hour'"
    )
    made.at_source("DELETE FROM plain WHERE id <= 10")
    made.run()
    shown = towline(made, "--route", "public.plain")
    assert (shown.exit_code, shown.stderr) == (0, "")
    total = known(made)["public.plain"].total
    assert f"public.plain: 2990 source keys, running checksum {total} (binary (id integer))" in shown.stdout
    lines = [line.split() for line in shown.stdout.splitlines() if line.startswith("public.plain ")]
    assert [(line[3], line[9], line[-1] == str(total)) for line in lines] == [
        ("3000", "yes", False),
        ("10", "yes", True),
    ]
    data = json.loads(towline(made, "--json", "--since", "30m").stdout)
    ranges = {route["name"]: route["ranges"] for route in data["routes"]}
    assert data["balanced"] is True
    assert [(each["seen"], each["keys"], each["deleted"]) for each in ranges["public.plain"]] == [(10, -10, 10)]
    assert ranges["public.pair"] == []
    assert ranges["public.plain"][0]["running"]["checksum"] == str(total)
    since = ranges["public.plain"][0]["to"]
    assert json.loads(towline(made, "--json", "--since", since).stdout)["routes"][0]["ranges"] == []
    assert towline(made, "--since", "yesterday").exit_code == 2
    assert towline(made, "--route", "nobody").exit_code == 2
    made.at_hub("UPDATE towline.ledger SET hour = hour - interval '2 hours'")
    made.at_source("DELETE FROM plain WHERE id <= 15")
    made.run()
    assert towline(made).exit_code == 0
    made.at_hub("UPDATE towline.ledger SET keys = keys + 1 WHERE keys = -5")
    tampered = towline(made)
    assert (tampered.exit_code, "TL-602" in tampered.stderr, " NO " in tampered.stdout) == (3, True, True)


def towline(line: Line, *options: str) -> Result:
    return CliRunner().invoke(cli, ["ledger", str(line.path), *options])


def test_another_key_is_counted_anew(made: Line) -> None:
    """A sum over other columns says nothing: it is void, until the next count."""
    made.at_source(TABLES)
    made.apply()
    with running(made):
        await_known(made)
    made.at_hub("ALTER TABLE replica.pair ADD UNIQUE (b)")
    made.at_source(
        "CREATE UNIQUE INDEX pair_b ON pair (b); ALTER TABLE pair REPLICA IDENTITY USING INDEX pair_b;"
        "INSERT INTO pair VALUES ('', 'other', 8)"
    )
    made.apply()
    before = known(made)
    made.run()
    after = known(made)
    assert after["public.plain"] == before["public.plain"] == counted(made)["public.plain"]
    form = counted(made)["public.pair"].form
    assert form != before["public.pair"].form
    assert after["public.pair"] in (Running(None, form), counted(made)["public.pair"])
    with running(made):
        await_known(made)
    assert known(made) == counted(made)


def test_routes_of_one_table_have_the_same_sum(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Whatever they make of its rows: filtered, ignored and refused ones are source keys too."""
    routes = """
  - {name: all, from: public.item, into: hub.item}
  - {name: even, from: public.item, into: hub.even, on_delete: ignore, on_truncate: ignore, key: [id],
     select: SELECT id FROM public.item WHERE id % 2 = 0}
"""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), routes)
    line.at_source("CREATE TABLE item (id int PRIMARY KEY); INSERT INTO item SELECT generate_series(1, 50)")
    line.at_hub(
        "CREATE SCHEMA hub; CREATE TABLE hub.item (id int PRIMARY KEY); CREATE TABLE hub.even (id int PRIMARY KEY)"
    )
    line.apply()
    with running(line):
        await_known(line)
        line.at_source("DELETE FROM item WHERE id > 40; INSERT INTO item VALUES (60), (61)")
        await_applied(line)
    assert known(line)["all"].total == known(line)["even"].total == counted(line)["all"].total
    line.at_source("INSERT INTO item VALUES (70)")
    line.run()
    assert known(line)["even"].total == counted(line)["even"].total


def verified(line: Line, **options: bool) -> dict[str, Keys | None]:
    report = line.verify(**options)
    assert report.differing == 0
    return {route.route: route.checksum for route in report.routes}


@PLUGINS
def test_verify_counts_the_keys_again(made: Line, server: str, plugin: str) -> None:
    """Equal, with and without a daemon and under load; a sum that is wrong is found, and begun anew by a repair."""
    made.at_source(TABLES)
    made.apply()
    everywhere = {f"public.{name}" for name in ("plain", "pair", "whole")}
    with running(made):
        await_known(made)
        assert verified(made) == dict.fromkeys(everywhere, Keys.EQUAL)
        with writing(made.source, sessions=2):
            assert verified(made) == dict.fromkeys(everywhere, Keys.EQUAL)
        await_applied(made)
    assert verified(made) == dict.fromkeys(everywhere, Keys.EQUAL)
    made.at_hub("UPDATE towline.route_state SET total_sum = total_sum + 1 WHERE route = 'public.plain'")
    assert verified(made)["public.plain"] is Keys.DIFFER
    assert verified(made)["public.pair"] is Keys.EQUAL
    with running(made):
        with writing(made.source, sessions=2):
            report = made.verify()
            assert {route.route: route.checksum for route in report.routes}["public.plain"] is Keys.DIFFER
            assert (report.differing, report.exit_code) == (0, 4)
            assert any("TL-603" in line for line in report.lines())
            assert report.total.endswith("; 1 of 3 checksums differ")
            assert verified(made, repair=True) == dict.fromkeys(everywhere, Keys.EQUAL)
        await_applied(made)
    assert known(made) == counted(made)
    assert made.at_hub("SELECT count(*) FROM towline.recount") == [(0,)]


def test_a_sum_that_is_not_known_is_no_difference(made: Line) -> None:
    """Before the keys were counted, and while none can tell."""
    made.at_source(TABLES)
    made.apply()
    with running(made):
        await_known(made)
    made.at_hub("UPDATE towline.route_state SET total_sum = NULL, total_keys = NULL WHERE route = 'public.pair'")
    report = made.verify()
    assert {route.route: route.checksum for route in report.routes}["public.pair"] is Keys.UNKNOWN
    assert report.exit_code == 0
    assert ", checksum not established" in next(line for line in report.lines() if line.startswith("public.pair:"))
