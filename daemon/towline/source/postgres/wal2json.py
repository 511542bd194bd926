"""wal2json, format-version 2: JSON objects in, changes gathered.

    {"action": "B", "xid": 7, "timestamp": "2026-11-23 07:58:10.541354+00", "lsn": "0/195D488", "nextlsn": "0/195D4B8"}
    {"action": "I" | "U" | "D", …, "schema": "public", "table": "t",
     "columns":  [{"name": "id", "typeoid": 23, "value": 1}, …],     the new row (I, U)
     "identity": [{"name": "id", "typeoid": 23, "value": 1}, …]}     the old key (U, D), or the old row: see below
    {"action": "T", …, "schema": "public", "table": "t"}
    {"action": "C", …}

One message is one object. What follows is true of version 2.5, on servers up to 15:

* ``lsn`` is where the commit record starts and ``nextlsn`` where it ends, as pgoutput has them.
* A value is a number token for the types int2/4/8, oid, float4/8 and numeric, true/false for bool, a string of hex
  digits without the ``\\x`` for bytea, and else a string of the type's output. Domains, arrays and enums are strings.
* NaN and the infinities become null. So a null in a column of float4, float8 or numeric may stand for a value: it is
  marked ``unknown`` and has to be read again, unless it is in the key (no way to find the row: StreamMalformed).
* A column that is missing from ``columns`` of an update is unchanged and stored out of line. If that cannot be, the log
  is from before the column was added to the table: it is ``unknown`` too.
* ``identity`` of an update whose key did not change holds the new row's key; with REPLICA IDENTITY FULL, all columns.
* Names of types that need quotes in SQL are printed with these and without JSON's, so OIDs are asked for instead.
* The leaf partition is named, not the partitioned table.

Number tokens are kept as text (`json.loads` with ``parse_int`` and ``parse_float``): no number is ever made of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from towline.change import DELETE, INSERT, UPDATE, Relation
from towline.errors import SourceTableChanged, StreamMalformed
from towline.frame import frame_row
from towline.position import parse_lsn
from towline.source.postgres.batches import FramedRow, RowBatch
from towline.source.postgres.block import Block
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.routed import NEWEST, Routed, check_added, lacking, whole_tables
from towline_transforms.schema import TableName

_BOOL, _BYTEA = 16, 17
#: float4, float8, numeric: types with values that JSON has no numbers for.
_NOT_ALWAYS_NUMBERS = frozenset((700, 701, 1700))
#: Built-in types of a fixed length, whose values are never stored out of line: bool "char" name int8 int2 int4 oid,
#: float4 float8 money date time timestamp timestamptz interval timetz uuid macaddr macaddr8, point lseg box line circle
#: tid xid cid xid8 pg_lsn.
_NEVER_OUT_OF_LINE = frozenset(
    {16, 18, 19, 20, 21, 23, 26}
    | {700, 701, 790, 1082, 1083, 1114, 1184, 1186, 1266, 2950, 829, 774}
    | {600, 601, 603, 628, 718, 27, 28, 29, 5069, 3220}
)
_SPECIAL = re.compile(r"([\\,.*'\s])")

Values = Mapping[str, Any]


def options(relations: Sequence[Relation], *, partitioned: bool) -> dict[str, str]:
    """What to ask of the plugin. ``partitioned``: some of the relations are partitioned tables.

    Partitions may be added in any schema and are known to the plugin by their own names only, so with partitioned
    tables everything is asked for; what is not wanted is skipped here.
    """
    asked = {
        "format-version": "2",
        "include-xids": "1",
        "include-timestamp": "1",
        "include-lsn": "1",
        "include-transaction": "1",
        "include-types": "0",
        "include-type-oids": "1",
        "actions": "insert,update,delete,truncate",
    }
    if not partitioned:
        asked["add-tables"] = ",".join(
            f"{_escape(relation.name.schema)}.{_escape(relation.name.name)}" for relation in relations
        )
    return asked


def _escape(name: str) -> str:
    """A backslash before what has a meaning in wal2json's lists of tables."""
    return _SPECIAL.sub(r"\\\1", name)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A column that is wanted. ``prefix``: what wal2json leaves out in front of the value."""

    name: str
    place: int
    type_oid: str
    prefix: bytes
    may_hide: bool
    out_of_line: bool
    key: bool


def _taken(relation: Relation) -> tuple[_Taken, ...]:
    return tuple(
        _Taken(
            column.name,
            place,
            str(column.type.oid),
            b"\\x" if column.type.oid == _BYTEA else b"",
            column.type.oid in _NOT_ALWAYS_NUMBERS,
            column.type.oid not in _NEVER_OUT_OF_LINE,
            place in relation.key,
        )
        for place, column in enumerate(relation.columns)
    )


class Decoder:
    """Takes messages one by one and adds what is wanted to the gatherer."""

    def __init__(self, routed: Routed, gatherer: Gatherer[RowBatch]) -> None:
        self._routed = routed
        self._gatherer = gatherer
        self._columns = {id(relation): _taken(relation) for relation in routed.relations}
        self._truncated: list[tuple[TableName, Relation]] = []
        #: Relations of which all columns were seen: one that is absent later was dropped.
        self._seen_whole: set[int] = set()
        self._json = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=_no_constant)

    def take(self, block: Block, first: int = 0) -> int:
        """See `towline.source.postgres.pgoutput.Decoder.take`."""
        for number in range(first, len(block)):
            self.feed(block.message(number), block.at)
            if self._gatherer.full:
                return number + 1
        return len(block)

    def changes(self, messages: Iterator[bytes], at: int = 0) -> bytes | None:
        """The next message, which is for `feed`: here all are alike. None when there are no more."""
        return next(messages, None)

    def feed(self, message: bytes, at: int = 0) -> None:
        """Take the message that begins at offset ``at``, and ends with the bytes.

        Raises StreamMalformed, SourceTableChanged and SourceTruncated.
        """
        try:
            parsed = self._json.decode(message[at:].decode())
        except (ValueError, RecursionError):
            raise StreamMalformed("wal2json: a message is not JSON in UTF-8") from None
        if not isinstance(parsed, dict):
            raise StreamMalformed("wal2json: a message is not an object")
        action = parsed.get("action")
        if self._truncated and action != "T":
            self._truncate()
        if action in ("I", "U", "D"):
            self._change(action, parsed, len(message))
        elif action == "B":
            self._gatherer.begin(_xid(parsed), _lsn(parsed, "lsn"), _time(parsed))
        elif action == "C":
            self._gatherer.commit(_lsn(parsed, "lsn"), _lsn(parsed, "nextlsn"))
        elif action == "T":
            self._truncation(parsed)
        elif action != "M":
            raise StreamMalformed("wal2json: a message has an unknown action")

    def _truncation(self, message: Values) -> None:
        """Tables of one TRUNCATE come one by one: they are put together before the next other message."""
        if self._gatherer.open is None:
            raise StreamMalformed("wal2json: a change outside of transactions")
        name = _table(message)
        relation = self._routed.find(name)
        if relation is not None and not self._gatherer.skipping:
            self._truncated.append((name, relation))

    def _truncate(self) -> None:
        truncated, self._truncated = self._truncated, []
        lsn = self._gatherer.open[1] if self._gatherer.open is not None else NEWEST
        self._gatherer.truncate(whole_tables(truncated, lsn))

    def _change(self, action: str, message: Values, size: int) -> None:
        gatherer = self._gatherer
        if gatherer.open is None:
            raise StreamMalformed("wal2json: a change outside of transactions")
        name = _table(message)
        relation = self._routed.find(name)
        if relation is None or gatherer.skipping:
            return
        taken = self._columns[id(relation)]
        lsn = gatherer.open[1]
        older = lsn < relation.described
        rows: list[FramedRow]
        if action == "D":
            rows = [_gone(name, taken, _values(name, taken, message, "identity", older))]
        else:
            new = _values(name, taken, message, "columns", older)
            if len(new) < len(message["columns"]):
                check_added(name, relation, [entry["name"] for entry in message["columns"]], lsn)
            stale = relation.untrusted(lsn) if relation.since else frozenset()
            if older and len(new) < len(taken):
                stale |= _of_another_type(taken, message["columns"])
            if len(new) == len(taken):
                self._seen_whole.add(id(relation))
            elif (relation.described and not older) or (not relation.described and id(relation) in self._seen_whole):
                _check_dropped(name, taken, new, action, stale)
            if action == "I":
                rows = [_inserted(name, taken, new, stale)]
            else:
                rows = _updated(name, taken, new, _values(name, taken, message, "identity", older), stale)
        batch = gatherer.batch(id(relation), lambda: RowBatch(relation))
        if batch is not None:
            batch.rows += rows
            batch.orders += [gatherer.order] * len(rows)
            gatherer.order += 1
            gatherer.size += size


# ---- Rows -----------------------------------------------------------------------------------------------------


def _inserted(name: TableName, taken: Sequence[_Taken], new: Values, stale: frozenset[str]) -> FramedRow:
    for column in taken:
        if column.key and column.name not in new:
            raise lacking(name, column.name)
    return _row(name, taken, new, INSERT, stale)


def _updated(
    name: TableName, taken: Sequence[_Taken], new: Values, old: Values, stale: frozenset[str]
) -> list[FramedRow]:
    _check_key(name, taken, old)
    moved = any(column.key and new.get(column.name, old[column.name]) != old[column.name] for column in taken)
    row = _row(name, taken, {**old, **new} if len(new) < len(taken) else new, UPDATE, stale)
    if not moved:
        return [row]
    return [_gone(name, taken, old), FramedRow(row.row, row.op, row.missing, row.unknown, back=1)]


def _check_dropped(name: TableName, taken: Sequence[_Taken], new: Values, action: str, stale: frozenset[str]) -> None:
    for column in taken:
        if column.name not in new and column.name not in stale and not (action == "U" and column.out_of_line):
            raise lacking(name, column.name)


def _gone(name: TableName, taken: Sequence[_Taken], old: Values) -> FramedRow:
    _check_key(name, taken, old)
    return FramedRow(frame_row([_value(column, old[column.name]) if column.key else None for column in taken]), DELETE)


def _check_key(name: TableName, taken: Sequence[_Taken], old: Values) -> None:
    for column in taken:
        if not column.key:
            continue
        if column.name not in old:
            raise SourceTableChanged(
                f"column {column.name} of {name} is not part of the replica identity in the log at this point"
            )
        if old[column.name] is None:
            raise _no_key(name, column)


def _no_key(name: TableName, column: _Taken) -> StreamMalformed:
    return StreamMalformed(
        f"wal2json gave no value for column {column.name} of the key of {name}",
        hint="It cannot tell of NaN and Infinity in a key: use `plugin: pgoutput`." if column.may_hide else "",
    )


def _row(name: TableName, taken: Sequence[_Taken], values: Values, op: int, stale: frozenset[str]) -> FramedRow:
    """``stale``: columns whose values in the log are not theirs, and have to be read again."""
    framed: list[bytes | None] = []
    missing = unknown = 0
    for column in taken:
        if stale and column.name in stale and not column.key:
            unknown |= 1 << column.place
            framed.append(None)
            continue
        try:
            value = values[column.name]
        except KeyError:
            if op == UPDATE and column.out_of_line:
                missing |= 1 << column.place
            else:
                unknown |= 1 << column.place
            framed.append(None)
            continue
        if value is None:
            if column.key:
                raise _no_key(name, column)
            if column.may_hide:
                unknown |= 1 << column.place
        framed.append(_value(column, value))
    return FramedRow(frame_row(framed), op, missing, unknown)


def _value(column: _Taken, value: Any) -> bytes | None:
    """The bytes that the type's output function gives."""
    if value is None:
        return None
    if isinstance(value, str):
        try:
            return column.prefix + value.encode()
        except UnicodeEncodeError:
            raise StreamMalformed(f"wal2json: the value of column {column.name} is not Unicode text") from None
    if value is True or value is False:
        return b"t" if value else b"f"
    raise StreamMalformed(f"wal2json: the value of column {column.name} is neither text, number, boolean nor null")


