"""What a pipeline remembers of its source's tables: between the control tables' rows and `Remembered`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg

from towline import table_record
from towline.schema_change import Remembered
from towline.source.postgres.look import named
from towline.target import RouteState
from towline.target.postgres import control, source_tables
from towline_transforms.schema import Catalog, TableName


def read(target: psycopg.Connection[Any], schema: str, pipeline: str, only: str | None = None) -> dict[str, Remembered]:
    """By route; ``only``: of that one. A record of another form is as good as none."""
    if "source_table" not in control.present(target, schema, upgrading=True):
        return {}
    found = {}
    for route, table, columns, position, since, accepted, published in source_tables.read(
        target, schema, pipeline, only
    ):
        try:
            loaded = table_record.load(table)
            found[route] = Remembered(route, loaded, columns, position, since, accepted, published)
        except ValueError:
            continue
    return found


def row(remembered: Remembered) -> source_tables.Row:
    """As it is kept."""
    return (
        remembered.route,
        table_record.dump(remembered.table),
        remembered.columns,
        remembered.position,
        remembered.since,
        remembered.accepted,
        remembered.published,
    )


def same(one: Remembered, other: Remembered) -> bool:
    """Whether there is nothing new to remember."""
    alike = row(one)[1:3] == row(other)[1:3] and one.published == other.published
    return not one.accepted and alike and dict(one.since) == dict(other.since)


def interrupted(
    remembered: Mapping[str, Remembered], states: Mapping[str, RouteState], published: Mapping[int, str]
) -> list[str]:
    """The routes whose table was out of the publication since it was remembered, or of which less was published.

    Whatever the publication is now: changes of that time were not sent. ``published``: see
    `towline.source.postgres.published.versions`. Routes that are to be copied from the first row on have lost nothing.
    """
    return [
        route
        for route, each in remembered.items()
        if route in states
        and states[route].state != "pending"
        and each.published is not None
        and published.get(each.table.oid, each.published) != each.published
    ]


def elsewhere(
    source: psycopg.Connection[Any], remembered: dict[str, Remembered], catalog: Catalog
) -> dict[int, TableName]:
    """By OID: what the tables are called that are not found under their names."""
    lost = set()
    for each in remembered.values():
        now = catalog.get(each.table.name)
        if now is None or now.oid != each.table.oid:
            lost.add(each.table.oid)
    return named(source, sorted(lost))
