"""A schema whose columns come, go, change their names and their types while rows are written."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.convergence.schema import KEYS, TEXTS, Schema, Sql, drawn, pick

#: Names have one type each, so that the target's columns, which stay, can take what comes under them again.
_INTS, _WORDS = ("a", "b", "e"), ("v", "t", '"C d"')
_SAME_TYPE = st.sampled_from((_INTS, _WORDS)).flatmap(lambda names: st.permutations(names))


def _renamed(*pairs: tuple[int, str]) -> Sql:
    """Each pair: which of three names of one type, and its new name."""
    return _SAME_TYPE.map(
        lambda names: "; ".join(
            f"ALTER TABLE item RENAME {names[old] if old >= 0 else 'away'} TO {new.format(*names)}"
            for old, new in pairs
        )
    )


#: From one type to the next, and never back: values that are rewritten while the type stays leave no trace.
_RETYPED = """
DO $$ BEGIN
  CASE (SELECT atttypmod FROM pg_attribute WHERE attrelid = 'item'::regclass AND attname = 'w')
    WHEN 14 THEN ALTER TABLE item ALTER w TYPE varchar(20);
    WHEN 24 THEN ALTER TABLE item ALTER w TYPE text USING upper(w);
    ELSE NULL;
  END CASE;
END $$
"""

CHANGING = Schema(
    "columns that come, go, change their names and types",
    source="CREATE TABLE item (id int PRIMARY KEY, v text, a int, b int, w varchar(10))",
    hub="CREATE SCHEMA replica; CREATE TABLE replica.item (id int PRIMARY KEY, v text, a int, b int, w text)",
    routes="  - {from: public.*, into: replica.*, on_truncate: delete, on_schema_change: evolve}",
    fill="INSERT INTO item SELECT n, 'f' || n, n, -n, 'w' || n FROM generate_series(1, {rows}) n",
    operations=st.one_of(
        drawn("INSERT INTO item VALUES ({key}, {v}) ON CONFLICT DO NOTHING", key=KEYS, v=pick(TEXTS)),
        drawn("UPDATE item SET v = {v} WHERE id = {key}", key=KEYS, v=pick(TEXTS)),
        drawn("UPDATE item SET id = {to} WHERE id = {key}", key=KEYS, to=KEYS),
        drawn("DELETE FROM item WHERE id = {key}", key=KEYS),
        drawn("UPDATE item SET {column} = {n} WHERE id = {key}", column=pick(_INTS), n=st.integers(10, 99), key=KEYS),
        drawn("UPDATE item SET {column} = {v} WHERE id = {key}", column=pick(_WORDS), v=pick(TEXTS), key=KEYS),
        drawn("ALTER TABLE item ADD {column} text", column=pick(_WORDS)),
        drawn("ALTER TABLE item ADD {column} int DEFAULT {n}", column=pick(_INTS), n=KEYS),
        drawn("ALTER TABLE item DROP {column}", column=pick((*_INTS, *_WORDS))),
        _renamed((0, "{1}")),
        _renamed((0, "away"), (1, "{0}"), (-1, "{1}")),
        _renamed((0, "{2}"), (1, "{0}")),
        drawn(
            "ALTER TABLE item RENAME {column} TO e; ALTER TABLE item ADD {column} int DEFAULT {n}",
            column=pick(("a", "b")),
            n=KEYS,
        ),
        drawn("UPDATE item SET w = 'w{n}' WHERE id = {key}", n=KEYS, key=KEYS),
        st.just(_RETYPED),
    ),
    equal=(("SELECT {columns} FROM public.item ORDER BY id", "SELECT {columns} FROM replica.item ORDER BY id"),),
    tables=("item",),
    copies=("replica.item",),
    changing=True,
)
