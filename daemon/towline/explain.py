"""What a route does, for people: where each column comes from, what travels, and which statements run. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from towline.change import Format, Relation
from towline_transforms.dialect import postgres as dialect
from towline_transforms.dialect.stage import create_stage, pseudo_column, stage_columns, table_stage
from towline_transforms.route import Assignment, OnDelete, Route
from towline_transforms.schema import Column

#: What the staging tables are called here; the daemon numbers its own.
STAGE, KEYS = "pg_temp.stage", "pg_temp.keys"


def explain(route: Route, relation: Relation, publication: str | None) -> Iterator[str]:
    """The lines of the explanation. ``publication``: its name, or None when the plugin needs none."""
    yield f"route {route.name}: {route.source.name} -> {route.into}"
    yield from _indented(_facts(route))
    yield ""
    yield "columns (target <- source)"
    yield from _indented(_lineage(route.assignments))
    yield ""
    yield "what travels"
    yield from _indented(_travels(relation, publication))
    yield ""
    yield "staging table, at the target"
    yield from _indented(_staging(route, relation))
    yield ""
    yield "statements, at the target, for each batch"
    yield from _indented(_statements(route, relation))


def _facts(route: Route) -> Iterator[str]:
    rows = [
        ("key", ", ".join(route.key)),
        ("found by", f"the source's replica identity ({', '.join(route.source.identity)})"),
        ("filter", _filter(route)),
        ("on_delete", _on_delete(route)),
        ("on_truncate", str(route.on_truncate)),
        ("target", "does not exist yet: `towline apply` creates it" if route.create else "exists"),
    ]
    return (f"{name:<12} {text}" for name, text in rows)


def _filter(route: Route) -> str:
    if not route.filtered:
        return "none: every source row makes a row"
    depends = f" (depends on {', '.join(sorted(route.filter_sources))})" if route.filter_sources else ""
    return f"a source row that does not pass makes no row, and removes the one it made before{depends}"


def _on_delete(route: Route) -> str:
    if route.on_delete is OnDelete.MARK:
        return f"mark, in column {route.mark_column}"
    return str(route.on_delete)


def _lineage(assignments: Sequence[Assignment]) -> Iterator[str]:
    width = max((len(each.column) for each in assignments), default=0)
    for each in assignments:
        origins = [*sorted(each.sources), *sorted(each.pseudo), *sorted(each.joined)]
        expression = " ".join(each.sql.split())
        how = "" if origins == [each.column] and expression.strip('"') == each.column else f"   {expression}"
        yield f"{each.column:<{width}} <- {', '.join(origins) or 'a constant'}{how}".rstrip()


def _travels(relation: Relation, publication: str | None) -> Iterator[str]:
    names = [column.name for column in relation.columns]
    left_out = [column.name for column in relation.table.columns if column.name not in names]
    yield f"{relation.name} ({', '.join(names)})"
    yield f"as {'binary' if relation.format is Format.BINARY else 'text'}, each value as the source's server writes it"
    if publication is not None:
        yield f"through publication {publication}"
    if left_out:
        yield f"left out: {', '.join(left_out)}"


def _staging(route: Route, relation: Relation) -> Iterator[str]:
    columns = stage_columns(_staged(route, relation), binary=relation.format is Format.BINARY, route=route)
    yield from (create_stage(STAGE, columns) + ";").splitlines()


def _statements(route: Route, relation: Relation) -> Iterator[str]:
    binary = relation.format is Format.BINARY
    stage = table_stage(STAGE, stage_columns(_staged(route, relation), binary=binary, route=route))
    identity = list(relation.key_columns)
    if dialect.marks_with_time(route):
        identity.append(pseudo_column("_commit_time"))
    keys = table_stage(KEYS, stage_columns(identity, binary=binary, route=route))
    statements = [
        ("deleted rows, and the old keys of rows whose key changed", dialect.delete(route, keys)),
        ("rows that no longer pass the filter", dialect.delete_unmade(route, stage) if route.filtered else None),
        ("inserted and updated rows", dialect.upsert(route, stage)),
    ]
    for title, statement in statements:
        if statement is not None:
            yield f"-- {title}"
            yield from (line for line in (statement + ";").splitlines() if line.strip())


def _staged(route: Route, relation: Relation) -> list[Column]:
    return [*relation.columns, *map(pseudo_column, route.pseudo)]


def _indented(lines: Iterator[str]) -> Iterator[str]:
    return (f"  {line}".rstrip() for line in lines)
