"""Setting up a source: what is planned is done once, and what would go wrong is found before it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import conninfo, sql

from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.change import Format, Relation
from towline.demo.programs import debian_bindir, embedded_bindir
from towline.demo.server import Server
from towline.errors import SlotInUse, SlotUnusable, SourceUnavailable
from towline.position import format_lsn
from towline.postgres.catalog import describe
from towline.postgres.session import connect
from towline.source import Finding
from towline.source.postgres.setup import check, drop, execute, plan
from towline_transforms.schema import TableName

#: Names that SQL written by string formatting would trip over.
SLOT, PUBLICATION = "towline_test", 'pub %s {0} "Ü" -'

DDL = """
CREATE TABLE a (id int PRIMARY KEY, b int, c text, g int GENERATED ALWAYS AS (b * 2) STORED);
CREATE TABLE "B-%s {} ""x"" ü" (id int PRIMARY KEY, "ü %s" text, c text);
CREATE TABLE f (id int PRIMARY KEY, b int, c int); ALTER TABLE f REPLICA IDENTITY FULL;
CREATE TABLE p (id int PRIMARY KEY, b int, c int) PARTITION BY LIST (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
CREATE TABLE child () INHERITS (a);
"""


@pytest.fixture(params=[pytest.param("pg15", marks=pytest.mark.debian), "pg18"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


@contextmanager
def source(dsn: str, ddl: str = "", **change: str) -> Iterator[psycopg.Connection]:
    """Run the DDL as superuser, then a session as the daemon has it."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ddl.encode())
    with connect(conninfo.make_conninfo(dsn, **change), application_name="towline test", side="source") as connection:
        yield connection


def relations(connection: psycopg.Connection, **columns: Sequence[str]) -> list[Relation]:
    """Relations of tables in schema public by name, each with those columns (none: all but generated ones)."""
    tables = describe(connection, [TableName("public", name) for name in columns]).tables
    return [
        Relation(
            table,
            tuple(c for c in table.columns if c.name in columns[name.name] or not (columns[name.name] or c.generated)),
            Format.TEXT,
        )
        for name, table in tables.items()
    ]


def set_up(
    connection: psycopg.Connection, routed: Sequence[Relation], plugin: str = "pgoutput"
) -> tuple[list[str], int | None]:
    """Plan and do it; the statements and the slot's position."""
    steps = plan(connection, routed, slot=SLOT, publication=PUBLICATION, plugin=plugin)
    return [step.sql for step in steps], execute(connection, steps)


def published(connection: psycopg.Connection, server: Server) -> dict[str, set[str]]:
    """What the server itself says is published: tables (roots) and columns."""
    rows = connection.execute(
        "SELECT tablename::text, attnames::text[] FROM pg_publication_tables WHERE pubname = %s", (PUBLICATION,)
    )
    # Before 18 the view lists generated columns, which are not sent.
    unsent = {"g"} if server.major_version < 18 else set()
    return {name: set(columns) - unsent for name, columns in rows}


def test_set_up_is_done_once(server: Server, new_database: NewDatabase) -> None:
    """Publication, then slot; nothing the second time; only what changed the third time; and drop removes both."""
    with source(new_database(server), DDL) as connection:
        routed = relations(connection, a=["id", "c"], f=["id"], p=["id", "b"], **{'B-%s {} "x" ü': ()})
        statements, position = set_up(connection, routed)
        assert [statement.split("(")[0].split('"')[0].strip() for statement in statements] == [
            "CREATE PUBLICATION",
            "SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot",
        ]
        assert position is not None
        row = connection.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s", (SLOT,)
        ).fetchone()
        assert row == (format_lsn(position),)
        assert published(connection, server) == {
            "a": {"id", "c"},
            'B-%s {} "x" ü': {"id", "ü %s", "c"},
            "f": {"id", "b", "c"},  # with REPLICA IDENTITY FULL there can be no list of columns
            "p": {"id", "b"},  # under the root's name, with its partitions
        }
        assert set_up(connection, routed) == ([], None)
        more = relations(connection, a=["id", "b", "c"], p=["id", "b"])
        statements, position = set_up(connection, more)
        assert [statement[:17] for statement in statements] == ["ALTER PUBLICATION"]
        assert position is None
        assert published(connection, server) == {"a": {"id", "b", "c"}, "p": {"id", "b"}}
        assert set_up(connection, more) == ([], None)
        drop(connection, slot=SLOT, publication=PUBLICATION)
        drop(connection, slot=SLOT, publication=PUBLICATION)
        assert published(connection, server) == {}
        assert connection.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (SLOT,)).fetchone() is None


