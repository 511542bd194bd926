"""Statements that make types and tables at the target as the source has them. Text only; nothing is executed here.

Types keep their names. A type that lives in the schema of the route's source table moves with the table, into the
schema of the route's target; a type of any other schema keeps its schema; a type of an extension is looked for where
the target has that extension, and is never made.

What is left out on purpose: defaults (the source has filled them), foreign keys and unique keys other than the route's
(add them once the first copy is done, if the target should check again what the source has checked), privileges,
comments. Generated columns are generated at the target too, and always stored there: every version can do that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from psycopg import sql

from towline.postgres.typedefs import Definitions, TypeDefinition, TypeUse
from towline_transforms.route import Route
from towline_transforms.schema import Column


def identifier(*parts: str) -> str:
    """A quoted, qualified name."""
    return sql.Identifier(*parts).as_string()


def literal(text: str) -> str:
    """A quoted string."""
    return sql.Literal(text).as_string().strip()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the source's types are at the target, for routes between one pair of schemas.

    ``extensions``: (extension, type) → schema, at the target. ``collations``: what the target has, qualified and
    quoted. ``server_version``: the target's, as in 180003.
    """

    definitions: Definitions
    source_schema: str
    target_schema: str
    extensions: Mapping[tuple[str, str], str] = field(default_factory=dict)
    collations: frozenset[str] = frozenset()
    server_version: int = 0

    def schema_of(self, definition: TypeDefinition) -> str:
        """The schema at the target."""
        if definition.extension is not None:
            return self.extensions.get((definition.extension, definition.name), definition.schema)
        if definition.kind == "b":
            return definition.schema
        return self.target_schema if definition.schema == self.source_schema else definition.schema

    def name_of(self, definition: TypeDefinition) -> tuple[str, str]:
        """Schema and name at the target."""
        return self.schema_of(definition), definition.name

    def sql_of(self, use: TypeUse) -> str:
        """The use of a type, as SQL for the target."""
        definition = self.definitions.of(use.oid)
        if definition is None:
            return use.sql
        name, suffix = definition.name, use.sql.removeprefix(definition.quoted)
        if suffix and suffix[0] not in "([" and definition.range is not None and definition.range.multirange:
            name, suffix = definition.range.multirange, "[]" if use.sql.endswith("[]") else ""
        return identifier(self.schema_of(definition), name) + suffix

    def type_of(self, source: Column, target: Column) -> str:
        """The type of a source's column, as SQL for the target. ``target``: the column as the check derived it."""
        definition = self.definitions.of(source.type.oid)
        if definition is None or definition.kind == "b" or definition.extension is not None:
            return target.type.sql
        return self.sql_of(TypeUse(source.type.sql, source.type.oid))

    def collate(self, collation: str | None) -> str:
        """A COLLATE clause with a leading space, when the target has the collation."""
        if collation is None or collation not in self.collations:
            return ""
        return f" COLLATE {collation}"


def create_type(definition: TypeDefinition, placement: Placement) -> str | None:
    """The statement that makes a type; None for base types and ranges with a function of their own."""
    name = identifier(*placement.name_of(definition))
    if definition.extension is not None:
        return None
    if definition.kind == "e":
        return f"CREATE TYPE {name} AS ENUM ({', '.join(map(literal, definition.labels))})"
    if definition.kind == "d" and definition.base is not None:
        parts = [
            f"CREATE DOMAIN {name} AS {placement.sql_of(definition.base)}{placement.collate(definition.collation)}"
        ]
        if definition.not_null:
            parts.append("NOT NULL")
        return "\n    ".join([*parts, *definition.constraints])
    if definition.kind == "c":
        attributes = ",\n".join(
            f"    {identifier(a.name)} {placement.sql_of(a.use)}{placement.collate(a.collation)}"
            for a in definition.attributes
        )
        return f"CREATE TYPE {name} AS (\n{attributes}\n)" if attributes else f"CREATE TYPE {name} AS ()"
    if definition.kind == "r" and definition.range is not None and definition.range.canonical is None:
        return f"CREATE TYPE {name} AS RANGE ({', '.join(_range_options(definition, placement))})"
    return None


