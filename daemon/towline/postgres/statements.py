"""SQL kept in files: one file holds several statements, each under a line ``-- name: …``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def load(package: str, file: str) -> Mapping[str, bytes]:
    """The statements of a file that lies beside the modules of ``package``, by name.

    As bytes, which psycopg takes for a statement that is not a literal of the program.
    """
    text = resources.files(package).joinpath(file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    return {name: body.strip().removesuffix(";").encode() for name, body in zip(parts[::2], parts[1::2], strict=True)}
