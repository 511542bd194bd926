"""The source's text of framed values, and back: how the quarantine keeps rows and their keys.

A value in text form is what it is. A value in binary form is turned into text by the target's own server: received as
its type, and printed by the type's output function, under the settings of `towline.postgres.session`. Only where the
two forms are the same bytes (`TEXT_OIDS`) is the server left out: it may be in an encoding that lacks the characters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import psycopg

from towline.change import Format, Relation
from towline.frame import frame_value
from towline.target.postgres import params
from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.savepoints import Savepoints
from towline_transforms.dialect.stage import StageColumn, stage_columns

#: Types whose binary form is their text: text, varchar, char(n), name, json. Enums travel as text.
TEXT_OIDS = frozenset({25, 1043, 1042, 19, 114})

#: Results of one statement; a row may have more columns than these.
_RESULTS = 400


class Unreadable:
    """Stands for a value that this server cannot receive, and that cannot be shown without it."""


UNREADABLE = Unreadable()

Text = str | None | Unreadable


class SourceText:
    """Reads rows of relations, with the target's server where that is needed."""

    def __init__(self, executor: Executor, savepoints: Savepoints) -> None:
        self._executor = executor
        self._savepoints = savepoints

    def of(self, relation: Relation, row: bytes) -> list[Text]:
        """The texts of a framed row of all the relation's columns. Inside a transaction."""
        values = params.split(row)
        found: list[Text] = [None] * len(values)
        asked: list[tuple[int, StageColumn, bytes]] = []
        columns = stage_columns(relation.columns, binary=relation.format is Format.BINARY)
        for place, (value, column) in enumerate(zip(values, columns, strict=True)):
            if value is None:
                continue
            if column.oid in TEXT_OIDS:
                found[place] = _decoded(value)
            else:
                asked.append((place, column, value))
        for begin in range(0, len(asked), _RESULTS):
            part = asked[begin : begin + _RESULTS]
            texts = self._print(part)
            if texts is None:  # one of them is to blame
                texts = [UNREADABLE if (one := self._print([each])) is None else one[0] for each in part]
            for (place, _, _), text in zip(part, texts, strict=True):
                found[place] = text
        return found

    def _print(self, asked: Sequence[tuple[int, StageColumn, bytes]]) -> list[Text] | None:
        """What the server prints of these values; None when it does not take one of them."""
        items = ", ".join(f"pg_catalog.concat(${n}::{column.wire})" for n, (_, column, _) in enumerate(asked, 1))
        outcomes: list[Outcome] = []
        values = [params.Raw(value) for _, _, value in asked]
        refused = self._savepoints.attempt(
            "towline_text", lambda: outcomes.append(self._executor.run(f"SELECT {items}", values))
        )
        return list(outcomes[0].rows[0]) if refused is None else None


def _decoded(value: bytes) -> Text:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return UNREADABLE


def as_json(texts: Mapping[str, str | None]) -> str:
    """The one JSON text, in ASCII, of texts by column."""
    return json.dumps(texts, ensure_ascii=True)


def framed_keys(connection: psycopg.Connection[Any], relation: Relation, keys: Sequence[str]) -> dict[bytes, str]:
    """The keys (as `as_json` has them) by the framed form that they have in the relation (`Frame.keys`).

    Keys of other columns, or that are none of these types any more, are left out: no change can have them.
    """
    names = [column.name for column in relation.key_columns]
    read = [(key, [texts.get(name) for name in names]) for key in keys if list(texts := json.loads(key)) == names]
    values: list[list[bytes | None]] = []
    columns = stage_columns(relation.key_columns, binary=relation.format is Format.BINARY)
    for place, column in enumerate(columns):
        values.append(_encoded(connection, column, [texts[place] for _, texts in read]))
    found = {}
    for row, (key, _) in enumerate(read):
        framed = [column[row] for column in values]
        if None not in framed:
            found[b"".join(map(frame_value, framed))] = key
    return found


def _encoded(
    connection: psycopg.Connection[Any], column: StageColumn, texts: Sequence[str | None]
) -> list[bytes | None]:
    """Texts in the column's wire form; None: it is none of the type."""
    if column.oid in TEXT_OIDS:
        return [None if text is None else text.encode() for text in texts]
    try:
        return _sent(connection, column, texts)
    except psycopg.DataError:
        if len(texts) == 1:
            return [None]
        return [value for text in texts for value in _encoded(connection, column, [text])]


def _sent(connection: psycopg.Connection[Any], column: StageColumn, texts: Sequence[str | None]) -> list[bytes | None]:
    statement = (
        f"SELECT w.v::{column.wire} FROM pg_catalog.unnest(%s::pg_catalog.text[]) WITH ORDINALITY AS w (v, n) "
        "ORDER BY w.n"
    )
    with connection.cursor(binary=True) as cursor:
        cursor.execute(statement.encode(), (list(texts),))
        result = cursor.pgresult
        assert result is not None
        return [result.get_value(row, 0) for row in range(result.ntuples)]
