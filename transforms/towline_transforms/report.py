"""Gathers the problems of one route while it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from towline_transforms.problems import Problem, ProblemKind


@dataclass(slots=True)
class Report:
    """The problems found with a route so far; the same one is kept once."""

    route: str
    problems: list[Problem] = field(default_factory=list)

    def add(self, kind: ProblemKind, detail: str, remedy: str, column: str = "") -> None:
        """Note a problem."""
        problem = Problem(kind, self.route, column, detail, remedy)
        if problem not in self.problems:
            self.problems.append(problem)

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong so far."""
        return not self.problems
