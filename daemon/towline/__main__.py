"""``python -m towline`` and the script ``towline``."""

from __future__ import annotations

from towline import garbage


def main() -> None:
    """The entry point; ends the process with the documented exit codes."""
    garbage.loading()
    from towline.cli import cli

    cli(prog_name="towline")


if __name__ == "__main__":
    main()