def test_column_lists_only_where_columns_are_left_out(server: Server, new_database: NewDatabase) -> None:
    """A list would keep the table's owner from dropping a column."""
    with source(new_database(server), DDL) as connection:
        set_up(connection, relations(connection, a=()))
        connection.execute("ALTER TABLE public.a DROP COLUMN c")


@pytest.mark.parametrize(
    ("ddl", "count"),
    [
        ("CREATE PUBLICATION {} FOR ALL TABLES WITH (publish_via_partition_root = true)", 0),
        ("CREATE PUBLICATION {} FOR ALL TABLES", 1),
        ("CREATE PUBLICATION {} FOR TABLE a, p WITH (publish_via_partition_root = true)", 1),  # with the table child
        ("CREATE PUBLICATION {} FOR TABLE ONLY a, p WITH (publish_via_partition_root = true)", 0),
        ("CREATE PUBLICATION {} FOR TABLE ONLY a, p WITH (publish_via_partition_root = true, publish = 'insert')", 1),
        ("CREATE PUBLICATION {} FOR TABLE ONLY a WHERE (id > 0), p WITH (publish_via_partition_root = true)", 1),
        ("CREATE PUBLICATION {} FOR TABLES IN SCHEMA public WITH (publish_via_partition_root = true)", 1),
        ("CREATE PUBLICATION {}", 2),
    ],
)
def test_a_publication_that_is_there(server: Server, new_database: NewDatabase, ddl: str, count: int) -> None:
    """It is changed to what the routes need, and left alone when it has that."""
    with source(new_database(server), DDL) as connection:
        connection.execute("SET search_path = public")
        connection.execute(sql.SQL(ddl).format(sql.Identifier(PUBLICATION)))
        connection.execute("SET search_path = ''")
        routed = relations(connection, a=(), p=())
        steps = plan(connection, routed, slot=SLOT, publication=PUBLICATION, plugin="pgoutput")
        assert len(steps) == count + 1
        execute(connection, steps)
        assert plan(connection, routed, slot=SLOT, publication=PUBLICATION, plugin="pgoutput") == []


def test_generated_columns_travel_since_18(pg18: Server, new_database: NewDatabase) -> None:
    """Stored ones, when they are listed."""
    with source(new_database(pg18), DDL) as connection:
        routed = relations(connection, a=["id", "b", "c", "g"])
        set_up(connection, routed)
        assert published(connection, pg18) == {"a": {"id", "b", "c", "g"}}
        assert codes(check(connection, routed, plugin="pgoutput", slot=SLOT, publication=PUBLICATION)) == []


def test_wal2json_needs_no_publication(pg15: Server, new_database: NewDatabase) -> None:
    """The slot is all there is to do."""
    with source(new_database(pg15), DDL) as connection:
        statements, position = set_up(connection, relations(connection, a=()), "wal2json")
        assert len(statements) == 1
        assert position
        assert set_up(connection, relations(connection, a=()), "wal2json") == ([], None)


@pytest.mark.parametrize(
    ("create", "code"),
    [
        ("SELECT pg_create_physical_replication_slot('towline_test')", "TL-305"),
        ("SELECT pg_create_logical_replication_slot('towline_test', 'test_decoding')", "TL-321"),
    ],
)
def test_a_slot_of_another_kind(server: Server, new_database: NewDatabase, create: str, code: str) -> None:
    """It is somebody's: neither used nor dropped."""
    with source(new_database(server), DDL) as connection:
        connection.execute(create.encode())
        try:
            with pytest.raises(SlotUnusable):
                plan(connection, relations(connection, a=()), slot=SLOT, publication=PUBLICATION, plugin="pgoutput")
            found = check(connection, relations(connection, a=()), plugin="pgoutput", slot=SLOT)
            assert codes(found) == [code]
        finally:
            connection.execute("SELECT pg_drop_replication_slot('towline_test')")


def test_a_slot_of_another_database(server: Server, new_database: NewDatabase) -> None:
    """A logical slot belongs to the database in which it was made."""
    with source(new_database(server), DDL) as other:
        set_up(other, relations(other, a=()))
        with source(new_database(server), DDL) as connection, pytest.raises(SlotUnusable, match="another database"):
            plan(connection, relations(connection, a=()), slot=SLOT, publication=PUBLICATION, plugin="pgoutput")
        drop(other, slot=SLOT, publication=PUBLICATION)