# ---- Parts of messages ----------------------------------------------------------------------------------------


def _of_another_type(taken: Sequence[_Taken], listed: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Columns that the log has with a type that they no longer have."""
    types = {entry["name"]: entry["typeoid"] for entry in listed}
    return frozenset(column.name for column in taken if types.get(column.name, column.type_oid) != column.type_oid)


def _values(name: TableName, taken: Sequence[_Taken], message: Values, part: str, older: bool) -> dict[str, Any]:
    """The wanted columns of ``columns`` or ``identity`` by name, with the types that they should have.

    ``older``: the log is from before the relation was described; a column that had another type then is left out.
    """
    listed = message.get(part)
    if not isinstance(listed, list):
        raise StreamMalformed(f"wal2json: a change of {name} has no {part}")
    try:
        by_name = {entry["name"]: entry for entry in listed}
        values = {}
        for column in taken:
            entry = by_name.get(column.name)
            if entry is not None:
                if entry["typeoid"] != column.type_oid:
                    if older and not column.key:
                        continue
                    raise SourceTableChanged(
                        f"column {column.name} of {name} is of the type with OID {entry['typeoid']} in the log "
                        f"at this point, and not of OID {column.type_oid}"
                    )
                values[column.name] = entry["value"]
    except (KeyError, TypeError):
        raise StreamMalformed(
            f"wal2json: {part} of a change of {name} is not a list of names, types and values"
        ) from None
    return values


def _text(message: Values, name: str) -> str:
    value = message.get(name)
    if not isinstance(value, str):
        raise StreamMalformed(f"wal2json: a message has no {name}")
    return value


def _table(message: Values) -> TableName:
    return TableName(_text(message, "schema"), _text(message, "table"))


def _lsn(message: Values, name: str) -> int:
    try:
        return parse_lsn(_text(message, name))
    except ValueError:
        raise StreamMalformed(f"wal2json: {name} is not a position in the log") from None


def _xid(message: Values) -> int:
    value = _text(message, "xid")
    if not (value.isascii() and value.isdigit() and len(value) <= 10):
        raise StreamMalformed("wal2json: xid is not a transaction's number")
    return int(value)


def _time(message: Values) -> datetime:
    try:
        when = datetime.fromisoformat(_text(message, "timestamp"))
    except ValueError:
        raise StreamMalformed("wal2json: timestamp is not a time") from None
    if when.tzinfo is None:
        raise StreamMalformed("wal2json: timestamp has no time zone")
    return when


def _no_constant(token: str) -> Any:
    raise ValueError(token)  # NaN and Infinity are no JSON
