"""Which server answers. A dsn may name several, and an address may move from one to another between two connections.

So every connection of an attempt is held against the one that was checked, the stream's above all. Of a primary, what
is asked once holds as long as the connection: neither its timeline nor its being one changes without a restart. A
standby is promoted with its connections open; `standby` sees to that.
"""

from __future__ import annotations

from typing import Any

import psycopg

from towline.errors import SourceUnavailable
from towline.postgres import statements
from towline.source import Identity

_IDENTITY = statements.load("towline.source.postgres", "tables.sql")["identity"]


def read(connection: psycopg.Connection[Any]) -> Identity:
    """The identity of the server of that session, which may be one in replication mode.

    A standby's timeline is that of its control file, and may be out of date: see `timelines.identify`.
    """
    row = connection.execute(_IDENTITY).fetchone()
    assert row is not None
    system, timeline, database, in_recovery, started = row
    return Identity(system, timeline, database, connection.info.server_version, in_recovery, started)


def same(expected: Identity, found: Identity) -> None:
    """Raises SourceUnavailable when it is another server, or was restarted or promoted: then all begins anew."""
    if not expected.same_server(found):
        raise SourceUnavailable(
            "another server answers than at the start of this attempt, or it was restarted or promoted"
        )
