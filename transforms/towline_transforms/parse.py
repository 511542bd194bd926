"""Reads a route's SELECT: one plain SELECT from the source table, taken apart with every part's own text.

sqlglot gives the syntax tree and the tokens; the tree tells what a part means, the tokens where it stands. The text
that the target runs is always the admin's own, never one that was printed from the tree: only the reference to the
source table is cut out of it, so that the stage can be put there, and ``*`` is replaced by the columns it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from towline_transforms.identifier import quote
from towline_transforms.join_clause import Join, read_joins
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.schema import Table, TableName
from towline_transforms.select_list import Item, expand_stars, list_span, output_items
from towline_transforms.syntax import DIALECT, alias_of, end_of, is_plain, name_of, start_of, tokenize, word

_VIEW = "Replicate the rows, and do this in a view at the target."
_PLAIN = "Write one SELECT from the route's source table, with joins to tables of the target where needed."

#: Parts of a SELECT that a route cannot have: what is wrong, and the way out.
_REFUSED = {
    "distinct": (ProblemKind.AGGREGATE, "DISTINCT compares rows, and a route sees one at a time.", _VIEW),
    "group": (ProblemKind.AGGREGATE, "GROUP BY needs all rows, and a route sees one at a time.", _VIEW),
    "having": (ProblemKind.AGGREGATE, "HAVING needs all rows, and a route sees one at a time.", _VIEW),
    "limit": (ProblemKind.AGGREGATE, "LIMIT and FETCH count rows, and a route sees one at a time.", _VIEW),
    "offset": (ProblemKind.AGGREGATE, "OFFSET counts rows, and a route sees one at a time.", _VIEW),
    "order": (ProblemKind.AGGREGATE, "ORDER BY has no meaning for one row.", "Leave it out."),
    "windows": (ProblemKind.WINDOW, "A WINDOW clause is about many rows.", _VIEW),
    "into": (
        ProblemKind.SYNTAX,
        "SELECT INTO creates a table.",
        "The route's `into` names the target table: leave it out.",
    ),
    "locks": (ProblemKind.SYNTAX, "FOR UPDATE and FOR SHARE lock rows, which a route has no need of.", "Leave it out."),
    "laterals": (ProblemKind.JOIN, "LATERAL is not supported in a route.", _PLAIN),
}
_ALLOWED = frozenset({"expressions", "from_", "joins", "where"})


@dataclass(frozen=True, slots=True)
class Statement:
    """A SELECT taken apart. ``head`` and ``tail``: see `Route.select`. ``rest``: the tokens after the source table."""

    head: str
    tail: str
    alias: str
    items: tuple[Item, ...]
    joins: tuple[Join, ...]
    where: exp.Expr | None
    rest: tuple[Token, ...]


def joined_tables(text: str) -> list[TableName]:
    """The tables that follow JOIN with a schema.

    They are found in the tokens alone, so that they are known for SQL that cannot be parsed, too.
    """
    try:
        tokens = tokenize(text)
    except SqlglotError:
        return []
    found = []
    for place, token in enumerate(tokens[:-3]):
        if token.token_type == TokenType.JOIN and tokens[place + 2].token_type == TokenType.DOT:
            schema, name = word(tokens[place + 1]), word(tokens[place + 3])
            if schema and name:
                found.append(TableName(schema, name))
    return found


def parse(text: str, source: Table, report: Report) -> Statement | None:
    """Take a route's SELECT apart; what is wrong with its form is reported. None when it cannot be read."""
    prepared = _one_statement(text, report)
    if prepared is None:
        return None
    text, select = prepared
    if select.args.get("with_"):
        report.add(ProblemKind.SYNTAX, "WITH is not supported in a route.", _PLAIN)
        return None
    _refuse_parts(select, report)
    reference = _source_reference(select, source.name, report)
    if reference is None:
        return None
    tokens = tokenize(text)
    head, tail, alias = _split(text, tokens, reference)
    span = list_span(tokens, reference)
    if span is None:
        report.add(ProblemKind.SYNTAX, "The SELECT's list of columns cannot be found.", _PLAIN)
        return None
    joins = read_joins(select, source.name, alias, report)
    expanded = expand_stars(text, tokens, span, source, alias, bool(select.args.get("joins")), report)
    if expanded is None:
        return None
    if expanded != text:
        return parse(expanded, source, report)
    items = output_items(text, tokens, span, select, report)
    if items is None:
        return None
    _verify_split(head, tail, select, report)
    where = select.args.get("where")
    end = end_of(reference)
    return Statement(
        head=head,
        tail=tail,
        alias=alias,
        items=items,
        joins=joins,
        where=where.this if where is not None else None,
        rest=tuple(token for token in tokens if token.start > end),
    )


