"""A source and a target to check routes against, written down in short.

A table is its columns, separated by commas: ``name type``, then ``!`` for NOT NULL, ``?`` for a default, ``=`` for
generated, ``#`` for GENERATED ALWAYS AS IDENTITY. The primary key is the source's identity unless said otherwise.
"""

from __future__ import annotations

import re

from towline_transforms.route import OnDelete, RouteSpec
from towline_transforms.schema import Catalog, Column, SqlType, Table, TableName, TypeKind


def builtin(sql: str, name: str, oid: int, kind: TypeKind = TypeKind.BASE, element: SqlType | None = None) -> SqlType:
    return SqlType(oid, "pg_catalog", name, sql, kind, element=element)


INT = builtin("integer", "int4", 23)
TEXT = builtin("text", "text", 25)
STATE = SqlType(20001, "public", "order_state", "public.order_state", TypeKind.ENUM, binary=False)
CITEXT = SqlType(20003, "public", "citext", "public.citext", binary=False, extension="citext")
GEOMETRY = SqlType(20004, "gis", "geometry", "gis.geometry(Point,4326)", binary=False, extension="postgis")
CODE = SqlType(20005, "public", "code", "public.code", TypeKind.DOMAIN, element=builtin("text", "text", 25))
BOX = SqlType(20006, "public", "carton", "public.carton", TypeKind.COMPOSITE, binary=False)

TYPES = {
    "int": INT,
    "bigint": builtin("bigint", "int8", 20),
    "text": TEXT,
    "bool": builtin("boolean", "bool", 16),
    "date": builtin("date", "date", 1082),
    "timestamptz": builtin("timestamp with time zone", "timestamptz", 1184),
    "timestamp3": builtin("timestamp(3) without time zone", "timestamp", 1114),
    "timestamp": builtin("timestamp without time zone", "timestamp", 1114),
    "numeric": builtin("numeric", "numeric", 1700),
    "numeric10_2": builtin("numeric(10,2)", "numeric", 1700),
    "numeric12_2": builtin("numeric(12,2)", "numeric", 1700),
    "numeric12_4": builtin("numeric(12,4)", "numeric", 1700),
    "numeric8_2": builtin("numeric(8,2)", "numeric", 1700),
    "varchar": builtin("character varying", "varchar", 1043),
    "varchar20": builtin("character varying(20)", "varchar", 1043),
    "varchar40": builtin("character varying(40)", "varchar", 1043),
    "varchar5": builtin("character varying(5)", "varchar", 1043),
    "char5": builtin("character(5)", "bpchar", 1042),
    "char9": builtin("character(9)", "bpchar", 1042),
    "interval": builtin("interval", "interval", 1186),
    "intervalds": builtin("interval day to second(3)", "interval", 1186),
    "jsonb": builtin("jsonb", "jsonb", 3802),
    "text[]": builtin("text[]", "_text", 1009, TypeKind.ARRAY, TEXT),
    "varchar5[]": builtin("character varying(5)[]", "_varchar", 1015, TypeKind.ARRAY),
    "varchar9[]": builtin("character varying(9)[]", "_varchar", 1015, TypeKind.ARRAY),
    "multirange": builtin("int4multirange", "int4multirange", 4451, TypeKind.MULTIRANGE),
    "state": STATE,
    "state[]": SqlType(20002, "public", "_order_state", "public.order_state[]", TypeKind.ARRAY, element=STATE),
    "citext": CITEXT,
    "geometry": GEOMETRY,
    "code": CODE,
    "carton": BOX,
}


