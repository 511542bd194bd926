"""Values are exact (promise 4): drawn values of every type go through the whole pipeline, PostgreSQL says whether they
are the same.

Each drawn value is offered to the source, which accepts or refuses it. What it accepts is copied by the snapshot,
streamed by inserts, and streamed by updates; then both servers print their rows, which must be the same text.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql

from tests.support.databases import NewDatabase
from tests.support.line import Line
from towline.demo.server import Server

DRAWN = 45

TYPES_OF_USERS = """
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy', 'très bien', 'quo''te');
CREATE DOMAIN quantity AS numeric(12, 3) CHECK (VALUE >= 0);
CREATE DOMAIN words AS text[];
CREATE TYPE pair AS (a int, b text);
CREATE TYPE nested AS (p pair, moods mood[]);
CREATE TYPE floatrange AS RANGE (subtype = float8);
"""

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
integer = st.integers(-(2**31), 2**31 - 1)
number = st.one_of(
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "0", "0.0", "0.00", "-0", "1e-30", "1e30", "1.10", "100", "9" * 60]
    ),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
)
floating = st.one_of(st.floats().map(repr), st.sampled_from(["-0", "5e-324", "1.7976931348623157e308", "3.4028235e38"]))
era = st.sampled_from(["", "", "", " BC"])
date = st.one_of(
    st.sampled_from(["infinity", "-infinity", "4713-01-01 BC", "0001-01-01", "12345-06-07", "99999-12-31"]),
    st.builds("{:04d}-{:02d}-{:02d}{}".format, st.integers(1, 9999), st.integers(1, 12), st.integers(1, 28), era),
)
clock = st.builds(
    "{:02d}:{:02d}:{:02d}.{:06d}".format,
    st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999_999),
)  # fmt: skip
zone = st.sampled_from(["", "+00", "-03:30", "+14", "-11:59:59"])
moment = st.one_of(
    st.sampled_from(["infinity", "-infinity", "294276-12-31 23:59:59.999999", "4713-01-01 00:00:00 BC"]),
    st.builds(
        "{:04d}-{:02d}-{:02d} {}{}".format, st.integers(1, 99999), st.integers(1, 12), st.integers(1, 28), clock, zone
    ),
)
interval = st.builds(
    "{} mons {} days {} us".format,
    st.integers(-2000, 2000), st.integers(-50_000, 50_000), st.integers(-(10**13), 10**13),
)  # fmt: skip
document = st.recursive(
    st.none() | st.booleans() | integer | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
).map(lambda value: json.dumps(value, ensure_ascii=False))
bits = st.text("01", max_size=12)
octet = st.integers(0, 255)
address = st.builds("{}.{}.{}.{}/{}".format, octet, octet, octet, octet, st.integers(0, 32)) | st.sampled_from(
    ["::1", "fe80::1/64", "10.0.0.1"]
)
corner = st.builds("({},{})".format, floating, floating)
hexes = st.binary(max_size=16).map(lambda value: "\\x" + value.hex())


def array(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Array literals, with NULLs, of one or two dimensions or with odd bounds."""
    element = st.one_of(
        st.just("NULL"), inner.map(lambda value: '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
    )
    flat = st.lists(element, max_size=4).map(lambda items: "{" + ",".join(items) + "}")
    square = st.lists(element, min_size=4, max_size=4).map(lambda i: f"{{{{{i[0]},{i[1]}}},{{{i[2]},{i[3]}}}}}")
    shifted = st.lists(element, min_size=2, max_size=2).map(lambda i: f"[-3:-2]={{{i[0]},{i[1]}}}")
    return flat | square | shifted


def span(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Range literals, empty and unbounded ones among them."""
    bound = st.one_of(st.just(""), inner.map('"{}"'.format))
    return st.one_of(
        st.just("empty"),
        st.builds("{}{},{}{}".format, st.sampled_from("[("), bound, bound, st.sampled_from("])")),
    )


quoted = text.map(lambda value: '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"')
pairs = st.builds("({},{})".format, st.just("") | integer.map(str), st.just("") | quoted)

BUILTIN: dict[str, st.SearchStrategy[str]] = {
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": integer.map(str),
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "numeric": number,
    "numeric(12,4)": number,
    "real": floating,
    "double precision": floating,
    "money": st.integers(-(2**63), 2**63 - 1).map(lambda cents: str(cents / 100)),
    "boolean": st.sampled_from(["t", "f"]),
    "text": text,
    "character varying(10)": text,
    "character(6)": text,
    '"char"': st.characters(min_codepoint=1, max_codepoint=127),
    "name": text,
    "bytea": hexes,
    "date": date,
    "time": clock,
    "timetz": st.builds("{}{}".format, clock, zone),
    "timestamp": moment,
    "timestamptz": moment,
    # Rounded up, the last moment is one that PostgreSQL stores but neither reads nor restores.
    "timestamp(3)": moment.filter(lambda value: not value.startswith("294276")),
    "interval": interval,
    "interval day to second(2)": interval,
    "uuid": st.uuids().map(str),
    "json": document,
    "jsonb": document,
    "inet": address,
    "cidr": address,
    "macaddr": st.binary(min_size=6, max_size=6).map(lambda value: value.hex(":")),
    "macaddr8": st.binary(min_size=8, max_size=8).map(lambda value: value.hex(":")),
    "bit(5)": st.text("01", min_size=5, max_size=5),
    "bit varying": bits,
    "point": corner,
    "line": st.builds("{{{},{},{}}}".format, floating, floating, floating),
    "lseg": st.builds("[{},{}]".format, corner, corner),
    "box": st.builds("{},{}".format, corner, corner),
    "path": st.lists(corner, min_size=1, max_size=3).map(lambda points: "[" + ",".join(points) + "]"),
    "polygon": st.lists(corner, min_size=1, max_size=3).map(lambda points: "(" + ",".join(points) + ")"),
    "circle": st.builds("<{},{}>".format, corner, floating),
    "tsvector": st.lists(st.text("abc'", min_size=1, max_size=4).map(lambda w: w.replace("'", "''")), max_size=3).map(
        lambda words: " ".join(f"'{word}':1A,7" for word in words)
    ),
    "int4range": span(integer.map(str)),
    "numrange": span(number),
    "tstzrange": span(moment),
    "daterange": span(date),
    "oid": st.integers(0, 2**32 - 1).map(str),
    "pg_lsn": st.builds("{:X}/{:X}".format, st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    "jsonpath": st.sampled_from(["$", "$.a[*] ? (@ > 1.50)", 'strict $."b c"']),
    "integer[]": array(integer.map(str)),
    "text[]": array(text),
    "numeric[]": array(number),
    "timestamptz[]": array(moment),
    "jsonb[]": array(document),
}
#: The embedded server is built without libxml.
XML = {"xml": text.map(lambda value: f"<a>{value}</a>") | st.sampled_from(["<a/>", "plain", "<a b='c'>é</a> <b/>"])}
USERS: dict[str, st.SearchStrategy[str]] = {
    "mood": st.sampled_from(["sad", "ok", "happy", "très bien", "quo'te"]),
    "mood[]": array(st.sampled_from(["sad", "très bien", "quo'te"])),
    "quantity": number,
    "words": array(text),
    "pair": pairs,
    "pair[]": array(pairs),
    "nested": st.builds('("({},x)","{{ok,sad}}")'.format, integer)
    | st.sampled_from(["(,)", '("(,)",{})', '("(1,)",)']),
    "floatrange": span(floating),
    "regclass": st.sampled_from(["pg_class", "pg_type", "pg_catalog.pg_attribute"]),
    "tsquery": st.sampled_from(["a & b", "!a | b <-> c:*A", "'x y'", ""]),
    "regtype": st.sampled_from(["integer", "text[]"]),
}


def draw(types: dict[str, st.SearchStrategy[str]]) -> dict[str, list[str]]:
    """`DRAWN` values of each type, the same in every run."""
    return {name: _drawn(strategy) for name, strategy in types.items()}


@cache
def _drawn(strategy: st.SearchStrategy[str]) -> list[str]:
    values: list[str] = []

    @settings(derandomize=True, max_examples=DRAWN, deadline=None, database=None, phases=[Phase.generate])
    @given(strategy)
    def collect(value: str) -> None:
        values.append(value)

    collect()
    return values


def offer(connection: psycopg.Connection[Any], table: str, type_name: str, number: int, value: str | None) -> bool:
    """Insert or replace one value, if the server takes it for a value of the type. The connection is in autocommit."""
    statement = sql.SQL(
        "INSERT INTO {} VALUES (%s, CAST(%s::text AS {})) ON CONFLICT (id) DO UPDATE SET v = excluded.v"
    ).format(sql.Identifier(table), sql.SQL(type_name))
    try:
        connection.execute(statement, (number, value))
    except psycopg.DataError:
        return False
    except psycopg.IntegrityError:  # a domain's CHECK
        return False
    return True


def first(values: list[str]) -> list[str]:
    return values[::3]


def second(values: list[str]) -> list[str]:
    return values[1::3]


def third(values: list[str]) -> list[str]:
    return values[2::3]


def round_trip(line: Line, drawn: dict[str, list[str]]) -> int:
    """Rows that are there before, rows inserted later, rows changed later: all the same. Returns how many."""
    tables = {name: f"v{place}" for place, name in enumerate(drawn)}
    with psycopg.connect(line.source, autocommit=True) as connection:
        for name, table in tables.items():
            connection.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, v {name})".encode())
            connection.execute(f"INSERT INTO {table} VALUES (0, NULL)".encode())
            for place, value in enumerate(first(drawn[name]), 1):
                offer(connection, table, name, place, value)
    line.apply()
    line.run()
    with psycopg.connect(line.source, autocommit=True) as connection:
        for name, table in tables.items():
            for place, value in enumerate(second(drawn[name]), 1000):
                offer(connection, table, name, place, value)
            for place, value in enumerate(third(drawn[name])):
                offer(connection, table, name, place, value)
    line.run()
    compared = 0
    for name, table in tables.items():
        rows = line.same(table, f"replica.{table}", "id")
        assert rows > 1, f"no value of {name} was accepted"
        compared += rows
    report = line.verify()
    assert (report.differing, report.rows) == (0, compared)
    return compared


@pytest.mark.parametrize(
    "servers", [("pg18", "hub18"), ("pg15", "hub18"), ("pg18", "pg15"), ("pg15", "pg15")], ids="-to-".join
)
def test_builtin_types(
    servers: tuple[str, str], request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Binary, between servers of the same and of different versions."""
    source, hub = (request.getfixturevalue(name) for name in servers)
    line = Line.make(tmp_path, new_database(source), new_database(hub), "  - {from: public.*, into: replica.*}")
    types = BUILTIN | (XML if servers == ("pg15", "pg15") else {})
    assert round_trip(line, draw(types)) > 11 * len(types)


@pytest.mark.parametrize(
    ("server", "plugin"), [("pg18", "pgoutput"), ("pg15", "pgoutput"), ("pg15", "wal2json")], ids=lambda value: value
)
def test_all_types_as_text(
    server: str, plugin: str, request: pytest.FixtureRequest, new_database: NewDatabase, hub18: Server, tmp_path: Path
) -> None:
    """Types that cannot travel in binary make the whole stream text: those of users, made at the target, and reg*."""
    line = Line.make(
        tmp_path,
        new_database(request.getfixturevalue(server)),
        new_database(hub18),
        "  - {from: public.*, into: replica.*}",
        plugin=plugin,
    )
    line.at_source(TYPES_OF_USERS)
    types = {**BUILTIN, **USERS}
    assert round_trip(line, draw(types)) > 11 * len(types)