def _range_options(definition: TypeDefinition, placement: Placement) -> Iterator[str]:
    made_of = definition.range
    assert made_of is not None
    yield f"SUBTYPE = {placement.sql_of(made_of.subtype)}"
    if made_of.opclass is not None:
        yield f"SUBTYPE_OPCLASS = {made_of.opclass}"
    if made_of.collation is not None and made_of.collation in placement.collations:
        yield f"COLLATION = {made_of.collation}"
    if made_of.subdiff is not None:
        yield f"SUBTYPE_DIFF = {made_of.subdiff}"
    if made_of.multirange is not None and placement.server_version >= 140000:
        yield f"MULTIRANGE_TYPE_NAME = {identifier(placement.schema_of(definition), made_of.multirange)}"


def add_labels(source: TypeDefinition, target: TypeDefinition) -> list[str]:
    """The statements that add an enum's new labels, each in its place."""
    name = identifier(target.schema, target.name)
    known = set(target.labels)
    statements = []
    if source.labels and source.labels[0] not in known:
        anchor = next((label for label in source.labels if label in known), None)
        place = f" BEFORE {literal(anchor)}" if anchor is not None else ""
        statements.append(f"ALTER TYPE {name} ADD VALUE IF NOT EXISTS {literal(source.labels[0])}{place}")
    for before, label in pairwise(source.labels):
        if label not in known:
            statements.append(f"ALTER TYPE {name} ADD VALUE IF NOT EXISTS {literal(label)} AFTER {literal(before)}")
    return statements


def type_difference(source: TypeDefinition, target: TypeDefinition, placement: Placement) -> str | None:
    """How a type of the target differs from the source's, in words, labels of enums aside. None: it does not."""
    if source.kind != target.kind:
        return "is of another kind"
    if source.base is not None and target.base is not None:
        expected, found = placement.sql_of(source.base), target.base.sql
        if not _same(expected, found):
            return f"is a domain over {found}, not {expected}"
        if target.not_null and not source.not_null:
            return "does not allow NULL"
    if source.kind == "c":
        theirs = [(a.name, a.use.sql) for a in target.attributes]
        ours = [(a.name, placement.sql_of(a.use)) for a in source.attributes]
        if [name for name, _ in ours] != [name for name, _ in theirs]:
            return "has other attributes"
        for (name, expected), (_, found) in zip(ours, theirs, strict=True):
            if not _same(expected, found):
                return f"has attribute {name} of type {found}, not {expected}"
    if source.range is not None and target.range is not None:
        expected, found = placement.sql_of(source.range.subtype), target.range.subtype.sql
        if not _same(expected, found):
            return f"is a range of {found}, not {expected}"
    return None


def _same(ours: str, theirs: str) -> bool:
    """Whether two types are spelled the same but for quotes, which format_type leaves out where it can."""
    return ours.replace('"', "") == theirs.replace('"', "")


def add_column(route: Route, name: str, placement: Placement) -> str:
    """The statement that adds one of the source's columns to the target table, nullable and without a default."""
    source, target = route.source.column(name), route.target.column(name)
    typed = placement.type_of(source, target) + placement.collate(source.collation)
    table = identifier(route.into.schema, route.into.name)
    return f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {identifier(name)} {typed}"


def create_table(route: Route, placement: Placement) -> str:
    """The statement that makes a route's target table, with the types of the source's columns of the same names."""
    lines = []
    for column in route.target.columns:
        original = route.source.column(column.name) if route.source.has(column.name) else column
        typed = placement.type_of(original, column) + placement.collate(original.collation)
        line = f"    {identifier(column.name)} {typed}"
        if column.generated is not None:
            line += f" GENERATED ALWAYS AS ({column.generated}) STORED"
        if column.not_null:
            line += " NOT NULL"
        lines.append(line)
    key = route.target.primary_key or route.key
    if key:
        lines.append(f"    PRIMARY KEY ({', '.join(map(identifier, key))})")
    if route.key and set(route.key) != set(key):
        lines.append(f"    UNIQUE ({', '.join(map(identifier, route.key))})")
    body = ",\n".join(lines)
    return f"CREATE TABLE IF NOT EXISTS {identifier(route.into.schema, route.into.name)} (\n{body}\n)"
