"""The quarantine as people and commands see it: its entries, read, tried again, edited and resolved.

The daemon writes entries (`towline.target.postgres.quarantine`); whoever changes several of them, or tries one again,
holds the pipeline's checkpoint (`Entries.hold`), so that the daemon and the command take turns.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from towline.errors import EditRefused, EntryClosed, EntryUnknown, NotSetUp
from towline.position import format_lsn, parse_lsn
from towline.postgres.session import condition
from towline_transforms.route import MASK

#: The states that an entry can be in.
STATES = ("open", "retried", "superseded", "discarded")

_COLUMNS: LiteralString = """
id, route, key, position::text, ordinal, commit_time, xid, operation, "row"::text, not_sent, masked, unreadable,
sqlstate, message, attempts, edits::text, state, created_at, resolved_at, resolved_by, reason
"""

_SELECT: LiteralString = "SELECT {columns} FROM {table} WHERE pipeline = %(pipeline)s AND {which} ORDER BY id {more}"

_KEYS_BEHIND: LiteralString = "SELECT DISTINCT route, key FROM {table} WHERE pipeline = %s AND behind"

_HOLD: LiteralString = "SELECT FROM {checkpoint} WHERE pipeline = %s FOR UPDATE"

_RETRIED: LiteralString = """
UPDATE {table} SET
    state = CASE WHEN id = %(id)s THEN 'retried' WHEN state = 'open' THEN 'superseded' ELSE state END,
    reason = CASE WHEN id = %(id)s THEN NULL WHEN state = 'open' THEN 'a later change of the row was retried'
             ELSE reason END,
    resolved_at = CASE WHEN state = 'open' THEN now() ELSE resolved_at END,
    resolved_by = CASE WHEN state = 'open' THEN %(by)s ELSE resolved_by END,
    attempts = attempts + (id = %(id)s)::int, behind = false
WHERE pipeline = %(pipeline)s AND route = %(route)s AND key = %(key)s AND behind AND id <= %(id)s
  AND hashtextextended(key, 0) = hashtextextended(%(key)s, 0)
