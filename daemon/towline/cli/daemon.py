"""The verb that runs a pipeline."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from towline import config, logs
from towline.cli.arguments import pipeline_file
from towline.first_look import FirstLook

log = logging.getLogger(__name__)


@click.command()
@pipeline_file
@click.option("--until-caught-up", is_flag=True, help="Go up to where the source is now, then end with exit code 0.")
@click.pass_context
def run(ctx: click.Context, pipeline_file: Path, until_caught_up: bool) -> None:
    """Replicate until stopped.

    SIGTERM and SIGINT (Ctrl-C) end it with nothing lost; SIGHUP reads the file again. The log goes to stderr.
    """
    loaded = config.load(pipeline_file)
    logs.configure(loaded.log.format, loaded.log.level, pipeline=loaded.pipeline)
    for text in loaded.warnings():
        logs.event(log, "warning", "configuration_doubtful", text=text)
    first = FirstLook(loaded)
    from towline import supervisor  # with all that replicates, which is loaded while both ends are looked at

    ctx.exit(supervisor.run(pipeline_file, first=first, until_caught_up=until_caught_up))
