"""Which columns of which source tables travel, and in which form."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from towline.change import Format, Relation
from towline.errors import SourceTableChanged
from towline_transforms.route import Route
from towline_transforms.schema import Catalog, TableName

#: The first version whose pgoutput sends binary values on request.
_BINARY_SINCE = 140000


def relations_of(
    routes: Iterable[Route], catalog: Catalog, *, plugin: str, server_version: int
) -> tuple[Relation, ...]:
    """The source tables of the routes, each with the columns that any of its routes refers to, in order of their names.

    The form of values is one for the whole stream, since pgoutput has one switch for it: binary where every
    column's type allows that, else text. Raises SourceTableChanged when the catalog lacks what the routes were
    checked against.
    """
    wanted: dict[TableName, set[str]] = defaultdict(set)
    whole = set()
    for route in routes:
        if route.identity:
            whole.add(route.source.name)
        wanted[route.source.name].update(route.columns, route.source.identity)
    tables = []
    for name, columns in sorted(wanted.items()):
        table = catalog.get(name)
        if table is None:
            raise SourceTableChanged(f"table {name} does not exist at the source")
        missing = sorted(column for column in columns if not table.has(column))
        if missing:
            raise SourceTableChanged(f"table {name} has no column {', '.join(missing)} at the source")
        tables.append((table, tuple(column for column in table.columns if column.name in columns)))
    binary = (
        plugin == "pgoutput"
        and server_version >= _BINARY_SINCE
        and all(column.type.binary for _, columns in tables for column in columns)
    )
    form = Format.BINARY if binary else Format.TEXT
    return tuple(Relation(table, columns, form, whole=table.name in whole) for table, columns in tables)
