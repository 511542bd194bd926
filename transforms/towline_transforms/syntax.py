"""Small questions to sqlglot's tokens and trees: what is the name, the alias, the place of something."""

from __future__ import annotations

from sqlglot import exp
from sqlglot.dialects.postgres import Postgres
from sqlglot.tokenizer_core import Token, TokenType

from towline_transforms.identifier import fold

DIALECT = Postgres()

_LITERALS = frozenset(
    {
        TokenType.STRING,
        TokenType.NUMBER,
        TokenType.BIT_STRING,
        TokenType.HEX_STRING,
        TokenType.BYTE_STRING,
        TokenType.RAW_STRING,
        TokenType.HEREDOC_STRING,
        TokenType.UNICODE_STRING,
        TokenType.NATIONAL_STRING,
    }
)


def tokenize(text: str) -> list[Token]:
    """The tokens of some SQL. Raises sqlglot's TokenError."""
    return list(DIALECT.tokenize(text))


def word(token: Token) -> str:
    """The name that a token means as an identifier; empty when it cannot be one."""
    if token.token_type == TokenType.IDENTIFIER:
        return fold(token.text, quoted=True)
    first = token.text[:1]
    is_word = token.token_type not in _LITERALS and (first == "_" or first.isalpha())
    return fold(token.text, quoted=False) if is_word else ""


def is_plain(table: exp.Table) -> bool:
    """Whether a table has nothing but a name and an alias."""
    alias = table.args.get("alias")
    extra = [name for name, value in table.args.items() if value and name not in ("this", "db", "alias")]
    return not extra and not (alias is not None and alias.args.get("columns"))


def name_of(identifier: exp.Expr) -> str:
    """The name that an identifier of the tree means."""
    return fold(identifier.name, quoted=bool(identifier.args.get("quoted")))


def alias_of(table: exp.Table) -> str:
    """The name by which columns refer to a table."""
    alias = table.args.get("alias")
    return name_of(alias.this) if alias is not None and alias.this is not None else name_of(table.this)


def start_of(table: exp.Table) -> int:
    """Where a table's name begins in the text, its schema included."""
    first = table.args.get("db") or table.this
    return int(first.meta["start"])


def end_of(table: exp.Table) -> int:
    """Where the last character of a table's name is."""
    return int(table.this.meta["end"])