def test_a_slot_in_use_is_not_dropped(server: Server, new_database: NewDatabase) -> None:
    """Whoever reads it must be stopped first."""
    dsn = new_database(server)
    with source(dsn, DDL) as connection:
        set_up(connection, relations(connection, a=()))
        walsender = psycopg.pq.PGconn.connect(conninfo.make_conninfo(dsn, replication="database").encode())
        try:
            result = walsender.exec_(
                f"START_REPLICATION SLOT {SLOT} LOGICAL 0/0 (proto_version '1', publication_names 'x')".encode()
            )
            assert result.status == psycopg.pq.ExecStatus.COPY_BOTH
            with pytest.raises(SlotInUse):
                drop(connection, slot=SLOT, publication=PUBLICATION)
        finally:
            walsender.finish()


def test_a_slot_waits_for_running_transactions(server: Server, new_database: NewDatabase) -> None:
    """Not for ever: then it says who is in the way, and may be tried again."""
    dsn = new_database(server)
    with source(dsn, DDL) as connection, psycopg.connect(dsn) as writer:
        writer.execute("INSERT INTO a VALUES (1)")
        steps = plan(connection, relations(connection, a=()), slot=SLOT, publication=PUBLICATION, plugin="pgoutput")
        with pytest.raises(SourceUnavailable, match=f"process {writer.info.backend_pid} since"):
            execute(connection, steps, patience=0.3)
        # A probe of the plugin does not take that for a missing plugin.
        assert codes(check(connection, relations(connection, a=()), plugin="pgoutput", slot=SLOT)) == []
        writer.rollback()
        assert set_up(connection, relations(connection, a=()))[1]


# ---- check ----------------------------------------------------------------------------------------------------


def codes(found: Sequence[Finding], fatal: bool = True) -> list[str]:
    return [finding.code for finding in found if finding.fatal or not fatal]


def only(found: Sequence[Finding], containing: str) -> Finding:
    """The one finding that mentions something."""
    (finding,) = [finding for finding in found if containing in finding.detail]
    return finding


def test_nothing_to_find(server: Server, new_database: NewDatabase) -> None:
    """A source as it should be, before and after it was set up; the probe leaves nothing behind."""
    with source(new_database(server), DDL) as connection:
        routed = relations(connection, a=(), p=())
        for _ in range(2):
            assert check(connection, routed, plugin="pgoutput", slot=SLOT, publication=PUBLICATION) == []
            rows = connection.execute("SELECT slot_name FROM pg_replication_slots WHERE temporary").fetchall()
            assert rows == []
            set_up(connection, routed)
        assert connection.execute("SHOW statement_timeout").fetchone() == ("0",)


TABLE_CASES: dict[str, tuple[str, dict[str, Sequence[str]], str, bool, str]] = {
    "full identity": ("", {"f": ()}, "REPLICA IDENTITY FULL on public.f", False, "REPLICA IDENTITY DEFAULT"),
    "a partition without identity": (
        "ALTER TABLE p1 REPLICA IDENTITY NOTHING",
        {"p": ()},
        "partition public.p1",
        True,
        'ALTER TABLE "public"."p1" REPLICA IDENTITY',
    ),
    "a partition with another identity": (
        "ALTER TABLE p1 ALTER b SET NOT NULL; CREATE UNIQUE INDEX k ON p1 (b);"
        "ALTER TABLE p1 REPLICA IDENTITY USING INDEX k",
        {"p": ()},
        "partition public.p1",
        True,
        "USING INDEX",
    ),
}


@pytest.mark.parametrize("case", TABLE_CASES)
def test_tables(server: Server, new_database: NewDatabase, case: str) -> None:
    """What is wrong with a table is found with its name and the way out."""
    ddl, columns, detail, fatal, remedy = TABLE_CASES[case]
    with source(new_database(server), DDL + ddl) as connection:
        found = check(connection, relations(connection, **columns), plugin="pgoutput", slot=SLOT)
        finding = only(found, detail)
        assert finding.fatal is fatal
        assert remedy in finding.remedy


