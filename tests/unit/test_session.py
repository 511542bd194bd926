"""What errors of servers and of the driver mean, and what their messages may say."""

from __future__ import annotations

import psycopg
import pytest

from towline import errors
from towline.postgres import session
from towline.postgres.session import Side, connect, connection_string, translate


def server_error(sqlstate: str) -> psycopg.Error:
    """An error as the server raises it, without its message."""
    return psycopg.errors.lookup(sqlstate)("message with the value 4711")


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08006", errors.TargetUnavailable),
        ("57P01", errors.TargetUnavailable),
        ("57P03", errors.TargetUnavailable),
        ("53100", errors.TargetUnavailable),
        ("53200", errors.TargetUnavailable),
        ("53300", errors.TargetUnavailable),
        ("25006", errors.TargetUnavailable),
        ("25P03", errors.TargetUnavailable),
        ("58030", errors.TargetUnavailable),
        ("40003", errors.TargetUnavailable),
        ("XX001", errors.TargetUnavailable),
        ("XX000", errors.RowRefused),
        ("55000", errors.TargetTableChanged),
        ("28P01", errors.TargetRefused),
        ("42501", errors.TargetRefused),
        ("3D000", errors.TargetRefused),
        ("40001", errors.TargetConflict),
        ("40P01", errors.TargetConflict),
        ("55P03", errors.TargetConflict),
        ("57014", errors.TargetConflict),
        ("42P01", errors.TargetTableChanged),
        ("42703", errors.TargetTableChanged),
        ("3F000", errors.TargetTableChanged),
        ("22P02", errors.RowRefused),
        ("22001", errors.RowRefused),
        ("23505", errors.RowRefused),
        ("23503", errors.RowRefused),
        ("23514", errors.RowRefused),
        ("21000", errors.RowRefused),
        ("2F002", errors.RowRefused),
        ("P0001", errors.RowRefused),
        ("44000", errors.RowRefused),
        ("25P02", errors.TowlineError),
    ],
)
def test_sqlstates_at_the_target(sqlstate: str, kind: type[errors.TowlineError]) -> None:
    """An outage is retried, a conflict too, a row is refused, and what a person must do is told apart."""
    translated = translate(server_error(sqlstate), "target")
    assert type(translated) is kind
    assert translated.sqlstate == sqlstate


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("08003", errors.SourceUnavailable),
        ("57P02", errors.SourceUnavailable),
        ("57014", errors.SourceUnavailable),
        ("40001", errors.SourceUnavailable),
        ("53300", errors.SourceUnavailable),
        ("55P03", errors.SourceUnavailable),
        ("28000", errors.SourceRefused),
        ("42501", errors.SourceRefused),
        ("3D000", errors.SourceRefused),
        ("53400", errors.SourceSettings),
        ("55000", errors.SourceSettings),
        ("55006", errors.SlotInUse),
        ("58P01", errors.PluginRefused),
        ("42P01", errors.SourceTableChanged),
        ("42703", errors.SourceTableChanged),
        ("22012", errors.SourceQueryFailed),
        ("XX000", errors.SourceQueryFailed),
    ],
)
def test_sqlstates_at_the_source(sqlstate: str, kind: type[errors.TowlineError]) -> None:
    """The same for the source, where nothing of ours can be wrong with a row."""
    assert type(translate(server_error(sqlstate), "source")) is kind


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("consuming input failed: server closed the connection unexpectedly"),
        psycopg.InterfaceError("the connection is closed"),
    ],
)
def test_a_lost_connection_is_retried(error: psycopg.Error, side: Side) -> None:
    """Losing the connection says nothing about rows or settings."""
    assert translate(error, side).action is errors.Action.RETRY


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("error", [server_error("22P02"), server_error("23505"), psycopg.DataError("value 4711")])
def test_no_values_in_messages(error: psycopg.Error, side: Side) -> None:
    """Messages of errors about data hold values of rows, and are left out."""
    assert "4711" not in str(translate(error, side))


def test_the_condition_is_named() -> None:
    """An SQLSTATE alone sends people to the manual."""
    assert session.condition("23505") == "SQLSTATE 23505 (UniqueViolation)"
    assert session.condition("ZZ999") == "SQLSTATE ZZ999"


@pytest.mark.parametrize(
    "dsn",
    ["host=h password=s3cret nonsense", "postgresql://u:s3cret%zz@h/d", "s3cret=1"],
)
def test_an_unreadable_dsn_is_not_quoted(dsn: str) -> None:
    """libpq quotes what it cannot read, which may be a password."""
    with pytest.raises(errors.ConfigurationInvalid) as caught:
        connection_string(dsn, "source")
    assert "s3cret" not in str(caught.value) + caught.value.advice
    assert caught.value.__cause__ is None


def test_the_dsn_takes_precedence_over_defaults() -> None:
    """Timeouts that an admin set stay; the application's name is ours."""
    given = psycopg.conninfo.conninfo_to_dict(
        connection_string("host=h connect_timeout=3 application_name=x", "target", application_name="towline p")
    )
    assert given["connect_timeout"] == "3"
    assert given["application_name"] == "towline p"
    assert given["tcp_user_timeout"] == "60000"


@pytest.mark.parametrize(
    "dsn",
    [
        "host=127.0.0.1 port=1 password=s3cret",
        "postgresql://u:half@s3cret@127.0.0.1:1/d",
        "postgresql://u:half:s3cret@127.0.0.1:port/d",
    ],
)
def test_a_failed_connection_tells_no_password(dsn: str) -> None:
    """Not even the half of one that libpq takes for a host name."""
    with pytest.raises(errors.SourceUnavailable) as caught:
        connect(dsn, application_name="towline test", side="source")
    assert "s3cret" not in str(caught.value)
