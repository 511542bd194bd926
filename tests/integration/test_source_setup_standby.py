"""A standby as the source: PostgreSQL 16 and newer decode there too, and older ones say that they do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from tests.support.wait import until
from towline.change import Format, Relation
from towline.demo.programs import debian_bindir, embedded_bindir
from towline.demo.server import Server
from towline.postgres.catalog import describe
from towline.postgres.session import connect
from towline.source.postgres.setup import check
from towline.source.postgres.tables import PostgresTables
from towline_transforms.schema import TableName

T = TableName("public", "t")


@contextmanager
def pair(directory: Path, bindir: Path) -> Iterator[tuple[Server, Server]]:
    """A primary with a table, and its standby."""
    with Server(directory / "primary", bindir, durable=False) as primary:
        with psycopg.connect(primary.dsn(), autocommit=True) as connection:
            connection.execute("CREATE TABLE t (a int PRIMARY KEY)")
            connection.execute("INSERT INTO t VALUES (1)")
        standby = Server(
            directory / "standby", bindir, settings={"primary_conninfo": primary.dsn(dbname="")}, durable=False
        )
        copied = standby._account.run(
            [str(standby.bindir / "pg_basebackup"), "-D", str(standby.data), "-d", primary.dsn(), "-X", "stream", "-R"],
            cwd=standby.directory,
        )
        assert copied.returncode == 0, copied.stdout
        with standby:
            yield primary, standby


def test_reading_from_a_standby(scratch: Path) -> None:
    """Rows and positions come from the standby's replay; what it cannot say about transactions is not assumed."""
    with pair(scratch / "pair18", embedded_bindir()) as (primary, standby), psycopg.connect(primary.dsn()) as writer:
        reader = PostgresTables(standby.dsn(), slot="s")
        main = PostgresTables(primary.dsn(), slot="s")
        try:
            assert reader.identity() == main.identity()
            assert not reader.slot().exists
            row = writer.execute("INSERT INTO t VALUES (2) RETURNING pg_current_xact_id()::text::bigint").fetchone()
            assert row is not None
            relation = Relation(main.describe([T]).tables[T], main.describe([T]).tables[T].columns, Format.TEXT)
            flushed = main.position()
            with psycopg.connect(primary.dsn(), autocommit=True) as connection:
                connection.execute("INSERT INTO t VALUES (3)")
            until(lambda: reader.position() > flushed, describe="the standby has replayed")
            chunk = reader.chunk(relation, None, 9)
            assert chunk.rows.column(0) == [b"1", b"3"]
            assert not chunk.visibility.sees(row[0])
            assert chunk.high > flushed
            writer.commit()
            until(lambda: reader.visibility().sees(row[0]), describe="the standby shows the transaction")
            assert reader.chunk(relation, None, 9).rows.column(0) == [b"1", b"2", b"3"]
        finally:
            reader.close()
            main.close()
        with connect(standby.dsn(), application_name="t", side="source") as connection:
            relations = [relation]
            found = check(connection, relations, plugin="pgoutput", slot="s", publication="p")
            assert [(finding.fatal, finding.code) for finding in found] == [(True, "TL-303"), (False, "TL-303")]
            assert "at the primary" in found[0].detail
            assert found[0].remedy.startswith("CREATE PUBLICATION")
            assert "hot_standby_feedback" in found[1].detail


@pytest.mark.debian
def test_older_standbys_cannot_decode(scratch: Path, pg15: Server) -> None:
    """Found by check, instead of an error from the slot's creation."""
    with (
        pair(scratch / "pair15", debian_bindir(15)) as (_, standby),
        connect(standby.dsn(), application_name="t", side="source") as connection,
    ):
        table = describe(connection, [T]).tables[T]
        relations = [Relation(table, table.columns, Format.TEXT)]
        (finding,) = check(connection, relations, plugin="wal2json", slot="s")
        assert (finding.fatal, finding.code) == (True, "TL-303")
        assert "PostgreSQL 16" in finding.remedy
