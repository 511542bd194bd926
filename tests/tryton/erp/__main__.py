"""Tryton from its own virtual environment: ``python -m tests.tryton.erp create|stock-up|trade …``.

`trade` prints a line for each document that went through its life, so that whoever started it can see that it lives.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from collections import Counter


def main() -> None:
    """Parse the command line and do it. The database's URI ends in its name, and has no parameters."""
    parser = argparse.ArgumentParser(prog="tests.tryton.erp", description="Makes and drives a Tryton database.")
    parser.add_argument("step", choices=["create", "stock-up", "trade"])
    parser.add_argument("uri", help="postgresql://user@host:port/database")
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("tests").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", message="The path specified in the URI")
    # Tryton chooses its database driver when it is imported, so each step imports it only now.
    os.environ["TRYTOND_DATABASE_URI"] = arguments.uri
    if arguments.step == "create":
        from tests.tryton.erp.create import create

        create(arguments.uri)
    elif arguments.step == "stock-up":
        from tests.tryton.erp.master import stock_up

        stock_up(arguments.uri)
    else:
        from tests.tryton.erp.trade import trade

        done = trade(arguments.uri, arguments.rounds, arguments.seed, print_now)
        print_now("total", *(f"{what}={count}" for what, count in sorted(Counter(done).items())))


def print_now(*words: object) -> None:
    """Print without waiting for a full buffer: the reader is a pipe."""
    print(*words, flush=True)


if __name__ == "__main__":
    main()
