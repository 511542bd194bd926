"""A table's description as text, to be kept at the target: JSON in ASCII, with what schema changes are told by."""

from __future__ import annotations

import json
from typing import Any

from towline_transforms.schema import Column, SqlType, Table, TableName, TypeKind


def dump(table: Table) -> str:
    """The table's identity, keys, columns and partitions. Statistics and foreign keys are left out."""
    return json.dumps(
        {
            "schema": table.name.schema,
            "name": table.name.name,
            "oid": table.oid,
            "primary_key": table.primary_key,
            "identity": table.identity,
            "full": table.replica_identity_full,
            "unique_keys": table.unique_keys,
            "columns": [_column(column) for column in table.columns],
            "partitions": [[name.schema, name.name] for name in table.partitions],
            "leaves": table.leaves,
        },
        sort_keys=True,
    )


def load(text: str) -> Table:
    """The table of that text. Raises ValueError when it is of another form; older ones know no partitions."""
    try:
        found = json.loads(text)
        leaves = found.get("leaves")
        return Table(
            name=TableName(found["schema"], found["name"]),
            columns=tuple(map(_as_column, found["columns"])),
            primary_key=tuple(found["primary_key"]),
            identity=tuple(found["identity"]),
            replica_identity_full=found["full"],
            unique_keys=tuple(map(tuple, found["unique_keys"])),
            partitions=tuple(TableName(*name) for name in found.get("partitions", ())),
            leaves=None if leaves is None else tuple((oid, attached) for oid, attached in leaves),
            oid=found["oid"],
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("the record of a table is of another form") from error


def _column(column: Column) -> dict[str, Any]:
    return {
        "name": column.name,
        "type": _type(column.type),
        "not_null": column.not_null,
        "has_default": column.has_default,
        "generated": column.generated,
        "identity_always": column.identity_always,
        "collation": column.collation,
        "number": column.number,
    }


def _as_column(found: dict[str, Any]) -> Column:
    return Column(**{**found, "type": _as_type(found["type"])})


def _type(of: SqlType) -> dict[str, Any]:
    return {
        "oid": of.oid,
        "schema": of.schema,
        "name": of.name,
        "sql": of.sql,
        "kind": of.kind.value,
        "binary": of.binary,
        "array_oid": of.array_oid,
        "element": None if of.element is None else _type(of.element),
        "extension": of.extension,
    }


def _as_type(found: dict[str, Any]) -> SqlType:
    element = found["element"]
    return SqlType(
        **{**found, "kind": TypeKind(found["kind"]), "element": None if element is None else _as_type(element)}
    )
