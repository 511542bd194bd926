"""Events with fields, one a line, on stderr: as logfmt or as JSON.

    event(log, logging.INFO, "batch_committed", lsn="16/B374D848", rows=100)
    ts=2026-01-31T08:15:02.417Z level=info event=batch_committed pipeline=erp-to-hub lsn=16/B374D848 rows=100

What may be in a line is limited by construction: fields are names, numbers and coded errors' texts. Of an exception
only its class and the places in the code are written, for messages of a server hold values of rows; of a library's
message only the template, without its arguments.
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Literal, TextIO

from towline.errors import TowlineError
from towline.redaction import redact

#: What a field may hold.
Field = str | int | float | bool | None

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+\Z")
_OWN = ("towline", "towline_transforms")
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def event(log: logging.Logger, level: int | str, name: str, /, **fields: Field) -> None:
    """Write an event. ``level``: of `logging`, or its name in lower case. Fields never hold row values or secrets."""
    log.log(_LEVELS[level] if isinstance(level, str) else level, name, extra={"fields": fields})


def configure(
    format: Literal["logfmt", "json"] = "logfmt",
    level: str = "info",
    *,
    pipeline: str | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send all events to ``stream`` (default: stderr); may be called again, when the configuration was read again.

    ``pipeline`` becomes a field of every event.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(EventFormatter(format, pipeline))
    root = logging.getLogger()
    for old in [each for each in root.handlers if isinstance(each.formatter, EventFormatter)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    for name in _OWN:
        logging.getLogger(name).setLevel(_LEVELS[level])


class EventFormatter(logging.Formatter):
    """Turns a record into one line."""

    def __init__(self, format: Literal["logfmt", "json"], pipeline: str | None = None) -> None:
        super().__init__()
        self._json = format == "json"
        self._pipeline = pipeline

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        fields = self._fields(record)
        return json.dumps(fields, ensure_ascii=False) if self._json else " ".join(map(_pair, fields.items()))

    def _fields(self, record: logging.LogRecord) -> dict[str, Field]:
        own = record.name.split(".")[0] in _OWN
        fields: dict[str, Field] = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        if own and hasattr(record, "fields"):
            fields["event"] = record.msg
        else:
            fields["event"] = "message" if own else "library_message"
            fields["logger"] = record.name
            fields["text"] = redact(record.getMessage() if own else str(record.msg))
        if self._pipeline is not None:
            fields["pipeline"] = self._pipeline
        given: Mapping[str, object] = getattr(record, "fields", {})
        fields.update({name: _allowed(value) for name, value in given.items()})
        if record.exc_info is not None and record.exc_info[1] is not None:
            fields.update(_exception(record.exc_info[1]))
        return fields


def _allowed(value: object) -> Field:
    """A field's value; of what is neither text nor number only the type, whatever it holds."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    if isinstance(value, int | None):
        return value
    return f"<{type(value).__name__}>"


def _exception(error: BaseException) -> dict[str, Field]:
    """Class, code and places in the code; the message only of our own errors."""
    fields: dict[str, Field] = {"exception": type(error).__name__}
    if isinstance(error, TowlineError):
        fields |= {"code": error.code, "detail": redact(error.detail)}
    frames = traceback.extract_tb(error.__traceback__)
    fields["at"] = " < ".join(
        f"{frame.name} {frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames[::-1]
    )
    return fields


def _pair(item: tuple[str, Field]) -> str:
    name, value = item
    text = json.dumps(value) if isinstance(value, bool | None) else str(value)
    return f"{name}={text if _PLAIN.match(text) else json.dumps(text, ensure_ascii=False)}"
