"""Which timeline a server is on, and where each of its ancestors was left: asked of a walsender.

``IDENTIFY_SYSTEM`` tells a standby's timeline as of what it has replayed, which no SQL function does; and
``TIMELINE_HISTORY`` needs no more than REPLICATION, where reading the file would take a superuser. Its lines are

    timeline, position at which it was left, reason                               (separated by tabs or spaces)

for each ancestor, oldest first; ``#`` begins a comment.
Source: https://www.postgresql.org/docs/current/protocol-replication.html; readTimeLineHistory in PostgreSQL's
timeline.c.
"""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType

from towline.errors import SourceQueryFailed, TowlineError
from towline.position import parse_lsn
from towline.source import Identity
from towline.source.postgres import identity
from towline.source.postgres.tables import PostgresTables
from towline.source.postgres.walsender import Walsender


class Timelines:
    """A connection for asking the server ``of`` that identity. Raises SourceUnavailable, SourceRefused."""

    def __init__(self, dsn: str, *, application_name: str, of: Identity) -> None:
        self._walsender = Walsender(dsn, application_name=application_name)
        try:
            identity.same(of, self._walsender.identify())
        except TowlineError:
            self._walsender.close()
            raise

    def __enter__(self) -> Timelines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def current(self) -> int:
        """The timeline of what the server has written or replayed last."""
        return self._walsender.timeline()

    def history(self, timeline: int) -> dict[int, int]:
        """For each ancestor of a timeline, the position at which it was left. Raises SourceQueryFailed."""
        # The first has no ancestors, and no file.
        return parse_history(self._walsender.history(timeline).decode("utf-8", "replace")) if timeline > 1 else {}

    def close(self) -> None:
        """End the connection."""
        self._walsender.close()


def identify(tables: PostgresTables, dsn: str, *, application_name: str) -> Identity:
    """The server of that session, with the timeline of what it has replayed where it is a standby.

    Every verb that writes a checkpoint, or compares one, goes by this. Raises SourceUnavailable, SourceRefused.
    """
    found = tables.identity()
    if not found.in_recovery:
        return found
    with Timelines(dsn, application_name=application_name, of=found) as timelines:
        return replace(found, timeline=timelines.current())


def parse_history(text: str) -> dict[int, int]:
    """A timeline history file. Raises SourceQueryFailed."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            found[int(words[0])] = parse_lsn(words[1])
        except (ValueError, IndexError):
            raise SourceQueryFailed("a timeline history file of the source cannot be read") from None
    return found
