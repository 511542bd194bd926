"""What the ledger says: by route and range, figures and sums, and whether they add up. For `towline ledger`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from towline.config import PipelineConfig
from towline.errors import LedgerImbalance, NotSetUp
from towline.key_sum import KeySum
from towline.position import format_lsn, parse_lsn
from towline.postgres import session
from towline.running_sums import Running
from towline.target.postgres import control
from towline.target.postgres.control import LedgerRow

#: The version of the JSON form.
FORMAT = 1

HEADERS = (
    *("route", "from", "to", "seen", "upserted", "deleted", "superseded", "filtered", "quarantined"),
    *("balanced", "keys", "checksum", "source keys", "running"),
)
#: The columns of `HEADERS` that hold numbers.
NUMBERS = (3, 4, 5, 6, 7, 8, 10, 12)

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}


@dataclass(frozen=True, slots=True)
class Range:
    """A row of the ledger. ``follows``: whether its sums lead from the running sum before it to its own, if known."""

    row: LedgerRow
    follows: bool | None

    @property
    def balanced(self) -> bool:
        """Whether figures and sums add up."""
        return self.row.counts.balanced and self.follows is not False

    def cells(self) -> list[str]:
        """For `HEADERS`."""
        row, counts = self.row, self.row.counts
        figures = (counts.seen, counts.upserted, counts.deleted, counts.superseded, counts.filtered)
        return [
            *(row.route, format_lsn(row.from_position), format_lsn(row.to_position)),
            *map(str, (*figures, counts.quarantined)),
            "yes" if self.balanced else "NO",
            *_shown(row.keys),
            *_shown(row.running.total),
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; sums as 16 hexadecimal digits."""
        row, counts = self.row, self.row.counts
        return {
            "from": format_lsn(row.from_position),
            "to": format_lsn(row.to_position),
            "hour": row.hour.isoformat(),
            "applied_at": row.applied_at.isoformat(),
            "seen": counts.seen,
            "upserted": counts.upserted,
            "deleted": counts.deleted,
            "superseded": counts.superseded,
            "filtered": counts.filtered,
            "quarantined": counts.quarantined,
            "balanced": self.balanced,
            "keys": None if row.keys is None else row.keys.keys,
            "checksum": None if row.keys is None else str(row.keys),
            "operations": None if row.operations is None else f"{row.operations:016x}",
            "running": _running(row.running),
        }


@dataclass(frozen=True, slots=True)
class LedgerReport:
    """The ledger of a pipeline, or the part that was asked for. ``running``: by route, at ``position``."""

    pipeline: str
    position: int
    ranges: tuple[Range, ...]
    running: Mapping[str, Running]

    @property
    def imbalance(self) -> LedgerImbalance | None:
        """The first that does not add up, as an error."""
        for each in self.ranges:
            row, counts = each.row, each.row.counts
            where = f"route {row.route}, {format_lsn(row.from_position)} to {format_lsn(row.to_position)}"
            if not counts.balanced:
                rows = counts.seen - counts.accounted
                detail = f"{where}: {counts.seen} rows were seen, {counts.accounted} are accounted for"
                return LedgerImbalance(detail, hint=_HINT, route=row.route, rows=abs(rows))
            if each.follows is False:
                detail = f"{where}: the running checksum does not follow from the one before"
                return LedgerImbalance(detail, hint=_HINT, route=row.route)
        return None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": FORMAT,
            "pipeline": self.pipeline,
            "position": format_lsn(self.position),
            "balanced": self.imbalance is None,
            "routes": [
                {
                    "name": route,
                    "running": _running(running),
                    "ranges": [each.as_dict() for each in self.ranges if each.row.route == route],
                }
                for route, running in self.running.items()
            ],
        }

    def lines(self) -> Iterator[str]:
        """The running checksums, for people."""
        for route, running in self.running.items():
            if running.total is None:
                yield f"{route}: the running checksum is not known, the source keys are still to be counted"
            else:
                yield f"{route}: {running.total.keys} source keys, running checksum {running.total} ({running.form})"


_HINT = (
    "The daemon writes no such row, and the table's constraint refuses it: somebody changed the ledger. "
    "`towline verify` tells whether the rows are right."
)


def read(config: PipelineConfig, since: str | None = None) -> LedgerReport:
    """The ledger as it is now; ``since``: see `since_when`. Raises NotSetUp and ValueError."""
    wanted = since_when(since) if since is not None else None
    schema = config.target.schema_name
    connection = session.connect(
        config.target.dsn.get_secret_value(), application_name=f"towline {config.pipeline} ledger", side="target"
    )
    try:
        with session.translating("target"):
            control.present(connection, schema)
            with connection.transaction():
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                rows = control.read_ledger(connection, schema, config.pipeline)
                running = control.read_running(connection, schema, config.pipeline)
                checkpoint = control.read_checkpoint(connection, schema, config.pipeline)
    finally:
        connection.close()
    if checkpoint is None:
        raise NotSetUp(f"the target has no checkpoint of pipeline {config.pipeline}")
    ranges = ranges_of(rows)
    shown = tuple(each for each in ranges if wanted is None or wanted(each.row))
    return LedgerReport(config.pipeline, checkpoint.position, shown, running)


def ranges_of(rows: Sequence[LedgerRow]) -> list[Range]:
    """The rows of the ledger, by route and position, held against each other."""
    ranges: list[Range] = []
    last: dict[str, LedgerRow] = {}
    for row in rows:
        ranges.append(Range(row, _follows(last.get(row.route), row)))
        last[row.route] = row
    return ranges


def only(found: LedgerReport, routes: Collection[str]) -> LedgerReport:
    """The part of a report that is of those routes."""
    return LedgerReport(
        found.pipeline,
        found.position,
        tuple(each for each in found.ranges if each.row.route in routes),
        {route: running for route, running in found.running.items() if route in routes},
    )


def since_when(text: str) -> Callable[[LedgerRow], bool]:
    """Which rows end after a position (``16/B374D848``), a time (ISO 8601; UTC without a zone) or an age (``90m``,
    ``24h``, ``7d``). Raises ValueError.
    """
    if re.fullmatch(r"[0-9A-Fa-f]+/[0-9A-Fa-f]+", text):
        position = parse_lsn(text)
        return lambda row: row.to_position > position
    if found := re.fullmatch(r"(\d{1,6})([mhd])", text):
        time = datetime.now(UTC) - int(found[1]) * _UNITS[found[2]]
    else:
        time = datetime.fromisoformat(text)
        time = time if time.tzinfo is not None else time.replace(tzinfo=UTC)
    return lambda row: row.applied_at >= time


def _follows(before: LedgerRow | None, row: LedgerRow) -> bool | None:
    if before is None or before.running.total is None or row.running.total is None or row.keys is None:
        return None
    if before.running.form != row.running.form or row.from_position < before.to_position:
        return None
    return before.running.total + row.keys == row.running.total


def _shown(keys: KeySum | None) -> tuple[str, str]:
    return ("", "") if keys is None else (str(keys.keys), str(keys))


def _running(running: Running) -> dict[str, Any] | None:
    if running.total is None:
        return None
    return {"keys": running.total.keys, "checksum": str(running.total), "form": running.form}
