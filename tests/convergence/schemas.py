"""The schemas that histories are made for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import strategies as st

from tests.convergence.changing import CHANGING
from tests.convergence.schema import CODES, FLOATS, KEYS, NUMBERS, TEXTS, Schema, Sql, drawn, pick, same


def _set(table: str, key: str, **columns: Sequence[str]) -> list[Sql]:
    return [
        drawn(f"UPDATE {table} SET {column} = {{value}} WHERE {key} = {{key}}", value=pick(values), key=KEYS)
        for column, values in columns.items()
    ]


_SWAP = (
    "DO $$ DECLARE x text := (SELECT code FROM {table} WHERE id = {a}); y text := (SELECT code FROM {table} WHERE id ="
    " {b}); BEGIN UPDATE {table} SET code = NULL WHERE id = {a}; UPDATE {table} SET code = x WHERE id = {b};"
    " UPDATE {table} SET code = y WHERE id = {a}; END $$"
)

_ROUTES = "  - {from: public.*, into: replica.*, on_truncate: delete}"


def _keyed(table: str) -> list[Sql]:
    """For tables of id, code (unique), note (out of line), amount, ratio."""
    return [
        drawn(
            f"INSERT INTO {table} VALUES ({{key}}, {{code}}, {{note}}, {{amount}}, {{ratio}}) ON CONFLICT DO NOTHING",
            **{"key": KEYS, "code": pick(CODES), "note": pick(TEXTS)},
            **{"amount": pick(NUMBERS), "ratio": pick(FLOATS)},
        ),
        *_set(table, "id", code=CODES, note=TEXTS, amount=NUMBERS, ratio=FLOATS),
        drawn(f"UPDATE {table} SET id = {{to}} WHERE id = {{key}}", key=KEYS, to=KEYS),
        drawn(
            f"UPDATE {table} SET id = {{to}}, note = {{note}} WHERE id = {{key}}", key=KEYS, to=KEYS, note=pick(TEXTS)
        ),
        drawn(
            f"UPDATE {table} SET id = {{to}}, code = {{code}} WHERE id = {{key}}", key=KEYS, to=KEYS, code=pick(CODES)
        ),
        drawn(f"DELETE FROM {table} WHERE id = {{key}}", key=KEYS),
        drawn(_SWAP.replace("{table}", table), a=KEYS, b=KEYS),
        drawn(f"UPDATE {table} SET amount = amount + {{more}}", more=st.integers(0, 3)),
        drawn(f"UPDATE {table} SET id = -id WHERE id > {{key}}", key=KEYS),
        drawn(
            f"INSERT INTO {table} SELECT n, 'c' || n, {{note}} FROM generate_series(100, {{last}}) n"
            " ON CONFLICT DO NOTHING",
            note=pick(TEXTS),
            last=st.sampled_from((101, 110, 400)),
        ),
        drawn(f"DELETE FROM {table} WHERE id >= {{first}}", first=st.sampled_from((100, 105))),
        drawn(f"TRUNCATE {table}"),
    ]


_KEYED_FILL = (
    "INSERT INTO {table} SELECT n, 'f' || n, repeat(md5(n::text), n % 2 * 90), n FROM generate_series(1, {{rows}}) n"
)


KEYED = Schema(
    "unique keys and TOAST",
    source="""
        CREATE TABLE item (id int PRIMARY KEY, code text UNIQUE, note text, amount numeric, ratio float8);
        ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
    """,
    hub="""
        CREATE SCHEMA replica;
        CREATE TABLE replica.item (id int PRIMARY KEY, code text UNIQUE, note text, amount numeric, ratio float8);
    """,
    routes=_ROUTES,
    fill=_KEYED_FILL.format(table="item"),
    operations=st.one_of(_keyed("item")),
    equal=same("item"),
    tables=("item",),
    copies=("replica.item",),
)

WHOLE = replace(
    KEYED,
    name="REPLICA IDENTITY FULL",
    source=f"{KEYED.source} ALTER TABLE item REPLICA IDENTITY FULL;",
)

#: Most transactions of more than a few rows are sent while they are under way, also what is rolled back to a savepoint.
STREAMED = replace(
    KEYED,
    name="transactions sent while they are under way",
    operations=st.one_of(
        *_keyed("item"),
        drawn(
            "INSERT INTO item SELECT n, NULL, repeat(md5(n::text), {times})"
            " FROM generate_series({first}, {first} + 350) n ON CONFLICT DO NOTHING",
            times=st.sampled_from((8, 100)),
            first=st.sampled_from((100, 300, 1000)),
        ),
        drawn("UPDATE item SET note = note || {more}, amount = {amount}", more=pick(TEXTS), amount=pick(NUMBERS)),
        drawn("UPDATE item SET id = id + 2000 WHERE id BETWEEN {first} AND 2000", first=st.sampled_from((1, 100, 400))),
        drawn("DELETE FROM item WHERE id % 2 = {rest} AND id >= 100", rest=st.integers(0, 1)),
    ),
    plugins=("pgoutput",),
    streamed=True,
)

#: Of what each run begins with, and of transactions meanwhile, large ones too.
BEHIND = replace(STREAMED, name="a backlog read through SQL", plugins=KEYED.plugins, streamed=False, behind=True)

_WRITTEN = (
    drawn("INSERT INTO party VALUES ({key}, {code}) ON CONFLICT DO NOTHING", key=KEYS, code=pick(CODES)),
    drawn("INSERT INTO sale VALUES ({key}, {party}, 'new') ON CONFLICT DO NOTHING", key=KEYS, party=KEYS),
    drawn("INSERT INTO line VALUES ({sale}, {n}, 'new') ON CONFLICT DO NOTHING", sale=KEYS, n=KEYS),
    drawn(
        "WITH p AS (INSERT INTO party VALUES ({key}) ON CONFLICT DO NOTHING RETURNING id)"
        " INSERT INTO sale SELECT id, id, 'both' FROM p ON CONFLICT DO NOTHING",
        key=KEYS,
    ),
    drawn("DELETE FROM party WHERE id = {key}", key=KEYS),
    drawn("DELETE FROM sale WHERE id = {key}", key=KEYS),
    drawn("DELETE FROM line WHERE n = {key}", key=KEYS),
    drawn("UPDATE sale SET party = {to} WHERE id = {key}", key=KEYS, to=KEYS),
    drawn("UPDATE line SET sale = {to} WHERE sale = {key} AND n = 1", key=KEYS, to=KEYS),
    drawn("UPDATE sale SET party = NULL"),
    *_set("party", "id", code=CODES),
    drawn(_SWAP.replace("{table}", "party"), a=KEYS, b=KEYS),
    drawn("TRUNCATE party CASCADE"),
    drawn("TRUNCATE line"),
)
#: Keys that others refer to, which follow at the source.
_MOVED = (
    drawn("UPDATE party SET id = {to} WHERE id = {key}", key=KEYS, to=KEYS),
    drawn("UPDATE sale SET id = {to} WHERE id = {key}", key=KEYS, to=KEYS),
)

FAMILY = Schema(
    "foreign keys",
    source="""
        CREATE TABLE party (id int PRIMARY KEY, code text UNIQUE);
        CREATE TABLE sale (id int PRIMARY KEY, party int REFERENCES party ON UPDATE CASCADE ON DELETE CASCADE, v text);
        CREATE TABLE line (sale int REFERENCES sale ON UPDATE CASCADE ON DELETE CASCADE, n int, v text,
                           PRIMARY KEY (sale, n));
    """,
    hub="""
        CREATE SCHEMA replica;
        CREATE TABLE replica.party (id int PRIMARY KEY, code text UNIQUE);
        CREATE TABLE replica.sale (id int PRIMARY KEY, party int REFERENCES replica.party DEFERRABLE, v text);
        CREATE TABLE replica.line (sale int REFERENCES replica.sale DEFERRABLE, n int, v text, PRIMARY KEY (sale, n));
    """,
    routes=_ROUTES,
    fill="""
        INSERT INTO party SELECT n, 'f' || n FROM generate_series(1, {rows}) n;
        INSERT INTO sale SELECT n, n, 'v' FROM generate_series(1, {rows}) n;
        INSERT INTO line SELECT n, m, 'v' FROM generate_series(1, {rows}) n, generate_series(1, 2) m
    """,
    operations=st.one_of(*_WRITTEN, *_MOVED),
    equal=same("party", "sale", "line"),
    tables=("party", "sale", "line"),
    copies=("replica.party", "replica.sale", "replica.line"),
)

#: A cascade deletes the parent first. What is not DEFERRABLE can therefore not hold between two pieces; nor while a key
#: changes that is referred to, for there is no order in which it would.
STRICT = replace(
    FAMILY,
    name="foreign keys, not deferrable",
    operations=st.one_of(*_WRITTEN),
    hub=FAMILY.hub.replace(" DEFERRABLE", ""),
    max_rows=(20_000,),
    plugins=("pgoutput",),
)

_KINDS = ("NULL", "'draft'", "'open'", "'it''s done'")
_ARRAYS = ("NULL", "'{}'", "'{1,NULL,3}'", "'{{1,2},{3,4}}'")
_TIMES = ("NULL", "'2026-01-01 00:00:00.000001+00'", "'infinity'", "'0044-03-15 00:00:00+00 BC'")

COMPOSITE = Schema(
    "composite key, USING INDEX, generated columns, enums, arrays",
    source="""
        CREATE TYPE kind AS ENUM ('draft', 'open', 'it''s done');
        CREATE DOMAIN small AS int CHECK (value < 1000);
        CREATE TABLE part (id serial PRIMARY KEY, b text NOT NULL, a int NOT NULL, kind kind, numbers int[],
                           at timestamptz, n small, twice int GENERATED ALWAYS AS (a * 2) STORED, raw bytea);
        CREATE UNIQUE INDEX part_key ON part (a, b); ALTER TABLE part REPLICA IDENTITY USING INDEX part_key;
    """,
    routes=_ROUTES,
    fill="INSERT INTO part (b, a, kind) SELECT 'b' || n % 3, n, 'open' FROM generate_series(1, {rows}) n",
    operations=st.one_of(
        drawn(
            "INSERT INTO part (b, a, kind, numbers, at) VALUES ({b}, {a}, {kind}, {numbers}, {at})"
            " ON CONFLICT DO NOTHING",
            **{"b": pick(("'b0'", "'b1'", "''")), "a": KEYS, "kind": pick(_KINDS)},
            **{"numbers": pick(_ARRAYS), "at": pick(_TIMES)},
        ),
        *_set("part", "a", kind=_KINDS, numbers=_ARRAYS, at=_TIMES, n=("NULL", "7"), raw=("NULL", r"'\x00ff'", "''")),
        drawn("UPDATE part SET a = {to} WHERE a = {key}", key=KEYS, to=KEYS),
        drawn("UPDATE part SET b = {to} WHERE a = {key}", key=KEYS, to=pick(("'b0'", "'b2'", "'é'"))),
        drawn("UPDATE part SET id = id + 100 WHERE a = {key}", key=KEYS),
        drawn("DELETE FROM part WHERE a = {key}", key=KEYS),
        drawn("DELETE FROM part WHERE a = {key} AND b = 'b1'", key=KEYS),
        drawn("INSERT INTO part (b, a) SELECT 'm', n FROM generate_series(100, 300) n ON CONFLICT DO NOTHING"),
        drawn("UPDATE part SET numbers = numbers || a"),
        drawn("TRUNCATE part"),
    ),
    equal=same("part"),
    tables=("part",),
    copies=("replica.part",),
)

PARTITIONED = Schema(
    "a partitioned table",
    source="""
        CREATE TABLE event (id int, day int, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (4);
        CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (4) TO (1000);
    """,
    routes="  - {from: public.event, into: replica.event, on_truncate: delete}",
    fill="INSERT INTO event SELECT n, n, 'n' FROM generate_series(1, {rows}) n",
    operations=st.one_of(
        drawn("INSERT INTO event VALUES ({id}, {day}, 'new') ON CONFLICT DO NOTHING", id=KEYS, day=KEYS),
        drawn("UPDATE event SET day = {to} WHERE id = {key}", key=KEYS, to=KEYS),
        drawn("UPDATE event SET id = {to} WHERE id = {key}", key=KEYS, to=KEYS),
        *_set("event", "day", note=TEXTS),
        drawn("UPDATE event SET day = day + 1"),
        drawn("DELETE FROM event WHERE day = {key}", key=KEYS),
        drawn("INSERT INTO event SELECT n, n % 8, 'm' FROM generate_series(100, 300) n ON CONFLICT DO NOTHING"),
        drawn("TRUNCATE event"),
    ),
    equal=same("event"),
    tables=("event",),
    copies=("replica.event",),
)

SELECTED = Schema(
    "SELECT routes",
    source="""
        CREATE TABLE sale (id int PRIMARY KEY, party int, amount numeric, state text, note text);
        ALTER TABLE sale ALTER note SET STORAGE EXTERNAL;
    """,
    hub="""
        CREATE SCHEMA hub;
        CREATE TABLE hub.crosswalk (party int PRIMARY KEY, code text);
        INSERT INTO hub.crosswalk VALUES (0, 'acme'), (1, 'zed'), (2, NULL);
        CREATE TABLE hub.trade_order (order_no text PRIMARY KEY, customer text, total numeric, note_size int);
        CREATE TABLE hub.copied (id int PRIMARY KEY, state text);
        CREATE TABLE hub.inner_joined (id int PRIMARY KEY, code text);
    """,
    routes="""
  - name: order
    from: public.sale
    into: hub.trade_order
    on_truncate: delete
    select: |
      SELECT 'SO-' || s.id AS order_no, upper(c.code) AS customer, s.amount * 2 AS total, length(s.note) AS note_size
      FROM sale s LEFT JOIN hub.crosswalk c ON c.party = s.party
      WHERE s.state <> 'draft'
  - name: copied
    from: public.sale
    into: hub.copied
    on_truncate: delete
    select: SELECT id, state FROM sale
  - name: joined
    from: public.sale
    into: hub.inner_joined
    on_truncate: delete
    select: SELECT s.id, c.code FROM sale s JOIN hub.crosswalk c ON c.party = s.party
""",
    fill="INSERT INTO sale SELECT n, n % 4, n, (ARRAY['draft', 'open'])[1 + n % 2], repeat('n', n * 700)"
    " FROM generate_series(1, {rows}) n",
    operations=st.one_of(
        drawn(
            "INSERT INTO sale VALUES ({id}, {party}, {amount}, {state}, {note}) ON CONFLICT DO NOTHING",
            **{"id": KEYS, "party": st.integers(0, 3), "amount": pick(NUMBERS)},
            **{"state": pick(_KINDS), "note": pick(TEXTS)},
        ),
        *_set("sale", "id", state=_KINDS, amount=NUMBERS, note=TEXTS, party=("NULL", "0", "1", "2", "3")),
        drawn("UPDATE sale SET id = {to} WHERE id = {key}", key=KEYS, to=KEYS),
        drawn("UPDATE sale SET id = {to}, state = {state} WHERE id = {key}", key=KEYS, to=KEYS, state=pick(_KINDS)),
        drawn("DELETE FROM sale WHERE id = {key}", key=KEYS),
        drawn("UPDATE sale SET state = CASE state WHEN 'draft' THEN 'open' ELSE 'draft' END"),
        drawn("INSERT INTO sale SELECT n, n % 4, n, 'open' FROM generate_series(100, 300) n ON CONFLICT DO NOTHING"),
        drawn("TRUNCATE sale"),
    ),
    equal=(
        (
            "SELECT 'SO-' || id, CASE party WHEN 0 THEN 'ACME' WHEN 1 THEN 'ZED' END, (amount * 2)::text,"
            " length(note)::text FROM sale WHERE state <> 'draft' ORDER BY 1",
            "SELECT order_no, customer, total::text, note_size::text FROM hub.trade_order ORDER BY 1",
        ),
        ("SELECT id, state FROM sale ORDER BY 1", "SELECT id, state FROM hub.copied ORDER BY 1"),
        (
            "SELECT id, (ARRAY['acme', 'zed', NULL])[party + 1] FROM sale WHERE party BETWEEN 0 AND 2 ORDER BY 1",
            "SELECT id, code FROM hub.inner_joined ORDER BY 1",
        ),
    ),
    tables=("sale",),
    copies=("hub.trade_order", "hub.copied", "hub.inner_joined"),
)

_REFUSED = "(note IS NULL OR coalesce(length(code) > 3 OR amount < 0, false))"
_LENGTHS = ("NULL", "'w'", "'xyz'", "'longer'", "'too long'")

#: A good row is at the target; of one that is set aside the target may have an older version.
REFUSED = Schema(
    "rows that are set aside",
    source="""
        CREATE TABLE item (id int PRIMARY KEY, code text, note text, amount numeric);
        ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
    """,
    hub="""
        CREATE SCHEMA replica;
        CREATE TABLE replica.item (id int PRIMARY KEY, code text CHECK (length(code) <= 3), note text NOT NULL,
                                   amount numeric CHECK (amount >= 0));
    """,
    routes=_ROUTES.replace("}", ", on_error: quarantine}"),
    more="quarantine: {max_share: 1.0}",
    fill="INSERT INTO item SELECT n, 'f' || n, repeat('f', n % 2 * 2900), n - 2 FROM generate_series(1, {rows}) n",
    operations=st.one_of(
        drawn(
            "INSERT INTO item VALUES ({key}, {code}, {note}, {amount}) ON CONFLICT DO NOTHING",
            **{"key": KEYS, "code": pick(_LENGTHS), "note": pick(TEXTS), "amount": pick(NUMBERS)},
        ),
        *_set("item", "id", code=_LENGTHS, note=TEXTS, amount=NUMBERS),
        drawn("UPDATE item SET id = {to} WHERE id = {key}", key=KEYS, to=KEYS),
        drawn("UPDATE item SET id = {to}, code = {code} WHERE id = {key}", key=KEYS, to=KEYS, code=pick(_LENGTHS)),
        drawn("DELETE FROM item WHERE id = {key}", key=KEYS),
        drawn("UPDATE item SET amount = -amount WHERE id > {key}", key=KEYS),
        drawn("UPDATE item SET id = -id WHERE id > {key}", key=KEYS),
        drawn(
            "INSERT INTO item SELECT n, 'c', 'n', n % {each} - 1 FROM generate_series(100, {last}) n"
            " ON CONFLICT DO NOTHING",
            each=st.sampled_from((1, 2, 50)),
            last=st.sampled_from((101, 110, 300)),
        ),
        drawn("DELETE FROM item WHERE id >= {first}", first=st.sampled_from((100, 105))),
        drawn("TRUNCATE item"),
    ),
    equal=(
        (
            f"SELECT t::text FROM item t WHERE NOT {_REFUSED} ORDER BY 1",
            "SELECT t::text FROM replica.item t WHERE NOT EXISTS (SELECT FROM towline.quarantine q"
            " WHERE q.state = 'open' AND q.key::json->>'id' = t.id::text) ORDER BY 1",
        ),
    ),
    refused=_REFUSED,
    tables=("item",),
    copies=("replica.item",),
)

SCHEMAS = {
    schema.name: schema
    for schema in (KEYED, STREAMED, BEHIND, WHOLE, FAMILY, STRICT, COMPOSITE, PARTITIONED, SELECTED, REFUSED, CHANGING)
}
