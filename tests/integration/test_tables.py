"""Reading rows from a real source: every value exactly as the stream has it, every row exactly once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from psycopg import sql

from tests.support.databases import NewDatabase
from tests.support.wait import until
from towline.change import Chunk, Cursor, Format, Relation
from towline.demo.server import Server
from towline.errors import SourceRefused, SourceTableChanged, SourceUnavailable
from towline.frame import Frame
from towline.source.postgres.tables import PostgresTables
from towline_transforms.schema import TableName

BOTH = pytest.mark.parametrize("form", list(Format), ids=lambda form: form.value)


@pytest.fixture(params=[pytest.param("pg15", marks=pytest.mark.debian), "pg18"])
def server(request: pytest.FixtureRequest) -> Server:
    """Each server in turn."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Server)
    return found


@contextmanager
def source(dsn: str, ddl: str, **options: int) -> Iterator[PostgresTables]:
    """Run the DDL, then open the source."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(ddl.encode())
    tables = PostgresTables(dsn, slot="towline_test", **options)
    try:
        yield tables
    finally:
        tables.close()


def relation_of(tables: PostgresTables, form: Format, name: str = "t", columns: tuple[str, ...] = ()) -> Relation:
    table = tables.describe([TableName("public", name)]).tables[TableName("public", name)]
    chosen = tuple(c for c in table.columns if not columns or c.name in columns)
    return Relation(table, chosen, form)


def all_chunks(tables: PostgresTables, relation: Relation, limit: int) -> list[Chunk]:
    """The table from first to last row."""
    chunks = [tables.chunk(relation, None, limit)]
    while chunks[-1].upto is not None:
        chunks.append(tables.chunk(relation, chunks[-1].upto, limit))
    return chunks


def load(dsn: str, relation: Relation, rows: Frame, into: str) -> None:
    """Write framed rows into a table of the same columns, through a table of text when they are text."""
    names = sql.SQL(", ").join(sql.Identifier(column.name) for column in relation.columns)
    with psycopg.connect(dsn) as connection:
        stage = into
        if relation.format is Format.TEXT:
            stage = "stage"
            columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(c.name)) for c in relation.columns)
            connection.execute(sql.SQL("CREATE TEMP TABLE stage ({})").format(columns))
        copy = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT binary)").format(sql.Identifier(stage), names)
        with connection.cursor().copy(copy) as wire:
            wire.write(rows.copy_data())
        if stage != into:
            casts = sql.SQL(", ").join(
                sql.SQL("{}::{}").format(sql.Identifier(c.name), sql.SQL(c.type.sql)) for c in relation.columns
            )
            connection.execute(
                sql.SQL("INSERT INTO {} ({}) SELECT {} FROM stage").format(sql.Identifier(into), names, casts)
            )


VALUE_TYPES = """
CREATE EXTENSION IF NOT EXISTS citext;
CREATE EXTENSION IF NOT EXISTS hstore;
CREATE TYPE state AS ENUM ('draft', 'it''s "done"');
CREATE DOMAIN amount AS numeric(10,2) CHECK (VALUE >= 0);
CREATE DOMAIN words AS text[];
CREATE DOMAIN short AS varchar(5);
CREATE TYPE pair AS (a int, b text);
CREATE TYPE with_state AS (s state, p pair);
CREATE TYPE span AS RANGE (subtype = float8);
"""

VALUES: dict[str, list[str]] = {
    "bool": ["true", "false"],
    '"char"': ["'x'", "''"],
    "char(5)": ["'ab'", "''", "'  ab'"],
    "varchar(20)": ["''", "'Ü%s{}'", r"E'tab\tback\\slash\nline'"],
    "text": ["''", r"E'\\N'", r"E'quote '' \" end'", "repeat('🚚', 3000)"],
    "name": ["'name'", "''"],
    "bytea": [r"'\x00ff5c'", "''"],
    "smallint": ["-32768"],
    "bigint": ["9223372036854775807"],
    "numeric": ["'NaN'", "'Infinity'", "'-Infinity'", "1e-1000", "'1.500'", "1e1000"],
    "numeric(10,3)": ["1.5"],
    "real": ["'NaN'", "'Infinity'", "'-0'", "1e-45", "16777217"],
    "double precision": ["'NaN'", "'-Infinity'", "0.1::float8 + 0.2", "5e-324"],
    "money": ["'12.34'", "'-1234567.89'"],
    "date": ["'infinity'", "'-infinity'", "'0044-03-15 BC'", "'12345-01-01'"],
    "time": ["'24:00'", "'00:00:00.000001'"],
    "timetz": ["'12:00+05:30'"],
    "timestamp": ["'infinity'", "'4713-01-01 00:00 BC'", "'2024-02-29 23:59:59.999999'"],
    "timestamptz": ["'-infinity'", "'2024-02-29 12:00+05:30'", "'294276-12-31 23:59:59.999999+00'"],
    "interval": ["'1 year -2 mons 3 days 04:05:06.789'", "'-1 day'", "'0'"],
    "interval day to second(2)": ["'1 02:03:04.567'"],
    "uuid": ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
    "json": ["""'{"a" : 1.0, "b":null}'""", "'null'"],
    "jsonb": ["""'{"a": 1.00, "b": "\\u00fc"}'"""],
    "inet": ["'10.0.0.1'", "'10.0.0.1/8'", "'::1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "bit(3)": ["B'101'"],
    "varbit": ["B''", "B'10101'"],
    "point": ["'(1.5,-2)'"],
    "polygon": ["'((0,0),(1,1),(2,0))'"],
    "tsvector": ["'fat:2A cat:3'"],
    "tsquery": ["'fat & (cat | !dog)'"],
    "jsonpath": ["'$.a[*] ? (@ > 1)'"],
    "pg_lsn": ["'16/B374D848'"],
    "oid": ["4294967295"],
    "regclass": ["'pg_catalog.pg_class'", "'public.elsewhere'"],
    "citext": ["'MiXed'"],
    "hstore": ["'a=>1, b=>NULL'"],
    "state": ["'draft'", "'it''s \"done\"'"],
    "amount": ["1.5"],
    "words": ["'{}'", '\'{a,NULL,"NULL",""}\''],
    "short": ["'ab'"],
    "pair": ["ROW(1, 'x')", "ROW(NULL, NULL)", "ROW(NULL, '')", """ROW(1, 'a "b", (c)')"""],
    "with_state": ["ROW('draft', ROW(NULL, 'y'))"],
    "int[]": ["'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'", "'[2:3]={1,2}'"],
    "text[]": ["ARRAY['', 'a,b', NULL, 'NULL', '\"']"],
    "timestamptz[]": ["ARRAY['infinity'::timestamptz]"],
    "state[]": ["'{draft}'"],
    "pair[]": ["ARRAY[ROW(1, 'x')::pair, NULL]"],
    "int4range": ["'[1,5)'", "'empty'", "'(,)'"],
    "tstzrange": ["'[2024-01-01 00:00+00,infinity)'"],
    "nummultirange": ["'{[1,2),[3.5,)}'", "'{}'"],
    "span": ["'[0.1,0.30000000000000004]'"],
}


#: A row for each value of the type that has most, and one of nulls.
ROWS = max(map(len, VALUES.values())) + 1


def values_ddl(server: Server) -> str:
    """A table with a column for each type, named like it, whose rows have all the values between them."""
    types = VALUES if server.major_version > 15 else {**VALUES, "xml": ["'<a>ü</a>'"]}  # the wheel's 18 has no libxml
    table = (
        ", ".join(["(id int PRIMARY KEY", *(f'"{type_.replace(chr(34), "")} column" {type_}' for type_ in types)]) + ")"
    )
    inserts = []
    for row in range(ROWS):
        values = ", ".join([str(row), *(v[row] if row < len(v) else "NULL" for v in types.values())])
        inserts.append(f"INSERT INTO t VALUES ({values});")
    return (
        f"{VALUE_TYPES} CREATE TABLE elsewhere (a int); CREATE TABLE t {table}; CREATE TABLE back {table};"
        + "".join(inserts)
    )


@BOTH
def test_every_value_is_exact(server: Server, new_database: NewDatabase, form: Format) -> None:
    """What is read and written back equals what was there, in the server's own eyes, byte for byte."""
    dsn = new_database(server)
    with source(dsn, values_ddl(server)) as tables:
        relation = relation_of(tables, form)
        if form is Format.BINARY:
            portable = tuple(c.name for c in relation.columns if c.type.binary)
            assert len(portable) > 40
            relation = relation_of(tables, form, columns=portable)
        chunk = tables.chunk(relation, None, 100)
        assert len(chunk.rows) == ROWS
        load(dsn, relation, chunk.rows, "back")
        again = tables.fetch(relation, chunk.rows.project(relation.key))
        assert sorted(row for row in map(again.rows.row, range(ROWS))) == sorted(map(chunk.rows.row, range(ROWS)))
    with psycopg.connect(dsn) as connection:
        for column in relation.columns:
            name = sql.Identifier(column.name)
            # The comparison is of stored bytes: -0 is not 0, 1.5 is not 1.50. (tsquery_recv stores its operands in
            # another order than tsquery_in: equal all the same.)
            same = "t.{0} = back.{0}" if column.type.name == "tsquery" else "record_image_eq(ROW(t.{0}), ROW(back.{0}))"
            different = connection.execute(
                sql.SQL(f"SELECT id FROM t JOIN back USING (id) WHERE NOT ({same}) ORDER BY 1").format(name)
            ).fetchall()
            assert (column.name, different) == (column.name, [])


