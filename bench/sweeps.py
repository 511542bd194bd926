"""How cost grows: workloads that differ in one thing, from little to much of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.workloads import Workload, inserts, spread, wide

#: Bytes of log that a row of orders makes, about (its own, its index entry's, its share of the commit).
_LOG_OF_A_ROW: Final = 307
_MB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Point:
    """One of a sweep's. ``delay``: seconds of round-trip time between source and target; None for no proxy between."""

    x: float
    workload: Workload
    delay: float | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """``x``: what is varied, with its unit."""

    name: str
    title: str
    x: str
    points: Sequence[Point]
    log_x: bool = True


def _between(low: int, value: float, high: int) -> int:
    return max(low, min(round(value), high))


def _transaction_size() -> list[Point]:
    found = []
    for rows in (1, 10, 100, 1_000, 10_000, 100_000, 1_000_000):
        name = f"transaction-size/{rows}"
        found.append(Point(rows, inserts(name, max(200_000, rows), rows)))
    return found


def _row_width() -> list[Point]:
    found = []
    for text in (10, 100, 1_000, 10_000, 100_000):
        count = _between(1_000, 200 * _MB / (text + 100), 200_000)
        found.append(Point(text, wide(f"row-width/{text}", count, 2, text, updates=False)))
    return found


def _columns() -> list[Point]:
    found = []
    for columns in (2, 5, 10, 30, 100, 300, 800):  # a row must fit into a page
        count = _between(2_000, 5_000_000 / columns, 200_000)
        found.append(Point(columns, wide(f"columns/{columns}", count, columns, 0, updates=False)))
    return found


def _routes() -> list[Point]:
    return [Point(tables, spread(f"routes/{tables}", 100_000, tables)) for tables in (1, 3, 10, 30, 100, 300, 1_000)]


def _backlog() -> list[Point]:
    return [
        Point(megabytes, inserts(f"backlog/{megabytes}", megabytes * _MB // _LOG_OF_A_ROW, 100))
        for megabytes in (10, 50, 250, 1_000, 5_000)
    ]


def _round_trip() -> list[Point]:
    return [
        Point(1000 * delay, inserts(f"round-trip/{1000 * delay:g}", 200_000, 100), delay)
        for delay in (0.0, 0.001, 0.002, 0.005, 0.010, 0.020, 0.050)
    ]


SWEEPS: Final[Mapping[str, Sweep]] = {
    sweep.name: sweep
    for sweep in (
        Sweep("transaction-size", "Size of transactions", "rows in a transaction", _transaction_size()),
        Sweep("row-width", "Width of rows", "bytes of text in a row", _row_width()),
        Sweep("columns", "Number of columns", "columns", _columns()),
        Sweep("routes", "Number of routes", "tables that are routed", _routes()),
        Sweep("backlog", "Length of the backlog", "MB of log", _backlog()),
        Sweep("round-trip", "Round-trip time to the target", "ms", _round_trip(), log_x=False),
    )
}
