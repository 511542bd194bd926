"""SELECT routes: a SELECT in the target's SQL over the rows of one source table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp
from sqlglot.tokenizer_core import Token

from towline_transforms.functions import refused_calls
from towline_transforms.identifier import quote, quote_list, quote_table, suggest, suggest_table
from towline_transforms.joins import find_table, prove_single
from towline_transforms.lineage import CONSTANT_PSEUDO, Dependencies, Lineage, Scope, trace, unread_columns
from towline_transforms.parse import Statement, parse
from towline_transforms.placement import Placement, TypeMissing
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.route import PSEUDO_COLUMNS, Assignment, OnDelete, Route, RouteSpec
from towline_transforms.schema import Catalog, Table
from towline_transforms.select_list import Item
from towline_transforms.target import check_always, check_key, check_mark, marked, unfilled

#: Input that date and time types read as the present: a constant that is another one tomorrow.
_MOVING_LITERALS = frozenset({"now", "today", "tomorrow", "yesterday"})
_TIMES = ("DATE", "TIME", "TIMESTAMP")


@dataclass(frozen=True, slots=True)
class _Column:
    """One output column, resolved."""

    item: Item
    direct: Dependencies
    whole: Dependencies


def select_route(
    spec: RouteSpec, text: str, source: Table, sources: Catalog, targets: Catalog, report: Report
) -> Route | None:
    """Check a SELECT route; None when something is wrong, which is reported then."""
    target = targets.get(spec.into)
    if target is None:
        near = suggest_table(spec.into, targets.tables)
        report.add(
            ProblemKind.TARGET_TABLE,
            f"The target table {spec.into} does not exist.",
            f"{near} Create it first: only routes without a SELECT create their tables.".lstrip(),
        )
    statement = parse(text, source, report)
    if statement is None:
        return None
    scope, lineage = _resolve(statement, spec, source, sources, targets, report)
    columns = [_column(item, lineage, report) for item in statement.items]
    filtered_by = _filter(statement, lineage, report)
    _check_calls(statement.rest, "", report)
    for node in (statement.where, *(join.on for join in statement.joins)):
        if node is not None:
            _check_literals(node, "", report)
    travelling = _travelling(source, columns, lineage, filtered_by)
    _check_types(source, travelling, Placement(spec.source.schema, spec.into.schema, targets), report)
    key: tuple[str, ...] = ()
    if target is not None:
        _check_columns(spec, columns, target, report)
        key = check_key(spec, target, report)
        _check_key_expressions(key, columns, source, report)
        filled = [column.item.name for column in columns]
        check_always(spec, target, filled, key, report)
        check_mark(spec, target, filled, report)
    if target is None or not report.ok:
        return None
    used = set(filtered_by.pseudo).union(
        *(column.whole.pseudo for column in columns), *(condition.pseudo for condition in lineage.conditions.values())
    )
    return Route(
        name=spec.name,
        source=source,
        target=target,
        select=(statement.head, statement.tail),
        columns=travelling,
        assignments=tuple(_assignment(column, scope) for column in columns),
        key=key,
        filtered=statement.where is not None or any(join.inner for join in statement.joins),
        filter_sources=filtered_by.sources,
        pseudo=tuple(name for name in PSEUDO_COLUMNS if name in used),
        on_delete=spec.on_delete,
        mark_column=spec.mark_column if spec.on_delete is OnDelete.MARK else None,
        on_truncate=spec.on_truncate,
        on_error=spec.on_error,
        on_schema_change=spec.on_schema_change,
        sensitive=frozenset(spec.sensitive),
    )


def _resolve(
    statement: Statement, spec: RouteSpec, source: Table, sources: Catalog, targets: Catalog, report: Report
) -> tuple[Scope, Lineage]:
    """Find the joined tables, and prove that each join finds one row at most."""
    joined: dict[str, Table] = {}
    unknown = set()
    for join in statement.joins:
        table = find_table(join, spec.into, sources, targets, report)
        if table is None:
            unknown.add(join.alias)
        else:
            joined[join.alias] = table
    scope = Scope(source, statement.alias, joined, frozenset(unknown))
    lineage = Lineage.of(statement, scope, report)
    for join in statement.joins:
        if join.alias in joined:
            prove_single(join, joined[join.alias], scope, report)
    return scope, lineage


def _column(item: Item, lineage: Lineage, report: Report) -> _Column:
    direct = trace(item.node, lineage.scope, report, item.label)
    _check_calls(item.tokens, item.label, report)
    _check_literals(item.node, item.label, report)
    for name in unread_columns(item.tokens, item.node, lineage.scope):
        report.add(
            ProblemKind.SYNTAX,
            f"It cannot be told what {name} means here.",
            "Write the expression with a function instead of an operator, or qualify the column.",
            item.label,
        )
    return _Column(item, direct, lineage.whole(direct))


def _filter(statement: Statement, lineage: Lineage, report: Report) -> Dependencies:
    """On what the choice of rows depends; it must not be when they arrive."""
    where = trace(statement.where, lineage.scope, report) if statement.where is not None else Dependencies()
    found = lineage.filter(statement.joins, where)
    for name in sorted(found.pseudo - CONSTANT_PSEUDO):
        report.add(
            ProblemKind.FUNCTION,
            f"WHERE or an inner join depends on {name}: the same row would pass at one time and not at another.",
            "Choose rows by columns of the source; pseudo-columns can fill columns of the target.",
            name,
        )
    return found


def _check_calls(tokens: Sequence[Token], label: str, report: Report) -> None:
    for _, refusal in refused_calls(tokens):
        report.add(refusal.kind, refusal.detail, refusal.remedy, label)


def _check_literals(node: exp.Expr, label: str, report: Report) -> None:
    for cast in node.find_all(exp.Cast):
        literal = cast.this
        if not isinstance(literal, exp.Literal) or not literal.is_string:
            continue
        words = literal.name.lower().split()
        kind = cast.args["to"].sql(dialect="postgres").upper()
        if words and words[0] in _MOVING_LITERALS and kind.startswith(_TIMES):
            report.add(
                ProblemKind.FUNCTION,
                f"'{words[0]}' depends on when it is read: the same row would not give the same result.",
                "Use _commit_time, the time of the source's commit.",
                label,
            )


def _travelling(source: Table, columns: Sequence[_Column], lineage: Lineage, chosen: Dependencies) -> tuple[str, ...]:
    """The source's columns to which the SELECT refers anywhere, and its identity."""
    used = set(source.identity) | chosen.sources
    used.update(*(column.whole.sources for column in columns))
    used.update(*(condition.sources for condition in lineage.conditions.values()))
    return tuple(column.name for column in source.columns if column.name in used)


