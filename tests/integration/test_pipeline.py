"""The whole pipeline in one process: what a user sees at the hub, whatever is written at the source."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line, running
from tests.support.wait import until
from towline.demo.server import Server
from towline.position import parse_lsn

ROUTES = "  - {from: public.*, into: replica.*, on_truncate: delete}"
PLUGINS = pytest.mark.parametrize(
    ("server", "plugin"), [("pg18", "pgoutput"), ("pg15", "wal2json")], ids=lambda v: str(v)
)


@pytest.fixture
def made(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """An empty line over the server and plugin that the test is parametrized with."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    server = request.getfixturevalue(parameters.get("server", "pg18"))
    plugin = parameters.get("plugin", "pgoutput")
    return Line.make(tmp_path, new_database(server), new_database(hub18), ROUTES, plugin=plugin)


@PLUGINS
def test_every_kind_of_change(made: Line, server: str, plugin: str) -> None:
    """Inserts, updates, deletes, key changes with and without TOAST, swaps, truncates, FULL, USING INDEX, odd names."""
    made.at_source(
        """
        CREATE TABLE plain (id int PRIMARY KEY, code text UNIQUE, note text);
        ALTER TABLE plain ALTER note SET STORAGE EXTERNAL;
        CREATE TABLE whole (id int PRIMARY KEY, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
        ALTER TABLE whole ALTER note SET STORAGE EXTERNAL;
        CREATE TABLE indexed (a int NOT NULL, b text NOT NULL, c text);
        CREATE UNIQUE INDEX indexed_ab ON indexed (b, a); ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_ab;
        CREATE TABLE "Odd ""näme"" 100%-{x}" ("sélect" int, "a.b" text, "c-d" text, PRIMARY KEY ("sélect", "a.b"));
        CREATE TABLE emptied (id int PRIMARY KEY);
        INSERT INTO plain SELECT n, 'c' || n, repeat(md5(n::text), 200) FROM generate_series(1, 50) n;
        INSERT INTO whole SELECT n, repeat(md5(n::text), 200) FROM generate_series(1, 50) n;
        INSERT INTO indexed SELECT n, 'b' || n, 'c' FROM generate_series(1, 50) n;
        INSERT INTO "Odd ""näme"" 100%-{x}" SELECT n, 'ü' || n, '{}%s' FROM generate_series(1, 50) n;
        INSERT INTO emptied SELECT generate_series(1, 50);
        """
    )
    made.apply()
    made.run()
    tables = ["plain", "whole", "indexed", '"Odd ""näme"" 100%-{x}"', "emptied"]
    for table in tables:
        assert made.same(table, f"replica.{table}", "1") == 50
    made.at_source(
        """
        UPDATE plain SET code = 'x' WHERE id = 1; UPDATE plain SET code = 'c1' WHERE id = 2;
        UPDATE plain SET code = 'c2' WHERE id = 1;
        UPDATE plain SET id = id + 1000 WHERE id BETWEEN 10 AND 14;
        UPDATE plain SET id = id + 1000, note = 'short' WHERE id BETWEEN 15 AND 19;
        UPDATE plain SET note = '' WHERE id = 20; UPDATE plain SET code = 'z' || code WHERE id BETWEEN 21 AND 25;
        DELETE FROM plain WHERE id BETWEEN 30 AND 35;
        INSERT INTO plain VALUES (31, NULL, repeat('y', 9000));
        UPDATE plain SET id = 33 WHERE id = 31; UPDATE plain SET id = 34 WHERE id = 33;
        UPDATE whole SET id = id + 100 WHERE id < 10; UPDATE whole SET note = 'n' WHERE id = 20;
        DELETE FROM whole WHERE id = 30;
        UPDATE indexed SET b = b || '!' WHERE a < 10; UPDATE indexed SET c = NULL WHERE a = 20;
        DELETE FROM indexed WHERE a = 30;
        UPDATE "Odd ""näme"" 100%-{x}" SET "a.b" = '%' || "a.b" WHERE "sélect" < 10;
        DELETE FROM "Odd ""näme"" 100%-{x}" WHERE "sélect" = 30;
        TRUNCATE emptied; INSERT INTO emptied VALUES (7);
        """
    )
    made.run()
    for table in tables:
        made.same(table, f"replica.{table}", "1")
    assert made.verify().differing == 0


