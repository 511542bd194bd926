"""Identifiers: how PostgreSQL reads them, and how to write them so that it reads the same.

Source: https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS, and
``downcase_truncate_identifier`` in PostgreSQL's ``scansup.c``.
"""

from __future__ import annotations

import difflib
import string
from collections.abc import Iterable

from towline_transforms.schema import TableName

#: NAMEDATALEN - 1: PostgreSQL cuts longer identifiers, in bytes, at a character's border.
MAX_BYTES = 63

_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def fold(text: str, *, quoted: bool) -> str:
    """The name that an identifier means: lower case unless quoted (ASCII letters only, as in a UTF-8 database)."""
    name = text if quoted else text.translate(_ASCII_LOWER)
    return name.encode("utf-8", "surrogatepass")[:MAX_BYTES].decode("utf-8", "ignore")


def quote(name: str) -> str:
    """The name as a quoted identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_table(name: TableName) -> str:
    """The name as SQL, both parts quoted."""
    return f"{quote(name.schema)}.{quote(name.name)}"


def quote_list(names: Iterable[str]) -> str:
    """The names as SQL, quoted and separated by commas."""
    return ", ".join(map(quote, names))


def suggest(name: str, known: Iterable[str]) -> str:
    """``"Did you mean a or b?"``, or an empty string when nothing known is near."""
    near = difflib.get_close_matches(name, sorted(set(known)), n=3, cutoff=0.6)
    return f"Did you mean {' or '.join(near)}?" if near else ""


def suggest_table(name: TableName, known: Iterable[TableName]) -> str:
    """As `suggest`, for a table: near ones of its schema, or those of its very name in others."""
    tables = list(known)
    near = difflib.get_close_matches(
        name.name, sorted({table.name for table in tables if table.schema == name.schema}), n=3
    )
    elsewhere = sorted((table for table in tables if table.name == name.name), key=str)
    found = [TableName(name.schema, each) for each in near] or elsewhere
    return f"Did you mean {' or '.join(map(str, found))}?" if found else ""