def test_text_is_what_output_functions_print(server: Server, new_database: NewDatabase) -> None:
    """The text form is that of COPY and of the stream; a cast to text would print some types otherwise."""
    dsn = new_database(server)
    with source(dsn, values_ddl(server)) as tables:
        relation = relation_of(tables, Format.TEXT)
        rows = tables.chunk(relation, None, 100).rows
        connection = tables._connection  # the same settings
        for place, column in enumerate(relation.columns):
            statement = sql.SQL("COPY (SELECT {} FROM public.t ORDER BY id) TO STDOUT").format(
                sql.Identifier(column.name)
            )
            with connection.cursor().copy(statement) as copy:
                printed = [None if row[0] is None else row[0].encode() for row in copy.rows()]
            assert (column.name, rows.column(place)) == (column.name, printed)


KEYS = {
    "an integer": ("id int PRIMARY KEY", "i"),
    "two columns": ("b int, a int, PRIMARY KEY (a, b)", "i % 7, i"),
    "the other way round": (
        "a int NOT NULL, b int NOT NULL); CREATE UNIQUE INDEX k ON t (b DESC, a);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX k; SELECT (1",
        "i % 7, i",
    ),
    "text in the default collation": ("id text PRIMARY KEY", "chr(1 + (i * 37) % 500) || i"),
    "text in another collation": ('id text COLLATE "en-x-icu" PRIMARY KEY', "chr(1 + (i * 37) % 500) || i"),
    "an index with its own collation": (
        'id text COLLATE loose NOT NULL); CREATE UNIQUE INDEX k ON t (id COLLATE "C");'
        "ALTER TABLE t REPLICA IDENTITY USING INDEX k; SELECT (1",
        "CASE i % 2 WHEN 0 THEN 'A' ELSE 'a' END || i / 2",
    ),
    "pattern operators": (
        "id text NOT NULL); CREATE UNIQUE INDEX k ON t (id text_pattern_ops);"
        "ALTER TABLE t REPLICA IDENTITY USING INDEX k; SELECT (1",
        "chr(1 + (i * 37) % 500) || i",
    ),
    "char(n) and bool": ("a bool, b char(9), PRIMARY KEY (a, b)", "i % 2 = 0, i"),
    "floats with NaN": ("id float8 PRIMARY KEY", "CASE i WHEN 1 THEN 'NaN' WHEN 2 THEN 'Infinity' ELSE i / 10.0 END"),
    "numeric with NaN": ("id numeric PRIMARY KEY", "CASE i WHEN 1 THEN 'NaN' ELSE i / 8.0 END"),
    "dates with infinity": (
        "id date PRIMARY KEY",
        "CASE i WHEN 1 THEN '-infinity' WHEN 2 THEN 'infinity' ELSE '0001-01-01'::date - 100 + i END",
    ),
    "timestamps": ("id timestamptz PRIMARY KEY", "'2024-01-01'::timestamptz + i * interval '1.000001 s'"),
    "uuid and inet": (
        "a uuid, b inet, PRIMARY KEY (b, a)",
        "md5(i::text)::uuid, ('10.0.0.' || i % 9 || '/' || 24 + i % 8)::inet",
    ),
    "an enum": ("a state, b int, PRIMARY KEY (a, b)", "CASE i % 2 WHEN 0 THEN 'draft' ELSE 'done' END::state, i"),
    "a domain that its rows break": ("id positive PRIMARY KEY", "-i"),
    "an array": ("id int[] PRIMARY KEY", "ARRAY[i % 3, i]"),
    "a domain over an array": ("id words PRIMARY KEY", "ARRAY['a,b', i::text]"),
    "a range": ("id int4range PRIMARY KEY", "int4range(i, i + 5)"),
    "bytea": ("id bytea PRIMARY KEY", r"decode(md5(i::text), 'hex')"),
    "an extension's type": ("id public.citext PRIMARY KEY", "'Key' || i"),
    "of two schemas' types": (
        "a int, b public.citext, c date, PRIMARY KEY (a, b, c)",
        "i % 3, 'k' || i % 7, '2024-01-01'::date + i",
    ),
    "quoted names": ('"a %s {0} ""Ü"" -" int, "SELECT" text, PRIMARY KEY ("SELECT", "a %s {0} ""Ü"" -")', "i, i % 5"),
    "full identity": ("a int, b int, PRIMARY KEY (a, b)); ALTER TABLE t REPLICA IDENTITY FULL; SELECT (1", "i % 7, i"),
    "partitioned": (
        "a int, b int, PRIMARY KEY (a, b)) PARTITION BY HASH (a);"
        "CREATE TABLE t1 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE t2 PARTITION OF t FOR VALUES WITH (MODULUS 2, REMAINDER 1); SELECT (1",
        "i % 7, i",
    ),
}
KEY_TYPES = """
CREATE EXTENSION citext;
CREATE TYPE state AS ENUM ('draft', 'done');
CREATE DOMAIN words AS text[];
CREATE DOMAIN positive AS int;
CREATE COLLATION loose (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
"""
COUNT = 100


