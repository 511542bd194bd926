"""How a pipeline file writes a table: ``schema.table``, or ``schema.*`` for all tables of a schema."""

from __future__ import annotations

import re

from towline_transforms.schema import TableName

#: In place of a table's name: all ordinary and partitioned tables of the schema.
ALL_TABLES = "*"

_TABLE = re.compile(r'(?P<schema>"(?:[^"]|"")+"|[^".]+)\.(?P<name>"(?:[^"]|"")+"|[^"]+)\Z', re.DOTALL)


def parse_table(text: str) -> TableName:
    """Read ``schema.table``, split at the first dot, or ``schema.*`` for all tables.

    Names are taken as they are (no folding to lower case): ``public.party-party`` needs no quotes. A name with a dot
    does: ``"Odd.Schema"."Odd.Name"``; a quote in it is doubled, as in SQL.
    Raises ValueError, which says what was expected and not what was there.
    """
    match = _TABLE.match(text)
    if match is None:
        raise ValueError('a table as schema.table (or schema.*; odd names in "double quotes")')
    parts = []
    for place, part in enumerate(match.groups()):
        quoted = part.startswith('"')
        name = part[1:-1].replace('""', '"') if quoted else part
        if not 0 < len(name.encode()) < 64 or not name.isprintable() or name != name.strip():
            raise ValueError("a table name of 1 to 63 bytes, without spaces around it")
        if name == ALL_TABLES and (quoted or place == 0):
            raise ValueError("* only in place of the table, as in public.*")
        if "*" in name and name != ALL_TABLES and not quoted:
            raise ValueError("* alone, as in public.* (patterns such as sale_* are not supported)")
        parts.append(name)
    return TableName(*parts)
