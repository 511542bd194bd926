"""Verbs about the pipeline file itself: init, schema."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import click

from towline import config


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default="pipeline.yaml")
def init(path: Path) -> None:
    """Write a commented pipeline file to start from.

    PATH is pipeline.yaml if not given. A file that exists is never overwritten.
    """
    text = resources.files(__package__).joinpath("starter.yaml").read_text("utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise click.UsageError(f"{path} exists, and is left as it is") from None
    except OSError as error:
        raise click.UsageError(f"{path} cannot be written: {error.strerror}") from None
    click.echo(f"wrote {path}; next: edit it, then `towline check {path}`")


@click.command()
def schema() -> None:
    """Print the JSON Schema of the pipeline file, for editors."""
    click.echo(json.dumps(config.json_schema(), indent=2, ensure_ascii=False))
