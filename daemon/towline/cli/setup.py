"""Verbs that come before a pipeline runs: check, plan, apply."""

from __future__ import annotations

from pathlib import Path

import click

from towline import config
from towline import plan as planning
from towline.cli.arguments import pipeline_file, warn
from towline.errors import Action, all_errors
from towline.source import Finding, Step


@click.command()
@pipeline_file
@click.pass_context
def check(ctx: click.Context, pipeline_file: Path) -> None:
    """Check the file, both ends and every route.

    Nothing is changed. Every problem is printed, with what to do, and whether `apply` has something to do.
    """
    loaded = config.load(pipeline_file)
    warn(loaded)
    with planning.prepare(loaded) as prepared:
        tell(ctx, prepared.findings)
        left = len(planning.steps(prepared))
    routes = len(prepared.routes)
    click.echo(f"ok: {routes} {'route holds' if routes == 1 else 'routes hold'}")
    if left:
        click.echo(f"`towline apply` has {left} {'step' if left == 1 else 'steps'} to do, see `towline plan`")


def tell(ctx: click.Context, findings: list[Finding]) -> None:
    """Print the findings; end the command when one of them is fatal."""
    for finding in findings:
        click.echo(f"{'error' if finding.fatal else 'warning'} {finding.code}: {finding.detail}")
        click.echo(f"  what to do: {finding.remedy}")
    fatal = [finding for finding in findings if finding.fatal]
    if fatal:
        ctx.exit(max(map(_exit_code, fatal)))


def _exit_code(finding: Finding) -> int:
    actions = {error.code: error.action for error in all_errors()}
    return int(actions.get(finding.code, Action.CONFIGURE))


@click.command()
@pipeline_file
@click.option("--side", type=click.Choice(["source", "target"]), help="Only the steps at one end, for psql.")
def plan(pipeline_file: Path, side: str | None) -> None:
    """Show what `apply` would do, as SQL for psql."""
    with planning.prepare(config.load(pipeline_file)) as prepared:
        steps = planning.steps(prepared)
    shown = [step for step in steps if side in (None, step.side)]
    for step in shown:
        click.echo(f"-- {step.side}: {step.title}\n{_terminated(step.sql)}\n")
    if not shown:
        click.echo("-- nothing to do")


@click.command()
@pipeline_file
@click.pass_context
def apply(ctx: click.Context, pipeline_file: Path) -> None:
    """Create what is missing at both ends. Safe to repeat.

    That is, at the target: control tables, and the tables of identity routes; at the source: publication and slot.
    Nothing is done while `towline check` finds an error.
    """
    done = 0

    def report(step: Step) -> None:
        nonlocal done
        done += 1
        click.echo(f"{step.side}: {step.title}")

    with planning.prepare(config.load(pipeline_file)) as prepared:
        tell(ctx, [finding for finding in prepared.findings if finding.fatal])
        planning.apply(prepared, report)
    click.echo(f"applied: {done} {'step' if done == 1 else 'steps'}" if done else "nothing to do")


def _terminated(sql: str) -> str:
    text = sql.rstrip()
    return text if text.endswith(";") else text + ";"
