"""`towline demo`, as a user runs it: it ends with proof, and leaves nothing behind however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from tests.support.wait import until
from tests.support.workload import Workload, make_pipeline
from towline.demo.process import working_directory
from towline.demo.server import Server

DEMO = [sys.executable, "-m", "towline", "demo"]
VERIFIED = re.compile(r"verified: (\d+) rows compared, 0 differ\n\Z")


@pytest.fixture
def place(scratch: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A temporary directory for the demo alone; after the test nothing is in it and no process works there."""
    path = scratch / re.sub(r"\W", "-", request.node.name)
    path.mkdir()
    yield path
    until(lambda: not processes(path), describe=lambda: processes(path))


def processes(path: Path) -> list[int]:
    """The processes that work below a directory."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            here = working_directory(int(name))
            if here is not None and here.is_relative_to(path):
                found.append(int(name))
    return found


def start(place: Path, *arguments: str) -> subprocess.Popen[str]:
    """The demo as a process, with its output in a pipe."""
    return subprocess.Popen(
        [*DEMO, *arguments],
        env={**os.environ, "TMPDIR": str(place)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], words: str) -> str:
    """Output up to and with the first line that has those words."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return "".join(lines)
    raise AssertionError(f"it ended without {words!r}:\n{''.join(lines)}")


def test_ends_after_the_seconds_with_proof(place: Path) -> None:
    """All routes are copied and streamed under load; the last line says what was compared; exit 0; nothing stays."""
    with start(place, "--seconds", "4") as process:
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    verified = VERIFIED.search(output)
    assert verified is not None, output
    assert int(verified[1]) > 50_000
    assert "13/13 routes streaming" in output
    assert re.search(r"stopped after [\d,]{2,} transactions", output)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_proof(place: Path, number: signal.Signals) -> None:
    """Without --seconds it runs until Ctrl-C or SIGTERM, even when that comes during the first copy."""
    with start(place) as process:
        read_until(process, "transactions at the source")
        process.send_signal(number)
        output, _ = process.communicate(timeout=150)
    assert process.returncode == 0, output
    assert VERIFIED.search(output), output
    assert list(place.iterdir()) == []


def test_nothing_outlives_a_kill(place: Path) -> None:
    """SIGKILL of the demo takes servers, workload and daemon along; files are left to the next start."""
    with start(place) as process:
        read_until(process, "transactions at the source")
        assert len(processes(place)) > 10
        process.kill()
    until(lambda: not processes(place), describe=lambda: processes(place))
    until(lambda: not list(place.glob("*/*/data")), describe="the servers' directories removed")
    assert list(place.glob("towline-scratch-*"))


def test_a_daemon_that_ends_is_a_failure(place: Path) -> None:
    """If the daemon goes, the demo says so with its log, and does not claim anything."""
    with start(place) as process:
        read_until(process, "transactions at the source")
        (file,) = place.glob("*/demo.yaml")
        for pid in until(lambda: [int(name) for name in os.listdir("/proc") if name.isdigit() and runs(name, file)]):
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, 4)
    assert "the daemon ended with exit code" in output
    assert "verified:" not in output
    assert list(place.iterdir()) == []


def runs(pid: str, file: Path) -> bool:
    """Whether the process is `towline run` on the file (not the guard before it)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"run" in command and str(file).encode() in command and not any(b"guard.py" in word for word in command)


def towline(verb: str, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """A verb on a pipeline file."""
    return subprocess.run(
        [sys.executable, "-m", "towline", verb, str(file), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_demos_pipeline_step_by_step(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """check, plan, apply, run, verify by hand; and a verification that finds what was tampered with."""
    source, hub = new_database(pg18), new_database(hub18)
    file = make_pipeline(tmp_path, source, hub)
    for verb, options in (("check", ()), ("plan", ()), ("apply", ()), ("run", ("--until-caught-up",))):
        done = towline(verb, file, *options)
        assert done.returncode == 0, done.stdout
    Workload(source, seed=3).run(500)
    done = towline("run", file, "--until-caught-up")
    assert done.returncode == 0, done.stdout
    done = towline("verify", file)
    assert done.returncode == 0, done.stdout
    assert VERIFIED.search(done.stdout), done.stdout
    with psycopg.connect(hub) as connection:
        connection.execute("UPDATE hub.trade_order SET total = total + 1 WHERE order_no = 'SO-00000007'")
        connection.execute("DELETE FROM replica.product WHERE id = 5")
    done = towline("verify", file)
    assert done.returncode == 4
    assert done.stdout.endswith(", 2 differ\n")