@pytest.mark.debian
def test_generated_columns(pg15: Server, pg18: Server, new_database: NewDatabase) -> None:
    """pgoutput sends stored ones since 18, wal2json always; virtual ones nobody sends."""
    with source(new_database(pg15), DDL) as connection:
        routed = relations(connection, a=["id", "g"])
        finding = only(check(connection, routed, plugin="pgoutput", slot=SLOT), "column g of public.a")
        assert finding.fatal
        assert "(b * 2)" in finding.remedy
        assert codes(check(connection, routed, plugin="wal2json", slot=SLOT)) == []
    ddl = "CREATE TABLE v (id int PRIMARY KEY, g int GENERATED ALWAYS AS (id))"
    with source(new_database(pg18), ddl) as connection:
        routed = relations(connection, v=["id", "g"])
        assert only(check(connection, routed, plugin="pgoutput", slot=SLOT), "column g of public.v").fatal


def test_nan_in_keys_with_wal2json(pg15: Server, new_database: NewDatabase) -> None:
    """wal2json prints NaN as null, which in a key cannot be read again."""
    with source(new_database(pg15), "CREATE DOMAIN d AS numeric; CREATE TABLE n (id d PRIMARY KEY)") as connection:
        routed = relations(connection, n=())
        assert not only(check(connection, routed, plugin="wal2json", slot=SLOT), "column id of public.n").fatal
        assert check(connection, routed, plugin="pgoutput", slot=SLOT) == []


@contextmanager
def role(dsn: str) -> Iterator[str]:
    """A role that may log in and nothing else."""
    name = f"role of {conninfo.conninfo_to_dict(dsn)['dbname']}"
    identifier = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(identifier))
        try:
            yield name
        finally:
            connection.execute(sql.SQL("DROP OWNED BY {}; DROP ROLE {}").format(identifier, identifier))


def test_a_role_gets_what_it_lacks(server: Server, new_database: NewDatabase) -> None:
    """Following the remedies, one after the other, leads to a source that can be set up."""
    dsn = new_database(server)
    ddl = DDL + "CREATE POLICY only_some ON a USING (id > 1); ALTER TABLE a ENABLE ROW LEVEL SECURITY;"
    with role(dsn) as name, source(dsn, ddl, user=name) as connection, psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute("REVOKE ALL ON SCHEMA public FROM public")
        routed = relations(connection, a=["id", "c"], p=())

        def found() -> list[Finding]:
            return check(connection, routed, plugin="pgoutput", slot=SLOT, publication=PUBLICATION)

        before = found()
        assert codes(before) == ["TL-302"] * 4
        for containing in ("may not replicate", "may not read 2 tables", "row security", "make or change"):
            remedy = only(before, containing).remedy
            admin.execute(remedy.removeprefix("As the owner of the tables, or as a superuser: ").encode())
        assert found() == []
        steps = plan(connection, routed, slot=SLOT, publication=PUBLICATION, plugin="pgoutput")
        assert execute(connection, steps)
        drop_admin = sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(PUBLICATION))
        admin.execute(drop_admin)


@contextmanager
def own_server(directory: Path, bindir: Path, **settings: str) -> Iterator[Server]:
    with Server(directory, bindir, settings=settings, durable=False) as server:
        yield server


SERVER_CASES: dict[str, tuple[dict[str, str], str, bool]] = {
    "wal_level": ({"wal_level": "replica"}, "wal_level is replica", True),
    "no slots": ({"max_replication_slots": "0"}, "all 0 replication slots", True),
    "no walsenders": ({"max_wal_senders": "0"}, "all 0 walsenders", True),
    "limited log": ({"max_slot_wal_keep_size": "1GB"}, "max_slot_wal_keep_size is 1GB", False),
    "limited idleness": ({"idle_replication_slot_timeout": "1d"}, "idle_replication_slot_timeout is 1d", False),
}


def test_settings(scratch: Path) -> None:
    """Settings that forbid replication, and those that endanger it."""
    with own_server(scratch / "settings", embedded_bindir()) as server:
        defaults = {name: server._settings.get(name) for case in SERVER_CASES.values() for name in case[0]}
        for settings, detail, fatal in SERVER_CASES.values():
            server._settings.update(settings)
            server.restart()
            with source(server.dsn(), "CREATE TABLE IF NOT EXISTS t (id int PRIMARY KEY)") as connection:
                finding = only(check(connection, relations(connection, t=()), plugin="pgoutput", slot=SLOT), detail)
            assert (detail, finding.fatal, finding.code) == (detail, fatal, "TL-303")
            for name in settings:
                value = defaults[name]
                if value is None:
                    del server._settings[name]
                else:
                    server._settings[name] = value


