"""Errors are coded once, explained, and documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from towline import errors_doc
from towline.errors import Action, TowlineError, all_errors
from towline_transforms.problems import ProblemKind

ROOT = Path(__file__).parents[2]


def test_page_is_current() -> None:
    """docs/ERRORS.md is what the classes say (`python -m towline.errors_doc > docs/ERRORS.md`)."""
    assert (ROOT / "docs" / "ERRORS.md").read_text() == errors_doc.render()


def test_codes_are_unique() -> None:
    """No two errors, and no error and problem of a route, share a code."""
    codes = [error.code for error in all_errors()] + [kind.code for kind in ProblemKind]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_error_is_explained(error: type[TowlineError]) -> None:
    """Every error has a code, a cause, an action and a remedy of its own."""
    assert re.fullmatch(r"TL-\d{3}", error.code)
    assert error is TowlineError or error.__dict__.keys() >= {"__doc__", "code", "remedy"}
    assert (error.__doc__ or "").strip().endswith(".")
    assert error.remedy.endswith(".")
    assert error.action in Action


def test_errors_are_in_one_place() -> None:
    """No module but errors.py defines a coded error: the page would not have it."""
    coded = "|".join(error.__name__ for error in all_errors())
    definition = re.compile(rf"^class \w+\((?:{coded})\)", re.MULTILINE)
    strays = [
        path.name
        for path in (ROOT / "daemon" / "towline").rglob("*.py")
        if path.name != "errors.py" and definition.search(path.read_text())
    ]
    assert strays == []


def test_advice_prefers_the_hint() -> None:
    """The advice for this very case wins over that for the class."""
    assert TowlineError("x", hint="do y").advice == "do y"
    assert TowlineError("x").advice == TowlineError.remedy