@BOTH
@pytest.mark.parametrize("case", KEYS)
def test_chunks_cover_every_row_once(pg15: Server, new_database: NewDatabase, case: str, form: Format) -> None:
    """Whatever the key's types, operators and collations: all rows, none twice, in ranges and by key alike."""
    columns, values = KEYS[case]
    ddl = (
        f"{KEY_TYPES} CREATE TABLE t ({columns}); INSERT INTO t SELECT {values} FROM generate_series(1, {COUNT}) i;"
        "ALTER DOMAIN positive ADD CHECK (VALUE > 0) NOT VALID"
    )
    dsn = new_database(pg15)
    with source(dsn, ddl) as tables:
        relation = relation_of(tables, form)
        chunks = all_chunks(tables, relation, 7)
        seen = [row for chunk in chunks for row in map(chunk.rows.row, range(len(chunk.rows)))]
        assert len(seen) == len(set(seen)) == COUNT
        assert all(len(chunk.rows) == 7 for chunk in chunks[:-1])
        after: Cursor | None = None
        for chunk in chunks:
            same = tables.between(relation, after, chunk.upto)
            assert same.rows.data == chunk.rows.data
            after = chunk.upto
        everything = Frame.concat([chunk.rows for chunk in chunks], len(relation.columns))
        keys = everything.project(relation.key)
        found = tables.fetch(relation, keys)
        assert sorted(map(found.rows.row, range(len(found.rows)))) == sorted(seen)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("TRUNCATE t")
        assert len(tables.fetch(relation, keys).rows) == 0


