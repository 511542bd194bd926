"""How a command ends: what it prints of an error, and its exit code."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

import click

from towline import config, garbage
from towline.errors import Action, TowlineError
from towline.redaction import redact


class Commands(click.Group):
    """A group whose commands end as documented, whatever they raise.

    ``verbs``: their names, in the order of use, with the modules that hold them. A module is imported when its verb is
    used, for `towline schema` needs no decoder.
    """

    def __init__(self, *args: Any, verbs: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._verbs = verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of use."""
        return list(self._verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, or None."""
        if cmd_name not in self._verbs:
            return None
        module = importlib.import_module(f"towline.cli.{self._verbs[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        garbage.loaded()
        return command

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; an error is printed with what to do, and becomes the exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own: usage, --help, Ctrl-C; and a reader of stdout that went away
        except TowlineError as error:
            failed: Exception = error
        except Exception as error:  # the outermost place: of an error that nobody expected only its kind is told
            failed = error
        report(failed, debug=bool(ctx.params.get("debug")) or config.debug())
        ctx.exit(int(failed.action) if isinstance(failed, TowlineError) else int(Action.STOP))


def report(error: Exception, *, debug: bool = False) -> None:
    """Print an error to stderr: code, what happened, what to do."""
    if isinstance(error, TowlineError) and error.told:
        pass  # it is in the log, which goes to stderr too
    elif isinstance(error, TowlineError):
        click.echo(redact(str(error)), err=True)
        click.echo(redact(f"what to do: {error.advice}"), err=True)
    else:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}, in {frame.name}"
        click.echo(f"{TowlineError.code}: {type(error).__name__} at {where}", err=True)
        click.echo(f"what to do: {TowlineError.remedy}", err=True)
    if debug:
        click.echo("\n".join(_places(error)), err=True)


def _places(error: BaseException) -> Iterable[str]:
    """A traceback without messages: those of a driver or a server can hold values."""
    cause: BaseException | None = error
    while cause is not None:
        yield f"{type(cause).__name__}, raised at"
        for frame in traceback.extract_tb(cause.__traceback__):
            yield f"  {frame.filename}:{frame.lineno}, in {frame.name}"
        cause = cause.__cause__
