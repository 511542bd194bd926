"""The verb that shows Towline at work, on servers of its own."""

from __future__ import annotations

import click


@click.command()
@click.option("--seconds", type=click.IntRange(min=1), help="Stop after so many seconds; default: at Ctrl-C.")
@click.pass_context
def demo(ctx: click.Context, seconds: int | None) -> None:
    """Replicate a small ERP, live, on servers of its own.

    Starts two PostgreSQL servers in a temporary directory, keeps one busy, replicates it into the other, and verifies
    all rows at the end. Nothing of it is left behind.
    """
    try:
        from towline.demo import run as run_demo
    except ImportError as error:
        needed = f"the demo needs `pip install '.[demo]'`, from a checkout ({error.name} is missing)"
        raise click.UsageError(needed) from None
    ctx.exit(run_demo(seconds))
