"""The verb for rows that the target refused: ``towline quarantine list | show | retry | edit | discard``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from towline import config
from towline import plan as planning
from towline import quarantine as acting
from towline.cli.arguments import find, pipeline_file
from towline.cli.table import show as show_table
from towline.position import format_lsn
from towline.target.postgres.entries import STATES, Entry
from towline_transforms.route import MASK

ENTRY = click.argument("entry_id", metavar="ID", type=click.IntRange(min=1))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="As JSON; docs/OPERATIONS.md describes the fields.")


@click.group(subcommand_metavar="COMMAND PIPELINE_FILE [ARGS]...")
def quarantine() -> None:
    """See and resolve rows that the target refused.

    Routes with on_error: quarantine set such rows aside. Each verb takes the pipeline file first.
    """


@quarantine.command("list")
@pipeline_file
@click.option("--route", metavar="ROUTE", help="Only of this route.")
@click.option("--state", type=click.Choice([*STATES, "all"]), default="open", show_default=True, help="In this state.")
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="At most so many.")
@AS_JSON
def list_(pipeline_file: Path, route: str | None, state: str, limit: int, as_json: bool) -> None:
    """List entries, oldest first."""
    loaded = config.load(pipeline_file)
    with acting.entries(loaded) as entries:
        held = entries.find(route=route, state=None if state == "all" else state, limit=limit)
    found = [entry.masking(acting.sensitive(loaded, entry.route)) for entry in held]
    if as_json:
        click.echo(json.dumps([entry.as_dict() for entry in found], indent=2, ensure_ascii=False))
        return
    if found:
        rows = [
            [
                str(entry.id),
                entry.route,
                ", ".join(f"{name}={text}" for name, text in entry.key.items()),
                entry.operation,
                entry.state,
                f"{entry.created_at:%Y-%m-%d %H:%M:%S}",
                entry.message,
            ]
            for entry in found
        ]
        show_table(["id", "route", "key", "operation", "state", "since", "refused with"], rows, [0])
    click.echo(f"{len(found)} {'entry' if len(found) == 1 else 'entries'}" if found else "nothing is set aside")


@quarantine.command()
@pipeline_file
@ENTRY
@AS_JSON
def show(pipeline_file: Path, entry_id: int, as_json: bool) -> None:
    """Show all that is known of an entry."""
    loaded = config.load(pipeline_file)
    with acting.entries(loaded) as entries:
        (found,) = entries.named([entry_id])
    entry = found.masking(acting.sensitive(loaded, found.route))
    if as_json:
        click.echo(json.dumps(entry.as_dict(), indent=2, ensure_ascii=False))
        return
    for name, text in _facts(entry):
        click.echo(f"{name:<12} {text}")
    for name, value in (entry.row or {}).items():
        click.echo(f"  {name}: {_value(entry, name, value)}")
    for name in entry.not_sent:
        click.echo(f"  {name}: (not sent by the source)")
    for name in entry.unreadable:
        click.echo(f"  {name}: (this target cannot read it)")
    for edit in entry.edits:
        old = _text(edit["old"]) if edit["had_value"] else "no value"
        click.echo(f"edited {edit['at']} by {edit['by']}: {edit['column']}: {old} → {_text(edit['new'])}")


def _facts(entry: Entry) -> list[tuple[str, str]]:
    """The lines about an entry, without its row."""
    facts = [
        ("entry", str(entry.id)),
        ("route", entry.route),
        ("key", ", ".join(f"{name}={text}" for name, text in entry.key.items())),
        ("operation", entry.operation),
        ("state", entry.state),
        ("position", f"{format_lsn(entry.position)}, change {entry.ordinal}"),
        ("committed", "unknown" if entry.commit_time is None else f"{entry.commit_time:%Y-%m-%d %H:%M:%S.%f %Z}"),
        ("refused with", entry.message),
        ("attempts", str(entry.attempts)),
    ]
    if entry.resolved_at is not None:
        facts.append(("resolved", f"{entry.resolved_at:%Y-%m-%d %H:%M:%S %Z} by {entry.resolved_by or 'the daemon'}"))
    if entry.reason is not None:
        facts.append(("reason", entry.reason))
    return facts


def _value(entry: Entry, name: str, value: str | None) -> str:
    return f"{MASK} (sensitive)" if name in entry.masked else _text(value)


def _text(value: str | None) -> str:
    return "NULL" if value is None else value


@quarantine.command()
@pipeline_file
@click.argument("entry_ids", metavar="[ID]...", type=click.IntRange(min=1), nargs=-1)
@click.option("--route", metavar="ROUTE", help="All open entries of this route.")
@click.option("--all", "every", is_flag=True, help="All open entries.")
@AS_JSON
@click.pass_context
def retry(
    ctx: click.Context,
    pipeline_file: Path,
    entry_ids: tuple[int, ...],
    route: str | None,
    every: bool,
    as_json: bool,
) -> None:
    """Apply entries again, in order, in one transaction.

    Exit code 3: some are still refused.
    """
    if [bool(entry_ids), route is not None, every].count(True) != 1:
        raise click.UsageError("name entries, or --route ROUTE, or --all")
    with planning.prepare(config.load(pipeline_file), applied=True) as prepared:
        name = None if route is None else find(prepared.routes, route).name
        report = acting.retry(prepared, ids=entry_ids or None, route=name)
    if as_json:
        click.echo(json.dumps([outcome.as_dict() for outcome in report.outcomes], indent=2, ensure_ascii=False))
    else:
        for line in report.lines():
            click.echo(line)
    ctx.exit(report.exit_code)


@quarantine.command()
@pipeline_file
@ENTRY
@click.option("--set", "values", metavar="COLUMN=VALUE", multiple=True, help="The source's text; may be repeated.")
@click.option("--null", "nulls", metavar="COLUMN", multiple=True, help="Set it to NULL; may be repeated.")
def edit(pipeline_file: Path, entry_id: int, values: tuple[str, ...], nulls: tuple[str, ...]) -> None:
    """Change columns of an entry's row, to be retried.

    What they were, who changed them and when is kept with the entry.
    """
    changes: dict[str, str | None] = dict.fromkeys(nulls)
    for text in values:
        column, separator, value = text.partition("=")
        if not separator:
            raise click.UsageError("--set takes COLUMN=VALUE")
        changes[column] = value
    if not changes:
        raise click.UsageError("nothing to change: name columns with --set or --null")
    loaded = config.load(pipeline_file)
    with acting.entries(loaded) as entries:
        (entry,) = entries.named([entry_id])
        entries.edit(entry_id, changes, entries.who(), acting.sensitive(loaded, entry.route))
    columns = ", ".join(changes)
    click.echo(f"edited entry {entry_id}: {columns}; next: towline quarantine retry {pipeline_file} {entry_id}")


@quarantine.command()
@pipeline_file
@click.argument("entry_ids", metavar="ID...", type=click.IntRange(min=1), nargs=-1, required=True)
@click.option("--reason", required=True, metavar="TEXT", help="Why; it is kept with the entry.")
def discard(pipeline_file: Path, entry_ids: Sequence[int], reason: str) -> None:
    """Give entries up. Who did it and why is kept."""
    with acting.entries(config.load(pipeline_file)) as entries:
        entries.discard(entry_ids, entries.who(), reason)
    click.echo(f"discarded: {len(set(entry_ids))} {'entry' if len(set(entry_ids)) == 1 else 'entries'}")
