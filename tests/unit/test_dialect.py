"""The text of a route's statements: names are quoted, parameters numbered, and nothing is left to the search_path."""

from __future__ import annotations

import dataclasses

import pytest

from towline_transforms.dialect import postgres as dialect
from towline_transforms.dialect import stage
from towline_transforms.route import Assignment, OnDelete, OnTruncate, Route
from towline_transforms.schema import Column, SqlType, Table, TableName, TypeKind

INT = SqlType(23, "pg_catalog", "int4", "integer")
TEXT = SqlType(25, "pg_catalog", "text", "text")
SHORT = SqlType(1043, "pg_catalog", "varchar", "character varying(5)")
MONEY = SqlType(1700, "pg_catalog", "numeric", "numeric(10,2)")
INTS = SqlType(1007, "pg_catalog", "_int4", "integer[]", TypeKind.ARRAY, element=INT)
MOOD = SqlType(20001, "src", "mood", "src.mood", TypeKind.ENUM)
HERE = SqlType(30001, "hub", "mood", "hub.mood", TypeKind.ENUM)
RATE = SqlType(20002, "src", "rate", "src.rate", TypeKind.DOMAIN, element=MONEY)

SOURCE = Table(
    TableName("src", "t"),
    (Column("id", INT), Column('N"o', TEXT), Column("m", MOOD), Column("r", RATE), Column("a", INTS)),
    primary_key=("id",),
    identity=("id",),
)
TARGET = Table(
    TableName("hub", "T %"),
    (Column("ref", SHORT), Column('N"o', TEXT), Column("m", HERE), Column("gone", TEXT)),
    primary_key=("ref",),
)
ROUTE = Route(
    name="r",
    source=SOURCE,
    target=TARGET,
    select=('SELECT \'I\' || s.id AS ref, s."N""o" FROM ', " s WHERE s.id > 0 -- all"),
    columns=("id", 'N"o'),
    assignments=(
        Assignment("ref", "'I' || s.id -- key", frozenset({"id"})),
        Assignment('N"o', 's."N""o"', frozenset({'N"o'})),
    ),
    key=("ref",),
    filtered=False,
    filter_sources=frozenset({"id"}),
    pseudo=(),
    on_delete=OnDelete.DELETE,
    mark_column=None,
    on_truncate=OnTruncate.HALT,
)


def test_the_admins_select_stands_as_it_is() -> None:
    """Only the source table is replaced; a comment at its end does not swallow what follows."""
    assert dialect.select_over(ROUTE, "stage") == (
        'SELECT \'I\' || s.id AS ref, s."N""o" FROM stage s WHERE s.id > 0 -- all'
    )
    for statement in (dialect.upsert(ROUTE, "stage"), dialect.update(ROUTE, "stage", frozenset())):
        assert "-- all\n)" in statement


def test_upsert() -> None:
    """Columns by quoted name; written only where the images differ."""
    statement = dialect.upsert(ROUTE, "stage")
    assert statement.startswith('INSERT INTO "hub"."T %" AS t ("ref", "N""o")\nSELECT p."ref", p."N""o" FROM (')
    assert 'ON CONFLICT ("ref") DO UPDATE SET "ref" = EXCLUDED."ref", "N""o" = EXCLUDED."N""o"' in statement
    assert 'ROW(t."ref", t."N""o")::pg_catalog.record OPERATOR(pg_catalog.*<>) ROW(EXCLUDED."ref"' in statement


def test_filtered_upsert_counts() -> None:
    """The number of rows that the SELECT makes is returned."""
    statement = dialect.upsert(dataclasses.replace(ROUTE, filtered=True), "stage")
    assert statement.startswith("WITH produced AS MATERIALIZED (")
    assert statement.endswith("SELECT pg_catalog.count(*) FROM produced")


def test_insert_does_not_look_for_rows() -> None:
    """Of new rows: what the SELECT makes, the mark of rows that are alive among it, and no more."""
    assert dialect.insert(ROUTE, "stage") == dialect.upsert(ROUTE, "stage").partition("\nON CONFLICT")[0]
    filtered = dataclasses.replace(ROUTE, filtered=True)
    assert dialect.insert(filtered, "stage") == dialect.insert(ROUTE, "stage")


def test_delete_computes_the_key() -> None:
    """The key's expression runs over the staged identity under the alias it was written with, and is never cut."""
    statement = dialect.delete(ROUTE, "keys")
    assert statement is not None
    assert "('I' || s.id -- key\n)" not in statement  # the comment ends before the parenthesis
    assert '\n\'I\' || s.id -- key\n)::"pg_catalog"."varchar" AS "ref" FROM keys AS "s"' in statement
    assert statement.endswith('WHERE t."ref" OPERATOR(pg_catalog.=) k."ref"')


