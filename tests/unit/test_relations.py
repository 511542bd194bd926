"""Which columns travel, and in which form."""

from __future__ import annotations

import pytest

from towline.change import Format
from towline.errors import SourceTableChanged
from towline.source.postgres.relations import relations_of
from towline_transforms.route import OnDelete, OnTruncate, Route
from towline_transforms.schema import Catalog, Column, SqlType, Table, TableName

INT = SqlType(23, "pg_catalog", "int4", "integer")
REGCLASS = SqlType(2205, "pg_catalog", "regclass", "regclass", binary=False)


def table(name: str, **columns: SqlType) -> Table:
    return Table(
        TableName("public", name),
        tuple(Column(column, kind) for column, kind in columns.items()),
        primary_key=("id",),
        identity=("id",),
    )


ORDERS = table("orders", a=INT, id=INT, b=INT, c=INT)
OBJECTS = table("objects", id=INT, what=REGCLASS)
CATALOG = Catalog({known.name: known for known in (ORDERS, OBJECTS)})


def route(name: str, source: Table, *columns: str) -> Route:
    return Route(
        name=name,
        source=source,
        target=source,
        select=None,
        columns=columns,
        assignments=(),
        key=source.identity,
        filtered=False,
        filter_sources=frozenset(),
        pseudo=(),
        on_delete=OnDelete.DELETE,
        mark_column=None,
        on_truncate=OnTruncate.HALT,
    )


def test_columns_are_the_union_of_the_routes_in_the_table_s_order() -> None:
    """Two routes from one table share its stream; what neither needs does not travel; the identity always does."""
    relations = relations_of(
        [route("one", ORDERS, "id", "c"), route("two", ORDERS, "a")], CATALOG, plugin="pgoutput", server_version=180000
    )
    assert [[column.name for column in relation.columns] for relation in relations] == [["a", "id", "c"]]
    assert relations[0].key == (1,)


@pytest.mark.parametrize(
    ("plugin", "version", "columns", "expected"),
    [
        ("pgoutput", 180000, ("id",), Format.BINARY),
        ("pgoutput", 140000, ("id",), Format.BINARY),
        ("pgoutput", 130022, ("id",), Format.TEXT),
        ("wal2json", 180000, ("id",), Format.TEXT),
        ("pgoutput", 180000, ("id", "what"), Format.TEXT),
    ],
)
def test_one_form_for_all(plugin: str, version: int, columns: tuple[str, ...], expected: Format) -> None:
    """One column that cannot travel in binary form takes every relation to text."""
    relations = relations_of(
        [route("orders", ORDERS, "id"), route("objects", OBJECTS, *columns)],
        CATALOG,
        plugin=plugin,
        server_version=version,
    )
    assert [(str(relation.name), relation.format) for relation in relations] == [
        ("public.objects", expected),
        ("public.orders", expected),
    ]


@pytest.mark.parametrize("source", [table("gone", id=INT), table("orders", id=INT, lost=INT)])
def test_a_changed_source_is_an_error(source: Table) -> None:
    """A catalog read later than the routes were checked may lack what they need."""
    with pytest.raises(SourceTableChanged):
        relations_of([route("r", source, "id", "lost")], CATALOG, plugin="pgoutput", server_version=180000)
