"""Proves that a join finds at most one row: it is by equality on all columns of a unique key of the joined table."""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from towline_transforms.identifier import quote
from towline_transforms.join_clause import Join
from towline_transforms.lineage import Scope, trace
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.schema import Catalog, Table, TableName

_SYSTEM_SCHEMAS = frozenset({"pg_catalog", "information_schema"})


def find_table(join: Join, into: TableName, source: Catalog, target: Catalog, report: Report) -> Table | None:
    """The joined table in the target's catalog; reported when it is not there or must not be joined."""
    if join.table.schema in _SYSTEM_SCHEMAS:
        report.add(ProblemKind.JOIN, f"{join.table} is a system catalog.", "Join tables of your own.")
        return None
    if join.table == into:
        report.add(
            ProblemKind.JOIN,
            f"{join.table} is the table that the route fills: its rows would depend on the order of their arrival.",
            "Join another table, or derive the value in a view at the target.",
        )
        return None
    table = target.get(join.table)
    if table is None:
        remedy = "Create it, or correct the name."
        if source.get(join.table) is not None:
            remedy = (
                "It is a table of the source: replicate it with a route of its own, and join the copy at the target."
            )
        report.add(ProblemKind.TARGET_TABLE, f"The joined table {join.table} does not exist at the target.", remedy)
    return table


def prove_single(join: Join, table: Table, scope: Scope, report: Report) -> None:
    """Report the join unless its ON pins all columns of a unique key of the table."""
    pinned = set(_pinned(join, scope))
    keys = list(dict.fromkeys(key for key in (table.primary_key, *table.unique_keys) if key))
    if any(pinned.issuperset(key) for key in keys):
        return
    by = f"It is by equality of {', '.join(sorted(pinned))}" if pinned else "It has no equality with a column of it"
    if keys:
        conditions = " AND ".join(f"{join.alias}.{quote(column)} = ..." for column in keys[0])
        also = "".join(f", or by ({', '.join(key)})" for key in keys[1:3])
        remedy = (
            f"Join by a unique key: ON {conditions}{also}; conditions are joined with AND, and the columns stand alone."
        )
    else:
        remedy = f"{table.name} has no unique key: add one over the columns of the join."
    report.add(ProblemKind.JOIN, f"The join with {join.table} could multiply rows. {by}.", remedy)


def _pinned(join: Join, scope: Scope) -> Iterator[str]:
    """The joined table's columns that the condition sets equal to something that does not depend on that table."""
    for left, right in _equalities(join.on):
        for mine, other in ((left, right), (right, left)):
            silent = Report("")
            here, there = trace(mine, scope, silent), trace(other, scope, silent)
            if any(alias == join.alias for alias, _ in there.joined):
                continue
            if isinstance(_bare(mine), exp.Column) and len(here.joined) == 1:
                ((alias, column),) = here.joined
                if alias == join.alias:
                    yield column


def _equalities(node: exp.Expr) -> Iterator[tuple[exp.Expr, exp.Expr]]:
    """The equalities that all hold where the condition holds; a comparison of rows is one for each column."""
    node = _bare(node)
    if isinstance(node, exp.And):
        yield from _equalities(node.this)
        yield from _equalities(node.expression)
    elif isinstance(node, exp.EQ) and node.find(exp.Collate) is None:  # under another collation more may be equal
        left, right = _bare(node.this), _bare(node.expression)
        if isinstance(left, exp.Tuple) and isinstance(right, exp.Tuple):
            if len(left.expressions) == len(right.expressions):
                yield from zip(left.expressions, right.expressions, strict=True)
        elif not isinstance(left, (exp.Tuple, exp.Any)) and not isinstance(right, (exp.Tuple, exp.Any, exp.All)):
            yield left, right


def _bare(node: exp.Expr) -> exp.Expr:
    while isinstance(node, exp.Paren):
        node = node.this
    return node
