"""Sessions with PostgreSQL whose text is exact, and what its errors mean.

Every session, at either end, has the settings under which the output of a type can be read back without loss, on
any server and whatever the role's or the database's own settings are (`TEXT_SETTINGS`). Two more rules hold:

* rows are never hidden: with ``row_security`` off, a table whose policies would filter rows is an error instead;
* what is committed is durable: ``synchronous_commit`` is not ``off``, but what the role or the server has, be it more
  than ``on``. The one exception is the pipeline's own transactions at the target, which say so one by one
  (`towline.pipeline`): what they do not wait for, no position relies on that the source is told.

Errors are translated here and nowhere else: from an SQLSTATE to a coded error of `towline.errors`. The
server's DETAIL is never used, since it holds values of rows, and its message only where that cannot hold any; else it
is kept apart (`RowRefused.said`), for the quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, LiteralString

import psycopg
from psycopg import conninfo

from towline import errors
from towline.postgres.line import within

Side = Literal["source", "target"]

#: Settings under which the text form of every built-in type is exact and the same on every server.
TEXT_SETTINGS: Mapping[str, str] = {
    "client_encoding": "UTF8",
    "datestyle": "ISO",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "xmloption": "content",
    "quote_all_identifiers": "off",
    "search_path": "",  # names of types, functions and tables are printed with their schema (regclass and the like)
}

#: Limits that suit interactive roles, with the version that has them; a daemon's sessions wait and idle for longer.
_NO_LIMITS: Mapping[str, int] = {
    "statement_timeout": 0,
    "idle_in_transaction_session_timeout": 0,
    "idle_session_timeout": 140000,
    "transaction_timeout": 170000,
}

#: For the walsender: the settings of `TEXT_SETTINGS`, as the ``options`` of a libpq connection string.
REPLICATION_OPTIONS = " ".join(f"-c {name}={value}" for name, value in TEXT_SETTINGS.items())

#: How long to wait and how to notice that the other end is gone. What the dsn itself says takes precedence.
_CONNECTION_DEFAULTS: Mapping[str, str] = {
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}

#: How long a server that has let us in may take for the first statements, which set the session up (seconds).
_SET_UP = 30.0

_DURABLE: LiteralString = """
    SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'
