"""From a configuration to checked routes, and to the steps that `apply` does: what every verb begins with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from towline import masks, remembered, republish, spooling
from towline.change import Relation
from towline.config import PipelineConfig
from towline.errors import NotSetUp, ResyncUnfinished, RoutesRefused, SlotInUse, SlotMissing
from towline.logs import event
from towline.position import ZERO, format_lsn
from towline.postgres import catalog, session
from towline.schema_change import compare, halts
from towline.source import Finding, Identity, SlotState, Step
from towline.source.postgres import setup as source_setup
from towline.source.postgres.published import Standing
from towline.source.postgres.relations import relations_of
from towline.source.postgres.tables import PostgresTables
from towline.source.postgres.timelines import identify
from towline.target import Checkpoint
from towline.target.postgres import control, source_tables
from towline.target.postgres import setup as target_setup
from towline.target.postgres.entries import Entries
from towline.target.postgres.probe import probe
from towline.target.postgres.resync import ResyncState
from towline_transforms.check import check_routes, tables_needed
from towline_transforms.problems import Problem, RouteError
from towline_transforms.route import Route
from towline_transforms.schema import Catalog, TableName

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prepared:
    """Routes that hold against the catalogs of both ends as they are now, with a session at each end."""

    config: PipelineConfig
    routes: tuple[Route, ...]
    relations: tuple[Relation, ...]
    source_catalog: Catalog
    target_catalog: Catalog
    source: psycopg.Connection[Any]
    target: psycopg.Connection[Any]

    @property
    def findings(self) -> list[Finding]:
        """What `check` has to say beyond the routes: source settings, privileges, plugin; target types."""
        config = self.config.source
        publication = config.publication if config.plugin == "pgoutput" else None
        found = source_setup.check(
            self.source,
            self.relations,
            plugin=config.plugin,
            slot=config.slot,
            publication=publication,
            failover=config.failover,
        )
        found += spooling.findings(self.config, self.source_catalog.server_version)
        return found + [
            Finding(problem.kind.code, True, f"route {problem.route}: {problem.detail}", problem.remedy)
            for problem in _target_plan(self).problems
        ]


@contextmanager
def prepare(config: PipelineConfig, *, applied: bool = False) -> Iterator[Prepared]:
    """Connect to both ends, describe the tables that the routes name, and check the routes.

    ``applied``: without tables that a pattern matches but that `apply` has not seen yet. They are not in the
    publication, so there is nothing to lose, and a table that somebody adds at the source must not stop the others.

    Raises RoutesRefused with every problem of every route, and the errors of connecting and of reading catalogs.
    """
    with sessions(config) as (source, target):
        specs = config.specs()
        at_source, at_target = tables_needed(specs)
        with session.translating("source"):
            source_catalog = catalog.describe(source, at_source)
        if applied:
            source_catalog = without_new(config, source_catalog, known_routes(config, target))
        with session.translating("target"):
            target_catalog = catalog.describe(target, at_target)
            kept = remembered.read(target, config.target.schema_name, config.pipeline)
        if exposed := masks.lost(specs, kept, source_catalog.tables):
            raise refused([problem for problems in exposed.values() for problem in problems])
        try:
            routes = check_routes(specs, source_catalog, target_catalog, running=applied)
        except RouteError as error:
            raise refused(error.problems) from error
        relations = relations_of(
            routes, source_catalog, plugin=config.source.plugin, server_version=source_catalog.server_version
        )
        problems = probe(target, [route for route in routes if not route.added], relations)
        if problems:
            raise refused(problems)
        yield Prepared(config, routes, relations, source_catalog, target_catalog, source, target)


@contextmanager
def sessions(config: PipelineConfig) -> Iterator[tuple[psycopg.Connection[Any], psycopg.Connection[Any]]]:
    """A session at the source and one at the target, in autocommit mode. Raises the errors of connecting."""
    name = f"towline {config.pipeline}"
    with ExitStack() as stack:
        source = session.connect(config.source.dsn.get_secret_value(), application_name=name, side="source")
        stack.callback(source.close)
        target = session.connect(
            config.target.dsn.get_secret_value(), application_name=name, side="target", search_path=None
        )
        stack.callback(target.close)
        yield source, target


def known_routes(config: PipelineConfig, target: psycopg.Connection[Any]) -> frozenset[str]:
    """The names of the routes that `apply` has seen."""
    schema = config.target.schema_name
    with session.translating("target"):
        if "route_state" not in control.present(target, schema):
            return frozenset()
        return frozenset(control.read_states(target, schema, config.pipeline))


def unapplied(routes: Iterable[Route], known: Container[str]) -> str | None:
    """Says which of the routes have no state at the target (``known``) yet, for an error; None when all have."""
    new = [route.name for route in routes if route.name not in known]
    if not new:
        return None
    count = "1 route is" if len(new) == 1 else f"{len(new)} routes are"
    return f"{count} new since the last `towline apply`: {', '.join(new[:5])}"


def without_new(config: PipelineConfig, found: Catalog, known: Collection[str]) -> Catalog:
    """The catalog without the tables that only patterns match and that have no state at the target."""
    new = new_tables(config, found, known)
    if new:
        event(
            log,
            logging.WARNING,
            "tables_not_applied",
            pipeline=config.pipeline,
            count=len(new),
            first=str(new[0]),
            remedy="They match a pattern, but are not replicated until SIGHUP is sent, or `towline apply` run.",
        )
    return replace(found, tables={name: table for name, table in found.tables.items() if name not in set(new)})


def new_tables(config: PipelineConfig, found: Catalog, known: Collection[str]) -> list[TableName]:
    """The tables that only patterns match, and of which ``known`` has no route; none before anything was applied."""
    named = {spec.source for spec in config.specs()}
    return sorted(name for name in found.tables if known and name not in named and str(name) not in known)


def refused(problems: tuple[Problem, ...] | list[Problem]) -> RoutesRefused:
    """One error for all problems, a line each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return RoutesRefused("\n".join([f"{count} with the routes", *map(str, problems)]))


