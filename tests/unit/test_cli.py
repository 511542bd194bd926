"""The command line without databases: files, usage, how commands end, and that no output ever holds a secret."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from towline import __version__, garbage
from towline.cli import VERBS, cli
from towline.cli.outcome import Commands, report
from towline.errors import Action, TowlineError, all_errors

SENTINEL = "s3ntinel-hunter2"
#: A port on which nothing listens: reserved for tcpmux since 1988.
DEAD = "127.0.0.1:1"

FILE = f"""\
pipeline: p
source: {{kind: postgres, dsn: "postgresql://u:{SENTINEL}@{DEAD}/erp?connect_timeout=2"}}
target: {{kind: postgres, dsn: "host=127.0.0.1 port=1 password='{SENTINEL}' dbname=hub connect_timeout=2"}}
web: {{port: 0}}
routes: [{{from: public.a, into: hub.a}}]
"""


@pytest.fixture
def runner() -> CliRunner:
    """Runs commands in this process, stdout and stderr apart."""
    return CliRunner()


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A right file whose databases are dead."""
    path = tmp_path / "p.yaml"
    path.write_text(FILE)
    return path


def group(error: Exception) -> click.Group:
    """A group whose every verb raises an error."""

    @click.command()
    def fail() -> None:
        raise error

    class Failing(Commands):
        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            return fail

    return Failing(verbs={}, params=[click.Option(["--debug"], is_flag=True)], callback=lambda debug: None)


def test_help_lists_the_verbs_in_order(runner: CliRunner) -> None:
    """`towline --help` shows every verb with a sentence, in the order of use."""
    result = runner.invoke(cli, ["--help"])
    listed = [line.split()[0] for line in result.output.split("Commands:")[1].splitlines() if line.startswith("  ")]
    assert [verb for verb in listed if verb in VERBS] == list(VERBS)
    assert result.exit_code == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(runner: CliRunner, verb: str) -> None:
    """Every verb explains itself; all but three take the pipeline file first."""
    result = runner.invoke(cli, [verb, "-h"])
    assert result.exit_code == 0, result.output
    assert ("PIPELINE_FILE" in result.output) == (verb not in ("init", "schema", "demo"))


def test_version(runner: CliRunner) -> None:
    """`towline --version`."""
    assert runner.invoke(cli, ["--version"]).output == f"towline, version {__version__}\n"


def test_init_and_never_twice(runner: CliRunner, tmp_path: Path) -> None:
    """A starter file is written once; a file that is there is left as it is."""
    path = tmp_path / "new.yaml"
    assert runner.invoke(cli, ["init", str(path)]).exit_code == 0
    path.write_text("mine")
    result = runner.invoke(cli, ["init", str(path)])
    assert (result.exit_code, path.read_text()) == (2, "mine")
    assert runner.invoke(cli, ["init", str(tmp_path / "no" / "dir.yaml")]).exit_code == 2


def test_schema_is_json(runner: CliRunner) -> None:
    """`towline schema` prints a JSON Schema and nothing else."""
    result = runner.invoke(cli, ["schema"])
    assert json.loads(result.stdout)["title"] == "Towline pipeline"


@pytest.mark.parametrize(
    "arguments",
    [["nope"], ["run"], ["status", "a", "b"], ["preview", "f", "r", "--rows", "0"], ["plan", "f", "--side", "both"]],
    ids=" ".join,
)
def test_usage_errors(runner: CliRunner, arguments: list[str]) -> None:
    """A wrong command line is exit code 2."""
    assert runner.invoke(cli, arguments).exit_code == 2


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_coded_errors(runner: CliRunner, error: type[TowlineError]) -> None:
    """A coded error goes to stderr with what to do, and ends with its action's exit code."""
    result = runner.invoke(group(error("detail", hint="try this")), ["fail"])
    assert result.exit_code == int(error.action)
    assert (result.stdout, result.stderr) == ("", f"{error.code}: detail\nwhat to do: try this\n")