def test_marks() -> None:
    """`mark` updates; `ignore` has no statement; an upsert takes the mark away."""
    ignoring = dataclasses.replace(ROUTE, on_delete=OnDelete.IGNORE)
    assert dialect.delete(ignoring, "keys") is None and dialect.delete_unmade(ignoring, "stage") is None
    flag = dataclasses.replace(TARGET.columns[3], type=SqlType(16, "pg_catalog", "bool", "boolean"))
    target = dataclasses.replace(TARGET, columns=(*TARGET.columns[:3], flag))
    marking = dataclasses.replace(ROUTE, target=target, on_delete=OnDelete.MARK, mark_column="gone")
    assert 'SET "gone" = true' in str(dialect.delete(marking, "keys"))
    assert '"gone" = EXCLUDED."gone"' in dialect.upsert(marking, "stage")
    assert 'p."N""o", false FROM' in dialect.upsert(marking, "stage")
    time = dataclasses.replace(flag, type=SqlType(1184, "pg_catalog", "timestamptz", "timestamp with time zone"))
    timed = dataclasses.replace(marking, target=dataclasses.replace(target, columns=(*TARGET.columns[:3], time)))
    assert dialect.marks_with_time(timed) and not dialect.marks_with_time(marking)
    assert 'SET "gone" = k._commit_time' in str(dialect.delete(timed, "keys"))
    assert "$1" in dialect.delete_all(timed)


def test_update_leaves_out_what_depends_on_missing_columns() -> None:
    """Also when nothing but the key is left."""
    assert '"N""o" =' in dialect.update(ROUTE, "stage", frozenset({"id"}))
    statement = dialect.update(ROUTE, "stage", frozenset({'N"o'}))
    assert 'SET "ref" = p."ref"\n' in statement


def test_gaps_and_filters() -> None:
    """A filter that needs a missing column cannot tell; only plain routes move rows in place."""
    assert not dialect.survives(ROUTE, frozenset({"id"})) and dialect.survives(ROUTE, frozenset({'N"o'}))
    assert dialect.movable(ROUTE)
    assert not dialect.movable(dataclasses.replace(ROUTE, filtered=True))
    assert not dialect.movable(dataclasses.replace(ROUTE, on_delete=OnDelete.IGNORE))


@pytest.mark.parametrize(
    ("binary", "wire", "shown"),
    [
        (True, ("int4", "text", "text", "numeric", "_int4"), ("int4", "text", "text", "numeric", "_int4")),
        (False, ("text",) * 5, ("int4", "text", "text", "numeric", "_int4")),
    ],
)
def test_types_of_a_stage(binary: bool, wire: tuple[str, ...], shown: tuple[str, ...]) -> None:
    """Text is cast; an enum is its label, a domain its base; type modifiers are left out."""
    columns = stage.stage_columns(SOURCE.columns, binary=binary)
    assert [column.wire for column in columns] == [f'"pg_catalog"."{name}"' for name in wire]
    assert [column.shown for column in columns] == [f'"pg_catalog"."{name}"' for name in shown]
    assert columns[4].is_array is binary


def test_user_types_of_identity_routes_are_the_targets() -> None:
    """An enum is cast to the target column's type."""
    identity = dataclasses.replace(ROUTE, select=None)
    columns = stage.stage_columns(SOURCE.columns[2:3], binary=True, route=identity)
    assert (columns[0].wire, columns[0].shown) == ('"pg_catalog"."text"', '"hub"."mood"')
    assert 'w."m"::"hub"."mood" AS "m"' in stage.table_stage("x", columns)


def test_stages() -> None:
    """Parameters are numbered from where they are told to, and rows from one."""
    columns = stage.stage_columns(SOURCE.columns[:2], binary=True)
    assert stage.table_stage('pg_temp."s"', columns) == 'pg_temp."s"'
    arrays = stage.unnest_stage(columns, first=4, place=True)
    assert '$4::"pg_catalog"."int4"[]' in arrays and "$5::" in arrays and "WITH ORDINALITY" in arrays
    rows = stage.rows_stage(columns, 2, first=3, place=True)
    assert "$3::" in rows and "$6::" in rows and "2::pg_catalog.int8" in rows
    assert stage.empty_stage(columns).endswith("WHERE false)")
    assert "ON COMMIT DELETE ROWS" in stage.create_stage('"s"', columns, place=True)