"""

_FAILED: LiteralString = """
UPDATE {table} SET sqlstate = %s, message = %s, attempts = attempts + 1 WHERE pipeline = %s AND id = %s
"""

_DISCARD: LiteralString = """
UPDATE {table} SET state = 'discarded', resolved_at = now(), resolved_by = %s, reason = %s
WHERE pipeline = %s AND id = ANY (%s) AND state = 'open'
"""

_MASK: LiteralString = """
UPDATE {table} SET "row" = %s::json, masked = %s, edits = %s::json, message = %s WHERE pipeline = %s AND id = %s
"""

_EDIT: LiteralString = """
UPDATE {table} SET "row" = %s::json, not_sent = %s, unreadable = %s, edits = %s::json WHERE pipeline = %s AND id = %s
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A change that was set aside. ``key`` and ``row``: the source's text by column; ``row`` is None for a delete.

    ``not_sent``, ``masked``, ``unreadable``: columns whose value is not in ``row`` (masked ones are there as `MASK`).
    ``position``: where the commit record starts, or up to where the chunk was loaded; ``ordinal``: its number in
    the transaction or chunk.
    """

    id: int
    route: str
    key: Mapping[str, str]
    position: int
    ordinal: int
    commit_time: datetime | None
    xid: int | None
    operation: str
    row: Mapping[str, str | None] | None
    not_sent: tuple[str, ...]
    masked: tuple[str, ...]
    unreadable: tuple[str, ...]
    sqlstate: str
    message: str
    attempts: int
    edits: tuple[Mapping[str, Any], ...]
    state: str
    created_at: datetime
    resolved_at: datetime | None
    resolved_by: str | None
    reason: str | None

    def masking(self, sensitive: Collection[str]) -> Entry:
        """The entry without the values of these columns, which may have become sensitive later; then the message is
        cut down, too, as it may quote them.
        """
        row = self.row and {name: MASK if name in sensitive else value for name, value in self.row.items()}
        edits = (
            {**edit, "old": MASK, "new": MASK} if edit["column"] in sensitive else dict(edit) for edit in self.edits
        )
        values = {name: getattr(self, name) for name in self.__slots__}
        key = {name: MASK if name in sensitive else value for name, value in self.key.items()}
        later = any(name in (self.row or {}) and name not in self.masked for name in sensitive)
        message = condition(self.sqlstate) if later else self.message
        return Entry(**{**values, "key": key, "row": row, "edits": tuple(edits), "message": message})

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["position"] = format_lsn(self.position)
        for name in ("commit_time", "created_at", "resolved_at"):
            values[name] = None if values[name] is None else values[name].isoformat()
        return values


class Entries:
    """The entries of a pipeline, over a session with the target (psycopg's errors are the caller's)."""

    def __init__(self, connection: psycopg.Connection[Any], *, schema: str, pipeline: str) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._schema = schema
        self._names = {
            "table": sql.Identifier(schema, "quarantine"),
            "checkpoint": sql.Identifier(schema, "checkpoint"),
            "columns": sql.SQL(_COLUMNS),
        }

    def hold(self) -> None:
        """Keep the daemon from its next transaction until this one ends. Raises NotSetUp."""
        if not self._run(_HOLD, (self._pipeline,)).rowcount:
            raise NotSetUp(f"the target has no checkpoint of pipeline {self._pipeline}")

    def who(self) -> str:
        """Who resolves an entry: the role at the target, and the user of this machine."""
        row = self._connection.execute("SELECT session_user::text").fetchone()
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = str(os.getuid())
        return f"{row[0] if row is not None else ''} (system user {user})"

    def find(self, *, route: str | None = None, state: str | None = "open", limit: int | None = None) -> list[Entry]:
        """Entries in their order."""
        which = [sql.SQL("true")]
        if route is not None:
            which.append(sql.SQL("route = %(route)s"))
        if state is not None:
            which.append(sql.SQL("state = %(state)s"))
        more = sql.SQL("") if limit is None else sql.SQL("LIMIT {}").format(sql.Literal(limit))
        return self._select(sql.SQL(" AND ").join(which), more, route=route, state=state)

    def named(self, ids: Collection[int]) -> list[Entry]:
        """The entries of those numbers, in their order. Raises EntryUnknown."""
        found = self._select(sql.SQL("id = ANY (%(ids)s)"), sql.SQL(""), ids=list(ids))
        if unknown := sorted(set(ids) - {entry.id for entry in found}):
            raise EntryUnknown(f"the quarantine of {self._pipeline} has no entry {', '.join(map(str, unknown))}")
        return found

    def keys_behind(self) -> dict[str, set[tuple[str, ...]]]:
        """By route, the key columns of what is set aside and not overtaken. Raises NotSetUp."""
        found: dict[str, set[tuple[str, ...]]] = {}
        for route, key in self._run(_KEYS_BEHIND, (self._pipeline,)):
            found.setdefault(route, set()).add(tuple(json.loads(key)))
        return found

    def opened(self, ids: Collection[int]) -> list[Entry]:
        """As `named`. Raises EntryClosed, too."""
        found = self.named(ids)
        for entry in found:
            if entry.state != "open":
                raise EntryClosed(f"entry {entry.id} is {entry.state}")
        return found

    def retried(self, entry: Entry, by: str) -> None:
        """The entry was applied: those of its key that came before it are void."""
        values = {"id": entry.id, "by": by, "pipeline": self._pipeline, "route": entry.route}
        self._run(_RETRIED, {**values, "key": json.dumps(entry.key)})

    def failed(self, entry: Entry, sqlstate: str, message: str) -> None:
        """The entry was tried, and refused."""
        self._run(_FAILED, (sqlstate, message, self._pipeline, entry.id))

    def mask(self, route: str, sensitive: Collection[str]) -> None:
        """Take the values of these columns, which may have become sensitive since, out of all entries of the route."""
        which = sql.SQL('route = %(route)s AND "row" IS NOT NULL AND NOT masked @> %(sensitive)s')
        for entry in self._select(which, sql.SQL(""), route=route, sensitive=sorted(sensitive)):
            held = {name for name in sensitive if name in (entry.row or {}) and name not in entry.masked}
            if held or any(edit["column"] in sensitive and edit["new"] != MASK for edit in entry.edits):
                masked = entry.masking(sensitive)
                columns = [*entry.masked, *sorted(held)]
                row = None if masked.row is None else json.dumps(dict(masked.row))
                edits = json.dumps([dict(edit) for edit in masked.edits])
                self._run(_MASK, (row, columns, edits, masked.message, self._pipeline, entry.id))

    def discard(self, ids: Collection[int], by: str, reason: str) -> None:
        """Give entries up. Raises EntryUnknown, EntryClosed."""
        with self._connection.transaction():
            self.opened(ids)
            if self._run(_DISCARD, (by, reason, self._pipeline, list(ids))).rowcount != len(set(ids)):
                raise EntryClosed("an entry was resolved just now by the daemon")

    def edit(self, number: int, values: Mapping[str, str | None], by: str, sensitive: Collection[str]) -> None:
        """Change columns of an entry's row, and keep what they were. Raises EntryUnknown, EntryClosed, EditRefused."""
        with self._connection.transaction():
            self.hold()
            (entry,) = self.opened([number])
            if entry.row is None:
                raise EditRefused(f"entry {number} is a delete, which has only a key")
            known = {*entry.row, *entry.not_sent, *entry.unreadable}
            edits = [dict(edit) for edit in entry.edits]
            (now,) = self._connection.execute("SELECT now()").fetchone() or (None,)
            for column, value in values.items():
                if column in entry.key or column in entry.masked or column in sensitive or column not in known:
                    why = (
                        "part of the key"
                        if column in entry.key
                        else "unknown to the entry"
                        if column not in known
                        else "sensitive"
                    )
                    raise EditRefused(f"column {column} of entry {number} is {why}")
                edits.append(
                    {
                        "at": str(now),
                        "by": by,
                        "column": column,
                        "had_value": column in entry.row,
                        "old": entry.row.get(column),
                        "new": value,
                    }
                )
            left = ([name for name in names if name not in values] for names in (entry.not_sent, entry.unreadable))
            row = json.dumps({**entry.row, **values})
            self._run(_EDIT, (row, *left, json.dumps(edits), self._pipeline, number))

    def _select(self, which: sql.Composable, more: sql.Composable, **values: Any) -> list[Entry]:
        rows = self._run(_SELECT, {"pipeline": self._pipeline, **values}, which=which, more=more).fetchall()
        return [_entry(row) for row in rows]

    def _run(self, statement: LiteralString, values: Any, **parts: sql.Composable) -> psycopg.Cursor[Any]:
        try:
            return self._connection.execute(sql.SQL(statement).format(**self._names, **parts), values)
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            raise NotSetUp(f"the target has no control tables in schema {self._schema}", sqlstate="42P01") from None


def _entry(row: Sequence[Any]) -> Entry:
    found = dict(zip(Entry.__slots__, row, strict=True))
    found["key"] = json.loads(found["key"])
    found["position"] = parse_lsn(found["position"])
    found["row"] = None if found["row"] is None else json.loads(found["row"])
    found["edits"] = tuple(json.loads(found["edits"] or "[]"))
    for name in ("not_sent", "masked", "unreadable"):
        found[name] = tuple(found[name])
    return Entry(**found)