@BOTH
def test_an_empty_table(server: Server, new_database: NewDatabase, form: Format) -> None:
    """No rows, and no next chunk."""
    with source(new_database(server), "CREATE TABLE t (a int PRIMARY KEY)") as tables:
        relation = relation_of(tables, form)
        for chunk in (
            tables.chunk(relation, None, 10),
            tables.between(relation, ("1",), None),
            tables.fetch(relation, Frame.empty(1)),
        ):
            assert len(chunk.rows) == 0
            assert chunk.upto is None


@BOTH
def test_wide_rows_end_a_chunk_early(server: Server, new_database: NewDatabase, form: Format) -> None:
    """Memory is bounded by bytes too; the statement is cancelled, and the session goes on."""
    ddl = """
        CREATE TABLE t (a int PRIMARY KEY, b text);
        INSERT INTO t SELECT i, repeat('x', 100000) FROM generate_series(1, 300) i
    """
    with source(new_database(server), ddl, max_chunk_bytes=5_000_000) as tables:
        chunks = all_chunks(tables, relation_of(tables, form), 200)
        assert [len(chunk.rows) for chunk in chunks[:-1]] == [50] * (len(chunks) - 1)
        assert sum(len(chunk.rows) for chunk in chunks) == 300


def test_tables_that_inherit_are_left_out(server: Server, new_database: NewDatabase) -> None:
    """Rows of inheriting tables are not the parent's: the log names them by their own table."""
    ddl = """
        CREATE TABLE t (a int PRIMARY KEY); CREATE TABLE c () INHERITS (t);
        INSERT INTO c VALUES (1); INSERT INTO t VALUES (2)
    """
    with source(new_database(server), ddl) as tables:
        relation = relation_of(tables, Format.TEXT)
        assert tables.chunk(relation, None, 9).rows.column(0) == [b"2"]
        assert tables.fetch(relation, Frame.of_values([[b"1"], [b"2"]], 1)).rows.column(0) == [b"2"]