def table(
    name: str,
    columns: str,
    key: str = "",
    *,
    identity: str | None = None,
    unique: tuple[str, ...] = (),
    reason: str = "",
    partitions: tuple[str, ...] = (),
    types: dict[str, SqlType] | None = None,
) -> Table:
    """A table from its short form; ``key`` and ``unique`` are names separated by blanks."""
    found = []
    for text in filter(None, (part.strip() for part in columns.split(","))):
        match = re.fullmatch(r"(.+) (\S+?)([!?=#]*)", text)
        assert match is not None, text
        column, kind, marks = match.groups()
        found.append(
            Column(
                column,
                ({**TYPES, **(types or {})})[kind],
                not_null="!" in marks or column in key.split(),
                has_default="?" in marks or "#" in marks,
                generated="upper(number::text)" if "=" in marks else None,
                identity_always="#" in marks,
            )
        )
    keys = tuple(tuple(each.split()) for each in ((key,) if key else ()) + unique)
    return Table(
        named(name),
        tuple(found),
        primary_key=tuple(key.split()),
        identity=tuple((key if identity is None else identity).split()),
        identity_reason=reason,
        unique_keys=keys,
        partitions=tuple(map(named, partitions)),
    )


def named(text: str) -> TableName:
    """``schema.name``."""
    schema, _, name = text.partition(".")
    return TableName(schema, name)


def catalog(
    *tables: Table, types: frozenset[tuple[str, str]] | None = frozenset(), server_version: int = 150000
) -> Catalog:
    """A database with those tables and those user-defined types."""
    return Catalog({each.name: each for each in tables}, server_version, types)


SALE = (
    "id int!, number varchar20!, party int, state varchar, total_amount numeric, due date, tags text[], data jsonb, "
    "created timestamptz, number_upper text=, year int"
)

SOURCE = catalog(
    table("public.sale_sale", SALE, "id", identity="number", unique=("number",)),
    table("public.sale_line", "sale int!, line_no int!, qty numeric, code text", "sale line_no"),
    table("public.party", "id int!, name text, code text", "id"),
    table("public.sale-Sale", 'id int!, Über text, a"b text, x.y text', "id"),
    table("public.log", "at timestamptz, line text", reason="It has no primary key."),
    table("public.named_like_pseudo", "id int!, _source text, _op text", "id"),
    table(
        "public.generated_key", "number text!, number_upper text=!", identity="number_upper", unique=("number_upper",)
    ),
)

TARGET = catalog(
    table(
        "hub.trade_order",
        "order_no text!, customer_code text, total numeric, changed_at timestamptz, origin text, state text, due date, "
        "doubled numeric=, deleted_at timestamptz, gone bool, hard_time timestamptz!?, number text, party int",
        "order_no",
        unique=("customer_code state",),
    ),
    table("hub.crosswalk", "src_key text!, kind text, code text, active bool", "src_key", unique=("kind code",)),
    table("hub.rate", "currency text!, day date!, rate numeric", "currency day"),
    table("hub.customer", "code text!, segment int, name text", "code"),
    table("hub.segment", "id int!, label text", "id"),
    table("hub.bag", "code text, label text"),
    table("hub.order_line", "order_no text!, line_no int!, qty numeric", "order_no line_no"),
    table("hub.strict", "order_no text!, must int!, filled int!?", "order_no"),
    table("hub.keyless", "order_no text!, total numeric"),
    table("hub.loose", "order_no text, total numeric", unique=("order_no",)),
    table("hub.numbered", "id int#!, order_no text!", "order_no"),
    table(
        "hub.copy",
        "id int!, number varchar20!, party int, state varchar, total_amount numeric, due date, "
        "tags text[], data jsonb, created timestamptz, year int",
        "number",
    ),
    table("hub.party", "id int!, name text, code text", "id"),
    table("hub.odd", 'id int!, Über text, a"b text, x.y text', "id"),
    table("hub.with_pseudo_name", "src_key text!, _lsn text", "src_key"),
)


def route(
    select: str | None = None,
    *,
    source: str = "public.sale_sale",
    into: str = "hub.trade_order",
    key: str = "",
    name: str = "r",
    on_delete: OnDelete = OnDelete.DELETE,
    mark: str | None = None,
) -> RouteSpec:
    """A route as written; ``key`` holds names separated by blanks."""
    return RouteSpec(name, named(source), named(into), select, tuple(key.split()), on_delete, mark)
