"""Looks at the source's catalog that are cheap enough to be repeated: has something changed of the routed tables?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg

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


def footprint(connection: psycopg.Connection[Any], oids: Sequence[int], publication: str) -> str:
    """Another text when names, columns, keys or identity of those tables, or what is published, have changed."""
    row = connection.execute(_SQL["footprint"], {"oids": list(oids), "publication": publication}).fetchone()
    assert row is not None
    if connection.info.server_version < _SCHEMAS_SINCE:
        return str(row[0])
    schemas = connection.execute(_SQL["schemas"], {"publication": publication}).fetchone()
    assert schemas is not None
    return f"{row[0]} {schemas[0]}"
