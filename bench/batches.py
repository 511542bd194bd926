"""The worker of the target's ceiling: `python -m bench.batches read|copy|upsert DSN DIRECTORY SIZE`.

``read`` puts orders into files of 10,000 rows, as COPY BINARY; ``copy`` and ``upsert`` write them, a transaction each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import psycopg
from psycopg import sql

ROWS: Final = 10_000
_STAGE: Final = "CREATE TEMP TABLE stage (LIKE orders) ON COMMIT DELETE ROWS"
_COLUMNS: Final = (
    *("customer", "status", "note", "amount", "created_at"),
    *("paid", "quantity", "order_date", "attrs"),
)


def read(connection: psycopg.Connection, directory: Path, size: int) -> None:
    """Files of rows, numbered in their order."""
    query = sql.SQL("COPY (SELECT * FROM orders WHERE id BETWEEN {} AND {} ORDER BY id) TO STDOUT (FORMAT binary)")
    for number, low in enumerate(range(1, size + 1, ROWS)):
        high = min(low + ROWS - 1, size)
        statement = query.format(sql.Literal(low), sql.Literal(high))
        with connection.cursor().copy(statement) as copy:
            (directory / f"{number:06}").write_bytes(b"".join(bytes(block) for block in copy))


def write(connection: psycopg.Connection, directory: Path, into: str, then: sql.Composed | None) -> None:
    """Each file in a transaction."""
    statement = sql.SQL("COPY {} FROM STDIN (FORMAT binary)").format(sql.Identifier(into))
    for path in sorted(directory.iterdir()):
        with connection.transaction():
            with connection.cursor().copy(statement) as copy:
                copy.write(path.read_bytes())
            if then is not None:
                connection.execute(then)


def main(arguments: list[str]) -> int:
    """See the module."""
    what, dsn, directory, size = arguments
    with psycopg.connect(dsn, autocommit=True) as connection:
        if what == "read":
            read(connection, Path(directory), int(size))
        elif what == "copy":
            write(connection, Path(directory), "orders", None)
        else:
            connection.execute(_STAGE)
            sets = sql.SQL(", ").join(
                sql.SQL("{} = excluded.{}").format(sql.Identifier(name), sql.Identifier(name)) for name in _COLUMNS
            )
            upsert = sql.SQL("INSERT INTO orders SELECT * FROM stage ON CONFLICT (id) DO UPDATE SET {}").format(sets)
            write(connection, Path(directory), "stage", upsert)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
