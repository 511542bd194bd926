"""Makes the captured bytes in ``data/`` that the decoder tests read, from a server that has both plugins.

    python -m tests.unit.source.capture "host=/tmp port=5432 user=postgres" [NAME…]

With names, only those files: ``pgoutput-streamed`` takes a server from 16 on, the others one that has wal2json.
A file holds messages one after the other, each with its length before it (int32, big endian), as they came out of the
plugin. All files tell of the same transactions. A capture needs making anew only when `SCRIPT` changes.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import psycopg

DATA = Path(__file__).parent / "data"
DATABASE = "towline_capture"
SCHEMA = """
    CREATE TYPE mood AS ENUM ('fine');
    CREATE TABLE item (id int PRIMARY KEY, code text, price numeric(10,2), weight float8, ok bool, raw bytea,
                       at timestamptz, note text, spare text);
    CREATE TABLE "Whole Row" (id int PRIMARY KEY, note text, mood mood);
    CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL, n int);
    CREATE TABLE unwanted (id int PRIMARY KEY);
    ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
    ALTER TABLE "Whole Row" ALTER note SET STORAGE EXTERNAL;
    ALTER TABLE "Whole Row" REPLICA IDENTITY FULL;
    CREATE UNIQUE INDEX by_index_code ON by_index (code);
    ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code;
    CREATE PUBLICATION capture FOR ALL TABLES;
"""
#: Each is one transaction.
SCRIPT = (
    """INSERT INTO item VALUES
       (1, 'a', 1.10, 1e-7, true, '\\x00ff', '2024-02-29 12:00:00.000001+00', repeat('n', 2100), NULL),
       (2, '', 0, '-0', false, '', '0044-03-15 00:00:00+00 BC', E'é "quoted"\\n', 'spare')""",
    "UPDATE item SET price = 2 WHERE id = 1",
    "UPDATE item SET id = 3 WHERE id = 1",
    "UPDATE item SET id = 4, note = 'short' WHERE id = 2",
    "BEGIN; DELETE FROM item WHERE id = 4; INSERT INTO unwanted VALUES (1); COMMIT",
    """BEGIN; INSERT INTO "Whole Row" VALUES (1, repeat('w', 2100), 'fine'); UPDATE "Whole Row" SET mood = NULL;
       UPDATE "Whole Row" SET id = 2; DELETE FROM "Whole Row"; COMMIT""",
    """BEGIN; INSERT INTO by_index VALUES (1, 'x', 1); UPDATE by_index SET id = 2; UPDATE by_index SET code = 'y';
       COMMIT""",
    "DELETE FROM by_index",
    "SELECT pg_logical_emit_message(true, 'prefix', 'content')",
    """BEGIN; INSERT INTO item (id) VALUES (5); TRUNCATE item, by_index RESTART IDENTITY;
       INSERT INTO item (id) VALUES (6); COMMIT""",
    """SELECT pg_replication_origin_session_setup('towline_capture');
       INSERT INTO item (id, spare) VALUES (7, 'from elsewhere');
       SELECT pg_replication_origin_session_reset()""",
    "ALTER TABLE item DROP spare",
    "INSERT INTO item (id, code) VALUES (8, 'narrower')",
)
PLUGINS = {
    "pgoutput-text": ("pgoutput", {"proto_version": "1", "publication_names": "capture", "messages": "true"}),
    "pgoutput-binary": (
        "pgoutput",
        {"proto_version": "1", "publication_names": "capture", "messages": "true", "binary": "true"},
    ),
    "pgoutput-streamed": (
        "pgoutput",
        {"proto_version": "2", "publication_names": "capture", "messages": "true", "streaming": "on"},
    ),
    "wal2json": (
        "wal2json",
        {
            "format-version": "2",
            "include-xids": "1",
            "include-timestamp": "1",
            "include-lsn": "1",
            "include-transaction": "1",
            "include-types": "0",
            "include-type-oids": "1",
        },
    ),
}


def read(name: str) -> list[bytes]:
    """The messages of a captured file."""
    data = gzip.decompress((DATA / f"{name}.gz").read_bytes())
    messages = []
    at = 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        messages.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return messages


def main(dsn: str, *names: str) -> None:
    """Run the script in a database of its own, and write what each plugin makes of it."""
    plugins = {name: PLUGINS[name] for name in names or PLUGINS.keys() - {"pgoutput-streamed"}}
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE IF EXISTS {DATABASE}".encode())
        connection.execute(f"CREATE DATABASE {DATABASE} TEMPLATE template0".encode())
    settings = "-c timezone=UTC -c extra_float_digits=3 -c search_path="
    with psycopg.connect(dsn, dbname=DATABASE, autocommit=True, options=settings) as connection:
        connection.execute(b"SET search_path = public")
        connection.execute(SCHEMA.encode())
        connection.execute(b"SELECT pg_replication_origin_create('towline_capture')")
        for name, (plugin, _) in plugins.items():
            slot = "capture_" + name.replace("-", "_")
            connection.execute("SELECT pg_create_logical_replication_slot(%s, %s)", (slot, plugin))
        for statement in SCRIPT:
            connection.execute(statement.encode())
        connection.execute(b"SET search_path = ''")
        if "pgoutput-streamed" in plugins:
            connection.execute(b"SET debug_logical_replication_streaming = immediate")
        for name, (_, options) in plugins.items():
            slot = "capture_" + name.replace("-", "_")
            rows = connection.execute(
                "SELECT data FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL, VARIADIC %s::text[])",
                (slot, [part for option in options.items() for part in option]),
            ).fetchall()
            data = b"".join(len(message).to_bytes(4, "big") + message for (message,) in rows)
            (DATA / f"{name}.gz").write_bytes(gzip.compress(data, 9, mtime=0))
            connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        connection.execute(b"SELECT pg_replication_origin_drop('towline_capture')")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {DATABASE}".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