def steps(prepared: Prepared) -> list[Step]:
    """What `apply` would do, in its order; empty when all is there. Raises SlotMissing and SlotInUse as it does."""
    found = _target_plan(prepared)
    if found.problems:
        raise refused(found.problems)
    checkpoint, slot = _checkpoint(prepared), _slot(prepared)
    _consistent(prepared.config, checkpoint, slot, standing(prepared))
    at_source = _source_steps(prepared)
    again = _copied_again(prepared, checkpoint, at_source)
    return [*found.made, *again, *at_source, *found.states, *_acceptances(prepared)]


def apply(prepared: Prepared, report: Callable[[Step], None]) -> None:
    """Create what is missing: control tables, types and tables, publication, slot, and last the checkpoint.

    Changes of source tables that had halted the pipeline are accepted: it goes on with the tables as they are now.
    Each step is told to ``report`` before it is done. Safe to repeat, also after an end in the middle: the checkpoint
    is written last, and without one a slot that exists is taken over from where it is (nothing was applied yet).
    """
    config = prepared.config
    found = _target_plan(prepared)
    if found.problems:
        raise refused(found.problems)
    checkpoint, slot = _checkpoint(prepared), _slot(prepared)
    _consistent(config, checkpoint, slot, standing(prepared))
    again = _copied_again(prepared, checkpoint, _source_steps(prepared))
    first = [*found.made, *again]
    for step in first:
        report(step)
    target_setup.execute(prepared.target, first)
    apply_source(prepared, report)
    if again:  # a daemon may have looked in between
        target_setup.execute(prepared.target, [republish.forgotten(config)])
    last = [*found.states, *_acceptances(prepared)]
    for step in last:
        report(step)
    target_setup.execute(prepared.target, last)
    if checkpoint is not None:
        with session.translating("target"):
            _mask(prepared)
            source_tables.revise(prepared.target, config.target.schema_name, config.pipeline)
        return
    with _tables(config) as tables:
        target_setup.initialise(
            prepared.target,
            schema=config.target.schema_name,
            pipeline=config.pipeline,
            position=tables.slot().confirmed,
            identity=source_identity(config, tables),
            slot=config.source.slot,
            plugin=config.source.plugin,
            publication=now.oid if (now := standing(prepared)) is not None else None,
        )


def standing(prepared: Prepared) -> Standing | None:
    """The publication as it is; None when the plugin reads none."""
    return republish.standing(prepared.config, prepared.source)


def source_identity(config: PipelineConfig, tables: PostgresTables) -> Identity:
    """The source's identity, as checkpoints have it."""
    return identify(tables, config.source.dsn.get_secret_value(), application_name=f"towline {config.pipeline}")


def apply_source(prepared: Prepared, report: Callable[[Step], None]) -> None:
    """The part of `apply` at the source alone: publication and slot."""
    for step in _source_steps(prepared):
        report(step)
        source_setup.execute(prepared.source, [step])


def _mask(prepared: Prepared) -> None:
    """Take what is sensitive now out of the quarantine."""
    config = prepared.config
    with prepared.target.transaction():
        entries = Entries(prepared.target, schema=config.target.schema_name, pipeline=config.pipeline)
        entries.hold()
        for route in prepared.routes:
            if route.sensitive:
                entries.mask(route.name, route.sensitive)


@contextmanager
def _tables(config: PipelineConfig) -> Iterator[PostgresTables]:
    tables = PostgresTables(config.source.dsn.get_secret_value(), slot=config.source.slot)
    try:
        yield tables
    finally:
        tables.close()


