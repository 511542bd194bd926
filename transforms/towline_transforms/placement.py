"""Types at the target: where a source's type lives there, and whether another type carries its values exactly.

Built-in types are the same everywhere. Enums, domains, composites and ranges are created with the tables: in the
route's target schema when they are in its source schema, else in the schema of the same name. Types of extensions,
and base types written in C, cannot be created by statements that would be known here: the target must have them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from towline_transforms.identifier import quote
from towline_transforms.schema import Catalog, SqlType, TypeKind

_MODIFIER = re.compile(r"\A([a-z ]+?)\((\d+)(?:,(-?\d+))?\)(.*)\Z")
_CREATABLE = frozenset({TypeKind.ENUM, TypeKind.DOMAIN, TypeKind.COMPOSITE, TypeKind.RANGE, TypeKind.MULTIRANGE})

#: The first version with multirange types; their OIDs are unknown before.
_MULTIRANGE = 140000


class TypeMissing(LookupError):
    """A type does not exist at the target and cannot be created. ``remedy``: a statement or a sentence."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the types of one route go: those of schema ``source`` to schema ``target``, others stay as they are."""

    source: str
    target: str
    catalog: Catalog

    def place(self, found: SqlType) -> SqlType:
        """The source's type as the target will name it. Raises TypeMissing. The OIDs stay the source's."""
        if found.kind is TypeKind.ARRAY and found.element is not None:
            element = self.place(found.element)
            if element == found.element:
                return found
            return replace(_moved(found, self._array_schema(found, element)), element=element)
        if found.builtin:
            multirange = found.kind is TypeKind.MULTIRANGE or found.name.endswith("multirange")
            if multirange and 0 < self.catalog.server_version < _MULTIRANGE:
                raise TypeMissing(
                    f"{found.sql} does not exist before PostgreSQL 14.",
                    "Leave the column out with a SELECT, or upgrade the target.",
                )
            return found
        if found.extension is not None or found.kind not in _CREATABLE:
            return self._existing(found)
        element_type = found.element
        if element_type is not None and found.kind is not TypeKind.COMPOSITE:
            element_type = self.place(element_type)
        schema = self.target if found.schema == self.source else found.schema
        return replace(_moved(found, schema), element=element_type)

    def _array_schema(self, found: SqlType, element: SqlType) -> str:
        return element.schema if not found.builtin else found.schema

    def _existing(self, found: SqlType) -> SqlType:
        """A type that cannot be created: the target's own, of the same name in whichever schema."""
        known = self.catalog.types
        if known is None or (found.schema, found.name) in known:
            return found
        schemas = sorted(schema for schema, name in known if name == found.name)
        if schemas:
            return _moved(found, schemas[0])
        extension = found.extension
        remedy = f"Run at the target: CREATE EXTENSION {quote(extension or found.name)} SCHEMA {quote(found.schema)};"
        if extension is None:
            remedy += " (or whatever made the type at the source)"
        raise TypeMissing(
            f"The type {found.sql} does not exist at the target and cannot be created from the catalog.", remedy
        )

    def carries(self, source: SqlType, target: SqlType) -> bool:
        """Whether a column of type ``target`` holds every value of ``source`` exactly, in the same binary form."""
        if source.builtin and target.builtin:
            return source.sql == target.sql or _wider(source.sql, target.sql)
        if source.builtin != target.builtin or source.kind is not target.kind:
            return False
        if source.kind is TypeKind.ARRAY:
            elements = source.element, target.element
            return elements[0] is not None and elements[1] is not None and self.carries(elements[0], elements[1])
        if source.name != target.name:
            return False
        if (
            source.element is not None
            and target.element is not None
            and not self.carries(source.element, target.element)
        ):
            return False
        if source.kind is TypeKind.BASE or source.extension is not None:
            modifiers = _tail(source), _tail(target)
            return modifiers[0] == modifiers[1] or not modifiers[1]
        return target.schema in (source.schema, self.target if source.schema == self.source else source.schema)


def widened(was: SqlType, now: SqlType) -> bool:
    """Whether a built-in type has a larger limit than before, or none: its values are printed as they were."""
    return was.builtin and now.builtin and _wider(was.sql, now.sql)


def _moved(found: SqlType, schema: str) -> SqlType:
    """The type with its schema replaced, in its SQL form too."""
    for prefix in (f"{found.schema}.", f"{quote(found.schema)}."):
        if found.sql.startswith(prefix):
            return replace(found, schema=schema, sql=f"{_as_printed(schema)}.{found.sql[len(prefix) :]}")
    return replace(found, schema=schema)


def _as_printed(name: str) -> str:
    """A name as ``format_type`` prints it, close enough: quoted unless it is plain and lower case."""
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name) and name not in _RESERVED else quote(name)


#: The reserved words that one might find as a schema's name.
_RESERVED = frozenset(
    {"all", "analyse", "default", "end", "group", "order", "primary", "select", "table", "to", "user"}
)


def _tail(found: SqlType) -> str:
    """The modifier of a type that is not built in, e.g. ``(Point,4326)``."""
    at = found.sql.find("(", found.sql.rfind('"') + 1)
    return found.sql[at:] if at >= 0 else ""


def _wider(source: str, target: str) -> bool:
    """Whether a built-in type is the other with a larger modifier, or without one, both as ``format_type`` prints them.

    The scale of a numeric must stay, since it shows; a char must, since it is padded to its length.
    """
    if source.startswith("character varying") or source == "text":
        if target in ("text", "character varying") and not source.endswith("[]"):
            return True
        if source in ("text", "character varying"):
            return False
    if source.startswith("interval "):
        return target == "interval"
    match = _MODIFIER.match(source)
    if match is None:
        return False
    base, precision, scale, rest = match.groups()
    if base in ("character", "bit"):
        return False
    if target == base + rest:
        return True
    other = _MODIFIER.match(target)
    if other is None or other[1] != base or other[4] != rest:
        return False
    return int(other[2]) >= int(precision) and other[3] == scale