@PLUGINS
def test_partitioned_tables_go_through_the_root(made: Line, server: str, plugin: str) -> None:
    """Rows of all partitions, of one made later, and rows that move between partitions, in one table at the target."""
    made.at_source(
        """
        CREATE TABLE event (id int, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
        CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2026-02-01') TO ('2026-03-01') PARTITION BY LIST (id);
        CREATE TABLE event_2_rest PARTITION OF event_2 DEFAULT;
        INSERT INTO event SELECT n, date '2026-01-10' + n, 'n' FROM generate_series(1, 40) n;
        """
    )
    made.apply()
    made.run()
    assert made.same("event", "replica.event") == 40
    made.at_source(
        """
        UPDATE event SET day = day + 30 WHERE id < 5; UPDATE event SET note = 'm' WHERE id = 7;
        DELETE FROM event WHERE id = 9;
        CREATE TABLE event_3 PARTITION OF event FOR VALUES FROM ('2026-03-01') TO ('2026-04-01');
        INSERT INTO event VALUES (100, '2026-03-05', 'late');
        """
    )
    made.run()
    assert made.same("event", "replica.event") == 40
    made.at_source("UPDATE event SET note = 'later' WHERE id = 100")
    made.run()
    made.same("event", "replica.event")


def test_select_routes(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Expressions, a crosswalk of the target, a filter that rows enter and leave, deletes found by the key."""
    line = Line.make(
        tmp_path,
        new_database(pg18),
        new_database(hub18),
        """
  - name: order
    from: public.sale
    into: hub.trade_order
    select: |
      SELECT 'SO-' || s.id AS order_no, upper(c.code) AS customer, s.amount * 2 AS total, s._commit_time AS changed_at
      FROM sale s LEFT JOIN hub.crosswalk c ON c.party = s.party
      WHERE s.state <> 'draft'
  - name: gone
    from: public.sale
    into: hub.seen
    key: [id]
    on_delete: mark
    mark_column: gone
    select: SELECT id, state FROM sale
""",
    )
    line.at_source("CREATE TABLE sale (id int PRIMARY KEY, party int, amount numeric, state text, secret text)")
    line.at_source(
        "INSERT INTO sale SELECT n, n % 3, n, (ARRAY['draft', 'open'])[1 + n % 2] FROM generate_series(1, 20) n"
    )
    line.at_hub(
        """
        CREATE SCHEMA hub;
        CREATE TABLE hub.crosswalk (party int PRIMARY KEY, code text);
        INSERT INTO hub.crosswalk VALUES (0, 'acme'), (1, 'zed');
        CREATE TABLE hub.trade_order
            (order_no text PRIMARY KEY, customer text, total numeric NOT NULL, changed_at timestamptz);
        CREATE TABLE hub.seen (id int PRIMARY KEY, state text, gone boolean NOT NULL DEFAULT false);
        """
    )
    line.apply()
    line.run()

    def expected() -> list[tuple[object, ...]]:
        names = {0: "ACME", 1: "ZED"}
        rows = line.at_source("SELECT id, party, amount FROM sale WHERE state <> 'draft'")
        return sorted((f"SO-{i}", names.get(p), a * 2) for i, p, a in rows)

    def found() -> list[tuple[object, ...]]:
        return sorted(line.at_hub("SELECT order_no, customer, total FROM hub.trade_order"))

    assert found() == expected() and len(expected()) == 10
    line.at_source(
        """
        UPDATE sale SET state = 'open' WHERE id IN (2, 4); UPDATE sale SET state = 'draft' WHERE id IN (1, 3);
        UPDATE sale SET amount = 0.50, party = 0 WHERE id = 5; DELETE FROM sale WHERE id = 7;
        UPDATE sale SET id = 900 WHERE id = 9;
        """
    )
    line.run()
    assert found() == expected()
    assert line.at_hub("SELECT id FROM hub.seen WHERE gone ORDER BY id") == [(7,), (9,)]
    assert line.verify().differing == 0
    columns = line.at_source(
        "SELECT unnest(attnames) FROM pg_publication_tables WHERE pubname = %s", line.config.source.publication
    )
    assert sorted(columns) == [("amount",), ("id",), ("party",), ("state",)], "only referenced columns travel"


def test_transactions_stay_whole(made: Line) -> None:
    """Readers of the hub never see half a source transaction, however many pieces it has (promise 3)."""
    made.path.write_text(made.path.read_text("utf-8") + "batch: {max_rows: 100}\n", "utf-8")
    made.at_source(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT n, 0 FROM generate_series(1, 1000) n"
    )
    made.apply()
    made.run()
    seen = set()
    with running(made), psycopg.connect(made.hub, autocommit=True) as reader:
        for value in range(1, 6):
            made.at_source("UPDATE t SET v = %s", value)

        def last() -> bool:
            rows = reader.execute("SELECT DISTINCT v FROM replica.t").fetchall()
            assert len(rows) == 1, "half a transaction"
            seen.add(rows[0][0])
            return rows == [(5,)]

        until(last, 30)
    assert seen <= set(range(6))


def test_an_idle_pipeline_lets_the_log_be_recycled(made: Line) -> None:
    """Tables that are not routed are written to: checkpoint and slot move on all the same (promise 2)."""
    made.at_source("CREATE SCHEMA other; CREATE TABLE other.t (v text); CREATE TABLE t (id int PRIMARY KEY)")
    made.apply()
    with running(made):
        until(lambda: made.at_hub("SELECT bool_and(state = 'streaming') FROM towline.route_state") == [(True,)])
        made.at_source("INSERT INTO other.t SELECT repeat('x', 1000) FROM generate_series(1, 5000)")
        end = parse_lsn(made.at_source("SELECT pg_current_wal_flush_lsn()")[0][0])

        def confirmed() -> bool:
            slot = made.config.source.slot
            rows = made.at_source("SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", slot)
            durable = made.at_hub("SELECT position FROM towline.checkpoint")
            assert parse_lsn(rows[0][0]) <= parse_lsn(durable[0][0])
            return parse_lsn(rows[0][0]) >= end

        until(confirmed, 30)


def test_lag_is_right_when_busy_and_when_idle(made: Line) -> None:
    """Held up by a lock at the hub the lag grows; released, it is zero, and stays so though nothing is committed."""
    made.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    made.apply()

    def lag() -> float:
        value = made.metrics.registry.get_sample_value("towline_lag_seconds", {"pipeline": made.config.pipeline})
        return -1.0 if value is None else value

    with running(made):
        until(lambda: lag() == 0, 30)
        with psycopg.connect(made.hub) as blocker:
            blocker.execute("LOCK TABLE replica.t")
            made.at_source("INSERT INTO t VALUES (1)")
            until(lambda: lag() > 2, 30)
        until(lambda: lag() == 0, 30)
        assert made.at_hub("SELECT id FROM replica.t") == [(1,)]


def test_a_table_added_later(made: Line) -> None:
    """A second `apply` adds it to the publication; it is copied with what was written meanwhile, the others go on."""
    made.at_source("CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one SELECT generate_series(1, 100)")
    made.apply()
    made.run()
    made.at_source("CREATE TABLE two (id int PRIMARY KEY); INSERT INTO two SELECT generate_series(1, 100)")
    made.at_source("DELETE FROM one WHERE id < 50")
    made.apply()
    made.at_source("INSERT INTO two SELECT generate_series(101, 120); DELETE FROM two WHERE id < 10")
    made.run()
    assert made.same("one", "replica.one") == 51
    assert made.same("two", "replica.two") == 111
    assert made.verify().differing == 0
