"""What an attempt begins with: routes and relations as both catalogs have them now, compared with what was remembered.

Each route whose source table has changed either goes on, with what it takes to be exact again (`Adoption`: columns to
add at the target, columns whose values are to be read again), or it halts the pipeline. Then the attempt runs with the
table as it was remembered, up to where the log shows the change (or to where the log was at this look, for a change
that leaves no trace there): everything before it is applied, nothing after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import psycopg

from towline import masks
from towline import remembered as memory
from towline.adoption import Adoption, Intake
from towline.change import Relation
from towline.config import PipelineConfig
from towline.errors import EvolutionRefused, SourceTableChanged
from towline.plan import Prepared, refused, sessions, without_new
from towline.postgres import catalog
from towline.postgres.session import translating
from towline.schema_change import (
    Again,
    Difference,
    Kind,
    Remembered,
    came,
    compare,
    error_for,
    halts,
    needed,
    read_again,
)
from towline.source.postgres import identity, look, publication, published
from towline.source.postgres.relations import relations_of
from towline.target.postgres import control, source_tables
from towline.target.postgres import setup as target_setup
from towline.target.postgres.probe import probe
from towline.target.postgres.resync import sweep
from towline.telling import Change
from towline_transforms.check import check_routes, expand, tables_needed
from towline_transforms.problems import Problem, RouteError
from towline_transforms.route import OnSchemaChange, Route
from towline_transforms.schema import Table, TableName


def take_in(config: PipelineConfig) -> Intake:
    """Look at both ends. Raises RoutesRefused, EvolutionRefused, what a change leads to that cannot wait (TL-31x), and
    the errors of connecting and of reading catalogs. Nothing is changed but the publication, when it lacks columns.
    """
    while True:
        with sessions(config) as (source, target):
            found = _Look(config, source, target)
            if not found.publish():
                return found.intake()


class _Look:
    """One look at both ends. ``frozen``: by source table, what was remembered of it, when a route of it halts."""

    def __init__(
        self, config: PipelineConfig, source: psycopg.Connection[Any], target: psycopg.Connection[Any]
    ) -> None:
        self._config, self._source, self._target = config, source, target
        schema, name = config.target.schema_name, config.pipeline
        with translating("target"):
            self._revision = source_tables.revision(target, schema, name)
            present = control.present(target, schema)
            self._known = control.read_states(target, schema, name) if "route_state" in present else {}
            kept = memory.read(target, schema, name)
            self._kept = {route: each for route, each in kept.items() if route in self._known}
        self._standing: published.Standing | None = None
        self._describe()
        versions: Mapping[int, str] = self._standing.versions if self._standing is not None else {}
        self._interrupted = tuple(memory.interrupted(self._kept, self._known, versions))
        self._halting: dict[str, list[Difference]] = {}
        self._problems: list[Problem] = []
        self._frozen: dict[TableName, Remembered] = {}
        self._differences: dict[str, tuple[Difference, ...]] = {}
        self._compare()
        self._routes = self._check()
        self._memories = {
            route.name: self._remember(route) for route in self._routes if route.source.name not in self._frozen
        }
        self._relations = self._make_relations()
        problems = probe(target, [route for route in self._routes if not route.added], self._relations)
        if problems:
            raise refused(problems)

    # ---- what there is ---------------------------------------------------------------------------------------

    def _describe(self) -> None:
        """Both catalogs. The source's log was beyond ``_before`` when it was read, and not beyond ``_after``."""
        specs, source = self._config.specs(), self._source
        at_source, at_target = tables_needed(specs)
        with translating("source"):
            self._server = identity.read(source)
            self._before = look.position(source)
            with source.transaction():
                source.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
                now = catalog.describe(source, at_source)
                self._elsewhere = memory.elsewhere(source, self._kept, now)
                self._now = without_new(self._config, now, self._known)
                tables = [*self._now.tables.values(), *(each.table for each in self._kept.values())]
                self._oids = tuple(sorted({table.oid for table in tables}))
                new = {oid for e in self._kept.values() for oid in came(e.table, now.get(e.table.name)).values()}
                self._filled = look.filled(source, sorted(new))
                self._footprint = look.footprint(source, self._oids, self._config.source.publication)
                if self._config.source.plugin == "pgoutput":
                    self._standing = published.standing(source, self._config.source.publication, self._oids)
            self._after = look.position(source)
        with translating("target"):
            self._there = catalog.describe(self._target, at_target)
        named = {spec.source for spec in specs}
        patterns = {spec.source.schema for spec in specs if spec.source.name == "*"}
        self._used: dict[TableName, Table] = dict(self._now.tables)
        for route, each in self._kept.items():
            name = each.table.name
            if route == str(name) and name.schema in patterns and name not in named | self._used.keys():
                self._used[name] = each.table  # it came from a pattern, and is gone
        expanded, _ = expand(specs, replace(self._now, tables=self._used))
        self._specs = {spec.name: spec for spec in expanded}

    # ---- what has changed ------------------------------------------------------------------------------------

    def _compare(self) -> None:
        exposed = masks.lost(self._config.specs(), self._kept, self._now.tables)
        for route, each in self._kept.items():
            spec = self._specs.get(route)
            if spec is None:
                continue  # it is no longer in the file
            now = self._now.tables.get(spec.source)
            differences = compare(each.table, now, self._elsewhere.get(each.table.oid))
            new = came(each.table, now)
            differences = tuple(d for d in differences if d.kind is not Kind.ATTACHED or new[d.now] in self._filled)
            self._differences[route] = differences
            policy = spec.on_schema_change if spec.select is None else None
            target = self._there.get(spec.into)
            found = [d for d in differences if halts(d, each, policy, target, spec.on_truncate)]
            for problem in exposed.get(route, ()):  # whatever was accepted
                found += [
                    d for d in differences if d.kind is Kind.RENAMED and d.now == problem.column and d not in found
                ]
                self._problems.append(problem)
            if found:
                self._freeze(route, found)

    def _freeze(self, route: str, differences: list[Difference]) -> None:
        """The route halts: its table is used as it was remembered."""
        self._halting[route] = differences
        each, name = self._kept[route], self._specs[route].source
        now = self._now.tables.get(name)
        partitions = tuple(dict.fromkeys((*each.table.partitions, *(now.partitions if now is not None else ()))))
        self._frozen[name] = each
        self._used[name] = replace(each.table, name=name, partitions=partitions)

    def _check(self) -> tuple[Route, ...]:
        """The routes that hold. One that does not, because its source has changed, halts as well."""
        specs = self._config.specs()
        while True:
            try:
                return check_routes(specs, replace(self._now, tables=self._used), self._there, running=True)
            except RouteError as error:
                changed = {
                    problem.route: found
                    for problem in error.problems
                    if problem.route in self._differences
                    and problem.route not in self._halting
                    and (found := self._needed(problem.route))
                }
                if not changed and self._halting:
                    raise self._error() from error
                if not changed or any(problem.route not in self._differences for problem in error.problems):
                    raise refused(error.problems) from error
                self._problems += [problem for problem in error.problems if problem.route in changed]
                for route, differences in changed.items():
                    self._freeze(route, differences)

    def _needed(self, route: str) -> list[Difference]:
        """The differences for which a route may no longer hold: an added column only when nothing else has changed."""
        found = [each for each in self._differences[route] if needed(each, self._kept[route])]
        return found or list(self._differences[route])

    def _error(self) -> SourceTableChanged:
        differences = [each for found in self._halting.values() for each in found]
        first = self._problems[:1]
        more = "".join(f"{each.kind.code}: {each.where}: {each.detail}" for each in first)
        return error_for(
            differences, list(self._halting), more=more, hint="".join(_remedy(problem) for problem in first)
        )

    # ---- how to go on ----------------------------------------------------------------------------------------

    def _again(self, route: Route) -> Again:
        """What has to be read again of the route."""
        each = self._kept.get(route.name)
        if each is None:
            return Again(frozenset(route.added), bool(route.added))
        return read_again(route, each, self._differences.get(route.name, ()))

    def _remember(self, route: Route) -> Remembered:
        each = self._kept.get(route.name)
        fresh = self._again(route).columns
        since = {name: at for name, at in (each.since if each else {}).items() if name in route.columns}
        since.update(dict.fromkeys(fresh, self._after))
        made = Remembered(
            route.name, route.source, route.columns, self._before, since, published=self._published(route, each)
        )
        if each is not None and memory.same(each, made):
            return each
        return made

    def _published(self, route: Route, each: Remembered | None) -> str | None:
        """What to remember of the publication: as long as nothing mends what was not sent, what it was before."""
        if route.name in self._interrupted and each is not None:
            return each.published
        return self._standing.versions.get(route.source.oid) if self._standing is not None else None

    def _make_relations(self) -> tuple[Relation, ...]:
        found = relations_of(
            self._routes,
            replace(self._now, tables=self._used),
            plugin=self._config.source.plugin,
            server_version=self._now.server_version,
        )
        by_table: dict[TableName, list[Route]] = {}
        for route in self._routes:
            by_table.setdefault(route.source.name, []).append(route)
        return tuple(self._placed(relation, by_table[relation.name]) for relation in found)

    def _placed(self, relation: Relation, routes: list[Route]) -> Relation:
        """The relation with what is known of the log before and after this look."""
        if (frozen := self._frozen.get(relation.name)) is not None:
            return replace(relation, described=frozen.position, since=tuple(sorted(frozen.since.items())), frozen=True)
        since: dict[str, int] = {}
        waiting: set[str] = set()
        for route in routes:
            for name, at in self._memories[route.name].since.items():
                since[name] = max(at, since.get(name, 0))
            if route.on_schema_change is OnSchemaChange.HALT:
                waiting.update(route.left_out)
        return replace(
            relation,
            described=self._before,
            since=tuple(sorted(since.items())),
            waiting=frozenset(waiting),
            swept=self._after if all(self._is_swept(route) for route in routes) else 0,
        )

    def _is_swept(self, route: Route) -> bool:
        """Whether all that the source no longer has now will be removed from the target."""
        known = self._known.get(route.name)
        return self._again(route).sweep or (known is not None and known.sweep)

    def _wanting(self, route: Route) -> bool:
        """Whether the route takes what may not be published yet, and is to be copied with it."""
        again = self._again(route)
        return again.everywhere and bool(again.columns)

    def publish(self) -> bool:
        """Extend the publication's lists of columns by what routes have come to take. False: nothing was to be done."""
        config = self._config.source
        wanting = any(self._wanting(route) for route in self._routes)
        if self._interrupted or config.plugin != "pgoutput" or not wanting:
            return False
        with translating("source"):
            found = publication.read(self._source, config.publication)
            statement = None if found is None else publication.extension(config.publication, found, self._relations)
            if statement is None:
                return False
            with translating("target"):
                forget = source_tables.unpublish(self._config.target.schema_name, self._config.pipeline)
                self._target.execute(forget.encode())
            try:
                self._source.execute(statement.as_string(self._source).encode())
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
                raise EvolutionRefused(
                    f"the publication {config.publication} leaves out a column that was added, and this role may not "
                    "change it",
                    hint=f"Run at the source, as its owner: {statement.as_string(self._source)};",
                ) from None
        return True

    def intake(self) -> Intake:
        """All that was found."""
        config = self._config
        schema, name = config.target.schema_name, config.pipeline
        going = [route for route in self._routes if route.source.name not in self._frozen]
        swept = [route.name for route in going if self._again(route).sweep]
        return Intake(
            prepared=Prepared(
                config, self._routes, self._relations, self._now, self._there, self._source, self._target
            ),
            adoption=Adoption(
                ddl=self._ddl([route for route in going if route.added]),
                rows=(*self._remembering(going), *([sweep(schema, name, swept)] if swept else [])),
                again=frozenset(route.name for route in going if self._again(route).everywhere),
            ),
            changes=tuple(self._changes()),
            halt=self._error() if self._halting else None,
            halt_at=self._after,
            at_once=config.source.plugin == "wal2json"
            and any(d.kind is Kind.TABLE_RECREATED for found in self._halting.values() for d in found),
            oids=self._oids,
            footprint=self._footprint,
            revision=self._revision,
            server=self._server,
            publication=self._standing,
            interrupted=self._interrupted,
        )

    def _remembering(self, routes: list[Route]) -> Iterator[str]:
        schema, name = self._config.target.schema_name, self._config.pipeline
        for route in routes:
            if (made := self._memories[route.name]) is not self._kept.get(route.name):
                yield source_tables.write(schema, name, memory.row(made))

    def _ddl(self, routes: list[Route]) -> tuple[str, ...]:
        if not routes:
            return ()
        with translating("source"):
            definitions = target_setup.definitions_for(self._source, routes)
        with translating("target"):
            steps, problems = target_setup.additions(self._target, routes, definitions)
        if problems:
            raise EvolutionRefused(problems[0].detail, hint=problems[0].remedy)
        return tuple(step.sql for step in steps)

    def _changes(self) -> Iterator[Change]:
        """What is to be told: of routes that go on it is told once, since they then remember the table as it is."""
        by_name = {route.name: route for route in self._routes}
        for name, differences in self._differences.items():
            route = by_name.get(name)
            for difference in differences:
                if difference in self._halting.get(name, ()):
                    yield Change(name, difference, "halt")
                elif route is not None and route.source.name not in self._frozen:
                    yield Change(name, difference, self._action(route, difference))

    def _action(self, route: Route, difference: Difference) -> str:
        column = difference.now if difference.kind is Kind.RENAMED else difference.column
        again = self._again(route)
        if column in route.added:
            return "add"
        if column in route.left_out:
            return "ignore" if route.on_schema_change is OnSchemaChange.IGNORE else "halt at its next change"
        if column in again.columns or (again.everywhere and not difference.column):
            return "read again"
        if difference.kind is Kind.DETACHED and again.sweep:
            return "remove its rows"
        return "go on"


def _remedy(problem: Problem) -> str:
    return f"{problem.remedy} Then start again: it goes on from the checkpoint. `towline check` says all that is wrong."
