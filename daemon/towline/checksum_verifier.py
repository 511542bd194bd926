"""Are the source's keys those that the ledger adds up to? Asked while both go on changing.

The source counts its keys in one snapshot (`Tables.count_keys`), which belongs to no position in particular. On a quiet
table that does not matter:

    when the route's running sum was written neither before the snapshot nor until the target had passed all that the
    snapshot saw, nor is anything applied that the snapshot does not see, both are over the same keys.

On a table that is busier than that, the running daemon is asked to count the keys itself: it knows what it applies
meanwhile, and compares both at one position (`towline.recount`). Without a daemon every table is quiet.
"""

from __future__ import annotations

import time
from typing import Protocol

from towline.change import Relation, Visibility
from towline.differences import Keys
from towline.key_sum import key_form
from towline.route_verifier import Progress
from towline.running_sums import Answer, Running
from towline.source import Tables

#: How often the quiet way is tried.
ATTEMPTS = 3


class Asking(Protocol):
    """The target's side: see `towline.target.postgres.compare.CompareSession`."""

    def running(self, route: str) -> Running | None: ...
    def ask(self, route: str, *, anew: bool) -> None: ...
    def answer(self, route: str) -> Answer | None: ...
    def asked(self, route: str) -> bool: ...
    def withdraw(self, route: str) -> None: ...


class ChecksumVerifier:
    """Verifies running sums, route by route. ``timeout``: how long the daemon may take to count (seconds)."""

    def __init__(self, tables: Tables, session: Asking, progress: Progress, timeout: float) -> None:
        self._tables = tables
        self._session = session
        self._progress = progress
        self._timeout = timeout

    def check(self, route: str, relation: Relation) -> Keys:
        """What is true of a route that streams. Raises VerifyUnsettled, and what the two ends raise."""
        for _ in range(ATTEMPTS):
            before = self._session.running(route)
            if before is None or before.total is None or before.form != key_form(relation):
                return Keys.UNKNOWN
            barrier = self._tables.horizon().xmax
            count = self._tables.count_keys(relation, _ignore)
            if count.keys is None:
                return Keys.UNKNOWN
            self._progress.wait(count.high)
            after = self._session.running(route)
            if count.keys == before.total or (after is not None and count.keys == after.total):
                return Keys.EQUAL
            quiet = after is not None and after.version == before.version
            if quiet and count.visibility.xmin >= barrier:
                return Keys.DIFFER
        return self._ask(route)

    def _ask(self, route: str) -> Keys:
        self._session.ask(route, anew=False)
        try:
            deadline = time.monotonic() + self._timeout
            while (answer := self._session.answer(route)) is None:
                if time.monotonic() > deadline:
                    return Keys.UNSETTLED
                time.sleep(0.1)
        finally:
            self._session.withdraw(route)
        if answer.total is None:
            return Keys.UNKNOWN
        return Keys.EQUAL if answer.total == answer.counted else Keys.DIFFER

    def begin_anew(self, route: str) -> None:
        """Have the daemon take what it counts for the running sum, whatever that is now. It may do so later, when it
        runs.
        """
        self._session.ask(route, anew=True)
        deadline = time.monotonic() + self._timeout
        while self._session.asked(route) and time.monotonic() < deadline:
            time.sleep(0.1)


def _ignore(seen: Visibility) -> None:
    """The snapshot is in the count, too."""
