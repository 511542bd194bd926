"""`explain`: lineage, what travels, and the statements, for a route with everything in it."""

from __future__ import annotations

import pytest

from towline.change import Format, Relation
from towline.explain import explain
from towline_transforms.check import check_routes
from towline_transforms.route import OnDelete, Route, RouteSpec
from towline_transforms.schema import Catalog, Column, SqlType, Table, TableName

INT = SqlType(20, "pg_catalog", "int8", "bigint")
TEXT = SqlType(25, "pg_catalog", "text", "text")
TIME = SqlType(1184, "pg_catalog", "timestamptz", "timestamp with time zone")

SALE, ORDER, CODES = TableName("public", "sale-order"), TableName("hub", "order"), TableName("hub", "codes")
SOURCE = Catalog(
    {
        SALE: Table(
            SALE,
            (Column("id", INT, True), Column("party", INT), Column("state", TEXT), Column("note", TEXT)),
            primary_key=("id",),
            identity=("id",),
            unique_keys=(("id",),),
        )
    },
    180000,
)
TARGET = Catalog(
    {
        ORDER: Table(
            ORDER,
            (Column("order_no", TEXT, True), Column("code", TEXT), Column("changed_at", TIME), Column("gone", TIME)),
            primary_key=("order_no",),
            unique_keys=(("order_no",),),
        ),
        CODES: Table(
            CODES, (Column("party", INT, True), Column("code", TEXT)), primary_key=("party",), unique_keys=(("party",),)
        ),
    },
    180000,
)
SELECT = """
SELECT 'SO-' || s.id AS order_no, upper(c.code) AS code, _commit_time AS changed_at
FROM "sale-order" s LEFT JOIN hub.codes c ON c.party = s.party
WHERE s.state <> 'draft'
"""


@pytest.fixture
def route() -> Route:
    """A filtered, joined route that marks its deletes."""
    spec = RouteSpec("order", SALE, ORDER, SELECT, on_delete=OnDelete.MARK, mark_column="gone")
    (route,) = check_routes((spec,), SOURCE, TARGET)
    return route


def lines(route: Route, format: Format, publication: str | None) -> list[str]:
    """The explanation over the columns that travel."""
    table = route.source
    relation = Relation(table, tuple(column for column in table.columns if column.name in route.columns), format)
    return list(explain(route, relation, publication))


def test_facts_and_lineage(route: Route) -> None:
    """Key, filter and deletes; each target column with its source, joined and pseudo columns."""
    text = "\n".join(lines(route, Format.BINARY, "towline_p"))
    assert text.startswith("route order: public.sale-order -> hub.order\n")
    assert "key          order_no\n" in text
    assert "depends on state" in text
    assert "on_delete    mark, in column gone\n" in text
    assert "order_no   <- id   'SO-' || s.id\n" in text
    assert "code       <- party, hub.codes.code" in text or "code       <- hub.codes.code" in text
    assert "changed_at <- _commit_time" in text


def test_what_travels(route: Route) -> None:
    """Only referenced columns travel; the rest is named as left out; wal2json has no publication."""
    text = "\n".join(lines(route, Format.BINARY, "towline_p"))
    assert "public.sale-order (id, party, state)\n" in text
    assert "as binary" in text and "through publication towline_p\n" in text and "left out: note\n" in text
    text = "\n".join(lines(route, Format.TEXT, None))
    assert "as text" in text and "publication" not in text


def test_statements(route: Route) -> None:
    """The staging table and every statement that a batch may run, each ended."""
    text = "\n".join(lines(route, Format.BINARY, None))
    staging, statements = text.split("statements, at the target")
    assert "CREATE TEMPORARY TABLE pg_temp.stage" in staging and '"note"' not in staging
    assert statements.count(";\n") + statements.endswith(";") == statements.count("-- ") == 3
    assert "ON CONFLICT" in statements and "UPDATE" in statements
