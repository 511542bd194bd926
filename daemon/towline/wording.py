"""What is wrong with a value of the pipeline file, in words: what was expected, and the type of what is there.

Never the value itself: a password may stand in any place.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from pydantic_core import ErrorDetails

_TYPES: Mapping[type, str] = {
    dict: "a mapping",
    list: "a list",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    type(None): "nothing",
}


def _close(value: object, allowed: list[str]) -> str:
    close = difflib.get_close_matches(str(value), allowed, 1)
    return f": did you mean {close[0]}?" if close else ""


def _type(value: object) -> str:
    return _TYPES.get(type(value), "a string")


def expected(error: ErrorDetails, value: object) -> str:
    """What pydantic found wrong with ``value``, in the words of the file."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "expected, but missing"
    got = f"(got {_type(value)})"
    otherwise = "" if isinstance(value, str) else f" {got}"  # a wrong string is not wrong by its type
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"expected {' or '.join(allowed)}{otherwise}{_close(value, allowed)}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected a mapping {got}"
    if kind in ("tuple_type", "list_type"):
        return f"expected a list {got}"
    if kind == "string_type":
        return f"expected a string {got}"
    if kind == "string_pattern_mismatch":
        return f"expected a string of the form {context['pattern']}"
    if kind in ("int_type", "int_from_float"):
        return f"expected an integer {got}"
    if kind == "float_type":
        return f"expected a number {got}"
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"expected {'at least' if 'ge' in context else 'at most'} {context.get('ge', context.get('le'))}"
    if kind in ("string_too_short", "string_too_long"):
        return f"expected a string of {'at least' if 'min_length' in context else 'at most'} " + (
            f"{context.get('min_length', context.get('max_length'))} characters"
        )
    if kind == "too_short":
        return f"expected at least {context['min_length']} entry"
    return f"expected {error['msg'].removeprefix('Value error, ')}{otherwise}"


def unknown_key(key: object, allowed: list[str]) -> str:
    """What to say of a key that is not one of ``allowed``."""
    return f"unknown key{_close(key, allowed)}; known: {', '.join(allowed)}"