def test_partitions_that_came_later(server: Server, new_database: NewDatabase) -> None:
    """A partitioned table without partitions when it was described is read with those that it has now."""
    dsn = new_database(server)
    with source(dsn, "CREATE TABLE t (a int PRIMARY KEY) PARTITION BY LIST (a)") as tables:
        relation = relation_of(tables, Format.BINARY)
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE t1 PARTITION OF t DEFAULT; INSERT INTO t VALUES (1)")
        assert len(tables.chunk(relation, None, 9).rows) == 1
        assert tables.root_of(TableName("public", "t1")) == TableName("public", "t")
        assert tables.root_of(TableName("public", "t")) is None
        assert tables.root_of(TableName("public", "none")) is None


def test_a_chunk_says_what_it_saw(server: Server, new_database: NewDatabase) -> None:
    """What committed before is visible and below ``high``; what still runs, and what is to come, is not visible."""
    dsn = new_database(server)
    with (
        source(dsn, "CREATE TABLE t (a int PRIMARY KEY)") as tables,
        psycopg.connect(dsn) as running,
        psycopg.connect(dsn) as done,
    ):
        relation = relation_of(tables, Format.BINARY)

        def insert(connection: psycopg.Connection, value: int) -> int:
            row = connection.execute(
                "INSERT INTO t VALUES (%s) RETURNING pg_current_xact_id()::text::bigint", (value,)
            ).fetchone()
            assert row is not None
            return int(row[0])

        open_xid = insert(running, 1)
        done_xid = insert(done, 2)
        done.commit()
        end = tables.position()
        chunk = tables.chunk(relation, None, 9)
        assert len(chunk.rows) == 1
        assert chunk.visibility.sees(done_xid)
        assert not chunk.visibility.sees(open_xid)
        assert not chunk.visibility.sees(done_xid + 1)
        assert end <= chunk.high <= tables.position()
        running.commit()
        assert tables.visibility().sees(open_xid)
        assert chunk.read_at.tzinfo is not None