@pytest.mark.parametrize("debug", [[], ["--debug"]], ids=["plain", "debug"])
def test_unexpected_errors(runner: CliRunner, debug: list[str]) -> None:
    """An error that nobody expected is TL-900 with its class and place; its message may hold anything: not shown."""
    failed = KeyError(SENTINEL)
    failed.__cause__ = ValueError(SENTINEL)
    result = runner.invoke(group(failed), [*debug, "fail"])
    assert result.exit_code == int(Action.STOP)
    assert result.stderr.startswith("TL-900: KeyError at test_cli.py:")
    assert SENTINEL not in result.output
    assert ("ValueError, raised at" in result.stderr) == bool(debug)


def test_secrets_of_a_library_are_starred(runner: CliRunner) -> None:
    """Even a detail that quotes a connection string is printed without the password."""
    result = runner.invoke(group(TowlineError(f"cannot use postgresql://u:{SENTINEL}@h/d")), ["fail"])
    assert "postgresql://u:***@h/d" in result.stderr and SENTINEL not in result.output


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """The body ends within so many seconds."""
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < seconds


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "FILE"], 1),
        (["plan", "FILE"], 1),
        (["apply", "FILE"], 1),
        (["status", "FILE"], 1),
        (["status", "FILE", "--json"], 1),
        (["preview", "FILE", "public.a"], 1),
        (["explain", "FILE", "public.a"], 1),
        (["verify", "FILE"], 1),
        (["--debug", "verify", "FILE", "--json"], 1),
        (["top", "FILE"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_dead_databases_and_no_secret(runner: CliRunner, pipeline: Path, arguments: list[str], code: int) -> None:
    """With both databases dead every verb ends soon, with exit code 1 and a code; the password is in no output."""
    arguments = [str(pipeline) if argument == "FILE" else argument for argument in arguments]
    with in_time(20):
        result = runner.invoke(cli, arguments)
    assert result.exit_code == code, result.output
    assert SENTINEL not in result.output and "Traceback" not in result.output
    if code == 1:
        assert "TL-301" in result.output or "TL-401" in result.output


def test_status_json_of_dead_databases(runner: CliRunner, pipeline: Path) -> None:
    """`status --json` is whole with both ends dead: nulls, the routes of the file, and why."""
    found = json.loads(runner.invoke(cli, ["status", str(pipeline), "--json"]).stdout)
    assert (found["format"], found["pipeline"], found["role"], found["healthy"]) == (1, "p", "unknown", False)
    assert [found[name] for name in ("checkpoint", "source_position", "lag_bytes", "lag_seconds", "slot")] == [None] * 5
    assert [(route["name"], route["state"]) for route in found["routes"]] == [("public.a", None)]
    assert [(error["side"], error["code"]) for error in found["errors"]] == [("source", "TL-301"), ("target", "TL-401")]


def test_wrong_file(runner: CliRunner, tmp_path: Path) -> None:
    """Every verb that takes a file refuses a wrong one alike."""
    path = tmp_path / "bad.yaml"
    path.write_text(f"pipeline: {SENTINEL}!\n")
    for verb, after in (("check", []), ("run", []), ("status", []), ("explain", ["r"]), ("verify", ["--repair"])):
        result = runner.invoke(cli, [verb, str(path), *after])
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith(f"TL-101: {path}:1: ") and SENTINEL not in result.output


def test_an_error_that_was_logged_is_not_printed_again(capsys: pytest.CaptureFixture[str]) -> None:
    """The error that ends a daemon is its last event, and stands on stderr once."""
    error = TowlineError("it broke")
    report(error)
    assert "it broke" in capsys.readouterr().err
    error.told = True
    report(error)
    assert capsys.readouterr().err == ""


def test_garbage_is_looked_for_again() -> None:
    """It is not while modules are imported; from then on it is, or a daemon would grow for as long as it runs."""
    before = gc.get_threshold()
    try:
        garbage.loading()
        assert not gc.isenabled()
        cli.get_command(click.Context(cli), "schema")
        assert gc.isenabled()
        assert gc.get_threshold()[0] == garbage.THRESHOLD
    finally:
        gc.enable()
        gc.unfreeze()
        gc.set_threshold(*before)
