"""Events: their form in both formats, and what never gets into them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from towline import logs
from towline.errors import RowRefused, SourceUnavailable
from towline.logs import EventFormatter, event
from towline.redaction import redact

SENTINEL = "s3ntinel-hunter2"
log = logging.getLogger("towline.test")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Loggers as they were."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("towline").level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("towline").setLevel(before[2])


@pytest.fixture
def out() -> io.StringIO:
    """Where events go."""
    return io.StringIO()


def test_logfmt(out: io.StringIO) -> None:
    """Fields in order; what has spaces, quotes, line ends or equal signs is quoted."""
    logs.configure("logfmt", "info", pipeline="p", stream=out)
    event(
        log,
        "info",
        "batch_committed",
        lsn="16/B374D848",
        rows=100,
        seconds=0.123456789,
        ok=True,
        none=None,
        t='a "b"=\n',
    )
    line = out.getvalue()
    assert line.startswith("ts=20") and line.count("\n") == 1
    assert line.split(" ", 1)[1] == (
        "level=info event=batch_committed pipeline=p lsn=16/B374D848 rows=100 seconds=0.123457 ok=true none=null"
        ' t="a \\"b\\"=\\n"\n'
    )


def test_json(out: io.StringIO) -> None:
    """One object a line, with the types kept."""
    logs.configure("json", "debug", pipeline="p", stream=out)
    event(log, logging.WARNING, "x", rows=1, nan=float("nan"), ok=False)
    found = json.loads(out.getvalue())
    assert found.pop("ts").endswith("Z")
    assert found == {"level": "warning", "event": "x", "pipeline": "p", "rows": 1, "nan": "nan", "ok": False}


def test_level_and_reconfiguring(out: io.StringIO) -> None:
    """Below the level nothing is written; configuring again replaces the former handler."""
    logs.configure("logfmt", "warning", stream=io.StringIO())
    logs.configure("logfmt", "warning", stream=out)
    event(log, "info", "quiet")
    event(log, "warning", "loud")
    assert out.getvalue().count("event=") == 1


def test_exceptions_without_messages(out: io.StringIO) -> None:
    """Of a foreign exception only its class and where it was raised; of ours the code and detail too."""
    logs.configure("logfmt", "info", stream=out)
    try:
        raise ValueError(SENTINEL)
    except ValueError:
        log.exception("failed")
    assert SENTINEL not in out.getvalue()
    assert "exception=ValueError" in out.getvalue() and "test_logs.py" in out.getvalue()
    try:
        raise RowRefused("table hub.item: SQLSTATE 23505", sqlstate="23505")
    except RowRefused:
        log.exception("failed")
    assert 'code=TL-403 detail="table hub.item: SQLSTATE 23505"' in out.getvalue()


def test_libraries_show_only_their_template(out: io.StringIO) -> None:
    """A library's arguments may hold values of rows: they are not written."""
    logs.configure("logfmt", "debug", stream=out)
    logging.getLogger("psycopg").warning("error ignored in %s: %s", "rollback", SENTINEL)
    logging.getLogger("psycopg").info("not even this")
    assert SENTINEL not in out.getvalue() and "error ignored in %s: %s" in out.getvalue()
    assert out.getvalue().count("\n") == 1


def test_objects_are_not_written() -> None:
    """A field that is not text or a number shows its type alone."""
    record = logging.LogRecord("towline", logging.INFO, "", 0, "x", (), None)
    record.fields = {"row": {"a": SENTINEL}, "raw": SENTINEL.encode(), "error": SourceUnavailable(SENTINEL)}
    line = EventFormatter("logfmt").format(record)
    assert SENTINEL not in line and "row=<dict>" in line and "raw=<bytes>" in line


@pytest.mark.parametrize(
    "text",
    [
        f"connection to postgresql://u:{SENTINEL}@h:5432/d?x=1 failed",
        f"postgres://u:{SENTINEL}/with@at@h/d",
        f"host=a password={SENTINEL} dbname=d",
        f"password = '{SENTINEL} with \\' quote' dbname=d",
        f"postgresql://h/d?user=u&password={SENTINEL}&sslmode=require",
        f"sslpassword={SENTINEL}",
        f"PASSWORD={SENTINEL}",
    ],
)
def test_redaction(text: str, out: io.StringIO) -> None:
    """What looks like a password in a text is starred out, in events too; the rest stays."""
    assert SENTINEL not in redact(text) and "***" in redact(text)
    logs.configure("logfmt", "info", stream=out)
    event(log, "info", "x", detail=text)
    assert SENTINEL not in out.getvalue()


def test_redaction_leaves_the_rest() -> None:
    """Addresses, LSNs and the words about passwords stay readable."""
    for text in ("postgresql://u@h:5432/d", "at 16/B374D848", "password authentication failed for user x"):
        assert redact(text) == text
