"""Sessions against real servers: settings, refusals, what errors keep and leave out."""

from __future__ import annotations

import os
import socket
from contextlib import closing
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.support.databases import NewDatabase
from towline import errors
from towline.demo.server import Server
from towline.postgres.session import REPLICATION_OPTIONS, TEXT_SETTINGS, connect, connection_string, translating
from towline.target.postgres.executor import Executor
from towline.target.postgres.writing_session import WritingSession


def settings_of(connection: psycopg.Connection) -> dict[str, str]:
    return {name: connection.execute("SELECT current_setting(%s)", (name,)).fetchone()[0] for name in TEXT_SETTINGS}  # type: ignore[index]


def test_settings_override_the_database_s_own(pg18: Server, new_database: NewDatabase) -> None:
    """Text is exact whatever the database's or the role's defaults are, for queries and for the walsender alike."""
    dsn = new_database(pg18)
    with psycopg.connect(dsn, autocommit=True) as admin:
        for name, value in {
            "datestyle": "German, DMY",
            "intervalstyle": "sql_standard",
            "timezone": "Asia/Kolkata",
            "extra_float_digits": "-3",
            "bytea_output": "escape",
            "search_path": "public",
            "synchronous_commit": "off",
            "statement_timeout": "1min",
            "row_security": "on",
        }.items():
            admin.execute(
                sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                    sql.Identifier(admin.info.dbname), sql.Identifier(name), sql.Literal(value)
                )
            )
    with connect(dsn, application_name="towline test", side="source") as connection:
        ours = settings_of(connection)
        row = connection.execute(
            "SELECT current_setting('statement_timeout'), current_setting('synchronous_commit'), "
            "current_setting('row_security'), current_setting('application_name')"
        ).fetchone()
    assert row == ("0", "on", "off", "towline test")
    with psycopg.connect(connection_string(dsn, "source", options=REPLICATION_OPTIONS)) as walsender_like:
        theirs = settings_of(walsender_like)
    # The order of day and month in input stays the database's own: it changes no output.
    assert ours.pop("datestyle").startswith("ISO, ")
    assert theirs.pop("datestyle").startswith("ISO, ")
    assert ours == theirs == {name: value for name, value in TEXT_SETTINGS.items() if name != "datestyle"}


def test_the_role_s_search_path_can_stay(pg18: Server, new_database: NewDatabase) -> None:
    """An admin's SQL finds the operators of extensions where the role finds them."""
    dsn = new_database(pg18)
    with connect(dsn, application_name="t", side="target", search_path=None) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ('"$user", public',)


def test_what_is_prepared_outlives_a_rollback(pg18: Server, new_database: NewDatabase) -> None:
    """psycopg deallocates ALL after one, once it has prepared a statement for itself."""
    with connect(new_database(pg18), application_name="t", side="target") as connection:
        executor = Executor(connection)
        executor.run("SELECT 1", prepare=True)
        executor.sync()
        for _ in range(10):  # the default is to prepare from the fifth on
            connection.execute("SELECT 2")
        connection.execute("BEGIN")
        connection.execute("ROLLBACK")
        again = executor.run("SELECT 1", prepare=True)
        executor.sync()
    assert again.rows == [("1",)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"dbname": "no such database"}, errors.SourceRefused),
        ({"user": "nobody at all"}, errors.SourceRefused),
        ({"port": "1"}, errors.SourceUnavailable),
        ({"host": "/nonexistent"}, errors.SourceUnavailable),
    ],
)
def test_failed_logins(pg18: Server, change: dict[str, str], kind: type[errors.TowlineError]) -> None:
    """What a person must correct is told apart from what may pass."""
    with pytest.raises(kind):
        connect(pg18.dsn("postgres", **change), application_name="t", side="source")


def test_errors_name_things_but_no_values(pg18: Server, new_database: NewDatabase) -> None:
    """The constraint and the table are in the message; the row, which DETAIL holds, is not."""
    with connect(new_database(pg18), application_name="t", side="target") as connection:
        connection.execute("CREATE TABLE public.t (a text CONSTRAINT t_key PRIMARY KEY)")
        connection.execute("INSERT INTO public.t VALUES ('4711')")
        with pytest.raises(errors.RowRefused) as caught, translating("target"):
            connection.execute("INSERT INTO public.t VALUES ('4711')")
        assert "t_key" in str(caught.value)
        assert "public.t" in str(caught.value)
        assert "4711" not in str(caught.value)


def test_an_ended_session_is_an_outage(pg18: Server, new_database: NewDatabase) -> None:
    """pg_terminate_backend, a shutdown and a crash look alike: try again."""
    dsn = new_database(pg18)
    with connect(dsn, application_name="t", side="target") as connection, psycopg.connect(dsn) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", (connection.info.backend_pid,))
        with pytest.raises(errors.TargetUnavailable), translating("target"):
            connection.execute("SELECT 1")
        with pytest.raises(errors.TargetUnavailable), translating("target"):
            connection.execute("SELECT 1")


def test_what_is_written_has_room_on_a_unix_socket(pg18: Server, new_database: NewDatabase) -> None:
    """As much as the kernel allows; a TCP connection's room is left to grow by itself."""
    dsn = new_database(pg18)
    local = pg18.socket_dsn(str(psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]))

    def room(connection: psycopg.Connection[Any]) -> int:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            return line.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    for where, grows in ((local, True), (dsn, False)):
        writing = WritingSession(
            where, pipeline="p", schema="towline", predecessor=None, connected=lambda made: None, failed=lambda: None
        )
        with connect(where, application_name="t", side="target") as other, closing(writing):
            usual = room(other)
            assert (room(writing.connection) > usual) is grows
