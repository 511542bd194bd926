"""What can be wrong with a route: a code, the route, the column, and the way out.

Raised together (`RouteError` holds all problems of all routes), so that an admin corrects them in one go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class ProblemKind(Enum):
    """A kind of problem: its code, and what it means (docs/ERRORS.md prints this)."""

    SYNTAX = ("TL-201", "The SELECT cannot be parsed, or is not one plain SELECT from the route's source table.")
    SOURCE_TABLE = ("TL-202", "The source table does not exist, or a pattern matches no table.")
    UNKNOWN_COLUMN = (
        "TL-203",
        "A column is in neither the source table nor a joined table of the target, or in several.",
    )
    AGGREGATE = (
        "TL-204",
        "Aggregates, GROUP BY, HAVING, DISTINCT, ORDER BY, LIMIT and set operations are about more than one row.",
    )
    WINDOW = ("TL-205", "Window functions look at other rows, which the route does not have.")
    SUBQUERY = (
        "TL-206",
        "A subquery: of the source table only the changed rows are at hand; target tables are joined.",
    )
    FUNCTION = (
        "TL-207",
        "The same row would not give the same one row: a function returns a set or is volatile, "
        "or the choice of rows depends on when they arrive.",
    )
    JOIN = (
        "TL-208",
        "A join is not by a unique key of the joined table, so that it could multiply rows, "
        "or is of a kind that routes do not have.",
    )
    KEY = (
        "TL-209",
        "A key column does not follow from the source's replica identity alone: a delete could not find it.",
    )
    NOT_NULL = ("TL-210", "A NOT NULL column of the target without a default is not filled.")
    IDENTITY = ("TL-211", "The source table has no replica identity by which updates and deletes name a row.")
    TARGET_TABLE = ("TL-212", "The target table does not exist, or lacks what the route needs of it.")
    TARGET_KEY = ("TL-213", "The route's key is not a unique key of the target table.")
    TYPE = ("TL-214", "A type does not exist at the target, or its values cannot be carried exactly.")
    DUPLICATE = ("TL-215", "Two routes, or two columns of one, have the same name or fill the same thing.")
    STATEMENT = ("TL-216", "The target's server refuses the statement that the route would run.")
    SENSITIVE = (
        "TL-217",
        "A column that is to be masked does not exist, or is part of the key by which refused rows are found again.",
    )

    def __init__(self, code: str, meaning: str) -> None:
        self.code = code
        self.meaning = meaning


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. ``column`` may be empty; ``remedy`` says what to write instead."""

    kind: ProblemKind
    route: str
    column: str
    detail: str
    remedy: str

    @property
    def where(self) -> str:
        """Which route, and which column."""
        return f"route {self.route}" + (f", column {self.column}" if self.column else "")

    def __str__(self) -> str:
        return f"{self.kind.code}: {self.where}: {self.detail} {self.remedy}"


class RouteError(ValueError):
    """Routes were refused; ``problems`` lists everything that is wrong with them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
