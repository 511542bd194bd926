"""The sum over the keys of a table (`towline.key_sum`), computed by the source in one aggregate.

A key's framed bytes are built from what the stream sends of it: the binary forms of its columns, by their types' send
functions, or the text of their output functions, in UTF-8, each with its length before it.
"""

from __future__ import annotations

from collections.abc import Mapping

import psycopg
from psycopg import sql
from psycopg.sql import Composable

from towline.change import Format, Relation
from towline.key_hash import PROBE, hash_key
from towline.key_sum import MODULUS, KeySum
from towline.source.postgres.key_order import base_type, column_sql

_SEND = """
SELECT t.oid::bigint, n.nspname::text, p.proname::text
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_proc p ON p.oid = t.typsend JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
WHERE t.oid = ANY (%s::oid[])
"""

_HASH = sql.SQL("""pg_catalog.hashtextextended(pg_catalog.encode({}, 'hex') COLLATE pg_catalog."C", 0)""")

_COUNT = sql.SQL("SELECT pg_catalog.count(*), coalesce(pg_catalog.sum({}), 0) FROM {}")


def count_keys(connection: psycopg.Connection, relation: Relation, table: Composable) -> KeySum | None:
    """The sum over the keys of ``table`` (a FROM item ``t``) as the session's transaction sees them.

    None when the server computes other hashes, as big-endian ones do. Raises psycopg.Error.
    """
    row = connection.execute(sql.SQL("SELECT {}").format(_HASH.format(sql.Literal(PROBE)))).fetchone()
    if row is None or int(row[0]) % MODULUS != hash_key(PROBE):
        return None
    send = {oid: (schema, name) for oid, schema, name in connection.execute(_SEND, (_types(relation),))}
    key = sql.SQL(" || ").join(
        _framed(column.name, base_type(column.type).oid, relation, send) for column in relation.key_columns
    )
    statement = _COUNT.format(_HASH.format(key), table)
    row = connection.execute(statement).fetchone()
    assert row is not None
    keys, total = row
    return KeySum(int(keys), int(total) % MODULUS)


def _types(relation: Relation) -> list[int]:
    return [base_type(column.type).oid for column in relation.key_columns]


def _framed(name: str, type_oid: int, relation: Relation, send: Mapping[int, tuple[str, str]]) -> Composable:
    """The framed bytes of a column."""
    column = column_sql(name)
    if relation.format is Format.BINARY:
        value: Composable = sql.SQL("{}({})").format(sql.Identifier(*send[type_oid]), column)
    else:
        value = sql.SQL("pg_catalog.convert_to(pg_catalog.concat({}), 'UTF8')").format(column)
    return sql.SQL("pg_catalog.int4send(pg_catalog.octet_length({0})) || {0}").format(value)
