"""Arguments that many verbs share."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import click

from towline.config import PipelineConfig
from towline.errors import RouteUnknown
from towline_transforms.route import Route

#: The first argument of nearly every verb. That it can be read is for `towline.config.load` to say.
pipeline_file = click.argument("pipeline_file", type=click.Path(path_type=Path))


def find(routes: Iterable[Route], name: str) -> Route:
    """The route of that name. Raises RouteUnknown, with the nearest name."""
    by_name = {route.name: route for route in routes}
    if name in by_name:
        return by_name[name]
    close = difflib.get_close_matches(name, by_name, 1)
    raise RouteUnknown(f"there is no route {name}" + (f": did you mean {close[0]}?" if close else ""))


def warn(config: PipelineConfig) -> None:
    """Print what is allowed, but probably not meant."""
    for text in config.warnings():
        click.echo(f"warning: {text}", err=True)
