"""The sum over a table's keys: what the daemon computes from framed rows is what the source's SQL says of the table."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_tables import BOTH, relation_of, server, source
from tests.support.databases import NewDatabase
from towline.change import Format, Visibility
from towline.demo.server import Server
from towline.key_hash import hash_key
from towline.key_sum import sum_of

__all__ = ["server"]

#: Keys of 500 rows, by the name of their table: columns with their types, and the expressions that fill them from n.
KEYS = {
    "small": {"k": ("smallint", "n")},
    "four": {"k": ("int", "n * 7919 - 1000000")},
    "eight": {"k": ("bigint", "n::bigint << 40")},
    "words": {"k": ("text", "repeat(chr(n % 3 + 252), n % 41) || n || '🚚'")},
    "padded": {"k": ("char(9)", "n")},
    "lettered": {"k": ("varchar(50)", "lpad('x', n % 30, 'é') || n")},
    "uuids": {"k": ("uuid", "md5(n::text)::uuid")},
    "numbers": {"k": ("numeric", "(n - 250) * 10.0 ^ (n % 20 - 10) + n / 1000.0")},
    "scaled": {"k": ("numeric(30,5)", "n / 7.0")},
    "moments": {"k": ("timestamptz", "timestamptz 'epoch' + n * interval '1000003.25 seconds'")},
    "days": {"k": ("date", "date '1900-01-01' + n * 97")},
    "floats": {"k": ("float8", "(n - 3) / 7.0")},
    "bytes": {"k": ("bytea", "sha256(n::text::bytea)")},
    "enums": {"a": ("mood", "(ARRAY['sad', 'ö k']::mood[])[n % 2 + 1]"), "b": ("int", "n")},
    "domains": {"k": ("code", "'c' || n")},
    "arrays": {"k": ("int[]", "ARRAY[n, NULL, n + 1]")},
    "ranges": {"k": ("int4range", "int4range(n, n + 5)")},
    "addresses": {"k": ("inet", "inet '10.0.0.0' + n")},
    "several": {"a": ("text", "n % 10"), "b": ("bigint", "n"), "c": ("date", "date '2024-01-01' + n")},
    'the "öd" one': {'a "b"': ("int", "n"), "select": ("text", "n || '%s{}'")},
}

DDL = "CREATE TYPE mood AS ENUM ('sad', 'ö k'); CREATE DOMAIN code AS varchar(8);" + "".join(
    'CREATE TABLE "{0}" (before text DEFAULT \'x\', {1}, "and after" int, PRIMARY KEY ({2}));'
    'INSERT INTO "{0}" ({2}) SELECT {3} FROM generate_series(1, 500) n;'.format(
        table.replace('"', '""'),
        # Columns lie between those of a key of several.
        ", filler int, ".join(f'"{name.replace(chr(34), chr(34) * 2)}" {type_}' for name, (type_, _) in key.items())
        if len(key) == 2
        else ", ".join(f'"{name}" {type_}' for name, (type_, _) in key.items()),
        ", ".join(f'"{name.replace(chr(34), chr(34) * 2)}"' for name in key),
        ", ".join(f"({value})::{type_}" for type_, value in key.values()),
    )
    for table, key in KEYS.items()
)


@BOTH
def test_keys_of_every_type_have_the_same_sum_at_both_ends(
    server: Server, new_database: NewDatabase, form: Format
) -> None:
    """Whatever the key's type, number of columns and place in the row, and however many rows there are."""
    with source(new_database(server), DDL) as tables:
        for table in KEYS:
            relation = relation_of(tables, form, table)
            seen: list[Visibility] = []
            counted = tables.count_keys(relation, seen.append)
            chunk = tables.chunk(relation, None, 1000)
            assert (table, counted.keys) == (table, sum_of(chunk.rows, relation))
            assert len(chunk.rows) == 500
            assert counted.keys is not None
            assert seen == [counted.visibility]
            parts = [
                sum_of(chunk.rows.take(np.arange(low, high)), relation) for low, high in pairwise([0, 3, 8, 300, 500])
            ]
            assert sum(part.sum for part in parts) % 2**64 == counted.keys.sum


def test_an_empty_table_has_no_sum(server: Server, new_database: NewDatabase) -> None:
    """Nothing adds up to nothing; partitions count for their root, tables that inherit do not."""
    ddl = """
    CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE heir () INHERITS (t); INSERT INTO heir VALUES (1);
    CREATE TABLE root (id int PRIMARY KEY) PARTITION BY HASH (id);
    CREATE TABLE part PARTITION OF root FOR VALUES WITH (MODULUS 1, REMAINDER 0); INSERT INTO root VALUES (1), (2);
    """
    with source(new_database(server), ddl) as tables:
        empty = tables.count_keys(relation_of(tables, Format.BINARY), lambda seen: None).keys
        assert empty is not None
        assert (empty.keys, empty.sum) == (0, 0)
        parted = tables.count_keys(relation_of(tables, Format.BINARY, "root"), lambda seen: None).keys
        assert parted is not None
        assert parted.keys == 2


@given(keys=st.lists(st.binary(max_size=100), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_hash_is_the_servers(pg18: Server, keys: list[bytes]) -> None:
    """Any bytes of any length."""
    with psycopg.connect(pg18.dsn()) as connection:
        rows = connection.execute(
            "SELECT hashtextextended(encode(key, 'hex') COLLATE \"C\", 0) FROM unnest(%s::bytea[]) AS key", (keys,)
        ).fetchall()
    assert [hash_key(key) for key in keys] == [int(value) % 2**64 for (value,) in rows]