"""


def connection_string(dsn: str, side: Side, **parameters: str) -> str:
    """The dsn with the connection defaults where it says nothing, and with ``parameters`` whatever it says.

    Raises ConfigurationInvalid (which does not quote the dsn) when libpq cannot read it.
    """
    try:
        given = conninfo.conninfo_to_dict(dsn)
        return conninfo.make_conninfo("", **{**_CONNECTION_DEFAULTS, **given, **parameters})
    except psycopg.Error:
        # The message is left out, and the cause too: they quote pieces of the dsn, which may be of its password.
        raise errors.ConfigurationInvalid(
            f"the dsn of the {side} is not a libpq connection string",
            hint="Write it as host=… dbname=… user=… or as postgresql://user@host/dbname, special characters escaped.",
        ) from None


def connect(
    dsn: str,
    *,
    application_name: str,
    side: Side,
    autocommit: bool = True,
    search_path: str | None = "",
) -> psycopg.Connection:
    """Open a session.

    ``application_name`` is by convention ``towline <pipeline>``. ``search_path``: empty for pg_catalog alone (always
    so at the source), None to keep what the role has there (for statements that hold an admin's SQL).
    Raises SourceUnavailable, SourceRefused, TargetUnavailable, TargetRefused, ConfigurationInvalid.
    """
    target = connection_string(dsn, side, application_name=application_name, client_encoding="UTF8")
    try:
        # Not prepared by psycopg, which after a rollback deallocates ALL, the statements that others prepared too.
        connection = psycopg.connect(target, autocommit=True, prepare_threshold=None)
    except psycopg.Error as error:
        raise _refusal(error, target, side) from None
    try:
        with within(connection, _SET_UP):
            _configure(connection, "" if side == "source" else search_path)
        connection.autocommit = autocommit
    except psycopg.Error as error:
        connection.close()
        raise translate(error, side) from error
    return connection


def _configure(connection: psycopg.Connection, search_path: str | None) -> None:
    version = connection.info.server_version
    settings = dict(TEXT_SETTINGS)
    del settings["search_path"]
    if search_path is not None:
        settings["search_path"] = search_path
    settings |= {name: "0" for name, since in _NO_LIMITS.items() if version >= since}
    settings |= {
        "row_security": "off",
        "standard_conforming_strings": "on",
        "default_transaction_isolation": "read committed",
        "jit": "off",  # compiling costs more than it gains in statements over a batch of rows
    }
    connection.execute(
        "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS setting(name, value)",
        (list(settings), list(settings.values())),
    )
    connection.execute(_DURABLE)


# ---- Errors ---------------------------------------------------------------------------------------------------

#: What libpq says when a server turns a login down: it passes no SQLSTATE on. Anything else may pass by itself.
_LOGIN_REFUSED: Mapping[str, str] = {
    "password authentication failed": "the password is wrong",
    "no password supplied": "a password is needed",
    "authentication failed": "the authentication failed",
    "no pg_hba.conf entry": "pg_hba.conf has no line that lets this role in",
    "pg_hba.conf rejects": "pg_hba.conf rejects this role",
    "is not permitted to log in": "the role may not log in",
    "permission denied for database": "the role may not connect to the database",
    "does not exist": "the role or the database does not exist",
    "certificate": "the TLS certificate is not accepted",
    "does not support SSL": "the server does not support TLS",
}

_UNREACHABLE: Mapping[str, str] = {
    "Connection refused": "the connection was refused",
    "No such file or directory": "there is no server on that socket",
    "timeout": "no answer within the connection timeout",
    "could not translate host name": "the host name cannot be resolved",
    "failed to resolve host": "the host name cannot be resolved",
    "Name or service not known": "the host name cannot be resolved",
    "starting up": "the server is starting",
    "shutting down": "the server is shutting down",
    "recovery": "the server is in recovery",
    "not accepting connections": "the server does not accept connections now",
    "too many clients": "the server has no connection left",
    "too many connections": "the role or database has no connection left",
    "remaining connection slots": "the server has no connection left",
    "closed the connection": "the server closed the connection",
}


def _refusal(error: psycopg.Error, target: str, side: Side) -> errors.TowlineError:
    """What a failed login means. The message is made anew, since libpq's may quote what it took for a host name."""
    given = conninfo.conninfo_to_dict(target)
    host = str(given.get("host") or given.get("hostaddr") or "the default host")
    database, role = given.get("dbname") or "of the default name", given.get("user") or "the default role"
    where = f"{side} database {database} as {role}"
    if "@" not in host:  # an unescaped @ in the password of a URI ends up here
        where += f" on {host}" + (f" port {given['port']}" if given.get("port") else "")
    said = str(error)
    for phrase, meaning in _LOGIN_REFUSED.items():
        if phrase in said:
            refused = errors.SourceRefused if side == "source" else errors.TargetRefused
            return refused(f"cannot log in to the {where}: {meaning}")
    reason = next((meaning for phrase, meaning in _UNREACHABLE.items() if phrase in said), "it cannot be reached")
    unavailable = errors.SourceUnavailable if side == "source" else errors.TargetUnavailable
    return unavailable(f"cannot connect to the {where}: {reason}")


#: Classes of SQLSTATE whose primary message names objects and settings, but never values of rows.
_SAFE_MESSAGES = ("08", "25", "28", "3D", "3F", "40", "42", "53", "55", "57", "58")

#: By SQLSTATE, or else by its first two characters: the error at the source.
_SOURCE: Mapping[str, type[errors.TowlineError]] = {
    "08": errors.SourceUnavailable,
    "25P03": errors.SourceUnavailable,  # idle_in_transaction_session_timeout
    "25P04": errors.SourceUnavailable,  # transaction_timeout
    "28": errors.SourceRefused,
    "3D": errors.SourceRefused,
    "3F": errors.SourceTableChanged,
    "40": errors.SourceUnavailable,  # among them: cancelled on a standby in favour of its recovery
    "42": errors.SourceTableChanged,
    "42601": errors.TowlineError,  # the statements are ours
    "42501": errors.SourceRefused,
    "53": errors.SourceUnavailable,
    "53400": errors.SourceSettings,  # all replication slots or walsenders are in use
    "55": errors.SourceSettings,  # wal_level, and the like
    "55006": errors.SlotInUse,
    "55P03": errors.SourceUnavailable,
    "57": errors.SourceUnavailable,
    "57P04": errors.SourceRefused,  # the database was dropped
    "58": errors.SourceUnavailable,
    "58P01": errors.PluginRefused,
}

_TARGET: Mapping[str, type[errors.TowlineError]] = {
    "08": errors.TargetUnavailable,
    "25006": errors.TargetUnavailable,  # read-only: a standby before its promotion
    "25P03": errors.TargetUnavailable,
    "25P04": errors.TargetUnavailable,
    "28": errors.TargetRefused,
    "3D": errors.TargetRefused,
    "3F": errors.TargetTableChanged,
    "40": errors.TargetConflict,
    "40002": errors.RowRefused,
    "40003": errors.TargetUnavailable,
    "42": errors.TargetTableChanged,
    "42601": errors.TowlineError,
    "42501": errors.TargetRefused,
    "53": errors.TargetUnavailable,
    "55": errors.TargetConflict,  # lock_not_available, object_in_use, …
    "55000": errors.TargetTableChanged,  # it publishes updates without a replica identity, and the like
    "57": errors.TargetUnavailable,
    "57014": errors.TargetConflict,  # cancelled by an administrator, or by a timeout that a trigger sets
    "57P04": errors.TargetRefused,
    "58": errors.TargetUnavailable,
    "F0": errors.TargetUnavailable,
    "HV00N": errors.TargetUnavailable,  # a foreign table's server
    "XX": errors.TargetUnavailable,
    "XX000": errors.RowRefused,  # what functions in C raise without a code; of the same row each time, as a rule
    # What the rows, the constraints, or the expressions over them raise:
    **dict.fromkeys(
        ("0A", "09", "20", "21", "22", "23", "27", "2F", "38", "39", "44", "54", "HV", "P0"), errors.RowRefused
    ),
}

#: Statements of ours are at fault, not the rows: these mean a defect.
_DEFECTS = ("25", "34", "24", "26", "3B", "0B", "2D")


def condition(sqlstate: str) -> str:
    """The SQLSTATE with its condition's name, e.g. ``SQLSTATE 23505 (UniqueViolation)``."""
    try:
        return f"SQLSTATE {sqlstate} ({psycopg.errors.lookup(sqlstate).__name__})"
    except KeyError:
        return f"SQLSTATE {sqlstate}"


def translate(error: psycopg.Error, side: Side) -> errors.TowlineError:
    """The coded error that an error of the driver or the server stands for; never holds values of rows."""
    sqlstate = error.sqlstate
    if sqlstate is None:
        return _client_error(error, side)
    kind = _kind(error, sqlstate, side)
    translated = kind(_detail(error, sqlstate), sqlstate=sqlstate)
    if isinstance(translated, errors.RowRefused) and not sqlstate.startswith(_SAFE_MESSAGES):
        translated.said = error.diag.message_primary or ""
    return translated


def doubtful(error: psycopg.Error) -> bool:
    """Whether it takes the statement without rows to tell if a row or the target's schema is at fault.

    SQLSTATEs of class 42 and 0A are about names and features, as a rule; but a cast of a value to regclass has them,
    too. What a function's own statement says when it is parsed is about the schema, and so is a privilege that lacks.
    """
    if (error.sqlstate or "")[:2] not in ("42", "0A") or error.sqlstate == "42601":
        return False
    return error.diag.internal_query is None and error.diag.source_function != "aclcheck_error"


def refused_row(error: psycopg.Error) -> errors.RowRefused:
    """What `translate` would say if the SQLSTATE stood for a row."""
    diag = error.diag
    refused = errors.RowRefused(": ".join(_names(error)), sqlstate=error.sqlstate or "")
    refused.said = diag.message_primary or ""
    return refused


def of_schema(error: psycopg.Error) -> errors.TowlineError:
    """What `translate` would say of a statement that was refused without any row."""
    translated = translate(error, "target")
    if not isinstance(translated, errors.RowRefused):
        return translated
    detail = f"{translated.detail}: {translated.said}" if translated.said else translated.detail
    return errors.TargetTableChanged(detail, sqlstate=translated.sqlstate)


def _client_error(error: psycopg.Error, side: Side) -> errors.TowlineError:
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        unavailable = errors.SourceUnavailable if side == "source" else errors.TargetUnavailable
        return unavailable(f"the connection to the {side} was lost")
    if isinstance(error, psycopg.DataError):  # a NUL in text, or text that is not UTF-8
        refused = errors.SourceQueryFailed if side == "source" else errors.RowRefused
        return refused("a value cannot be passed to the server: a NUL character, or text that is not in its encoding")
    return errors.TowlineError(f"the driver raised {type(error).__name__} in a statement for the {side}")


def _kind(error: psycopg.Error, sqlstate: str, side: Side) -> type[errors.TowlineError]:
    table = _SOURCE if side == "source" else _TARGET
    if side == "target" and error.diag.severity_nonlocalized in ("FATAL", "PANIC") and sqlstate[:2] == "XX":
        return errors.TargetUnavailable  # the session is over, or a pooler's is
    if side == "source":
        special = _replication_error(error, sqlstate)
        if special is not None:
            return special
    kind = table.get(sqlstate) or table.get(sqlstate[:2])
    if kind is not None:
        return kind
    if sqlstate[:2] in _DEFECTS:
        return errors.TowlineError
    return errors.SourceQueryFailed if side == "source" else errors.RowRefused


def _replication_error(error: psycopg.Error, sqlstate: str) -> type[errors.TowlineError] | None:
    """Where one SQLSTATE stands for several conditions of replication, names in the message tell them apart.

    A server that speaks another language falls back to the tables: as severe, only less precise.
    """
    message = error.diag.message_primary or ""
    if "output_plugin_libraries" in (error.diag.message_hint or ""):
        return errors.PluginRefused
    if sqlstate == "42704" and "replication slot" in message:
        return errors.SlotMissing
    if sqlstate == "42704" and "publication" in message:
        return errors.PublicationMissing
    if sqlstate == "55000" and "replication slot" in message:
        return errors.SlotLost if "invalid" in message or "obsolete" in message else errors.SlotUnusable
    if sqlstate == "58P01" and "WAL" in message:
        return errors.SlotLost
    return None


def _detail(error: psycopg.Error, sqlstate: str) -> str:
    """The condition, the names of what it concerns, and the message where it is safe."""
    parts = _names(error)
    if sqlstate.startswith(_SAFE_MESSAGES) and error.diag.message_primary:
        parts.append(error.diag.message_primary)
    return ": ".join(parts)


def _names(error: psycopg.Error) -> list[str]:
    """The condition, and the names of what it concerns."""
    diag = error.diag
    parts = [condition(error.sqlstate or "")]
    if diag.table_name:
        parts.append(f"table {diag.schema_name}.{diag.table_name}")
    for label, name in (
        ("column", diag.column_name),
        ("constraint", diag.constraint_name),
        ("type", diag.datatype_name),
    ):
        if name:
            parts.append(f"{label} {name}")
    return parts


@contextmanager
def translating(side: Side) -> Iterator[None]:
    """Raise what `translate` makes of any psycopg error of the body."""
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, side) from error
