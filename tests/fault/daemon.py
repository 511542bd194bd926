"""The real daemon as a process of its own, which kills itself at a named point of its loop.

    python -m tests.fault.daemon PIPELINE.yaml [POINT COUNT]
    python -m tests.fault.daemon PIPELINE.yaml --strings [POINT COUNT]
    python -m tests.fault.daemon PIPELINE.yaml --sips|--drops|--copies …

With a point, SIGKILL comes the COUNT-th time that the loop passes it: no handler runs, nothing is flushed. With
``--strings`` it is paused there instead, and can be moved in other ways (see `tests.fault.strings`). With ``--sips`` a
backlog of a few megabytes is far behind, and read through SQL in small gulps; with ``--drops`` one of some hundred
kilobytes. With ``--copies`` two hundred rows travel by COPY, however narrow they are.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from tests.fault.strings import pulled
from towline import catch_up
from towline.config import load
from towline.errors import TowlineError
from towline.first_look import FirstLook
from towline.logs import configure
from towline.pipeline import POINTS
from towline.source.postgres import backlog
from towline.source.postgres.catch_up_stream import POINTS as CATCH_UP_POINTS
from towline.supervisor import run
from towline.target.postgres import staging

#: With these a test need not write hundreds of megabytes. A backlog of 20 is read in two gulps.
SIPS = catch_up.Bounds(
    enter=1 << 20, leave=100_000, least=16 << 20, most=16 << 20, follow=1 << 30, again=1000, confirm=1 << 20
)
#: Nor hundreds of kilobytes more than its trial has anyway. A backlog of 800 is read in a dozen gulps.
DROPS = catch_up.Bounds(
    enter=100_000, leave=20_000, least=64_000, most=64_000, follow=1 << 30, again=1 << 20, confirm=64_000
)
#: By option, what to read how; and how many bytes of pieces may wait for the consumer.
BEHIND = {"--sips": (SIPS, 100_000), "--drops": (DROPS, 10_000)}


def main(arguments: list[str]) -> int:
    """Run the pipeline file; returns the exit code."""
    path = Path(arguments[0])
    for option in BEHIND.keys() & arguments:
        arguments.remove(option)
        catch_up.BOUNDS, backlog.AHEAD = BEHIND[option]
    if "--copies" in arguments:
        arguments.remove("--copies")
        staging.FEW_VALUES = 0
    if "--strings" in arguments:
        strings = pulled(*arguments[2:])
        return daemon(path, strings.announce)
    point, left = (arguments[1], int(arguments[2])) if len(arguments) > 1 else ("", 0)
    if point and point not in POINTS + CATCH_UP_POINTS:
        raise SystemExit(f"no such point: {point}")

    def announce(passed: str) -> None:
        nonlocal left
        if passed == point:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return daemon(path, announce)


def daemon(path: Path, announce: Callable[[str], None]) -> int:
    """Run the pipeline file as `towline run` does; returns the exit code."""
    config = load(path)
    configure(config.log.format, config.log.level)
    try:
        return run(path, announce=announce, first=FirstLook(config))
    except TowlineError as error:
        print(f"{error}\nwhat to do: {error.advice}", file=sys.stderr)
        return int(error.action)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
