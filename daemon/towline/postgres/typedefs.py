"""User-defined types as a server's catalog has them, so that they can be made at another server.

`read` follows dependencies: the attributes of composites, the base of domains, the subtypes of ranges and the
elements of arrays. Built-in types end the search; types that belong to an extension are named, not described.
All names of types are as ``format_type`` prints them with an empty search_path: safe to put in a statement.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg

#: Objects below this OID were made by initdb, and are the same on every server (FirstNormalObjectId).
FIRST_NORMAL_OID = 16384

_TYPES = """
SELECT t.oid::bigint, n.nspname::text, t.typname::text, t.typtype::text,
       pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname),
       CASE WHEN e.typarray = t.oid THEN e.oid::bigint ELSE 0 END,
       t.typbasetype::bigint, pg_catalog.format_type(t.typbasetype, t.typtypmod), t.typnotnull,
       (SELECT x.extname::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
         WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.objid = t.oid
           AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e' LIMIT 1),
       CASE WHEN t.typcollation <> COALESCE(b.typcollation, 0) THEN (
         SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname)
         FROM pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
         WHERE co.oid = t.typcollation) END,
       ARRAY(SELECT en.enumlabel::text FROM pg_catalog.pg_enum en WHERE en.enumtypid = t.oid ORDER BY en.enumsortorder),
       ARRAY(SELECT 'CONSTRAINT ' || pg_catalog.quote_ident(k.conname) || ' ' || pg_catalog.pg_get_constraintdef(k.oid)
             FROM pg_catalog.pg_constraint k WHERE k.contypid = t.oid AND k.contype = 'c' ORDER BY k.conname)
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem
LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype
WHERE t.oid = ANY (%s::oid[])
"""

_ATTRIBUTES = """
SELECT t.oid::bigint, a.attname::text, pg_catalog.quote_ident(a.attname), a.atttypid::bigint,
       pg_catalog.format_type(a.atttypid, a.atttypmod),
       CASE WHEN a.attcollation <> bt.typcollation THEN (
         SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname)
         FROM pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
         WHERE co.oid = a.attcollation) END
FROM pg_catalog.pg_type t
JOIN pg_catalog.pg_attribute a ON a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
JOIN pg_catalog.pg_type bt ON bt.oid = a.atttypid
WHERE t.oid = ANY (%s::oid[]) AND t.typtype = 'c'
ORDER BY t.oid, a.attnum
"""

_RANGES = """
SELECT r.rngtypid::bigint, r.rngsubtype::bigint, pg_catalog.format_type(r.rngsubtype, NULL),
       CASE WHEN NOT oc.opcdefault THEN
         pg_catalog.quote_ident(ocn.nspname) || '.' || pg_catalog.quote_ident(oc.opcname) END,
       CASE WHEN r.rngcollation <> st.typcollation THEN
         pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname) END,
       CASE WHEN r.rngcanonical::oid <> 0 THEN r.rngcanonical::text END,
       CASE WHEN r.rngsubdiff::oid <> 0 THEN r.rngsubdiff::text END,
       NULLIF(pg_catalog.to_jsonb(r) ->> 'rngmultitypid', '0')::bigint,
       (SELECT m.typname::text FROM pg_catalog.pg_type m
        WHERE m.oid = (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::oid)
FROM pg_catalog.pg_range r
JOIN pg_catalog.pg_type st ON st.oid = r.rngsubtype
JOIN pg_catalog.pg_opclass oc ON oc.oid = r.rngsubopc
JOIN pg_catalog.pg_namespace ocn ON ocn.oid = oc.opcnamespace
LEFT JOIN pg_catalog.pg_collation co ON co.oid = r.rngcollation
LEFT JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
WHERE r.rngtypid = ANY (%s::oid[]) OR (pg_catalog.to_jsonb(r) ->> 'rngmultitypid')::oid = ANY (%s::oid[])
"""

_FIND = """
SELECT t.oid::bigint, n.nspname::text, t.typname::text
FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE (n.nspname, t.typname) IN (SELECT * FROM unnest(%s::text[], %s::text[]))
"""

_OF_EXTENSIONS = """
SELECT x.extname::text, t.typname::text, n.nspname::text
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_extension x ON x.oid = d.refobjid
JOIN pg_catalog.pg_type t ON t.oid = d.objid
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass AND d.deptype = 'e'
  AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
"""

_COLLATIONS = """
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.collname)
FROM pg_catalog.pg_collation c JOIN pg_catalog.pg_namespace n ON n.oid = c.collnamespace
WHERE c.collencoding IN (-1, (SELECT d.encoding FROM pg_catalog.pg_database d WHERE d.datname = current_database()))
"""


@dataclass(frozen=True, slots=True)
class TypeUse:
    """A use of a type: ``sql`` with its typmod and ``[]``, and the OID of the type itself."""

    sql: str
    oid: int = 0


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute of a composite: its name, as it is and quoted."""

    name: str
    quoted: str
    use: TypeUse
    collation: str | None = None


@dataclass(frozen=True, slots=True)
class RangeOf:
    """What a range is made of; the names are None where the server's default is meant."""

    subtype: TypeUse
    opclass: str | None
    collation: str | None
    canonical: str | None
    subdiff: str | None
    multirange: str | None


