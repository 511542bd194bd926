"""The list of a SELECT: its output columns, each with its own text, and ``*`` expanded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp
from sqlglot.tokenizer_core import Token, TokenType

from towline_transforms.identifier import quote
from towline_transforms.problems import ProblemKind
from towline_transforms.report import Report
from towline_transforms.schema import Table
from towline_transforms.syntax import name_of, start_of, word

_OPENING = (TokenType.L_PAREN, TokenType.L_BRACKET, TokenType.L_BRACE)
_CLOSING = (TokenType.R_PAREN, TokenType.R_BRACKET, TokenType.R_BRACE)


@dataclass(frozen=True, slots=True)
class Item:
    """One output column. ``name`` is empty when it has none that can be relied on; ``tokens`` are the expression's."""

    name: str
    sql: str
    node: exp.Expr
    tokens: tuple[Token, ...]

    @property
    def label(self) -> str:
        """What to call it in a problem."""
        return self.name or self.sql


def list_span(tokens: Sequence[Token], reference: exp.Table) -> tuple[int, int] | None:
    """The tokens between SELECT and FROM, as a range; comments are no tokens."""
    start = start_of(reference)
    begin = next((place + 1 for place, token in enumerate(tokens) if token.token_type == TokenType.SELECT), None)
    end = next((place - 1 for place, token in enumerate(tokens) if token.start == start), None)
    if begin is None or end is None or begin >= end or tokens[end].token_type != TokenType.FROM:
        return None
    if tokens[begin].token_type == TokenType.ALL:
        begin += 1
    return begin, end


def _pieces(tokens: Sequence[Token], span: tuple[int, int]) -> list[tuple[Token, ...]]:
    """The tokens of each item of the list."""
    pieces: list[list[Token]] = [[]]
    depth = 0
    for token in tokens[span[0] : span[1]]:
        depth += (token.token_type in _OPENING) - (token.token_type in _CLOSING)
        if depth == 0 and token.token_type == TokenType.COMMA:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [tuple(piece) for piece in pieces]


def expand_stars(
    text: str,
    tokens: Sequence[Token],
    span: tuple[int, int],
    source: Table,
    alias: str,
    joined: bool,
    report: Report,
) -> str | None:
    """Replace ``*`` and ``alias.*`` by the source's columns; generated ones, which do not travel, are left out.

    None: there is another star, which is reported.
    """
    known = True
    columns = ", ".join(f"{quote(alias)}.{quote(c.name)}" for c in source.columns if c.generated is None)
    for piece in reversed(_pieces(tokens, span)):
        if not piece or piece[-1].token_type != TokenType.STAR:
            continue
        if len(piece) == 1 and joined:
            report.add(
                ProblemKind.SYNTAX,
                "* would stand for the joined tables' columns too.",
                f"Write {alias}.* instead.",
                "*",
            )
            known = False
        elif len(piece) == 1 or (len(piece) == 3 and piece[1].token_type == TokenType.DOT and word(piece[0]) == alias):
            text = text[: piece[0].start] + columns + text[piece[-1].end + 1 :]
        else:
            written = text[piece[0].start : piece[-1].end + 1]
            report.add(
                ProblemKind.SYNTAX,
                f"Only {alias}.* can be written: {written} is not of the source table by that name.",
                "Name the columns.",
                written,
            )
            known = False
    return text if known else None


def output_items(
    text: str, tokens: Sequence[Token], span: tuple[int, int], select: exp.Select, report: Report
) -> tuple[Item, ...] | None:
    """The output columns with their own text."""
    pieces = _pieces(tokens, span)
    nodes = select.expressions
    if len(pieces) != len(nodes) or not all(pieces):
        report.add(ProblemKind.SYNTAX, "The SELECT's list of columns cannot be read.", "Correct it.")
        return None
    items = []
    for piece, node in zip(pieces, nodes, strict=True):
        if isinstance(node, exp.Alias):
            name, node = name_of(node.args["alias"]), node.this
            keep = -2 if len(piece) > 2 and piece[-2].token_type == TokenType.ALIAS else -1
            piece = piece[:keep]
        elif isinstance(node, exp.Column) and isinstance(node.this, exp.Identifier):
            name = name_of(node.this)
        else:
            name = ""
        if not piece:
            report.add(ProblemKind.SYNTAX, "The SELECT's list of columns cannot be read.", "Correct it.", name)
            return None
        item = Item(name, text[piece[0].start : piece[-1].end + 1], node, piece)
        if not name:
            report.add(
                ProblemKind.SYNTAX,
                "This expression has no name, so that it is not known which column of the target it fills.",
                "Write `AS column` behind it.",
                item.sql,
            )
        items.append(item)
    return tuple(items)
