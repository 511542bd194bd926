"""The joins of a route's SELECT, as far as their form goes: LEFT or INNER, by ON, with a named table of the target."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.schema import TableName
from towline_transforms.syntax import DIALECT, alias_of, is_plain, name_of


@dataclass(frozen=True, slots=True)
class Join:
    """A join to a table of the target. ``alias`` is the name by which columns refer to it."""

    table: TableName
    alias: str
    inner: bool
    on: exp.Expr


def read_joins(select: exp.Select, source: TableName, alias: str, report: Report) -> tuple[Join, ...]:
    """The joins, as far as their form allows."""
    joins: list[Join] = []
    names = {alias}
    for node in select.args.get("joins") or ():
        table = node.this
        label = table.sql(dialect=DIALECT)
        if isinstance(table, exp.Lateral):
            continue  # reported with the other parts
        if not isinstance(table, exp.Table) or not isinstance(table.this, exp.Identifier) or not is_plain(table):
            if not (isinstance(table, exp.Subquery) and isinstance(table.this, exp.Query)):
                report.add(ProblemKind.JOIN, f"{label} is not a plain table.", "Join a table of the target, by name.")
            continue
        schema, name = table.args.get("db"), name_of(table.this)
        if name == source.name and (schema is None or name_of(schema) == source.schema):
            report.add(
                ProblemKind.JOIN,
                f"The source table {source} is named twice, and only the changed row of it is at hand.",
                "Replicate it first, and join the copy at the target under its own name.",
            )
            continue
        if schema is None:
            report.add(
                ProblemKind.JOIN,
                f"{name} has no schema: only the source table can be named without one.",
                f"Write schema.{name} for a table of the target; tables of the source cannot be joined.",
            )
            continue
        if not _form(node, label, report):
            continue
        key = alias_of(table)
        if key in names:
            report.add(ProblemKind.JOIN, f"Two tables are called {key}.", "Give each an alias of its own.")
            continue
        names.add(key)
        joins.append(Join(TableName(name_of(schema), name), key, node.args.get("side") != "LEFT", node.args["on"]))
    return tuple(joins)


def _form(node: exp.Join, label: str, report: Report) -> bool:
    """Whether a join is LEFT or INNER with ON; reported when not."""
    side, kind, method = (str(node.args.get(part) or "").upper() for part in ("side", "kind", "method"))
    by_key = f"Write `LEFT JOIN {label} ON ...` with an equality for each column of a unique key of that table."
    if node.args.get("using"):
        report.add(ProblemKind.JOIN, f"The join with {label} is written with USING.", "Write ON with an equality.")
    elif method or side in ("RIGHT", "FULL") or kind not in ("", "INNER", "OUTER"):
        words = " ".join(part for part in (method, side, kind) if part)
        report.add(ProblemKind.JOIN, f"{words} JOIN with {label} is not supported.", by_key)
    elif node.args.get("on") is None:
        report.add(ProblemKind.JOIN, f"The join with {label} has no condition, so that it multiplies rows.", by_key)
    else:
        return True
    return False
