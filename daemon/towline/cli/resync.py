"""The verb that copies tables again: resync."""

from __future__ import annotations

from pathlib import Path

import click

from towline import config
from towline import plan as planning
from towline import resync as resyncing
from towline.cli.arguments import find, pipeline_file
from towline.cli.setup import tell
from towline.errors import SlotInvalidated, SlotLost, SlotOfAnotherPlugin

#: What `check` finds of a slot that is made anew.
_MENDED = (SlotLost.code, SlotInvalidated.code, SlotOfAnotherPlugin.code)


@click.command()
@pipeline_file
@click.argument("routes", nargs=-1, metavar="[ROUTE]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def resync(ctx: click.Context, pipeline_file: Path, routes: tuple[str, ...], yes: bool) -> None:
    """Copy tables again, over what is there.

    Rows are brought up to date beside the stream, and those that the source no longer has are removed afterwards; the
    target can be read all the while. Without a ROUTE, all routes are copied, and the replication slot is made anew if
    the stream cannot go on from the checkpoint. The daemon does the copying. May be interrupted and run again.
    """
    with planning.prepare(config.load(pipeline_file), applied=True) as prepared:
        names = [find(prepared.routes, name).name for name in routes]
        tell(ctx, [found for found in prepared.findings if found.fatal and found.code not in _MENDED])
        found = resyncing.plan(prepared, names)
        for line in found.lines():
            click.echo(line)
        if not yes:
            click.confirm("Do it?", abort=True)
        resyncing.execute(prepared, found, click.echo)
