"""Identifiers as PostgreSQL reads them; routes over nastily named tables and columns."""

from __future__ import annotations

import pytest
import sqlglot
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp

from towline_transforms.check import check_routes
from towline_transforms.identifier import MAX_BYTES, fold, quote, suggest, suggest_table
from towline_transforms.route import RouteSpec
from towline_transforms.schema import Catalog, Column, SqlType, Table, TableName

INT = SqlType(23, "pg_catalog", "int4", "integer")

#: Names with everything that SQL treats specially, and any other character that an identifier can have.
PIECES = st.sampled_from(
    [
        '"',
        "'",
        '""',
        "--",
        "/*",
        "*/",
        ";",
        ".",
        ",",
        "(",
        ")",
        "$",
        "$$",
        "%s",
        ":a",
        "?",
        "\\",
        "{{",
        "{%",
        "{#",
        "#}",
    ]
) | st.sampled_from(
    [" ", "\n", "\t", "*", "FROM", "select", " AS ", "JOIN", "É", "ß", "İ", "日本", "E'", "U&", "[", "]", "@"]
)
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
NAMES = (
    st.lists(PIECES | CHARACTERS, min_size=1, max_size=6)
    .map("".join)
    .filter(lambda name: len(name.encode()) <= MAX_BYTES)
)


@pytest.mark.parametrize(
    ("text", "quoted", "name"),
    [
        ("Sale_Order", False, "sale_order"),
        ("Sale_Order", True, "Sale_Order"),
        ("ÉCOLE", False, "École"),
        ("x" * 70, True, "x" * 63),
        ("é" * 40, True, "é" * 31),
    ],
)
def test_fold(text: str, quoted: bool, name: str) -> None:
    """Unquoted ASCII letters fold to lower case, others do not; what is too long is cut at a character."""
    assert fold(text, quoted=quoted) == name


@given(NAMES)
def test_quoted_name_is_read_back(name: str) -> None:
    """sqlglot, which reads the routes, reads a quoted name as that name, in one token."""
    tokens = sqlglot.tokenize(quote(name), dialect="postgres")
    assert [(token.token_type.name, token.text) for token in tokens] == [("IDENTIFIER", name)]


def test_suggest() -> None:
    """Near names are suggested, and nothing when there is none."""
    assert suggest("totl", ["total", "zebra"]) == "Did you mean total?"
    assert suggest("xyz", ["total"]) == ""


def test_suggest_table() -> None:
    """A near name of the schema, or the same name elsewhere; that schemas are equal makes no name near."""
    known = [TableName("public", "sale_order"), TableName("hub", "party")]
    assert suggest_table(TableName("public", "sale_orders"), known) == "Did you mean public.sale_order?"
    assert suggest_table(TableName("public", "party"), known) == "Did you mean hub.party?"
    assert suggest_table(TableName("public", "custommer"), known) == ""


@given(
    table=NAMES.filter(lambda name: name != "*"),
    columns=st.lists(NAMES, min_size=2, max_size=4, unique=True),
    alias=st.none() | NAMES,
    data=st.data(),
)
@settings(max_examples=200, deadline=None)
def test_the_stage_takes_the_place_of_the_source(
    table: str, columns: list[str], alias: str | None, data: st.DataObject
) -> None:
    """Whatever the names, head + stage + tail is a SELECT from the stage, once, of the same columns."""
    source = Table(
        TableName("s 1", table), tuple(Column(name, INT) for name in columns), tuple(columns[:1]), tuple(columns[:1])
    )
    target = Table(TableName("hub", "t"), source.columns, tuple(columns[:1]), unique_keys=(tuple(columns[:1]),))
    owner = quote(table if alias is None else alias)
    listed = ", ".join(
        data.draw(st.sampled_from([f"{owner}.{quote(name)}", quote(name), f"{quote(name)} AS {quote(name)}"]))
        for name in columns
    )
    schema = data.draw(st.sampled_from(["", '"s 1".', '"s 1" . ']))
    label = "" if alias is None else data.draw(st.sampled_from([" ", " AS ", "\nas\t"])) + quote(alias)
    where = data.draw(st.sampled_from(["", f" WHERE {owner}.{quote(columns[1])} > 0 -- \" FROM ' (\n", "\n--;"]))
    text = f"SELECT {listed} FROM {schema}{quote(table)}{label}{where}"
    (route,) = check_routes(
        [RouteSpec("r", source.name, target.name, text)],
        Catalog({source.name: source}),
        Catalog({target.name: target}),
    )
    assert [each.column for each in route.assignments] == columns
    assert route.columns == tuple(columns)
    assert route.select is not None
    head, tail = route.select
    tree = sqlglot.parse_one(f'SELECT * FROM (\n{head}pg_temp."the stage"{tail}) AS q', dialect="postgres")
    found = [each for each in tree.find_all(exp.Table) if each.name]
    name = table if alias is None else alias
    assert [(each.db, each.name, each.alias) for each in found] == [("pg_temp", "the stage", name)]
    inner = tree.find(exp.Subquery)
    assert inner is not None
    assert [each.alias_or_name for each in inner.this.expressions] == columns
