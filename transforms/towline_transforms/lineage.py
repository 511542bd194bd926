"""Lineage: on which columns of the source, and of joined tables, an expression of a route depends.

A route is one level deep (no subqueries), so that names are resolved in one scope: the source table and the joined
tables. A joined value depends on the row that was joined, so on all that the join's ON refers to as well, and that
through every join on which it builds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp
from sqlglot.tokenizer_core import Token, TokenType

from towline_transforms.functions import CLOCK, WHO
from towline_transforms.identifier import suggest
from towline_transforms.join_clause import Join
from towline_transforms.parse import Statement
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.route import PSEUDO_COLUMNS
from towline_transforms.schema import Table
from towline_transforms.syntax import name_of, word

_SYSTEM_COLUMNS = frozenset({"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid", "oid"})

#: A pseudo-column that is the same for every row of a pipeline, so that rows may be chosen by it.
CONSTANT_PSEUDO = frozenset({"_source"})


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What an expression refers to. ``joined`` holds (alias, column) of joined tables."""

    sources: frozenset[str] = frozenset()
    pseudo: frozenset[str] = frozenset()
    joined: frozenset[tuple[str, str]] = frozenset()

    def __or__(self, other: Dependencies) -> Dependencies:
        return Dependencies(self.sources | other.sources, self.pseudo | other.pseudo, self.joined | other.joined)


@dataclass(frozen=True, slots=True)
class Scope:
    """The tables whose columns an expression can name, by alias."""

    source: Table
    alias: str
    joined: Mapping[str, Table] = field(default_factory=dict)
    unknown: frozenset[str] = frozenset()  # aliases of joined tables that were not found, and are reported as such

    def resolve(self, column: exp.Column, report: Report, label: str) -> Dependencies:
        """What a column reference means; nothing, and reported under ``label``, when it cannot be told."""
        if not isinstance(column.this, exp.Identifier):
            return Dependencies()
        name = name_of(column.this)
        if column.args.get("db") is not None:
            written = column.sql()
            report.add(
                ProblemKind.UNKNOWN_COLUMN,
                f"{written} names a schema, but the SELECT runs over staged rows, which have none.",
                f"Write {self.alias}.{name}, or (table.column).field for a field of a composite.",
                label,
            )
            return Dependencies()
        if (table := column.args.get("table")) is not None:
            return self._qualified(name_of(table), name, report, label)
        return self._unqualified(name, report, label)

    def _qualified(self, table: str, name: str, report: Report, label: str) -> Dependencies:
        if table in self.unknown:
            return Dependencies()
        if table == self.alias:
            if found := self._of_source(name, report, label):
                return found
            self._not_found(name, f"{self.alias}.{name}", [c.name for c in self.source.columns], report, label)
        elif table in self.joined:
            if self.joined[table].has(name):
                return Dependencies(joined=frozenset({(table, name)}))
            self._not_found(name, f"{table}.{name}", [c.name for c in self.joined[table].columns], report, label)
        else:
            names = [self.alias, *self.joined]
            renamed = table == self.source.name.name
            report.add(
                ProblemKind.UNKNOWN_COLUMN,
                f"{table}.{name}: no table of the SELECT is called {table}.",
                f"The source table has the alias {self.alias}: write {self.alias}.{name}."
                if renamed
                else (suggest(table, names) or f"The names are {', '.join(names)}."),
                label,
            )
        return Dependencies()

    def _unqualified(self, name: str, report: Report, label: str) -> Dependencies:
        owners = [alias for alias, table in self.joined.items() if table.has(name)]
        own = self.source.has(name)
        if own + len(owners) > 1:
            candidates = ([self.alias] if own else []) + owners
            report.add(
                ProblemKind.UNKNOWN_COLUMN,
                f"{name} is ambiguous: it is a column of {', '.join(candidates)}.",
                f"Write {' or '.join(f'{alias}.{name}' for alias in candidates)}.",
                label,
            )
        elif owners:
            if name in PSEUDO_COLUMNS:
                report.add(
                    ProblemKind.UNKNOWN_COLUMN,
                    f"{name} is ambiguous: a pseudo-column, and a column of {owners[0]}.",
                    f"Write {self.alias}.{name} or {owners[0]}.{name}.",
                    label,
                )
            else:
                return Dependencies(joined=frozenset({(owners[0], name)}))
        elif found := self._of_source(name, report, label):
            return found
        elif self.unknown:
            return Dependencies()  # it may be a column of a table that was not found, which is reported
        elif name in CLOCK | WHO:
            pass  # reported as a function
        elif name == self.alias or name in self.joined:
            report.add(
                ProblemKind.UNKNOWN_COLUMN,
                f"{name} stands for a whole row, of which only the columns that are named travel.",
                "Name the columns: jsonb_build_object('a', t.a, 'b', t.b) instead of to_jsonb(t).",
                label,
            )
        else:
            known = [c.name for table in (self.source, *self.joined.values()) for c in table.columns]
            self._not_found(name, name, [*known, *PSEUDO_COLUMNS], report, label)
        return Dependencies()

    def _of_source(self, name: str, report: Report, label: str) -> Dependencies | None:
        """A column of the source or a pseudo-column; a real column of that name comes first."""
        if self.source.has(name):
            if self.source.column(name).generated is not None:
                report.add(
                    ProblemKind.UNKNOWN_COLUMN,
                    f"{name} is a generated column of {self.source.name}, which the log does not carry.",
                    f"Write the expression that generates it: {self.source.column(name).generated}",
                    label,
                )
            return Dependencies(sources=frozenset({name}))
        if name in PSEUDO_COLUMNS:
            return Dependencies(pseudo=frozenset({name}))
        return None

    def _not_found(self, name: str, written: str, known: Sequence[str], report: Report, label: str) -> None:
        if name in _SYSTEM_COLUMNS:
            detail, remedy = f"{written} is a system column, which does not travel.", "Leave it out; see _xid and _lsn."
        else:
            detail = f"There is no column {written} in {self.source.name}"
            detail += f" or {', '.join(str(table.name) for table in self.joined.values())}." if self.joined else "."
            remedy = suggest(name, known) or f"The columns are {', '.join(known)}."
        report.add(ProblemKind.UNKNOWN_COLUMN, detail, remedy, label)