@dataclass(frozen=True, slots=True)
class TypeDefinition:
    """A user-defined type. ``kind`` is ``pg_type.typtype``: b(ase), c(omposite), d(omain), e(num), r(ange).

    ``quoted`` is its qualified name in SQL. A base type, or one of an ``extension``, is only named.
    """

    oid: int
    schema: str
    name: str
    kind: str
    quoted: str
    extension: str | None = None
    labels: tuple[str, ...] = ()
    base: TypeUse | None = None
    not_null: bool = False
    collation: str | None = None
    constraints: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    range: RangeOf | None = None

    @property
    def uses(self) -> tuple[TypeUse, ...]:
        """The types that it is made of."""
        direct = [attribute.use for attribute in self.attributes]
        if self.base is not None:
            direct.append(self.base)
        if self.range is not None:
            direct.append(self.range.subtype)
        return tuple(direct)


@dataclass(frozen=True, slots=True)
class Definitions:
    """User-defined types by OID, and for arrays and multiranges the OID of the type that brings them along."""

    types: Mapping[int, TypeDefinition]
    stands_for: Mapping[int, int]

    def of(self, oid: int) -> TypeDefinition | None:
        """The definition behind a type, an array of it, or a multirange of it; None for built-in types."""
        seen: set[int] = set()
        while oid in self.stands_for and oid not in seen:
            seen.add(oid)
            oid = self.stands_for[oid]
        return self.types.get(oid)

    def closure(self, oids: Iterable[int]) -> list[TypeDefinition]:
        """The definitions behind the types, and what those need, each after what it needs itself."""
        order: dict[int, TypeDefinition] = {}

        def visit(oid: int) -> None:
            definition = self.of(oid)
            if definition is None or definition.oid in order:
                return
            for use in definition.uses:
                visit(use.oid)
            order[definition.oid] = definition

        for oid in oids:
            visit(oid)
        return list(order.values())


def read(connection: psycopg.Connection[Any], oids: Collection[int]) -> Definitions:
    """Describe the user-defined types among ``oids`` and what they need. The session's search_path must be empty."""
    types: dict[int, TypeDefinition] = {}
    stands_for: dict[int, int] = {}
    wanted = {oid for oid in oids if oid >= FIRST_NORMAL_OID}
    while wanted:
        batch = sorted(wanted)
        ranges = _ranges(connection, batch, stands_for)
        attributes = _attributes(connection, batch)
        for row in connection.execute(_TYPES, (batch,)):
            oid, schema, name, kind, quoted, element, base_oid, base_sql, *rest = row
            not_null, extension, collation, labels, constraints = rest
            if element:
                stands_for[oid] = element
            elif kind != "m":
                types[oid] = TypeDefinition(
                    oid,
                    schema,
                    name,
                    kind,
                    quoted,
                    extension,
                    tuple(labels),
                    TypeUse(base_sql, base_oid) if kind == "d" else None,
                    not_null,
                    collation,
                    tuple(constraints),
                    attributes.get(oid, ()),
                    ranges.get(oid),
                )
        needed = {use.oid for definition in types.values() if not definition.extension for use in definition.uses}
        needed |= set(stands_for.values())
        known = types.keys() | stands_for.keys()
        wanted = {oid for oid in needed if oid >= FIRST_NORMAL_OID and oid not in known}
    return Definitions(types, stands_for)


def find(
    connection: psycopg.Connection[Any], names: Collection[tuple[str, str]]
) -> dict[tuple[str, str], TypeDefinition]:
    """The types of those names (schema, name) that exist, described."""
    pairs = sorted(names)
    rows = connection.execute(_FIND, ([schema for schema, _ in pairs], [name for _, name in pairs])).fetchall()
    definitions = read(connection, [oid for oid, _, _ in rows])
    return {(schema, name): definitions.types[oid] for oid, schema, name in rows if oid in definitions.types}


def of_extensions(connection: psycopg.Connection[Any]) -> dict[tuple[str, str], str]:
    """Where the types of the extensions that are installed live: (extension, type) → schema."""
    return {(extension, name): schema for extension, name, schema in connection.execute(_OF_EXTENSIONS)}


def collations(connection: psycopg.Connection[Any]) -> frozenset[str]:
    """The collations that can be used in this database, qualified and quoted."""
    return frozenset(name for (name,) in connection.execute(_COLLATIONS))


def _attributes(connection: psycopg.Connection[Any], oids: list[int]) -> dict[int, tuple[Attribute, ...]]:
    found: dict[int, tuple[Attribute, ...]] = {}
    for oid, name, quoted, type_oid, type_sql, collation in connection.execute(_ATTRIBUTES, (oids,)):
        found[oid] = (*found.get(oid, ()), Attribute(name, quoted, TypeUse(type_sql, type_oid), collation))
    return found


def _ranges(connection: psycopg.Connection[Any], oids: list[int], stands_for: dict[int, int]) -> dict[int, RangeOf]:
    found: dict[int, RangeOf] = {}
    for row in connection.execute(_RANGES, (oids, oids)):
        oid, subtype, subtype_sql, opclass, collation, canonical, subdiff, multirange_oid, multirange = row
        found[oid] = RangeOf(TypeUse(subtype_sql, subtype), opclass, collation, canonical, subdiff, multirange)
        if multirange_oid is not None:
            stands_for[multirange_oid] = oid
    return found
