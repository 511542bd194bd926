"""Verbs that look at a pipeline: status, top."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from towline import config
from towline.cli.arguments import pipeline_file
from towline.cli.screen import Screen, aside, headline, route_rows
from towline.cli.table import show
from towline.redaction import redact
from towline.signals import answered
from towline.status import Reader, Status, read


@click.command()
@pipeline_file
@click.option("--json", "as_json", is_flag=True, help="As JSON; docs/OPERATIONS.md describes the fields.")
@click.pass_context
def status(ctx: click.Context, pipeline_file: Path, as_json: bool) -> None:
    """Show how far the pipeline is. Exit code 1: an end cannot be reached; 3: a person must act."""
    found = read(config.load(pipeline_file))
    if as_json:
        click.echo(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        _print(found)
    ctx.exit(found.exit_code)


def _print(found: Status) -> None:
    for name, text in headline(found):
        click.echo(f"{name:<11} {text}")
    if found.routes:
        click.echo()
        headers, rows, numbers = route_rows(found.routes)
        show(headers, rows, numbers)
    for line in aside(found):
        click.echo(line)
    for error in found.errors:
        click.echo(f"\n{error.code} ({error.side}): {redact(error.detail)}\n  what to do: {redact(error.advice)}")


@click.command()
@pipeline_file
@click.option(
    "--interval", type=click.FloatRange(min=0.2), default=1.0, show_default=True, help="Seconds between looks."
)
def top(pipeline_file: Path, interval: float) -> None:
    """Watch the pipeline live, route by route. Ctrl-C ends it."""
    loaded = config.load(pipeline_file)
    if not sys.stdout.isatty():
        raise click.UsageError("top needs a terminal; `towline status` does not")
    screen = Screen()
    with (
        _interrupted() as stop,
        Reader(loaded) as reader,
        Live(console=Console(), screen=True, auto_refresh=False) as live,
    ):
        while not stop.is_set():
            live.update(screen.render(reader.read(), time.monotonic()), refresh=True)
            stop.wait(interval)


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets: raised wherever it happens to arrive, KeyboardInterrupt can be swallowed. The second
    Ctrl-C is raised as always.
    """
    stop = threading.Event()
    with answered({signal.SIGINT: stop.set}, insisting=True):
        yield stop
