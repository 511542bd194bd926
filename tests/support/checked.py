"""Checked routes between two databases, without a pipeline file."""

from __future__ import annotations

from dataclasses import dataclass

import psycopg

from towline.change import Format, Relation
from towline.postgres.catalog import describe
from towline.postgres.session import connect
from towline.target.postgres import setup
from towline.target.postgres.setup import Plan
from towline_transforms.check import check_routes, tables_needed
from towline_transforms.route import Route, RouteSpec
from towline_transforms.schema import TableName

PIPELINE = "test"
SCHEMA = "towline"


@dataclass
class Ends:
    """A source and a target database, with a session at each (text is exact; the source's search_path is empty)."""

    source_dsn: str
    target_dsn: str

    def __post_init__(self) -> None:
        self.source = connect(self.source_dsn, application_name="test", side="source")
        self.target = connect(self.target_dsn, application_name="test", side="target", search_path=None)

    def check(self, *specs: RouteSpec) -> tuple[Route, ...]:
        """The routes, checked against both catalogs as they are now."""
        source_names, target_names = tables_needed(specs)
        return check_routes(specs, describe(self.source, source_names), describe(self.target, target_names))

    def plan(self, *specs: RouteSpec) -> Plan:
        """What is to be done at the target."""
        routes = self.check(*specs)
        definitions = setup.definitions_for(self.source, routes)
        return setup.plan(self.target, schema=SCHEMA, pipeline=PIPELINE, routes=routes, definitions=definitions)

    def apply(self, *specs: RouteSpec) -> tuple[Route, ...]:
        """Set the target up, and check the routes again."""
        plan = self.plan(*specs)
        assert not plan.problems, plan.problems
        setup.execute(self.target, plan.steps)
        return self.check(*specs)

    def close(self) -> None:
        """End both sessions."""
        self.source.close()
        self.target.close()


def spec(source: str, into: str, select: str | None = None, name: str = "", **options: object) -> RouteSpec:
    """A route from ``schema.table`` into ``schema.table``."""
    return RouteSpec(name or source, _name(source), _name(into), select, **options)  # type: ignore[arg-type]


def relation(route: Route, format_: Format | None = None) -> Relation:
    """The source table as this route alone would have it travel."""
    columns = tuple(column for column in route.source.columns if column.name in route.columns)
    binary = all(column.type.binary for column in columns)
    return Relation(route.source, columns, format_ or (Format.BINARY if binary else Format.TEXT))


def run(connection: psycopg.Connection, script: str) -> None:
    """Run a script of several statements."""
    connection.execute(script.encode())


def _name(text: str) -> TableName:
    schema, _, table = text.partition(".")
    return TableName(schema, table)
