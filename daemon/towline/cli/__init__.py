"""The command line: ``towline VERB PIPELINE_FILE …``.

Exit codes: 0 done, 1 a failure that a retry may cure, 2 usage or configuration, 3 a person must act, 4 `verify` found
differences. What a command has to say goes to stdout; errors, with what to do, to stderr; never a traceback.
"""

from __future__ import annotations

import click

from towline import __version__
from towline.cli.outcome import Commands

#: The verbs in the order of use, and the modules here that hold them.
VERBS = {
    "init": "files",
    "check": "setup",
    "plan": "setup",
    "apply": "setup",
    "run": "daemon",
    "status": "watch",
    "top": "watch",
    "preview": "data",
    "explain": "data",
    "verify": "data",
    "quarantine": "quarantine",
    "resync": "resync",
    "ledger": "ledger",
    "schema": "files",
    "demo": "demo",
}


@click.group(
    cls=Commands,
    verbs=VERBS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 may pass by itself, 2 usage or configuration, 3 a person must act, 4 rows differ.",
)
@click.version_option(__version__, prog_name="towline")
@click.option("--debug", is_flag=True, help="On an error, also print where in the code it was raised.")
def cli(debug: bool) -> None:
    """Replicate the tables of a live PostgreSQL database into another one, through routes written in SQL."""