@pytest.mark.debian
def test_a_plugin_that_is_not_allowed(scratch: Path, pg15: Server) -> None:
    """Servers that know output_plugin_libraries refuse wal2json until it is named there: the remedy does that.

    The statement must hold a bare list: as one quoted string it would allow one library of that name.
    """
    if not pg15.knows("output_plugin_libraries"):
        pytest.fail("This test needs a minor release with output_plugin_libraries: 15.20 or newer.")
    with (
        own_server(scratch / "plugins", debian_bindir(15)) as server,
        source(server.dsn(), DDL) as connection,
        psycopg.connect(server.dsn(), autocommit=True) as admin,
    ):
        routed = relations(connection, a=())

        def finding() -> Finding:
            return only(check(connection, routed, plugin="wal2json", slot=SLOT), "output_plugin_libraries")

        def run(statements: str, done: Callable[[], bool]) -> None:
            for statement in filter(None, (part.strip() for part in statements.split(";"))):
                admin.execute(statement.encode())
            until(done)

        def value() -> str:
            with psycopg.connect(server.dsn()) as fresh:
                row = fresh.execute("SHOW output_plugin_libraries").fetchone()
            assert row is not None
            return str(row[0])

        assert finding().fatal
        assert finding().code == "TL-314"
        right = "ALTER SYSTEM SET output_plugin_libraries = pgoutput, test_decoding, wal2json; SELECT pg_reload_conf();"
        assert finding().remedy == right
        # What many would write first does not help, and the remedy is the same.
        run(
            "ALTER SYSTEM SET output_plugin_libraries = 'pgoutput, wal2json'; SELECT pg_reload_conf()",
            lambda: value() == '"pgoutput, wal2json"',
        )
        until(lambda: finding().remedy == right)
        with role(server.dsn()) as name:
            admin.execute(sql.SQL("ALTER ROLE {} REPLICATION").format(sql.Identifier(name)))
            with source(server.dsn(), "", user=name) as limited:
                # Only superusers may read the setting; the refusal tells all the same.
                assert only(check(limited, [], plugin="wal2json", slot=SLOT), "output_plugin_libraries").remedy == right
        run(finding().remedy, lambda: value() == "pgoutput, test_decoding, wal2json")
        until(lambda: codes(check(connection, routed, plugin="wal2json", slot=SLOT)) == [])


def test_a_plugin_that_is_not_there(scratch: Path) -> None:
    """The wheel's server has no wal2json, whatever its settings allow."""
    allowed = {"output_plugin_libraries": "pgoutput, wal2json"}
    with own_server(scratch / "no plugin", embedded_bindir(), **allowed) as server, source(server.dsn()) as connection:
        finding = only(check(connection, [], plugin="wal2json", slot=SLOT), "does not have the output plugin")
        assert (finding.code, finding.fatal) == ("TL-314", True)
        assert "postgresql-18-wal2json" in finding.remedy


def test_slots_for_failover(server: Server, new_database: NewDatabase) -> None:
    """Made so, or changed to it and back, from version 17 on; refused before, with what a standby needs besides."""
    with source(new_database(server), DDL) as connection:
        wanted = relations(connection, a=())
        ways = {"slot": SLOT, "plugin": "pgoutput", "publication": PUBLICATION}
        found = [each for each in check(connection, wanted, failover=True, **ways) if "failover" in str(each)]
        if connection.info.server_version < 170000:
            assert [(each.fatal, each.code) for each in found] == [(True, "TL-303")]
            return
        warned = [each for each in check(connection, wanted, failover=True, **ways) if "standby" in each.detail]
        assert [each.fatal for each in warned] == [False]
        assert "sync_replication_slots" in warned[0].remedy
        query = "SELECT failover FROM pg_replication_slots WHERE slot_name = 'towline_test'"
        for failover in (True, False, True):
            execute(connection, plan(connection, wanted, failover=failover, **ways))
            assert connection.execute(query).fetchone() == (failover,)
            assert plan(connection, wanted, failover=failover, **ways) == []
            details = [each.detail for each in check(connection, wanted, failover=True, **ways)]
            assert any("is not for failover" in detail for detail in details) is not failover
        drop(connection, slot=SLOT, publication=PUBLICATION)
