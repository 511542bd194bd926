"""Changes of source tables while a pipeline runs: followed, gone on with, or halted for at their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from tests.support.databases import NewDatabase
from tests.support.line import Line, caught_up, running
from tests.support.wait import until
from towline import plan
from towline.cli import cli
from towline.demo.server import Server
from towline.errors import (
    ColumnAdded,
    ColumnChanged,
    EvolutionRefused,
    IdentityChanged,
    NotSetUp,
    PartitionDetached,
    PublicationFiltered,
    PublicationLacksColumn,
    PublicationLacksOperation,
    PublicationLacksTable,
    PublicationNotViaRoot,
    RoutesRefused,
    SourceTableChanged,
    SourceTruncated,
    TableGone,
    TableRecreated,
)

PLUGINS = pytest.mark.parametrize(
    ("server", "plugin"), [("pg18", "pgoutput"), ("pg15", "wal2json")], ids=lambda value: str(value)
)
ITEM = """
CREATE TABLE item (id int PRIMARY KEY, v text);
INSERT INTO item SELECT n, 'v' || n FROM generate_series(1, 80) n;
CREATE TABLE other (id int PRIMARY KEY, v text); INSERT INTO other VALUES (1, 'a');
"""
EVOLVE = "  - {from: public.*, into: replica.*, on_schema_change: evolve, on_truncate: delete}"
NewLine = Callable[..., Line]


@pytest.fixture
def new_line(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> NewLine:
    """Makes a source with tables, applied and caught up."""
    parameters = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    server = parameters.get("server", "pg18")

    def make(routes: str, script: str = ITEM, hub: str = "") -> Line:
        source = new_database(request.getfixturevalue(server))
        line = Line.make(tmp_path, source, new_database(hub18), routes, plugin=parameters.get("plugin", "pgoutput"))
        line.at_source(script)
        if hub:
            line.at_hub(hub)
        line.apply()
        line.run()
        return line

    return make


def equal(line: Line, table: str = "item", columns: str = "t") -> None:
    """The hub's table has the source's rows, column by column by name."""
    query = "SELECT to_jsonb({})::text FROM {} t ORDER BY id"
    assert line.at_hub(query.format(columns, f"replica.{table}")) == line.at_source(query.format(columns, table))


def _has_columns(line: Line, count: int) -> bool:
    return line.at_hub("SELECT count(*) FROM information_schema.columns WHERE table_name = 'item'") == [(count,)]


# ---- evolve -------------------------------------------------------------------------------------------------------


@PLUGINS
def test_added_columns_are_followed(new_line: NewLine, server: str, plugin: str) -> None:
    """Defaults, NOT NULL, an enum, a generated column: rows that exist get their values, without a person."""
    line = new_line(EVOLVE)
    with running(line):
        line.at_source("ALTER TABLE item ADD n numeric(10,2) NOT NULL DEFAULT 1.50; UPDATE item SET n = 2 WHERE id = 3")
        line.at_source("CREATE TYPE mood AS ENUM ('sad', 'ok'); ALTER TABLE item ADD m mood DEFAULT 'ok', ADD w text")
        line.at_source("INSERT INTO item VALUES (900, 'x', 5, 'sad', repeat('w', 9000))")
        line.at_source(
            "ALTER TABLE item ADD g int GENERATED ALWAYS AS (id * 2) STORED; UPDATE item SET v = '!' WHERE id = 9"
        )
        line.at_source("DELETE FROM item WHERE id = 4; UPDATE item SET id = 1000 WHERE id = 5")
        caught_up(line)
    equal(line, columns="(to_jsonb(t) - 'g')")
    assert line.verify().differing == 0
    kinds = line.at_hub(
        "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute"
        " WHERE attrelid = 'replica.item'::regclass AND attnum > 2 ORDER BY attnum"
    )
    assert kinds == [("n", "numeric(10,2)", False), ("m", "replica.mood", False), ("w", "text", False)]


@PLUGINS
def test_several_changes_between_two_batches(new_line: NewLine, server: str, plugin: str) -> None:
    """Columns come, go and come again under the same name and type, in transactions with rows before and after."""
    line = new_line(EVOLVE)
    line.at_source(
        """
        UPDATE item SET v = 'a' WHERE id = 1;
        ALTER TABLE item ADD a int DEFAULT 7; UPDATE item SET a = 8 WHERE id <= 3;
        ALTER TABLE item ADD b text DEFAULT repeat('b', 3000); INSERT INTO item VALUES (900, 'x', 1, 'y');
        ALTER TABLE item DROP a; UPDATE item SET v = 'c' WHERE id BETWEEN 2 AND 5;
        """
    )
    line.at_source(
        "ALTER TABLE item ADD a int; UPDATE item SET a = id WHERE id BETWEEN 3 AND 10; DELETE FROM item WHERE id = 6"
    )
    line.at_source("ALTER TABLE item DROP a; ALTER TABLE item ADD a int; UPDATE item SET b = NULL WHERE id = 7")
    line.run()
    equal(line)
    line.at_source("ALTER TABLE item DROP a; ALTER TABLE item ADD a int DEFAULT 3")
    line.run()
    equal(line)
    assert line.verify().differing == 0


@PLUGINS
def test_following_under_load(new_line: NewLine, server: str, plugin: str) -> None:
    """While transactions go on, each with a column added in its middle or beside it, the target equals the source."""
    line = new_line(EVOLVE)
    done = threading.Event()

    def write() -> None:
        with psycopg.connect(line.source, autocommit=True) as connection:
            turn = 0
            while not done.is_set():
                turn += 1
                with connection.transaction():
                    connection.execute("UPDATE item SET v = %s WHERE id %% 7 = %s", (f"u{turn}", turn % 7))
                    connection.execute("INSERT INTO item (id, v) VALUES (%s, 'new')", (1000 + turn,))
                    if turn % 5 == 0:
                        connection.execute("UPDATE item SET id = -id WHERE id = %s", (1000 + turn - 3,))
                        connection.execute("DELETE FROM item WHERE id = %s", (1000 + turn - 4,))

    writer = threading.Thread(target=write)
    with running(line):
        writer.start()
        try:
            for number in range(3):
                with psycopg.connect(line.source) as connection:
                    connection.execute("LOCK TABLE item")
                    connection.execute("UPDATE item SET v = 'before' WHERE id = %s", (10 + number,))
                    connection.execute(f"ALTER TABLE item ADD c{number} int DEFAULT {number}".encode())
                    connection.execute(f"UPDATE item SET c{number} = id WHERE id < 20".encode())
                until(partial(_has_columns, line, 3 + number), 20)
        finally:
            done.set()
            writer.join()
        caught_up(line)
    equal(line)
    assert line.verify().differing == 0


def test_killed_around_the_adoption(new_line: NewLine) -> None:
    """An end before or after the column was added at the target leaves nothing half done."""
    line = new_line(EVOLVE)
    line.at_source("ALTER TABLE item ADD n int DEFAULT 4; UPDATE item SET n = 5 WHERE id < 9")

    class Killed(BaseException):
        pass

    for point in ("adopting", "adopted", "chunk-loaded"):

        def kill(passed: str, at: str = point) -> None:
            if passed == at:
                raise Killed

        with pytest.raises(Killed):
            line.replication(announce=kill).run(until_caught_up=True)
    line.run()
    equal(line)


def test_a_role_that_may_not_alter(new_line: NewLine) -> None:
    """TL-505 names the statement; once it was run by hand, the pipeline goes on by itself, values included."""
    line = new_line(EVOLVE)
    line.at_hub(
        "CREATE FUNCTION no() RETURNS event_trigger LANGUAGE plpgsql AS $$BEGIN RAISE insufficient_privilege; END$$"
    )
    line.at_hub("CREATE EVENT TRIGGER no ON ddl_command_start WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION no()")
    line.at_source("ALTER TABLE item ADD n int DEFAULT 4")
    statement = 'ALTER TABLE "replica"."item" ADD COLUMN IF NOT EXISTS "n" integer'
    with pytest.raises(EvolutionRefused) as raised:
        line.run()
    assert statement in raised.value.advice
    line.at_hub("DROP EVENT TRIGGER no")
    line.at_hub(statement)
    line.run()
    equal(line)


# ---- halt and ignore ----------------------------------------------------------------------------------------------


@PLUGINS
def test_halts_at_the_exact_place(new_line: NewLine, server: str, plugin: str) -> None:
    """What was committed before the change is applied, nothing after it; again after a restart; then a person acts."""
    line = new_line("  - {from: public.*, into: replica.*}")
    with pytest.raises(ColumnAdded, match=r"public\.item has a column n \(integer\)"), running(line) as failed:
        line.at_source("UPDATE item SET v = 'before'; INSERT INTO other VALUES (2, 'before')")
        line.at_source("ALTER TABLE item ADD n int DEFAULT 3")
        line.at_source("INSERT INTO other VALUES (3, 'between')")
        line.at_source("INSERT INTO item VALUES (900, 'x', 5)")
        line.at_source("INSERT INTO other VALUES (4, 'after')")
        until(lambda: bool(failed), 20)
    for _ in range(2):
        assert line.at_hub("SELECT id FROM replica.other ORDER BY id") == [(1,), (2,), (3,)]
        assert line.at_hub("SELECT count(*) FROM replica.item WHERE v = 'before'") == [(80,)]
        with pytest.raises(ColumnAdded):
            line.run()
    line.at_hub("ALTER TABLE replica.item ADD n int")
    line.run()
    equal(line)
    equal(line, "other")


@PLUGINS
def test_ignored_until_told_otherwise(new_line: NewLine, server: str, plugin: str) -> None:
    """The pipeline goes on without the column, also when started again; `apply` with evolve takes it in."""
    line = new_line("  - {from: public.*, into: replica.*, on_schema_change: ignore}")
    with running(line):
        line.at_source("ALTER TABLE item ADD n int DEFAULT 3; INSERT INTO item VALUES (900, 'x', 5)")
        caught_up(line)
    line.at_source("UPDATE item SET n = 9 WHERE id = 1; INSERT INTO item VALUES (901, 'y', 6)")
    line.apply()
    line.run()
    equal(line, columns="(to_jsonb(t) - 'n')")
    assert line.verify().differing == 0
    line.path.write_text(line.path.read_text().replace("ignore", "evolve"))
    line.apply()
    line.run()
    equal(line)


UNSAFE = [
    ("ALTER TABLE item DROP v", ColumnChanged, "column dropped: v", "ALTER TABLE replica.item DROP v"),
    ("ALTER TABLE item RENAME v TO w", ColumnChanged, "column renamed: v", "ALTER TABLE replica.item RENAME v TO w"),
    (
        "ALTER TABLE item ALTER v TYPE int USING length(v)",
        ColumnChanged,
        "was text, is integer",
        "ALTER TABLE replica.item ALTER v TYPE int USING 0",
    ),
    (
        "ALTER TABLE item DROP CONSTRAINT item_pkey, ADD PRIMARY KEY (id, v)",
        IdentityChanged,
        "was id, is id, v",
        "ALTER TABLE replica.item ADD UNIQUE (id, v)",
    ),
    ("ALTER TABLE item RENAME TO thing", TableGone, "is public.thing", ""),
    ("CREATE SCHEMA s; ALTER TABLE item SET SCHEMA s", TableGone, "is s.item", ""),
    ("DROP TABLE item", TableGone, "table dropped", ""),
    (
        "DROP TABLE item; CREATE TABLE item (id int PRIMARY KEY, v text); INSERT INTO item VALUES (1, 'new')",
        TableRecreated,
        "made anew",
        "",
    ),
]


@PLUGINS
@pytest.mark.parametrize(("change", "error", "said", "way_on"), UNSAFE, ids=lambda value: str(value)[:40])
def test_unsafe_changes_halt(
    new_line: NewLine, server: str, plugin: str, change: str, error: type[SourceTableChanged], said: str, way_on: str
) -> None:
    """Each says what it was and is; everything before it is applied. With the target changed, it goes on."""
    line = new_line("  - {from: public.*, into: replica.*}")
    line.at_source("UPDATE item SET v = 'before' WHERE id <= 10; INSERT INTO other VALUES (2, 'before')")
    line.at_source(change)
    with pytest.raises(error) as raised:
        line.run()
    assert said in raised.value.detail and "public.item" in raised.value.detail, raised.value.detail
    # wal2json names tables only: changes of the old one could not be told from those of the new one.
    before = 0 if error is TableRecreated and plugin == "wal2json" else 10
    assert line.at_hub("SELECT count(*) FROM replica.item WHERE v = 'before'") == [(before,)]
    assert line.at_hub("SELECT count(*) FROM replica.other") == [(2 if before else 1,)]
    with pytest.raises(error):
        line.run()
    if way_on:
        line.at_hub(way_on)
        line.apply()
        line.run()
        equal(line)
    elif error is TableRecreated:
        line.apply()
        line.run()
        equal(line)
    else:
        line.apply()
        line.at_source("INSERT INTO other VALUES (9, 'after')")
        line.run()
    equal(line, "other")


@PLUGINS
def test_unsafe_changes_are_seen_while_running(new_line: NewLine, server: str, plugin: str) -> None:
    """A table that is dropped says nothing in the log: the catalog is looked at now and then."""
    line = new_line("  - {from: public.*, into: replica.*, on_schema_change: evolve}")
    with pytest.raises(TableGone), running(line) as failed:
        line.at_source("UPDATE item SET v = 'before'")
        caught_up(line)
        line.at_source("DROP TABLE item")
        until(lambda: bool(failed), 20)


@PLUGINS
def test_safe_changes_go_on(new_line: NewLine, server: str, plugin: str) -> None:
    """What no route needs, what the target can follow: a wider type, columns that a SELECT does not name, FULL."""
    line = new_line(
        "  - {from: public.item, into: replica.item, on_schema_change: evolve}\n"
        "  - {name: chosen, from: public.wide, into: replica.wide, select: 'SELECT id, v, extra FROM wide'}",
        ITEM + "CREATE TABLE wide (id int PRIMARY KEY, v varchar(10), extra int);"
        "INSERT INTO wide SELECT n, 'v' || n, n FROM generate_series(1, 50) n",
        "CREATE SCHEMA replica; CREATE TABLE replica.wide (id int PRIMARY KEY, v text, extra bigint)",
    )
    with running(line):
        line.at_source("ALTER TABLE wide ADD n int DEFAULT 1; UPDATE wide SET n = 2, v = 'a' WHERE id < 10")
        line.at_source("ALTER TABLE wide ALTER v TYPE varchar(20); UPDATE wide SET v = repeat('v', 20) WHERE id = 11")
        line.at_source("ALTER TABLE wide RENAME n TO m; ALTER TABLE wide ALTER extra TYPE bigint")
        line.at_source("ALTER TABLE wide ALTER v TYPE text USING v || '!'; UPDATE wide SET v = 'c' WHERE id = 13")
        line.at_source("ALTER TABLE item REPLICA IDENTITY FULL; UPDATE item SET v = 'full' WHERE id = 1")
        line.at_source("ALTER TABLE item RENAME v TO w; UPDATE item SET w = 'renamed' WHERE id = 2")
        caught_up(line)
        until(lambda: line.at_hub("SELECT v FROM replica.wide WHERE id = 50") == [("v50!",)], 10)
        caught_up(line)
    assert line.verify().differing == 0
    assert line.at_hub("SELECT id, v FROM replica.wide ORDER BY 1") == line.at_source(
        "SELECT id, v FROM wide ORDER BY 1"
    )


# ---- names that pass from one column to another -------------------------------------------------------------------

#: By table, what is done to it.
PASSED_ON = {
    "swap": "BEGIN; ALTER TABLE swap RENAME a TO t; ALTER TABLE swap RENAME b TO a; ALTER TABLE swap RENAME t TO b;"
    " COMMIT",
    "anew": "ALTER TABLE anew RENAME a TO a_old; ALTER TABLE anew ADD a int DEFAULT -7",
    "over": "ALTER TABLE over RENAME a TO a_old; ALTER TABLE over RENAME b TO a",
    "gone": "ALTER TABLE gone DROP a; ALTER TABLE gone RENAME b TO a",
}
TABLES = "; ".join(
    f"CREATE TABLE {table} (id int PRIMARY KEY, a int, b int);"
    f"INSERT INTO {table} SELECT n, n, 1000 + n FROM generate_series(1, 20) n"
    for table in PASSED_ON
)
COPIES = "CREATE SCHEMA replica; " + "; ".join(
    f"CREATE TABLE replica.{table} (id int PRIMARY KEY, a int, b int)" for table in PASSED_ON
)


def _pass_on(line: Line, rounds: int = 1, tables: Iterable[str] = PASSED_ON) -> None:
    """Changes of rows, then of the names of columns, then of rows again."""
    with psycopg.connect(line.source, autocommit=True) as connection:
        for table in tables:
            for n in range(rounds):
                connection.execute(f"UPDATE {table} SET a = {100 + n}, b = -a WHERE id = {n % 20 + 1}".encode())
            for statement in PASSED_ON[table].split(";"):
                connection.execute(statement.encode())
            connection.execute(f"UPDATE {table} SET a = 5 WHERE id IN (1, 20)".encode())
            connection.execute(f"INSERT INTO {table} (id, a) VALUES (99, 1)".encode())
            connection.execute(f"DELETE FROM {table} WHERE id = 9".encode())


def _equal_in(line: Line, columns: str, tables: Iterable[str] = PASSED_ON) -> None:
    for table in tables:
        query = f"SELECT {columns} FROM {{}} ORDER BY id"
        assert line.at_hub(query.format(f"replica.{table}")) == line.at_source(query.format(table)), table
    assert line.verify().differing == 0


@PLUGINS
def test_names_that_pass_to_other_columns(new_line: NewLine, server: str, plugin: str) -> None:
    """What a name stands for is told by the column's number. Rows are read again, also those of the many pieces that
    are still in the log, before the change and after it, around the chunks of the copy."""
    line = new_line(EVOLVE, TABLES)
    line.path.write_text(line.path.read_text() + "batch: {max_rows: 3}\nsnapshot: {chunk_rows: 7}\n")
    _pass_on(line, rounds=100)
    line.run()
    _equal_in(line, "id, a, b", ["swap"])
    _equal_in(line, "id, a_old, a, b", ["anew"])
    _equal_in(line, "id, a_old, a", ["over"])
    _equal_in(line, "id, a", ["gone"])


@PLUGINS
def test_names_of_a_select_that_pass_to_other_columns(new_line: NewLine, server: str, plugin: str) -> None:
    """It goes on where all its names are there, with what they stand for now, whatever was published of them."""
    tables = ["swap", "anew", "over"]  # a column of a publication's list cannot be dropped
    routes = (
        f"  - {{name: {t}, from: public.{t}, into: replica.{t}, select: 'SELECT id, a FROM {t}'}}" for t in tables
    )
    line = new_line("\n".join(routes), TABLES, COPIES)
    _pass_on(line, tables=tables)
    line.run()
    _equal_in(line, "id, a", tables)


@PLUGINS
def test_names_that_pass_to_other_columns_halt(new_line: NewLine, server: str, plugin: str) -> None:
    """Nothing after the change is applied; what `apply` then accepts is read again."""
    line = new_line("  - {from: public.*, into: replica.*}", TABLES)
    _pass_on(line, rounds=5)
    with pytest.raises(ColumnChanged, match="column renamed"):
        line.run()
    assert line.at_hub("SELECT a FROM replica.swap WHERE id = 5") == [(104,)]
    assert line.at_hub("SELECT id FROM replica.gone WHERE a = 5 AND id <> 5 OR id = 99") == []
    line.at_hub("ALTER TABLE replica.anew ADD a_old int; ALTER TABLE replica.over ADD a_old int")
    line.apply()
    line.run()
    _equal_in(line, "id, a")


def test_names_are_exchanged_while_running(new_line: NewLine) -> None:
    """The order in which the log has columns shows it at its place."""
    line = new_line("  - {from: public.*, into: replica.*}", TABLES)
    with pytest.raises(ColumnChanged), running(line) as failed:
        caught_up(line)
        line.at_source("UPDATE swap SET a = 5 WHERE id = 7")
        line.at_source(PASSED_ON["swap"])
        line.at_source("UPDATE swap SET a = 6 WHERE id = 8")
        until(lambda: bool(failed), 20)
    assert line.at_hub("SELECT a FROM replica.swap WHERE id IN (7, 8) ORDER BY id") == [(5,), (8,)]


@PLUGINS
def test_a_column_that_is_no_longer_generated(new_line: NewLine, server: str, plugin: str) -> None:
    """DROP EXPRESSION: what it has from then on is its own, and cannot go into what the target generates."""
    script = (
        "CREATE TABLE item (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id * 2) STORED); INSERT INTO item VALUES (1)"
    )
    line = new_line(EVOLVE, script)
    line.at_source("ALTER TABLE item ALTER g DROP EXPRESSION; INSERT INTO item VALUES (2, 99)")
    with pytest.raises(ColumnChanged, match="column no longer generated: g") as raised:
        line.run()
    assert "TL-212" in raised.value.detail and "DROP EXPRESSION" in raised.value.advice
    line.at_hub("ALTER TABLE replica.item ALTER g DROP EXPRESSION")
    line.run()
    line.same("item", "replica.item")
    assert line.verify().differing == 0


def test_a_column_to_add_that_the_target_has(new_line: NewLine) -> None:
    """With another type: the error says so, and what to do about it; and not to set what is set already."""
    line = new_line(EVOLVE)
    line.at_hub("ALTER TABLE replica.item ADD n text")
    line.at_source("ALTER TABLE item ADD n int DEFAULT 4")
    with pytest.raises(ColumnAdded, match=r"TL-214: .* column n: It is integer at the source and text at") as raised:
        line.run()
    assert raised.value.advice.startswith('ALTER TABLE "replica"."item" ALTER COLUMN "n" TYPE integer')
    line.at_hub("ALTER TABLE replica.item ALTER n TYPE int USING n::int")
    line.run()
    equal(line)


@PLUGINS
def test_a_sensitive_column_that_is_renamed(new_line: NewLine, server: str, plugin: str) -> None:
    """It stays masked, or the pipeline halts: it is never set aside in clear, nor shown by any verb."""
    options = "on_schema_change: evolve, on_error: quarantine, sensitive: [ssn]"
    script = (
        "CREATE TABLE item (id int PRIMARY KEY, ssn text, a int); CREATE TABLE other (id int PRIMARY KEY, ssn text)"
    )
    line = new_line(f"  - {{from: public.*, into: replica.*, {options}}}", script)
    line.at_hub("ALTER TABLE replica.item ADD CHECK (a > 0)")
    line.at_source("INSERT INTO item VALUES (1, 'SECRET', -1)")
    line.at_source("ALTER TABLE item RENAME ssn TO tax_no; INSERT INTO item VALUES (2, 'SECRET', -1)")
    for _ in range(2):
        with pytest.raises(ColumnChanged, match=r"renamed: ssn .* TL-217: .* column tax_no") as raised:
            line.run()
        assert raised.value.advice.startswith("Add tax_no to `sensitive`")
        with pytest.raises(RoutesRefused, match="TL-217"):
            line.apply()
    line.path.write_text(line.path.read_text().replace("[ssn]", "[ssn, tax_no]"))
    line.run()
    line.at_source("INSERT INTO item VALUES (3, 'SECRET', -1)")
    line.run()
    rows = line.at_hub('SELECT "row"::text, masked FROM towline.quarantine ')
    assert {name for _, masked in rows for name in masked} == {"ssn", "tax_no"}
    assert "SECRET" not in str(rows)


# ---- partitions ---------------------------------------------------------------------------------------------------

PARTS = """
CREATE TABLE item (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
CREATE TABLE item_0 PARTITION OF item FOR VALUES FROM (0) TO (100);
CREATE TABLE item_1 PARTITION OF item FOR VALUES FROM (100) TO (200);
INSERT INTO item SELECT n, 'v' || n FROM generate_series(90, 109) n;
"""
NEW_PART = """
CREATE TABLE item_2 (LIKE item INCLUDING ALL); INSERT INTO item_2 SELECT n, 'x' FROM generate_series(200, 219) n;
"""
ATTACH = "ALTER TABLE item ATTACH PARTITION item_2 FOR VALUES FROM (200) TO (300)"


@PLUGINS
def test_partitions_come_and_go(new_line: NewLine, server: str, plugin: str) -> None:
    """What the log does not tell of: rows that came with a partition, and those that went with one. A partition that is
    made as one, or without rows, is no reason to copy anything."""
    line = new_line("  - {from: public.item, into: replica.item, on_truncate: delete}", PARTS)
    with running(line):
        caught_up(line)
        before = line.at_hub("SELECT copied, updated_at FROM towline.route_state")
        line.at_source(
            "CREATE TABLE item_5 PARTITION OF item FOR VALUES FROM (500) TO (600); INSERT INTO item VALUES (501)"
        )
        line.at_source("CREATE TABLE item_6 (LIKE item INCLUDING ALL)")
        line.at_source("ALTER TABLE item ATTACH PARTITION item_6 FOR VALUES FROM (600) TO (700)")
        until(lambda: '"item_6"' in line.at_hub('SELECT "table"::text FROM towline.source_table')[0][0], 20)
        caught_up(line)
        assert line.at_hub("SELECT copied, updated_at FROM towline.route_state") == before
        line.at_source(f"{NEW_PART} {ATTACH}")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.item WHERE id BETWEEN 200 AND 299") == [(20,)], 20)
        line.at_source("UPDATE item SET v = 'last' WHERE id = 91; ALTER TABLE item DETACH PARTITION item_1")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.item WHERE id BETWEEN 100 AND 199") == [(0,)], 20)
        line.at_source("ALTER TABLE item DETACH PARTITION item_2; DELETE FROM item_2 WHERE id < 210")
        line.at_source(f"UPDATE item_2 SET v = 'y'; {ATTACH}")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.item WHERE v = 'y'") == [(10,)], 20)
        line.at_source("DROP TABLE item_0")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.item WHERE id < 100") == [(0,)], 20)
        caught_up(line)
    equal(line)
    assert line.verify().differing == 0


@PLUGINS
def test_a_partition_that_goes_halts(new_line: NewLine, server: str, plugin: str) -> None:
    """Many rows go at once: as with TRUNCATE, that is not done to the target unless it was said."""
    line = new_line("  - {from: public.item, into: replica.item}", PARTS)
    line.at_source(
        "UPDATE item SET v = 'before'; ALTER TABLE item DETACH PARTITION item_1; UPDATE item SET v = 'after'"
    )
    for _ in range(2):
        with pytest.raises(PartitionDetached, match=r"partition detached or dropped \(was public\.item_1\)"):
            line.run()
    assert line.at_hub("SELECT count(*) FROM replica.item WHERE v IN ('before', 'after')") == [(20,)]
    line.apply()
    line.run()
    equal(line)
    assert line.verify().differing == 0


@pytest.mark.parametrize(("server", "plugin"), [("pg15", "wal2json")])
def test_a_partition_that_is_truncated(new_line: NewLine, server: str, plugin: str) -> None:
    """wal2json names the partition alone: the pipeline stops at it, and goes on once the table is copied again."""
    line = new_line("  - {from: public.item, into: replica.item}", PARTS)
    line.at_source("UPDATE item SET v = 'before'; TRUNCATE item_1; UPDATE item SET v = 'after'")
    with pytest.raises(SourceTruncated):
        line.run()
    result = CliRunner().invoke(cli, ["resync", str(line.path), "public.item", "--yes"])
    assert result.exit_code == 0, result.output
    line.run()
    equal(line)


# ---- the publication ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("SET TABLE ONLY item WHERE (id > 1000), ONLY parts", PublicationFiltered),
        ("SET TABLE ONLY item (id), ONLY parts", PublicationLacksColumn),
        ("SET (publish = 'insert')", PublicationLacksOperation),
        ("SET (publish_via_partition_root = false)", PublicationNotViaRoot),
        ("DROP TABLE item", PublicationLacksTable),
    ],
)
def test_a_publication_that_sends_less_halts(new_line: NewLine, change: str, error: type[NotSetUp]) -> None:
    """What it leaves out from then on would be lost without a word: it is noticed at once, not at the next start."""
    parts = "CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);"
    parts += "CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (100)"
    script = f"CREATE TABLE item (id int PRIMARY KEY, v text); {parts}"
    line = new_line("  - {from: public.*, into: replica.*}", script)
    with pytest.raises(error), running(line) as failed:
        caught_up(line)
        line.at_source(f'ALTER PUBLICATION "{line.config.source.publication}" {change}')
        until(lambda: bool(failed), 20)


# ---- new tables ---------------------------------------------------------------------------------------------------


@PLUGINS
def test_apply_is_noticed(new_line: NewLine, server: str, plugin: str) -> None:
    """A daemon takes a new table by itself once `apply` was run, and is hardly away from the others for that."""
    line = new_line("  - {from: public.*, into: replica.*}")
    with running(line):
        caught_up(line)
        line.at_source("CREATE TABLE late (id int PRIMARY KEY, v text); INSERT INTO late VALUES (1, 'a')")
        line.apply()
        line.at_source("INSERT INTO late VALUES (2, 'b'); UPDATE item SET v = 'x'")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.late") == [(2,)], 20)
        caught_up(line)
    equal(line)
    equal(line, "late")


@PLUGINS
def test_a_role_that_does_not_own_the_publication(
    new_line: NewLine, server: str, plugin: str, request: pytest.FixtureRequest
) -> None:
    """A column that no route needs is no reason to change the publication: `check` warns, `apply` and `run` go on."""
    line = new_line("  - {from: public.item, into: replica.item, on_schema_change: ignore}")
    role = f"reader_{line.path.stem.replace('-', '_')}"
    line.at_source(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        owner, dsn = line.path.read_text(), line.source
        line.path.write_text(owner.replace("user=postgres", f"user={role}", 1))
        line.at_source("ALTER TABLE item ADD n int; INSERT INTO item VALUES (900, 'x', 1)")
        with plan.prepare(line.config) as prepared:
            assert [finding.detail for finding in prepared.findings if finding.fatal] == []
            warned = [finding for finding in prepared.findings if "more than the routes need" in finding.detail]
            assert len(warned) == (plugin == "pgoutput")
        line.apply()
        line.run()
        line.path.write_text(owner)
        equal(line, columns="(to_jsonb(t) - 'n')")
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_a_role_that_may_not_publish_a_column(new_line: NewLine) -> None:
    """TL-505 names the statement for a publication whose list of columns lacks one that was taken in."""
    line = new_line("  - {from: public.item, into: replica.item, on_schema_change: ignore}")
    role = f"reader_{line.path.stem.replace('-', '_')}"
    line.at_source("ALTER TABLE item ADD n int DEFAULT 3")
    line.apply()
    line.at_source(f"CREATE ROLE {role} LOGIN REPLICATION; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    try:
        pipeline, dsn = line.path.read_text().replace("ignore", "evolve"), line.source
        line.path.write_text(pipeline.replace("user=postgres", f"user={role}", 1))
        with pytest.raises(EvolutionRefused, match="leaves out a column") as raised:
            line.run()
        statement = raised.value.advice.removeprefix("Run at the source, as its owner: ")
        assert 'ONLY "public"."item" ("id", "v", "n")' in statement
        line.at_source(statement)
        line.run()
        line.path.write_text(pipeline)
        equal(line)
        labels = {"pipeline": line.config.pipeline, "route": "public.item", "action": "add"}
        assert line.metrics.registry.get_sample_value("towline_schema_changes_total", labels) == 1
    finally:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_within_a_transaction_that_is_streamed(new_line: NewLine) -> None:
    """Columns come, go and are renamed in the middle of transactions that are sent while they are under way."""
    line = new_line(EVOLVE)
    text = line.path.read_text().replace("dbname=", "options='-c logical_decoding_work_mem=64kB' dbname=", 1)
    line.path.write_text(text)
    with running(line), psycopg.connect(line.source) as one, psycopg.connect(line.source) as other:
        one.execute("INSERT INTO item SELECT n, repeat('a', 100) FROM generate_series(1000, 4000) n")
        other.execute("INSERT INTO other SELECT n, repeat('o', 100) FROM generate_series(1000, 4000) n")
        one.execute("ALTER TABLE item ADD n int DEFAULT 7")
        one.execute("INSERT INTO item SELECT n, repeat('b', 100), n FROM generate_series(5000, 8000) n")
        one.execute("SAVEPOINT s; ALTER TABLE item ADD gone int; UPDATE item SET gone = 1; ROLLBACK TO s")
        one.execute("ALTER TABLE item RENAME n TO m; UPDATE item SET m = 0 WHERE id % 2 = 0")
        other.execute("ALTER TABLE other ADD z text DEFAULT 'z'; UPDATE other SET z = NULL WHERE id % 3 = 0")
        one.commit()
        other.commit()
        caught_up(line)
    equal(line)
    equal(line, "other")
    assert line.verify().differing == 0
