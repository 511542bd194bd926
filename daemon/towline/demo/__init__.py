"""The demo: two PostgreSQL servers of its own, a small ERP under load, the daemon, a live screen, and a proof.

Nothing else of Towline may import this package, but for the command line. Tests use its servers.
"""

from __future__ import annotations


def run(seconds: int | None = None) -> int:
    """Run the demo for ``seconds``, or until SIGINT or SIGTERM; returns the exit code.

    0: everything was replicated and verified; 4: rows differ; else it failed, and said why.
    """
    from rich.console import Console

    from towline.demo.demonstration import demonstrate

    return demonstrate(seconds, Console())
