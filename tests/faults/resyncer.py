"""`towline resync --yes` as a process of its own that can be paused between its steps.

    python -m tests.faults.resyncer PIPELINE.yaml --strings [POINT COUNT]

Its point is ``step``: a step was done and is told of.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fault.strings import pulled
from towline import plan, resync
from towline.config import load
from towline.errors import TowlineError

POINT = "step"


def main(arguments: list[str]) -> int:
    """Resync the pipeline; returns the exit code."""
    strings = pulled(*arguments[2:])
    try:
        with plan.prepare(load(Path(arguments[0])), applied=True) as prepared:
            resync.execute(prepared, resync.plan(prepared), lambda line: strings.announce(POINT))
    except TowlineError as error:
        print(f"code={error.code} {error}", file=sys.stderr)
        return int(error.action)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
