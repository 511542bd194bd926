"""Looks at the source's catalog that are cheap enough to be repeated: has something changed of the routed tables?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import sql

from towline.postgres import statements
from towline_transforms.schema import TableName

_SQL = statements.load("towline.source.postgres", "look.sql")

#: The first version that publishes whole schemas.
_SCHEMAS_SINCE = 150000


def position(connection: psycopg.Connection[Any]) -> int:
    """Where the next record of the log begins, flushed or not."""
    row = connection.execute(_SQL["position"]).fetchone()
    assert row is not None
    return int(row[0])


def named(connection: psycopg.Connection[Any], oids: Sequence[int]) -> dict[int, TableName]:
    """The names of the tables of those OIDs that exist."""
    if not oids:
        return {}
    rows = connection.execute(_SQL["named"], {"oids": list(oids)}).fetchall()
    return {oid: TableName(schema, name) for oid, schema, name in rows}


def filled(connection: psycopg.Connection[Any], oids: Sequence[int]) -> frozenset[int]:
    """Of new partitions, those that may have rows from before they were attached: the log does not tell of these.

    One that was made as a partition had none, nor had one without a row of an earlier command of the same transaction.
    One that was made before must have no rows at all now. Where rows may not be looked at, there may be some.
    """
    if not oids:
        return frozenset()
    links: dict[int, list[tuple[Any, ...]]] = {}
    for row in connection.execute(_SQL["attached"], {"oids": list(oids)}).fetchall():
        links.setdefault(row[0], []).append(row)
    return frozenset(oid for oid in oids if oid not in links or _may_have_rows(connection, links[oid]))


def _may_have_rows(connection: psycopg.Connection[Any], links: Sequence[tuple[Any, ...]]) -> bool:
    """``links``: rows of the query `attached`, from the partition up."""
    _, schema, name, attached_by, _, _ = links[0]
    query = sql.SQL("SELECT EXISTS (SELECT FROM ONLY {}").format(sql.Identifier(schema, name))
    if all(attached == made for *_, attached, made, _ in links):
        last = max(command for *_, attached, _, command in links if attached == attached_by)
        condition = sql.SQL(" WHERE xmin::text = {} AND cmin::text::bigint < {}")
        query += condition.format(sql.Literal(attached_by), sql.Literal(last))
    try:
        with connection.transaction():
            row = connection.execute(query + sql.SQL(")")).fetchone()
    except psycopg.errors.InsufficientPrivilege:
        return True
    return row is None or bool(row[0])


def footprint(connection: psycopg.Connection[Any], oids: Sequence[int], publication: str) -> str:
    """Another text when names, columns, keys or identity of those tables, or what is published, have changed."""
    row = connection.execute(_SQL["footprint"], {"oids": list(oids), "publication": publication}).fetchone()
    assert row is not None
    if connection.info.server_version < _SCHEMAS_SINCE:
        return str(row[0])
    schemas = connection.execute(_SQL["schemas"], {"publication": publication}).fetchone()
    assert schemas is not None
    return f"{row[0]} {schemas[0]}"
