"""What `apply` does about a publication that did not send all that the routes need, or does not: what was not sent is
in no log, so that the routes are copied again. They are marked before the publication is mended, so that an end in
between leaves no gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import psycopg

from towline import remembered
from towline.change import Format, Relation
from towline.config import PipelineConfig
from towline.errors import NotSetUp, PublicationInterrupted
from towline.postgres.session import translating
from towline.schema_change import Remembered
from towline.source import Step
from towline.source.postgres import published
from towline.source.postgres.tables import PostgresTables
from towline.target import Checkpoint, RouteState
from towline.target.postgres import control, source_tables
from towline.target.postgres.resync import ResyncState
from towline_transforms.route import Route
from towline_transforms.schema import Table

Connection = psycopg.Connection[Any]


def standing(config: PipelineConfig, source: Connection, tables: Sequence[Table] = ()) -> published.Standing | None:
    """The publication as it is; None when the plugin reads none."""
    if config.source.plugin != "pgoutput":
        return None
    with translating("source"):
        return published.standing(source, config.source.publication, [table.oid for table in tables])


def problem(
    config: PipelineConfig,
    tables: PostgresTables,
    checkpoint: Checkpoint,
    kept: Mapping[str, Remembered],
    states: Mapping[str, RouteState],
) -> NotSetUp | None:
    """What keeps the tables that are remembered from being read, as the daemon finds it at its start."""
    if config.source.plugin != "pgoutput":
        return None
    kept = {route: each for route, each in kept.items() if route in states}
    found, lacking = tables.publication(config.source.publication, [_travelled(each) for each in kept.values()])
    anew = found.made_anew(checkpoint.publication)
    return anew or lacking or interruption(found.name, remembered.interrupted(kept, states, found.versions))


def interruption(publication: str, routes: Sequence[str]) -> PublicationInterrupted | None:
    """The error that tells of such routes, if there are any."""
    if not routes:
        return None
    shown = ", ".join(routes[:5])
    return PublicationInterrupted(
        f"the publication {publication} was changed, and did not have all of {len(routes)} routes for a while: {shown}"
    )


def copied_again(
    config: PipelineConfig,
    source: Connection,
    target: Connection,
    routes: Sequence[Route],
    relations: Sequence[Relation],
    *,
    changing: bool,
) -> list[Step]:
    """The steps at the target that come before the publication is made what it should be.

    ``changing``: there are steps by which it is; then what is remembered of it is forgotten, so that the daemon does
    not take them for somebody else's.
    """
    schema, pipeline = config.target.schema_name, config.pipeline
    with translating("target"):
        present = control.present(target, schema, upgrading=True)
        states = control.read_states(target, schema, pipeline) if "route_state" in present else {}
        kept = remembered.read(target, schema, pipeline)
    found = standing(config, source, [each.table for each in kept.values()])
    if found is None or found.oid is None:
        return []
    again = set(remembered.interrupted(kept, states, found.versions))
    by_table = {relation.name: relation for relation in relations}
    with translating("source"):
        rows = published.rows_of(source, found.name)
    for route in routes:
        if route.name in again or route.name not in states or states[route.name].state == "pending":
            continue
        relation = by_table[route.source.name]
        if (each := kept.get(route.name)) is not None:
            relation = _narrowed(relation, each.columns)
        if published.problem(found.name, *rows, [relation]) is not None:
            again.add(route.name)
    steps = []
    if again:
        shown = ", ".join(sorted(again)[:5])
        text = ResyncState(target, schema, pipeline).marking(sorted(again))
        count = "1 route" if len(again) == 1 else f"{len(again)} routes"
        steps.append(Step("target", f"{count} copied again, of which changes were not published: {shown}", text))
    if kept and (changing or again):
        steps.append(forgotten(config))
    return steps


def forgotten(config: PipelineConfig) -> Step:
    """The step by which the daemon takes the publication as it is."""
    statement = source_tables.unpublish(config.target.schema_name, config.pipeline)
    return Step("target", "the publication is taken as it is from here on", statement)


def _travelled(each: Remembered) -> Relation:
    return _narrowed(Relation(each.table, each.table.columns, Format.TEXT), each.columns)


def _narrowed(relation: Relation, travelled: Sequence[str]) -> Relation:
    """What the log had to carry of a table; of columns that are to travel from now on the daemon takes care."""
    names = {*travelled, *relation.table.identity}
    return replace(relation, columns=tuple(column for column in relation.columns if column.name in names))
