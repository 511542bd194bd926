"""What was lost and what was done twice: found without asking Towline, but for the figures of its ledger.

| measure | counts as lost | counts as doubled |
|---|---|---|
| the tables, row for row | a row that the target lacks, or has in another version | one that the source lacks |
| what triggers noted at both ends | | an insert or delete of a key beyond those of the source |
| the ledger's ``seen`` against what triggers noted at the source | what is too little | what is too much |

The ledger is compared for what was written after the first copy: while tables are copied, a row may rightly be seen in
the stream and again in a chunk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import psycopg

#: Route by route: what the target holds, and what the source says that it should: (key, whole row) each.
_COMPARED: Mapping[str, tuple[str, str]] = {
    "item": ("SELECT id::text, t::text FROM replica.item t", "SELECT id::text, t::text FROM item t"),
    "sale": ("SELECT id::text, t::text FROM replica.sale t", "SELECT id::text, t::text FROM sale t"),
    "journal": ("SELECT id::text, t::text FROM replica.journal t", "SELECT id::text, t::text FROM journal t"),
    "open_sale": (
        "SELECT sale_no, t::text FROM hub.open_sale t",
        "SELECT sale_no, s::text FROM (SELECT 'S-' || id AS sale_no, quantity FROM sale WHERE quantity > 0) s",
    ),
}
#: The table at the source of each route.
SOURCES: Mapping[str, str] = {"item": "item", "sale": "sale", "journal": "journal", "open_sale": "sale"}


@dataclass(frozen=True, slots=True)
class Mark:
    """How far both ends are. ``written``: rows changed at the source, ``seen``: those in the ledger; both by route."""

    written: Mapping[str, int]
    seen: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Account:
    """The outcome of a trial, in rows. ``findings``: what each lost or doubled row is, for the one who looks."""

    carried: int
    lost: int
    doubled: int
    findings: tuple[str, ...] = ()


def mark(source: psycopg.Connection, hub: psycopg.Connection) -> Mark:
    """Take the figures of now."""
    deeds = dict(_pairs(source, "SELECT at_table, count(*) FROM audit.deed GROUP BY 1"))
    # A route is called after its table at the target, if nothing else: replica.item, or item.
    ledger = _pairs(hub, "SELECT split_part(route, '.', -1), sum(seen) FROM towline.ledger GROUP BY 1")
    return Mark({route: int(deeds.get(table, 0)) for route, table in SOURCES.items()}, {k: int(v) for k, v in ledger})


def account(
    source: psycopg.Connection, hub: psycopg.Connection, since: Mark | None, *, resynced: bool = False
) -> Account:
    """Compare both ends, which are at rest. ``since``: from when on the ledger must be exact; None: not at all.
    ``resynced``: rows may have made room for others and been copied again, so that deeds are not compared.
    """
    findings: list[tuple[bool, int, str]] = []
    for route, (there, here) in _COMPARED.items():
        target, wanted = dict(_pairs(hub, there)), dict(_pairs(source, here))
        for key in wanted.keys() - target.keys():
            findings.append((True, 1, f"{route} {key} is missing at the target"))
        for key in wanted.keys() & target.keys():
            if wanted[key] != target[key]:
                findings.append((True, 1, f"{route} {key} is another row at the target"))
        for key in target.keys() - wanted.keys():
            findings.append((False, 1, f"{route} {key} is not at the source"))
    if not resynced:
        findings += _deeds(source, hub)
    now = mark(source, hub)
    if since is not None:
        for route in SOURCES:
            written = now.written[route] - since.written[route]
            seen = now.seen.get(route, 0) - since.seen.get(route, 0)
            if seen != written:
                how = f"the ledger saw {seen} rows of {route}, and {written} were written"
                findings.append((seen < written, abs(seen - written), how))
    return Account(
        carried=sum(now.written.values()),
        lost=sum(rows for lost, rows, _ in findings if lost),
        doubled=sum(rows for lost, rows, _ in findings if not lost),
        findings=tuple(f"{'lost' if lost else 'doubled'}: {what}" for lost, _, what in findings),
    )


def _deeds(source: psycopg.Connection, hub: psycopg.Connection) -> list[tuple[bool, int, str]]:
    """Keys that were inserted or deleted more often than at the source, in the tables that are copied as they are."""
    query = "SELECT at_table || ' ' || key || ' ' || op, count(*) FROM audit.deed WHERE op <> 'update' GROUP BY 1"
    meant = dict(_pairs(source, query))
    return [
        (False, int(times) - int(meant.get(deed, 0)), f"{deed}, {times} times; at the source {meant.get(deed, 0)}")
        for deed, times in _pairs(hub, query)
        if not deed.startswith("open_sale ") and int(times) > int(meant.get(deed, 0))
    ]


def _pairs(connection: psycopg.Connection, query: str) -> list[tuple[str, str]]:
    return [(str(key), str(value)) for key, value in connection.execute(query.encode()).fetchall()]