def _target_plan(prepared: Prepared) -> target_setup.Plan:
    with session.translating("source"):
        definitions = target_setup.definitions_for(prepared.source, prepared.routes)
    return target_setup.plan(
        prepared.target,
        schema=prepared.config.target.schema_name,
        pipeline=prepared.config.pipeline,
        routes=prepared.routes,
        definitions=definitions,
    )


def _source_steps(prepared: Prepared) -> list[Step]:
    config = prepared.config.source
    return source_setup.plan(
        prepared.source,
        prepared.relations,
        slot=config.slot,
        publication=config.publication,
        plugin=config.plugin,
        failover=config.failover,
    )


def _copied_again(prepared: Prepared, checkpoint: Checkpoint | None, at_source: Sequence[Step]) -> list[Step]:
    """Steps for routes of which changes were not published; and for what is remembered of the publication."""
    if checkpoint is None:
        return []
    changing = any(source_setup.publishes(step) for step in at_source)
    ends = prepared.source, prepared.target
    return republish.copied_again(prepared.config, *ends, prepared.routes, prepared.relations, changing=changing)


def _acceptances(prepared: Prepared) -> list[Step]:
    """Steps by which what is remembered of changed and of former source tables gives way to what they are now."""
    config = prepared.config
    schema, pipeline = config.target.schema_name, config.pipeline
    with session.translating("target"):
        kept = remembered.read(prepared.target, schema, pipeline)
    with session.translating("source"):
        elsewhere = remembered.elsewhere(prepared.source, kept, prepared.source_catalog)
    changed = []
    for route in prepared.routes:
        if (each := kept.get(route.name)) is not None:
            found = compare(each.table, route.source, elsewhere.get(each.table.oid))
            policy = route.on_schema_change if route.identity else None
            if any(halts(difference, each, policy, route.target, route.on_truncate) for difference in found):
                changed.append(route.name)
    steps = []
    if changed:
        statement = source_tables.accept(schema, pipeline, changed)
        steps.append(Step("target", f"source tables as they are now, of {', '.join(changed)}", statement))
    if gone := sorted(kept.keys() - {route.name for route in prepared.routes}):
        statement = source_tables.forget(schema, pipeline, gone)
        steps.append(Step("target", f"source tables of {len(gone)} routes that are no more", statement))
    return steps + _of_another_key(prepared)


def _of_another_key(prepared: Prepared) -> list[Step]:
    """The step by which routes are copied again of which something is set aside that has another key than their table.

    No change will overtake it, nor can it be retried; and what the target has of these rows is older than that.
    """
    config = prepared.config
    with session.translating("target"):
        entries = Entries(prepared.target, schema=config.target.schema_name, pipeline=config.pipeline)
        try:
            keys = entries.keys_behind()
        except NotSetUp:
            return []
        stranded = [
            route.name for route in prepared.routes if keys.get(route.name, set()) - {tuple(route.source.identity)}
        ]
        if not stranded:
            return []
        state = ResyncState(prepared.target, config.target.schema_name, config.pipeline)
        title = f"{', '.join(stranded)} copied again: what is set aside has another key"
        return [Step("target", title, state.marking(stranded))]


def _checkpoint(prepared: Prepared) -> Checkpoint | None:
    schema = prepared.config.target.schema_name
    with session.translating("target"):
        if "checkpoint" not in control.present(prepared.target, schema, upgrading=True):
            return None
        return control.read_checkpoint(prepared.target, schema, prepared.config.pipeline)


def _slot(prepared: Prepared) -> SlotState:
    with _tables(prepared.config) as tables:
        return tables.slot()


def _consistent(
    config: PipelineConfig, checkpoint: Checkpoint | None, slot: SlotState, publication: Standing | None
) -> None:
    """A checkpoint without its slot is a gap, which no `apply` may paper over; a slot without one must be nobody's.

    A publication that is made after the slot is one that the slot cannot read.
    """
    if checkpoint is not None and checkpoint.position == ZERO:
        raise ResyncUnfinished("a resync has begun, and has not made the slot anew yet")
    if checkpoint is not None and not slot.exists:
        raise SlotMissing(
            f"replication slot {config.source.slot} does not exist; "
            f"the checkpoint is at {format_lsn(checkpoint.position)}"
        )
    anew = None if checkpoint is None or publication is None else publication.made_anew(checkpoint.publication)
    if anew is not None:
        raise anew
    if checkpoint is None and (slot.active_pid or slot.catching_up):
        raise SlotInUse(
            f"slot {config.source.slot} exists and a daemon (process {slot.active_pid or 'unknown'}) reads from it, "
            "but this target has no checkpoint",
            hint="Is it another pipeline of the same name? Then give this one another name, or another `source.slot`.",
        )
