"""Masks that a change of the source's tables would take away: a sensitive column that has another name by now.

`sensitive` has names. A pattern's goes for the tables that have the column; so one that is renamed would be shown from
then on, without a word. What a table was when it was taken in tells it by its number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from towline.schema_change import Remembered
from towline_transforms.problems import Problem, ProblemKind
from towline_transforms.route import RouteSpec
from towline_transforms.schema import Table, TableName


def lost(
    specs: Iterable[RouteSpec], kept: Mapping[str, Remembered], now: Mapping[TableName, Table]
) -> dict[str, list[Problem]]:
    """By route: the columns that were masked, and whose names of now are not among those to be masked.

    ``specs``: as written, with their patterns.
    """
    specs = tuple(specs)
    found = {}
    for route, each in kept.items():
        table = now.get(each.table.name)
        if table is not None and table.oid == each.table.oid:
            problems = list(_of_table(route, each.table, table, _masked(specs, route, each.table.name)))
            if problems:
                found[route] = problems
    return found


def _masked(specs: Iterable[RouteSpec], route: str, table: TableName) -> frozenset[str]:
    """The names that the route masks, or the pattern that it came from."""
    pattern = TableName(table.schema, "*")
    return frozenset(
        name
        for spec in specs
        for name in spec.sensitive
        if spec.name == route or (spec.source == pattern and route == str(table))
    )


def _of_table(route: str, was: Table, now: Table, masked: frozenset[str]) -> Iterator[Problem]:
    by_number = {column.number: column.name for column in now.columns}
    for column in was.columns:
        name = by_number.get(column.number)
        if column.name in masked and name is not None and name not in masked:
            yield Problem(
                ProblemKind.SENSITIVE,
                route,
                name,
                f"It was {column.name} in {was.name}, which is to be masked, and would be shown under this name.",
                f"Add {name} to `sensitive` of the route.",
            )