def columns_of(node: exp.Expr) -> Iterable[exp.Column]:
    """The column references of an expression, those of subqueries left out (they are refused as such)."""
    return [column for column in node.find_all(exp.Column) if not _in_subquery(column, node)]


def _in_subquery(node: exp.Expr, top: exp.Expr) -> bool:
    while node is not top and node.parent is not None:
        node = node.parent
        if isinstance(node, exp.Query):
            return True
    return isinstance(top, exp.Query)


def trace(node: exp.Expr, scope: Scope, report: Report, label: str = "") -> Dependencies:
    """What an expression refers to by itself; names that cannot be resolved are reported."""
    found = Dependencies()
    for column in columns_of(node):
        found |= scope.resolve(column, report, label)
    return found


@dataclass(frozen=True, slots=True)
class Lineage:
    """Resolves expressions through a statement's joins. ``conditions``: what each join's ON refers to, by alias."""

    scope: Scope
    conditions: Mapping[str, Dependencies]

    @classmethod
    def of(cls, statement: Statement, scope: Scope, report: Report) -> Lineage:
        """Resolve the joins' conditions. A join sees the tables before it and its own."""
        conditions: dict[str, Dependencies] = {}
        seen: dict[str, Table] = {}
        for join in statement.joins:
            if join.alias in scope.joined:
                seen[join.alias] = scope.joined[join.alias]
            visible = Scope(scope.source, scope.alias, dict(seen), scope.unknown)
            conditions[join.alias] = trace(join.on, visible, report)
        return cls(scope, conditions)

    def whole(self, direct: Dependencies) -> Dependencies:
        """``direct`` and everything on which the joined columns in it depend; ``joined`` stays as it is."""
        sources, pseudo = set(direct.sources), set(direct.pseudo)
        done: set[str] = set()
        pending = {alias for alias, _ in direct.joined}
        while pending:
            alias = pending.pop()
            done.add(alias)
            condition = self.conditions.get(alias, Dependencies())
            sources |= condition.sources
            pseudo |= condition.pseudo
            pending |= {other for other, _ in condition.joined} - done
        return Dependencies(frozenset(sources), frozenset(pseudo), direct.joined)

    def filter(self, joins: Iterable[Join], where: Dependencies) -> Dependencies:
        """On what it depends whether a row of the source gives a row: WHERE and inner joins."""
        found = self.whole(where)
        for join in joins:
            if join.inner:
                found |= self.whole(self.conditions[join.alias])
        return found


def unread_columns(tokens: Sequence[Token], node: exp.Expr, scope: Scope) -> list[str]:
    """Names that look like columns of the source but are no column references of the tree.

    sqlglot reads a few operators of PostgreSQL as something else, and the columns in them are lost. A route in
    which that happened would not be checked fully, so that it is refused.
    """
    read = {name_of(column.this) for column in columns_of(node) if isinstance(column.this, exp.Identifier)}
    lost: list[str] = []
    if node.find(exp.Query) is not None:
        return lost  # refused, and not read
    for place, token in enumerate(tokens):
        name = word(token)
        before = tokens[place - 1] if place else None
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        if not name or name in read or not (scope.source.has(name) or name in PSEUDO_COLUMNS):
            continue
        if before is not None and before.token_type == TokenType.DOT:
            if place >= 2 and word(tokens[place - 2]) == scope.alias:
                lost.append(name)
            continue
        if before is not None and (before.token_type in _BEFORE_NAMES or before.token_type == TokenType.STRING):
            continue
        if token.token_type not in (TokenType.VAR, TokenType.IDENTIFIER):
            continue
        if after is None or after.token_type not in _AFTER_NAMES:
            lost.append(name)
    return lost


#: What stands before a name that is not a column: the name of a type or a collation.
_BEFORE_NAMES = (TokenType.DCOLON, TokenType.ALIAS, TokenType.COLLATE)
#: What stands behind one: a call, a schema, a typed literal, a named argument, a field (EXTRACT(year FROM ...)).
_AFTER_NAMES = (TokenType.L_PAREN, TokenType.DOT, TokenType.STRING, TokenType.FARROW, TokenType.FROM)
