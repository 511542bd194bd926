"""Verbs that look at a pipeline: status, top."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from towline import config
from towline.cli.arguments import pipeline_file
from towline.cli.screen import Screen, headline, route_rows
from towline.cli.table import show
from towline.redaction import redact
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
    try:
        with Reader(loaded) as reader, Live(console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen.render(reader.read(), time.monotonic()), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        return
