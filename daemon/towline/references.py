"""References in configuration values: ``${NAME}``, ``${NAME:-default}`` and ``${file:/run/secrets/name}``.

A dollar sign alone is only itself, so that SQL keeps its ``$1`` and ``$$quotes$$``; ``$${`` writes a literal ``${``.
What a reference stands for is never part of a message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_TOKEN = re.compile(r"\$(?P<escape>\$)?\{(?P<body>[^{}]*)(?P<close>\})?")
_VARIABLE = re.compile(rf"(?P<name>{_NAME})(?::-(?P<default>[^$]*))?\Z")
_LARGEST_SECRET = 65536


class ReferenceMalformed(ValueError):
    """A ``${`` that does not start one of the three forms."""


class ReferenceMissing(LookupError):
    """The variable or file is not there; the message names it."""


class Replaced(str):
    """A string of which at least a part came from a reference; numbers are accepted in this form."""

    __slots__ = ()


def replace(text: str, environment: Mapping[str, str], folder: Path) -> str:
    """Put in what the references in ``text`` stand for; a `Replaced` when there was one.

    ``folder``: where relative secret files are looked for. Raises ReferenceMalformed and ReferenceMissing (which lists
    all that is missing).
    """
    missing: list[str] = []
    found = False

    def value(match: re.Match[str]) -> str:
        nonlocal found
        if match["escape"]:
            return match[0][1:]
        found = True
        body = match["body"]
        if match["close"] is None:
            raise ReferenceMalformed("expected ${NAME}, ${NAME:-default} or ${file:/path} (write $${ for a literal ${)")
        try:
            return _file(folder / body[5:].strip()) if body.startswith("file:") else _variable(body, environment)
        except ReferenceMissing as error:
            missing.append(str(error))
            return ""

    result = _TOKEN.sub(value, text)
    if missing:
        raise ReferenceMissing("; ".join(missing))
    return Replaced(result) if found else result


def _variable(body: str, environment: Mapping[str, str]) -> str:
    match = _VARIABLE.match(body)
    if match is None:
        raise ReferenceMalformed("expected ${NAME}, ${NAME:-default} or ${file:/path} (write $${ for a literal ${)")
    default = match["default"]
    value = environment.get(match["name"])
    if default is not None:
        return value or default
    if value is None:
        raise ReferenceMissing(f"the environment variable {match['name']} is not set")
    return value


def _file(path: Path) -> str:
    """The text of a secret file without the line end that editors put there."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_SECRET + 1)
    except OSError as error:
        raise ReferenceMissing(f"the secret file {path} cannot be read ({error.strerror})") from None
    if len(content) > _LARGEST_SECRET:
        raise ReferenceMissing(f"the secret file {path} is larger than {_LARGEST_SECRET} bytes")
    try:
        return content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ReferenceMissing(f"the secret file {path} is not UTF-8") from None
