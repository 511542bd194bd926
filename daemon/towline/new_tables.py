"""Tables that are new at the source and match a pattern: what `apply` would do for them, done by the daemon on SIGHUP.

Only what adds: target tables and their types, the publication's new members, and a state for each new route. A table
that cannot be replicated (without a primary key, say) is left out, and told of; the others go on.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from towline.config import PipelineConfig
from towline.errors import SourceRefused
from towline.logs import event
from towline.plan import known_routes, new_tables, refused, sessions
from towline.postgres import catalog
from towline.postgres.session import translating
from towline.source.postgres import setup as source_setup
from towline.source.postgres.relations import relations_of
from towline.target.postgres import setup as target_setup
from towline_transforms.check import check_routes, tables_needed
from towline_transforms.problems import RouteError
from towline_transforms.route import Route
from towline_transforms.schema import Catalog, TableName

log = logging.getLogger(__name__)


def add(config: PipelineConfig) -> tuple[str, ...]:
    """Returns the names of the routes that were added. Raises RoutesRefused, and what the statements fail with."""
    with sessions(config) as (source, target):
        at_source, at_target = tables_needed(config.specs())
        with translating("source"):
            now = catalog.describe(source, at_source)
        with translating("target"):
            known = known_routes(config, target)
            there = catalog.describe(target, at_target)
        routes = _that_hold(config, now, there, set(new_tables(config, now, known)))
        if not routes:
            return ()
        plugin = config.source.plugin
        relations = relations_of(routes, now, plugin=plugin, server_version=now.server_version)
        with translating("source"):
            definitions = target_setup.definitions_for(source, routes)
        plan = target_setup.plan(
            target,
            schema=config.target.schema_name,
            pipeline=config.pipeline,
            routes=routes,
            definitions=definitions,
            forgetting=False,
        )
        if plan.problems:
            raise refused(plan.problems)
        target_setup.execute(target, plan.made)
        if plugin == "pgoutput":
            try:
                source_setup.execute(
                    source, source_setup.publish(source, relations, publication=config.source.publication)
                )
            except SourceRefused as error:
                error.hint = (
                    "Have the publication's owner add the tables (`towline plan --side source` prints the statements), "
                    "then send SIGHUP again or run `towline apply`."
                )
                raise
        target_setup.execute(target, plan.states)
        names = tuple(route.name for route in routes)
        event(log, logging.INFO, "tables_added", pipeline=config.pipeline, count=len(names), first=names[0])
        return names


def _that_hold(config: PipelineConfig, now: Catalog, there: Catalog, wanted: set[TableName]) -> list[Route]:
    """The routes of those new tables that can be replicated; why others cannot is logged."""
    every = frozenset(wanted)
    while wanted:
        left = {name: table for name, table in now.tables.items() if name in wanted or name not in every}
        try:
            routes = check_routes(config.specs(), replace(now, tables=left), there, running=True)
            return [route for route in routes if route.source.name in wanted]
        except RouteError as error:
            of_new = {str(name): name for name in wanted}
            found = [problem for problem in error.problems if problem.route in of_new]
            if not found:
                raise refused(error.problems) from error
            for problem in found:
                event(
                    log,
                    logging.WARNING,
                    "table_not_added",
                    pipeline=config.pipeline,
                    table=problem.route,
                    code=problem.kind.code,
                    detail=problem.detail,
                    remedy=problem.remedy,
                )
            wanted -= {of_new[problem.route] for problem in found}
    return []
