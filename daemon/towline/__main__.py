"""``python -m towline`` and the script ``towline``."""

from __future__ import annotations

from towline.cli import cli


def main() -> None:
    """The entry point; ends the process with the documented exit codes."""
    cli(prog_name="towline")


if __name__ == "__main__":
    main()