def test_the_server_and_its_slot(server: Server, new_database: NewDatabase) -> None:
    """The identity of the server, and the slot before and after it was made."""
    dsn = new_database(server)
    with source(dsn, "SELECT 1") as tables, psycopg.connect(dsn, autocommit=True) as connection:
        identity = tables.identity()
        assert (identity.timeline, identity.database) == (1, connection.info.dbname)
        assert identity.server_version == connection.info.server_version
        assert int(identity.system_identifier) > 1 << 60
        assert not tables.slot().exists
        connection.execute("SELECT pg_create_logical_replication_slot('towline_test', 'pgoutput')")
        connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000)")
        slot = tables.slot()
        assert (slot.exists, slot.plugin, slot.database) == (True, "pgoutput", connection.info.dbname)
        assert (slot.wal_status, slot.active_pid) == ("reserved", 0)
        assert 0 < slot.restart <= slot.confirmed < tables.position()
        assert 30_000 < slot.retained_bytes <= tables.position() - slot.restart


@pytest.mark.parametrize(
    ("ddl", "error"),
    [
        ("REVOKE ALL ON t FROM reader", SourceRefused),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (a > 1)", SourceRefused),
        ("DROP TABLE t", SourceTableChanged),
        ("ALTER TABLE t DROP CONSTRAINT t_pkey", SourceTableChanged),
        ("ALTER TABLE t DROP COLUMN b", SourceTableChanged),
    ],
)
def test_refusals(server: Server, new_database: NewDatabase, ddl: str, error: type[Exception]) -> None:
    """Rows that may not be seen are an error, never left out; and a failed call does not spoil the session."""
    dsn = new_database(server)
    role = "reader_" + psycopg.conninfo.conninfo_to_dict(dsn)["dbname"].__str__()
    setup = f"""
        CREATE TABLE t (a int PRIMARY KEY, b int); INSERT INTO t VALUES (1), (2);
        CREATE ROLE {role} LOGIN; GRANT SELECT ON t TO {role}
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(setup.encode())
        tables = PostgresTables(psycopg.conninfo.make_conninfo(dsn, user=role), slot="s")
        try:
            relation = relation_of(tables, Format.BINARY)
            connection.execute(ddl.replace("reader", role).encode())
            with pytest.raises(error):
                tables.chunk(relation, None, 10)
            assert tables.position() > 0
        finally:
            tables.close()
            connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


def test_close_ends_a_call_under_way(server: Server, new_database: NewDatabase) -> None:
    """A call that waits for a lock at the source ends when the session is closed from another thread."""
    dsn = new_database(server)
    failures: list[BaseException] = []
    with source(dsn, "CREATE TABLE t (a int PRIMARY KEY)") as tables, psycopg.connect(dsn) as blocker:
        relation = relation_of(tables, Format.BINARY)
        tables.chunk(relation, None, 1)
        blocker.execute("LOCK TABLE t")

        def read() -> None:
            try:
                tables.chunk(relation, None, 1)
            except SourceUnavailable as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        until(
            lambda: blocker.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone() == (1,),
            describe="the chunk waits for the lock",
        )
        tables.close()
        thread.join(5)
        assert not thread.is_alive()
        assert len(failures) == 1
        tables.close()
