"""What became of every row: the verb ledger."""

from __future__ import annotations

import json
from pathlib import Path

import click

from towline import config, ledger_report
from towline.cli.arguments import pipeline_file
from towline.cli.outcome import report as report_error
from towline.cli.table import show
from towline.errors import RouteUnknown


@click.command()
@pipeline_file
@click.option(
    "--since", metavar="TIME|LSN", help="Only what ended after it: 16/B374D848, 2026-01-31T08:00, 90m, 24h, 7d."
)
@click.option("--route", "routes", multiple=True, metavar="ROUTE", help="Only this route; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; docs/OPERATIONS.md describes the fields.")
@click.pass_context
def ledger(ctx: click.Context, pipeline_file: Path, since: str | None, routes: tuple[str, ...], as_json: bool) -> None:
    """Account for every row, by route and range.

    Of each range of the source's log: what became of the rows, and sums over their keys, which `towline verify` has
    the source compute again. Exit code 3: something does not add up.
    """
    try:
        found = ledger_report.read(config.load(pipeline_file), since)
    except ValueError:
        raise click.BadParameter(f"{since} is no time and no position", param_hint="--since") from None
    if unknown := [name for name in routes if name not in found.running]:
        raise RouteUnknown(f"the ledger has no route {unknown[0]}")
    if routes:
        found = ledger_report.only(found, routes)
    if as_json:
        click.echo(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
    else:
        show(ledger_report.HEADERS, [each.cells() for each in found.ranges], ledger_report.NUMBERS)
        for line in found.lines():
            click.echo(line)
    if (error := found.imbalance) is not None:
        report_error(error)
        ctx.exit(int(error.action))