def _one_statement(text: str, report: Report) -> tuple[str, exp.Select] | None:
    """The text without a final semicolon, and its tree."""
    try:
        tokens = tokenize(text)
        if tokens and tokens[-1].token_type == TokenType.SEMICOLON:
            last = tokens.pop()
            text = text[: last.start] + text[last.end + 1 :]
        if any(token.token_type == TokenType.SEMICOLON for token in tokens):
            report.add(ProblemKind.SYNTAX, "There is more than one statement.", _PLAIN)
            return None
        if not tokens or tokens[0].token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN):
            report.add(ProblemKind.SYNTAX, "This is not a SELECT.", _PLAIN)
            return None
        trees = sqlglot.parse(text, dialect=DIALECT)
    except SqlglotError as error:
        report.add(
            ProblemKind.SYNTAX, _where(error), "Correct it; column names that are words of SQL need double quotes."
        )
        return None
    except RecursionError:
        report.add(ProblemKind.SYNTAX, "The SELECT is nested too deeply.", "Make it simpler.")
        return None
    tree = trees[0] if len(trees) == 1 else None
    if isinstance(tree, exp.SetOperation):
        report.add(
            ProblemKind.AGGREGATE,
            "UNION, INTERSECT and EXCEPT are about many rows.",
            "Write a route for each SELECT, each into a table of its own, and a view over them at the target.",
        )
        return None
    if not isinstance(tree, exp.Select):
        report.add(ProblemKind.SYNTAX, "This is not one plain SELECT.", _PLAIN)
        return None
    for parameter in tree.find_all(exp.Parameter, exp.Placeholder, exp.SessionParameter):
        name = parameter.sql(dialect=DIALECT)
        report.add(
            ProblemKind.SYNTAX,
            f"There is a parameter or an operator that cannot be read ({name}); a route's SELECT has no parameters.",
            "Write the value as a literal (${NAME} is replaced before the SQL is read), and abs(a) for @ a.",
        )
        return None
    return text, tree


def _where(error: SqlglotError) -> str:
    """The parser's message on one line, with the place."""
    if isinstance(error, ParseError) and error.errors:
        first = error.errors[0]
        near = f" near {first['highlight']!r}" if first.get("highlight") else ""
        return f"Line {first.get('line')}, column {first.get('col')}: the SQL cannot be read{near}."
    return "The SQL cannot be read: a string, a quoted name or a comment does not end."


def _refuse_parts(select: exp.Select, report: Report) -> None:
    """Refuse the clauses that a route cannot have, and subqueries anywhere."""
    for name, value in select.args.items():
        if not value or name in _ALLOWED:
            continue
        kind, detail, remedy = _REFUSED.get(
            name, (ProblemKind.SYNTAX, f"{name.strip('_').upper()} is not supported in a route.", _PLAIN)
        )
        report.add(kind, detail, remedy)
    if any(node is not select for node in select.find_all(exp.Select, exp.SetOperation, exp.Values)):
        report.add(
            ProblemKind.SUBQUERY,
            "There is a subquery. Only the changed row of the source is at hand; tables of the target are joined.",
            "Write `LEFT JOIN schema.table t ON t.key = ...` for a table of the target.",
        )
    for lateral in select.find_all(exp.Lateral):
        report.add(ProblemKind.JOIN, f"LATERAL is not supported ({lateral.alias_or_name}).", _PLAIN)


def _source_reference(select: exp.Select, source: TableName, report: Report) -> exp.Table | None:
    """The FROM clause's table, when it is the route's source."""
    clause = select.args.get("from_")
    table = clause.this if clause is not None else None
    wanted = f"Begin with FROM {source}, the route's source; tables of the target follow as joins."
    if not isinstance(table, exp.Table) or not isinstance(table.this, exp.Identifier):
        report.add(ProblemKind.SYNTAX, "FROM does not name a table.", wanted)
        return None
    if (schema := table.args.get("db")) is not None and not isinstance(schema, exp.Identifier):
        report.add(ProblemKind.SYNTAX, "FROM does not name a table.", wanted)
        return None
    name = name_of(table.this)
    if name != source.name or (schema is not None and name_of(schema) != source.schema) or table.args.get("catalog"):
        report.add(
            ProblemKind.SYNTAX, f"FROM names {table.sql(dialect=DIALECT)}, not the route's source {source}.", wanted
        )
        return None
    if not is_plain(table):
        report.add(
            ProblemKind.SYNTAX,
            "The source table has more than an alias (ONLY, TABLESAMPLE, column names, joins in parentheses).",
            "Write its name and an alias.",
        )
        return None
    if any("start" not in part.meta for part in (table.this, schema) if part is not None):
        report.add(ProblemKind.SYNTAX, "The place of the source table cannot be found.", wanted)
        return None
    return table


def _split(text: str, tokens: Sequence[Token], reference: exp.Table) -> tuple[str, str, str]:
    """The text before and after the source table, and the name that columns have for it."""
    head, tail = text[: start_of(reference)], text[end_of(reference) + 1 :]
    alias = alias_of(reference)
    if reference.args.get("alias") is None:
        tail = f" AS {quote(alias)}{tail}"
    if not head[-1:].isspace():
        head += " "
    if tail and not tail[0].isspace():
        tail = " " + tail
    if "--" in text[tokens[-1].end + 1 :] and not tail.endswith("\n"):
        tail += "\n"  # a comment up to the end of the line would swallow what follows the SELECT
    return head, tail, alias


def _verify_split(head: str, tail: str, select: exp.Select, report: Report) -> None:
    """Prove by parsing again that another relation can stand where the source table stood."""
    place = 'pg_temp."towline stage"'
    try:
        again = sqlglot.parse_one(head + place + tail, dialect=DIALECT)
    except SqlglotError:
        again = None
    tables = [] if again is None else [t for t in again.find_all(exp.Table) if t.name == "towline stage"]
    if again is None or len(tables) != 1 or len(list(again.walk())) - len(list(select.walk())) not in range(0, 4):
        report.add(ProblemKind.SYNTAX, "The source table cannot be told apart from the text around it.", _PLAIN)
