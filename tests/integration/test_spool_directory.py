"""A directory for the spool that is not there: who is told of it, and when."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.fault.harness import Daemon
from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline.cli import cli
from towline.demo.server import Server


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """One table, and a spool."""
    (tmp_path / "spool").mkdir()
    made = Line.make(
        tmp_path,
        new_database(pg18),
        new_database(hub18),
        "  - {from: public.t, into: replica.t}",
        more=f"spool: {{directory: {tmp_path}/spool}}",
    )
    made.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    return made


def told(line: Line, verb: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [verb, str(line.path)])
    return done.exit_code, done.output


def test_at_the_start(line: Line, tmp_path: Path) -> None:
    """`check` warns, since the daemon may run elsewhere; it stops; without streaming nobody cares."""
    assert "TL-336" not in told(line, "check")[1]
    (tmp_path / "spool").rmdir()
    code, said = told(line, "check")
    assert (code, "warning TL-336: No such file or directory" in said) == (0, True), said
    assert told(line, "apply")[0] == 0
    code, said = told(line, "run")
    assert (code, "TL-336" in said) == (3, True), said
    line.path.write_text(line.path.read_text("utf-8").replace("streaming: auto", "streaming: 'off'"), "utf-8")
    assert "TL-336" not in told(line, "check")[1]
    line.run()


def test_of_a_standby(line: Line, tmp_path: Path) -> None:
    """It is told at its start, not when it is needed; a reload is refused, and the daemon that runs is left alone."""
    line.apply()
    other = tmp_path / "other.yaml"
    other.write_text(line.path.read_text("utf-8").replace(f"{tmp_path}/spool", f"{tmp_path}/absent"), "utf-8")
    first = Daemon(line.path, tmp_path / "first.log")
    try:
        until(lambda: "event=replicating" in first.log(), 30, first.log)
        second = Daemon(other, tmp_path / "second.log")
        assert second.await_exit() == 3, second.log()
        assert "TL-336" in second.log()
        line.path.write_text(other.read_text("utf-8"), "utf-8")
        first.signal(signal.SIGHUP)
        until(lambda: "reload_refused" in first.log() and "TL-336" in first.log(), 30, first.log)
        line.at_source("INSERT INTO t VALUES (1)")
        until(lambda: line.at_hub("SELECT count(*) FROM replica.t") == [(1,)], 30, first.log)
    finally:
        first.kill()
