"""Changes that were refused, and that wait for the end of their transaction, since what comes later may put it right.

A transaction may come in several pieces. What waits at the end of one is kept for the next, away from the piece it came
in, and up to a limit (`MOST_ROWS`, `MOST_BYTES`): beyond it, the transaction is refused as a whole.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

import numpy as np

from towline.change import Piece
from towline.errors import RowRefused, TransactionRefused
from towline.target.postgres.works import Job
from towline_transforms.route import Route

#: How much may wait from one piece to the next: changes, and bytes of their rows.
MOST_ROWS = 10_000
MOST_BYTES = 32 << 20


@dataclass(slots=True, eq=False)
class OneWaiting:
    """A change of one row that failed for one route. ``order``: when it came, within the target transaction."""

    order: tuple[int, int, int]
    route: Route
    key: bytes
    piece: Piece
    job: Job
    refused: RowRefused


class Waiting:
    """What waits, by route and key, in order."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, bytes], list[OneWaiting]] = {}
        self._held: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._lines)

    def __contains__(self, line: tuple[str, bytes]) -> bool:
        return line in self._lines

    def clear(self) -> None:
        """Nothing waits any more."""
        self._lines.clear()
        self._held.clear()

    def add(self, one: OneWaiting) -> None:
        """Put a change into its line."""
        line = self._lines.setdefault((one.route.name, one.key), [])
        line.append(one)
        line.sort(key=lambda each: each.order)

    def take(self, one: OneWaiting) -> bool:
        """Take a change out of its line. False: it is not there any more."""
        line = self._lines.get((one.route.name, one.key), [])
        if one not in line:
            return False
        line.remove(one)
        if not line:
            del self._lines[one.route.name, one.key]
        return True

    def drop(self, route: str, key: bytes, upto: tuple[int, int]) -> int:
        """A change of the key succeeded: what came before it is void. Returns how many changes that were."""
        line = self._lines.pop((route, key), [])
        later = [one for one in line if one.order[:2] > upto]
        if later:
            self._lines[route, key] = later
        return len(line) - len(later)

    def drop_all(self, route: str) -> int:
        """All rows of the route are gone. Returns how many changes are void."""
        lines = [line for line in self._lines if line[0] == route]
        return sum(len(self._lines.pop(line)) for line in lines)

    def in_order(self) -> list[OneWaiting]:
        """All that waits."""
        return sorted((one for line in self._lines.values() for one in line), key=lambda one: one.order)

    def held(self, route: str) -> int:
        """How many changes of a route wait from earlier pieces."""
        return self._held.get(route, 0)

    def hold(self, touched: AbstractSet[bytes]) -> None:
        """The transaction goes on in the next piece. ``touched``: as in `Job`, to be added to as it goes on.

        Raises TransactionRefused when too much waits.
        """
        self._held.clear()
        everything = self.in_order()
        size = sum(len(rowset.rows.data) for one in everything for rowset in one.piece.rowsets)
        if len(everything) > MOST_ROWS or size > MOST_BYTES:
            raise TransactionRefused(
                f"of a transaction that is larger than a piece {len(everything)} rows ({size} bytes) are refused, and "
                f"may yet be put right by what follows, which is too many to wait; the last one: "
                f"{everything[-1].refused.detail}",
                sqlstate=everything[-1].refused.sqlstate,
            )
        for one in everything:
            if one.job.touched is not touched:
                one.piece = _detached(one.piece)
                one.job = replace(one.job, stamps=one.job.stamps.of(one.piece), touched=touched)
            self._held[one.route.name] = self._held.get(one.route.name, 0) + 1


def _detached(piece: Piece) -> Piece:
    """A part of a piece that does not keep the rest of it in memory."""
    rowsets = tuple(
        replace(rowset, ops=np.array(rowset.ops), order=np.array(rowset.order), keys=None) for rowset in piece.rowsets
    )
    return replace(piece, rowsets=rowsets)
