"""What findings at a source are made of: the server as it was found, and how they are put into words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import psycopg
from psycopg import sql

from towline.errors import TowlineError
from towline.source import Finding
from towline_transforms.schema import TableName

_NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Server:
    """A row of the statement ``server`` in setup.sql: settings as text, and what there is of slots and walsenders."""

    role: str
    in_recovery: bool
    wal_level: str
    max_slots: int
    slots: int
    max_senders: int
    senders: int
    may_replicate: bool
    max_slot_wal_keep_size: str
    idle_slot_timeout: str
    encoding: str
    hot_standby_feedback: bool
    synchronized_standby_slots: str
    may_create: bool


def fatal(error: type[TowlineError], detail: str, remedy: str) -> Finding:
    """Nothing will work; the code is that of the error that would come."""
    return Finding(error.code, True, detail, remedy)


def warning(error: type[TowlineError], detail: str, remedy: str) -> Finding:
    """A risk; the code is that of the error that it would lead to."""
    return Finding(error.code, False, detail, remedy)


def listed(names: Iterable[object]) -> str:
    """A few of the names, and how many more there are."""
    every = [str(name) for name in names]
    shown = ", ".join(every[:_NAMES_SHOWN])
    return shown + (f" and {len(every) - _NAMES_SHOWN} more" if len(every) > _NAMES_SHOWN else "")


def text(connection: psycopg.Connection, template: str, *names: sql.Composable) -> str:
    """A statement to be run by a person, with names quoted."""
    return sql.SQL(template).format(*names).as_string(connection)


def identifiers(tables: Iterable[TableName]) -> sql.Composable:
    """Tables, as a statement lists them."""
    return sql.SQL(", ").join(sql.Identifier(table.schema, table.name) for table in tables)
