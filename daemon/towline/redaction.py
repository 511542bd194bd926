"""The last line of defence against a password in an output: whatever looks like one in a text is starred out.

Messages are made without secrets in the first place; this catches what a library or a server puts into its own.
"""

from __future__ import annotations

import re

_IN_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*:)\S*@")
_IN_PAIR = re.compile(r"((?:ssl)?password\s*=\s*)('(?:[^'\\]|\\.)*'?|[^\s&,)'\"]+)", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without the passwords of URLs and of ``password=…`` pairs."""
    return _IN_PAIR.sub(r"\1***", _IN_URL.sub(r"\1***@", text))
