"""docs/ROUTES.md is true: its examples are what it says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.unit.transforms.catalogs import SOURCE, TARGET, route
from towline_transforms.check import check_routes
from towline_transforms.problems import ProblemKind, RouteError

PAGE = (Path(__file__).parents[3] / "docs" / "ROUTES.md").read_text(encoding="utf-8")
EXAMPLES = [
    (verdict, text.strip())
    for block in re.findall(r"^```sql\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    for verdict, text in re.findall(
        r"^-- (accepted|refused TL-\d+).*?\n(.*?)(?=^-- (?:accepted|refused)|\Z)", block, re.S | re.M
    )
]


def test_there_are_examples() -> None:
    """All of them are found."""
    assert len(EXAMPLES) == PAGE.count("\n-- accepted") + PAGE.count("\n-- refused") > 20


@pytest.mark.parametrize(("verdict", "text"), EXAMPLES, ids=lambda value: value if value[:2] in ("ac", "re") else "")
def test_example(verdict: str, text: str) -> None:
    """An example is accepted, or refused with the code that the page gives."""
    if verdict == "accepted":
        check_routes([route(text)], SOURCE, TARGET)
        return
    with pytest.raises(RouteError) as caught:
        check_routes([route(text)], SOURCE, TARGET)
    assert {problem.kind.code for problem in caught.value.problems} == {verdict.removeprefix("refused ")}


def test_every_code_is_explained() -> None:
    """The page says something of each kind of problem."""
    assert [kind.code for kind in ProblemKind if kind.code not in PAGE] == []
