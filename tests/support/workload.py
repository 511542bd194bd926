"""The demo's ERP and WMS, for tests that want realistic tables and a load that can be repeated."""

from __future__ import annotations

from pathlib import Path

import psycopg

from towline.demo.demonstration import fill_source, write_pipeline
from towline.demo.workload import Workload, script

__all__ = ["Workload", "make_pipeline"]


def make_pipeline(directory: Path, source: str, hub: str) -> Path:
    """Fill two empty databases as the demo does; returns its pipeline file, without a web server.

    ``Workload(source, seed=…).run(transactions)`` then changes the source, the same way each time.
    """
    fill_source(source)
    with psycopg.connect(hub) as connection:
        connection.execute(script("hub.sql"))
    return write_pipeline(directory, source, hub, port=0)