def _check_types(source: Table, names: Sequence[str], placement: Placement, report: Report) -> None:
    """Types of the source's own making are staged as text; built-in ones must be known to the target's version."""
    for name in names:
        kind = source.column(name).type
        if kind.builtin:
            try:
                placement.place(kind)
            except TypeMissing as missing:
                report.add(ProblemKind.TYPE, missing.detail, missing.remedy, name)


def _check_columns(spec: RouteSpec, columns: Sequence[_Column], target: Table, report: Report) -> None:
    """Each output column is one of the target's that can be filled, once; and all that must be filled are."""
    seen: set[str] = set()
    known = [column.name for column in target.columns]
    for name in (column.item.name for column in columns if column.item.name):
        if name in seen:
            report.add(
                ProblemKind.DUPLICATE, f"Two columns of the SELECT are called {name}.", "Leave one of them out.", name
            )
        elif not target.has(name):
            report.add(
                ProblemKind.TARGET_TABLE,
                f"The target {target.name} has no column of that name.",
                suggest(name, known) or f"Its columns are {', '.join(known)}; write `AS column`, or add the column.",
                name,
            )
        elif target.column(name).generated is not None:
            report.add(
                ProblemKind.TARGET_TABLE,
                f"The target {target.name} generates this column by itself.",
                "Leave it out of the SELECT.",
                name,
            )
        seen.add(name)
    for name in unfilled(target, marked(spec, seen).union(spec.key or target.primary_key)):  # keys: see below
        report.add(
            ProblemKind.NOT_NULL,
            f"It is NOT NULL without a default in {target.name}, and the SELECT does not fill it.",
            f"Add `... AS {quote(name)}` to the SELECT, or ALTER TABLE {quote_table(target.name)} "
            f"ALTER COLUMN {quote(name)} SET DEFAULT ...;",
            name,
        )


def _check_key_expressions(key: Sequence[str], columns: Sequence[_Column], source: Table, report: Report) -> None:
    """The key of a row's target follows from the row's identity, and from all of it."""
    identity = set(source.identity)
    if not key or not identity or any(problem.kind is ProblemKind.IDENTITY for problem in report.problems):
        return
    by_name = {column.item.name: column for column in columns}
    broken = {problem.column for problem in report.problems}
    named = f"({', '.join(source.identity)})"
    another = (
        f"Make the key from {named}, or change what names a row at the source: "
        f"ALTER TABLE {quote_table(source.name)} REPLICA IDENTITY USING INDEX <a unique index over the columns used>;"
    )
    covered: set[str] = set()
    for name in key:
        if name not in by_name:
            report.add(
                ProblemKind.KEY,
                "The key names a column that the SELECT does not fill.",
                f"Add `... AS {quote(name)}` to the SELECT, or name another key.",
                name,
            )
            return
        found = by_name[name].whole
        covered |= found.sources
        foreign = sorted(found.sources - identity) + sorted(found.pseudo)
        foreign += sorted(f"{alias}.{column}" for alias, column in found.joined)
        if foreign:
            report.add(
                ProblemKind.KEY,
                f"The key depends on {', '.join(foreign)}, but a delete at the source carries only {named}.",
                another,
                name,
            )
            broken.add(name)
    if broken.intersection(key):
        return
    if missing := [name for name in source.identity if name not in covered]:
        report.add(
            ProblemKind.KEY,
            f"The key does not depend on {', '.join(missing)}: rows that differ in it would share a key.",
            f"Add {quote_list(missing)} to the key's expressions. {another}",
            key[0] if len(key) == 1 else "",
        )


def _assignment(column: _Column, scope: Scope) -> Assignment:
    joined = frozenset(f"{scope.joined[alias].name}.{name}" for alias, name in column.direct.joined)
    return Assignment(column.item.name, column.item.sql, column.whole.sources, column.whole.pseudo, joined)
