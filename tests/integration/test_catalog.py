"""What `describe` reads from a server's catalogs, as tables of cases, on the oldest and the newest server at hand."""

from __future__ import annotations

import psycopg
import pytest
from psycopg import sql

from tests.support.databases import NewDatabase
from towline.demo.server import Server
from towline.postgres.catalog import describe
from towline.postgres.session import connect
from towline_transforms.schema import Catalog, Table, TableName, TypeKind


@pytest.fixture(params=[pytest.param("pg15", marks=pytest.mark.debian), "pg18"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


def catalog_of(dsn: str, ddl: str, *names: str) -> Catalog:
    """Run the DDL in schema public and describe tables of it (all, when none are named)."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ddl.encode())
    with connect(dsn, application_name="towline test", side="source") as connection:
        return describe(connection, [TableName("public", name) for name in names or ("*",)])


def table_of(dsn: str, ddl: str, name: str = "t") -> Table:
    return catalog_of(dsn, ddl, name).tables[TableName("public", name)]


IDENTITIES = {
    "the primary key": ("CREATE TABLE t (b int, a text, PRIMARY KEY (a, b))", ("a", "b")),
    "included columns are not of the key": ("CREATE TABLE t (a int, b int, PRIMARY KEY (a) INCLUDE (b))", ("a",)),
    "no key": ("CREATE TABLE t (a int)", "no primary key"),
    "a deferrable key": ("CREATE TABLE t (a int PRIMARY KEY DEFERRABLE)", "deferrable"),
    "an index": (
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL UNIQUE); ALTER TABLE t REPLICA IDENTITY USING INDEX t_b_key",
        ("b",),
    ),
    "an index that is gone": (
        "CREATE TABLE t (a int PRIMARY KEY, b int NOT NULL UNIQUE);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX t_b_key; ALTER TABLE t DROP CONSTRAINT t_b_key",
        "gone",
    ),
    "full, by the primary key": (
        "CREATE TABLE t (b int NOT NULL UNIQUE, a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY FULL",
        ("a",),
    ),
    "full, by another key": (
        "CREATE TABLE t (a int UNIQUE, b int NOT NULL UNIQUE); ALTER TABLE t REPLICA IDENTITY FULL",
        ("b",),
    ),
    "full, without a key": ("CREATE TABLE t (a int UNIQUE); ALTER TABLE t REPLICA IDENTITY FULL", "FULL"),
    "nothing": ("CREATE TABLE t (a int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", "NOTHING"),
    "unlogged": ("CREATE UNLOGGED TABLE t (a int PRIMARY KEY)", "unlogged"),
    "a view": ("CREATE VIEW t AS SELECT 1 AS a", "not a table"),
    "a partitioned table": ("CREATE TABLE t (a int PRIMARY KEY) PARTITION BY LIST (a)", ("a",)),
}


@pytest.mark.parametrize("case", IDENTITIES)
def test_identity(server: Server, new_database: NewDatabase, case: str) -> None:
    """The columns by which the log names a row, or the reason why there are none."""
    ddl, expected = IDENTITIES[case]
    table = table_of(new_database(server), ddl)
    if isinstance(expected, str):
        assert table.identity == ()
        assert expected in table.identity_reason
    else:
        assert (table.identity, table.identity_reason) == (expected, "")
    assert table.replica_identity_full == ("FULL" in ddl)


TYPES_DDL = """
CREATE EXTENSION IF NOT EXISTS citext;
CREATE TYPE state AS ENUM ('draft', 'done');
CREATE DOMAIN amount AS numeric(10,2) NOT NULL DEFAULT 0;
CREATE DOMAIN gross AS amount;
CREATE DOMAIN tags AS text[];
CREATE TYPE plain AS (a int, b text[], c numrange);
CREATE TYPE nested AS (a plain);
CREATE TYPE state_pair AS (a state);
CREATE TYPE span AS RANGE (subtype = float8);
"""

#: The type in DDL; what is read back: sql, kind, binary, element's sql.
TYPES = [
    ("integer", "integer", TypeKind.BASE, True, None),
    ("numeric(10,2)", "numeric(10,2)", TypeKind.BASE, True, None),
    ("varchar(5)", "character varying(5)", TypeKind.BASE, True, None),
    ("char(3)", "character(3)", TypeKind.BASE, True, None),
    ('"char"', '"char"', TypeKind.BASE, True, None),
    ("timestamptz(3)", "timestamp(3) with time zone", TypeKind.BASE, True, None),
    ("interval day to second(2)", "interval day to second(2)", TypeKind.BASE, True, None),
    ("bit varying(7)", "bit varying(7)", TypeKind.BASE, True, None),
    ("money", "money", TypeKind.BASE, True, None),
    ("jsonb", "jsonb", TypeKind.BASE, True, None),
    ("inet", "inet", TypeKind.BASE, True, None),
    ("oidvector", "oidvector", TypeKind.BASE, True, None),
    ("pg_lsn", "pg_lsn", TypeKind.BASE, True, None),
    ("regclass", "regclass", TypeKind.BASE, False, None),
    ("aclitem", "aclitem", TypeKind.BASE, False, None),
    ("citext", "public.citext", TypeKind.BASE, False, None),
    ("int4range", "int4range", TypeKind.RANGE, True, "integer"),
    ("tstzmultirange", "tstzmultirange", TypeKind.MULTIRANGE, True, "tstzrange"),
    ("varchar(5)[]", "character varying(5)[]", TypeKind.ARRAY, True, "character varying(5)"),
    ("int4range[]", "int4range[]", TypeKind.ARRAY, True, "int4range"),
    ("regclass[]", "regclass[]", TypeKind.ARRAY, False, "regclass"),
    ("state", "public.state", TypeKind.ENUM, True, None),
    ("state[]", "public.state[]", TypeKind.ARRAY, False, "public.state"),
    ("amount", "public.amount", TypeKind.DOMAIN, True, "numeric(10,2)"),
    ("gross", "public.gross", TypeKind.DOMAIN, True, "public.amount"),
    ("amount[]", "public.amount[]", TypeKind.ARRAY, False, "public.amount"),
    ("tags", "public.tags", TypeKind.DOMAIN, True, "text[]"),
    ("plain", "public.plain", TypeKind.COMPOSITE, True, None),
    ("plain[]", "public.plain[]", TypeKind.ARRAY, False, "public.plain"),
    ("nested", "public.nested", TypeKind.COMPOSITE, False, None),
    ("state_pair", "public.state_pair", TypeKind.COMPOSITE, False, None),
    ("span", "public.span", TypeKind.RANGE, True, "double precision"),
]


def test_types(server: Server, new_database: NewDatabase) -> None:
    """Every kind of type, with its typmod, its element, and whether its binary form may travel."""
    columns = ", ".join(f"c{place} {written}" for place, (written, *_) in enumerate(TYPES))
    ddl = f"{TYPES_DDL} CREATE TABLE t (id int PRIMARY KEY, {columns})"
    catalog = catalog_of(new_database(server), ddl)
    table = catalog.tables[TableName("public", "t")]
    found = [
        (written, t.sql, t.kind, t.binary, t.element.sql if t.element else None)
        for (written, *_), t in zip(TYPES, (column.type for column in table.columns[1:]), strict=True)
    ]
    assert found == TYPES
    by_name = {written: table.column(f"c{place}") for place, (written, *_) in enumerate(TYPES)}
    assert by_name["integer"].type.array_oid == 1007
    assert by_name["varchar(5)[]"].type.is_array
    assert by_name["tags"].type.is_array
    assert not by_name["oidvector"].type.is_array
    assert by_name["citext"].type.extension == "citext"
    assert by_name["gross"].not_null
    assert by_name["gross"].has_default
    assert catalog.types is not None
    assert {("public", "state"), ("public", "plain"), ("public", "span"), ("public", "citext")} <= catalog.types
    assert ("public", "t") not in catalog.types


def test_columns(server: Server, new_database: NewDatabase) -> None:
    """Defaults, generated and identity columns, collations, dropped columns; names as the catalog has them."""
    table = table_of(
        new_database(server),
        """
        CREATE FUNCTION f(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT $1';
        CREATE TABLE t (
          id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, gone int, n int GENERATED BY DEFAULT AS IDENTITY,
          s serial, d text COLLATE "C" NOT NULL DEFAULT 'x', "Größe 100%" int,
          g int GENERATED ALWAYS AS (f("Größe 100%")) STORED
        );
        ALTER TABLE t DROP COLUMN gone
        """,
    )
    assert [
        (c.name, c.not_null, c.has_default, c.generated, c.identity_always, c.collation) for c in table.columns
    ] == [
        ("id", True, True, None, True, None),
        ("n", True, True, None, False, None),
        ("s", True, True, None, False, None),
        ("d", True, True, None, False, 'pg_catalog."C"'),
        ("Größe 100%", False, False, None, False, None),
        ("g", False, False, 'public.f("Größe 100%")', False, None),
    ]


def test_virtual_generated_columns(pg18: Server, new_database: NewDatabase) -> None:
    """PostgreSQL 18 computes some columns when they are read: never written either."""
    table = table_of(new_database(pg18), "CREATE TABLE t (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a + 1))")
    assert table.column("b").generated == "(a + 1)"


def test_keys(server: Server, new_database: NewDatabase) -> None:
    """Only indexes that identify a row at any moment count as unique keys."""
    table = table_of(
        new_database(server),
        """
        CREATE TABLE t (a int, b int, c int, d int, e int, f text, PRIMARY KEY (b, a));
        CREATE UNIQUE INDEX ON t (c);
        CREATE UNIQUE INDEX ON t (c) INCLUDE (a);
        CREATE UNIQUE INDEX ON t (d) WHERE d > 0;
        CREATE UNIQUE INDEX ON t (lower(f));
        CREATE INDEX ON t (f);
        ALTER TABLE t ADD UNIQUE (e) DEFERRABLE;
        """,
    )
    assert table.primary_key == ("b", "a")
    assert table.unique_keys == (("b", "a"), ("c",))


def test_keys_without_overlaps(pg18: Server, new_database: NewDatabase) -> None:
    """A temporal primary key does not name one row by equality."""
    table = table_of(
        new_database(pg18),
        "CREATE EXTENSION btree_gist;"
        "CREATE TABLE t (a int, during daterange, PRIMARY KEY (a, during WITHOUT OVERLAPS))",
    )
    assert (table.primary_key, table.identity, table.unique_keys) == ((), (), ())


def test_foreign_keys(server: Server, new_database: NewDatabase) -> None:
    """Once each, with columns in order, also between partitioned tables and to the table itself."""
    catalog = catalog_of(
        new_database(server),
        """
        CREATE TABLE p (a int, b int, up_a int, up_b int, PRIMARY KEY (a, b), UNIQUE (b, a),
          CONSTRAINT up FOREIGN KEY (up_b, up_a) REFERENCES p (b, a)) PARTITION BY LIST (a);
        CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
        CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);
        CREATE TABLE t (id int PRIMARY KEY, x int, y int, CONSTRAINT tp FOREIGN KEY (x, y) REFERENCES p DEFERRABLE);
        """,
        "p",
        "t",
        "p1",
    )
    keys = {
        str(table.name): [
            (key.name, key.columns, str(key.referenced), key.referenced_columns, key.deferrable)
            for key in table.foreign_keys
        ]
        for table in catalog.tables.values()
    }
    assert keys["public.t"] == [("tp", ("x", "y"), "public.p", ("a", "b"), True)]
    assert keys["public.p"] == [("up", ("up_b", "up_a"), "public.p", ("b", "a"), False)]
    assert [key[1:] for key in keys["public.p1"]] == [(("up_b", "up_a"), "public.p", ("b", "a"), False)]


def test_partitions_are_leaves(server: Server, new_database: NewDatabase) -> None:
    """The log of wal2json names leaves, however deep."""
    table = table_of(
        new_database(server),
        """
        CREATE TABLE t (a int, b int, PRIMARY KEY (a, b)) PARTITION BY LIST (a);
        CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1);
        CREATE TABLE t2 PARTITION OF t FOR VALUES IN (2) PARTITION BY LIST (b);
        CREATE TABLE t21 PARTITION OF t2 FOR VALUES IN (1);
        INSERT INTO t SELECT 1, i FROM generate_series(1, 500) i;
        INSERT INTO t VALUES (2, 1);
        ANALYZE t;
        """,
    )
    assert table.partitions == (TableName("public", "t1"), TableName("public", "t21"))
    assert table.row_estimate == 501


def test_partitions_are_those_of_the_snapshot(server: Server, new_database: NewDatabase) -> None:
    """One that is attached or detached while the catalog is read is told of by the next look, with all of it."""
    database = new_database(server)
    name = TableName("public", "t")
    with (
        psycopg.connect(database, autocommit=True) as other,
        connect(database, application_name="towline test", side="source") as connection,
    ):
        other.execute("CREATE TABLE t (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE t2 (a int PRIMARY KEY)")
        other.execute("CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)")
        with connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            before = describe(connection, [name]).tables[name]
            # The locks that were taken keep a DETACH waiting, but not these.
            other.execute("ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20)")
            other.execute("CREATE TABLE t3 PARTITION OF t FOR VALUES FROM (20) TO (30)")
            assert describe(connection, [name]).tables[name].leaves == before.leaves
        after = describe(connection, [name]).tables[name]
        assert after.partitions == tuple(TableName("public", leaf) for leaf in ("t1", "t2", "t3"))
        assert after.leaves is not None and all(attached for _, attached in after.leaves)
        other.execute("ALTER TABLE t DETACH PARTITION t1 CONCURRENTLY")
        assert describe(connection, [name]).tables[name].partitions == after.partitions[1:]


def test_estimates_without_statistics(server: Server, new_database: NewDatabase) -> None:
    """Progress bars need a number for tables that were never analyzed; from their size, so within a factor of two."""
    table = table_of(
        new_database(server),
        "CREATE TABLE t (a int PRIMARY KEY, b text) WITH (autovacuum_enabled = off);"
        "INSERT INTO t SELECT i, 'text ' || i FROM generate_series(1, 10000) i",
    )
    assert 5000 < table.row_estimate < 20000


def test_star_is_what_the_log_holds(server: Server, new_database: NewDatabase) -> None:
    """Ordinary and partitioned tables; no partitions, views, unlogged tables, tables of extensions or of the system."""
    dsn = new_database(server)
    catalog = catalog_of(
        dsn,
        """
        CREATE TABLE t (a int PRIMARY KEY);
        CREATE TABLE "strange-name %s {0} ""q"" Ü" (a int PRIMARY KEY);
        CREATE TABLE p (a int PRIMARY KEY) PARTITION BY LIST (a);
        CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
        CREATE TABLE child () INHERITS (t);
        CREATE UNLOGGED TABLE u (a int);
        CREATE VIEW v AS SELECT 1;
        CREATE MATERIALIZED VIEW m AS SELECT 1;
        CREATE TABLE owned (a int);
        CREATE EXTENSION citext;
        ALTER EXTENSION citext ADD TABLE owned;
        """,
    )
    assert [name.name for name in catalog.tables] == ["child", "p", 'strange-name %s {0} "q" Ü', "t"]
    with connect(dsn, application_name="t", side="target") as connection:
        assert describe(connection, [TableName("information_schema", "*"), TableName("pg_catalog", "*")]).tables == {}
        assert describe(connection, [TableName("no such", "*"), TableName("public", "none")]).tables == {}
        assert describe(connection, []).tables == {}


def test_the_session_is_left_as_it_was(server: Server, new_database: NewDatabase) -> None:
    """Inside a transaction the role's search_path is set aside and comes back."""
    dsn = new_database(server)
    catalog_of(dsn, "CREATE TYPE state AS ENUM ('a'); CREATE TABLE t (a state PRIMARY KEY)")
    with connect(dsn, application_name="t", side="target", autocommit=False, search_path=None) as connection:
        before = connection.execute("SHOW search_path").fetchone()
        table = describe(connection, [TableName("public", "t")]).tables[TableName("public", "t")]
        assert table.column("a").type.sql == "public.state"
        assert connection.execute("SHOW search_path").fetchone() == before == ('"$user", public',)


def test_many_tables_take_few_statements(server: Server, new_database: NewDatabase) -> None:
    """The number of statements does not grow with the number of tables."""
    dsn = new_database(server)

    def statements(count: int) -> int:
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute(
                sql.SQL(
                    "DO $$ BEGIN FOR i IN 1..{count} LOOP "
                    "EXECUTE format('CREATE TABLE IF NOT EXISTS t%s (a int PRIMARY KEY, b text)', i); END LOOP; END $$"
                ).format(count=sql.Literal(count))
            )
        with connect(dsn, application_name="t", side="source") as connection:
            calls = 0
            execute = connection.execute

            def counted(*arguments: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                return execute(*arguments, **options)  # type: ignore[call-overload]

            connection.execute = counted  # type: ignore[method-assign, assignment]
            assert len(describe(connection, [TableName("public", "*")]).tables) == count
        return calls

    assert statements(1) == statements(200)
