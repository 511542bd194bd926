"""`towline verify` as a process of its own that can be paused between two reads of the source.

    python -m tests.faults.verifier PIPELINE.yaml --strings [POINT COUNT]

Its point is ``chunk-verified``: before a chunk of the source is read. Exit codes are those of `towline verify`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fault.strings import Strings, pulled
from towline import plan, verify
from towline.change import Chunk, Cursor, Relation
from towline.config import load
from towline.errors import TowlineError
from towline.source.postgres.tables import PostgresTables

POINT = "chunk-verified"


def announcing(strings: Strings) -> type[PostgresTables]:
    """The tables of a source, with the point."""

    class Announcing(PostgresTables):
        def chunk(self, relation: Relation, after: Cursor | None, limit: int) -> Chunk:
            strings.announce(POINT)
            return super().chunk(relation, after, limit)

    return Announcing


def main(arguments: list[str]) -> int:
    """Verify the pipeline; returns the exit code."""
    verify.PostgresTables = announcing(pulled(*arguments[2:]))  # type: ignore[attr-defined]
    try:
        with plan.prepare(load(Path(arguments[0]))) as prepared:
            report = verify.verify(prepared)
    except TowlineError as error:
        print(f"code={error.code} {error}", file=sys.stderr)
        return int(error.action)
    print("\n".join(report.lines()), file=sys.stderr)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
