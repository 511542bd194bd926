"""Verbs that look at rows and routes: preview, explain, verify."""

from __future__ import annotations

import json
from pathlib import Path

import click

from towline import config
from towline import plan as planning
from towline import preview as previewing
from towline import verify as verification
from towline.cli.arguments import find, pipeline_file
from towline.explain import explain as explain_route


@click.command()
@pipeline_file
@click.argument("route")
@click.option("--rows", type=click.IntRange(1, 1000), default=10, show_default=True, help="How many source rows.")
def preview(pipeline_file: Path, route: str, rows: int) -> None:
    """Try ROUTE on real rows, and roll back.

    Rows of the source are applied to the target in a transaction that is rolled back; what it did to them is shown.
    """
    with planning.prepare(config.load(pipeline_file)) as prepared:
        result = previewing.preview(prepared, find(prepared.routes, route), rows)
        for line in result.lines():
            click.echo(line)


@click.command()
@pipeline_file
@click.argument("route")
def explain(pipeline_file: Path, route: str) -> None:
    """Show what ROUTE does: lineage and SQL.

    Where each column comes from, which columns travel, and the statements that run at the target.
    """
    loaded = config.load(pipeline_file)
    with planning.prepare(loaded) as prepared:
        found = find(prepared.routes, route)
        relation = next(relation for relation in prepared.relations if relation.name == found.source.name)
    publication = loaded.source.publication if loaded.source.plugin == "pgoutput" else None
    for line in explain_route(found, relation, publication):
        click.echo(line)


@click.command()
@pipeline_file
@click.option("--route", "routes", multiple=True, metavar="ROUTE", help="Only this route; may be repeated.")
@click.option("--repair", is_flag=True, help="Apply the source's rows again where the target differs.")
@click.option("--json", "as_json", is_flag=True, help="As JSON; docs/OPERATIONS.md describes the fields.")
@click.pass_context
def verify(ctx: click.Context, pipeline_file: Path, routes: tuple[str, ...], repair: bool, as_json: bool) -> None:
    """Compare all rows of source and target.

    The target with what the routes make of the source, while both go on; and the ledger with the source's keys and log.
    Exit code 4: something differs.
    """
    with planning.prepare(config.load(pipeline_file)) as prepared:
        wanted = [find(prepared.routes, name).name for name in routes] or None
        report = verification.verify(prepared, routes=wanted, repair=repair)
    if as_json:
        click.echo(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            click.echo(line)
    ctx.exit(report.exit_code)
