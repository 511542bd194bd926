"""Warnings of the output plugin: what it leaves out of what it sends, and says so only in passing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from towline import errors
from towline.source.postgres.routed import Routed
from towline_transforms.schema import TableName

if TYPE_CHECKING:
    from psycopg.errors import Diagnostic

_NO_IDENTITY = re.compile(r'no tuple identifier for \w+ in table "(.*)"\."(.*)"\Z', re.DOTALL)


class Notices:
    """Collects the warnings of a connection: `note` is to be its notice handler."""

    def __init__(self) -> None:
        self._notices: list[tuple[str, str]] = []

    def note(self, diagnostic: Diagnostic) -> None:
        """Keep it, if it is a warning."""
        if diagnostic.severity_nonlocalized == "WARNING":
            self._notices.append((diagnostic.sqlstate or "", diagnostic.message_primary or ""))

    def check(self, routed: Routed) -> None:
        """Raise what a warning means, when it is about a table that is wanted: SourceTableChanged, PublicationMissing,
        NotSetUp."""
        if not self._notices:
            return
        notices, self._notices = self._notices, []
        for sqlstate, message in notices:
            table = _NO_IDENTITY.search(message)
            if table is not None:
                name = TableName(table[1], table[2])
                if routed.find(name) is not None:
                    raise errors.SourceTableChanged(
                        f"{name} has no replica identity in the log at this point: "
                        "an update or a delete could not name its row"
                    )
            elif sqlstate == "55000":
                kind = errors.PublicationMissing if "publication" in message else errors.NotSetUp
                raise kind(f"the server goes on without what it was asked for: {message}", sqlstate=sqlstate)
