"""Writes docs/ERRORS.md from the classes themselves: ``python -m towline.errors_doc > docs/ERRORS.md``."""

from __future__ import annotations

import inspect
import itertools

from towline.errors import Action, TowlineError, all_errors
from towline_transforms.problems import ProblemKind

_HEAD = """# Errors

<!-- Written by `python -m towline.errors_doc`; a test compares. Change the classes, not this page. -->

Every error has a code. A command that ends with one prints, on stderr,

```
TL-304: slot towline_erp_to_hub does not exist
what to do: Changes since the checkpoint can no longer be read. …
```

and the daemon writes the code with each event of its log and counts it in `towline_errors_total`. Messages name tables,
columns, routes, positions and SQLSTATEs. They never hold values of rows or secrets.

## What becomes of an error

| | `towline run` | every other command | exit code |
|---|---|---|---|
| retries | starts again from the durable checkpoint, with growing delays, until it goes | ends | 1 |
| refuses | does not start; on SIGHUP keeps the configuration that it has | ends | 2 |
| stops | stops: going on would guess | ends | 3 |

Exit code 0 is success; 4 is for `towline verify` alone: it worked, and rows, a checksum or operations differ.
"""

_FAMILIES = {
    "1": "Configuration",
    "2": "Routes",
    "3": "Source",
    "4": "Target",
    "5": "Pipeline",
    "6": "Verification",
    "9": "Towline itself",
}

_DOES = {
    Action.RETRY: "It retries",
    Action.CONFIGURE: "It refuses",
    Action.STOP: "It stops",
}

_PROBLEMS = """
What can be wrong with a route. `towline check` prints all problems of all routes at once, each with the column and what
to write instead; the command then ends with TL-200.

| code | cause |
|---|---|
"""


def render() -> str:
    """The page, with its final line end."""
    parts = [_HEAD]
    for digit, errors in itertools.groupby(all_errors(), key=lambda error: error.code[3]):
        parts.append(f"\n## {_FAMILIES[digit]}: TL-{digit}xx\n")
        parts.extend(map(_section, errors))
        if digit == "2":
            parts.append(_PROBLEMS + "".join(f"| {kind.code} | {kind.meaning} |\n" for kind in ProblemKind))
    return "".join(parts)


def _section(error: type[TowlineError]) -> str:
    cause = " ".join(inspect.cleandoc(error.__doc__ or "").split())
    does, exit_code = (
        (_DOES[error.action], int(error.action)) if not error.reported else ("`towline verify` reports it", 4)
    )
    return (
        f"\n### {error.code} {_title(error.__name__)}\n\n{cause}\n\n"
        f"- **{does}**; exit code {exit_code}.\n- **What to do:** {error.remedy}\n"
    )


def _title(name: str) -> str:
    """``SlotMissing`` as ``Slot missing``."""
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name).split()
    return " ".join(words).capitalize() if name != "TowlineError" else "A defect"


if __name__ == "__main__":
    print(render(), end="")
