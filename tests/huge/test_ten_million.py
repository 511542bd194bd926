"""Ten million rows in one transaction (run by `make huge`: some minutes)."""

from __future__ import annotations

import time
from pathlib import Path

from tests.integration.test_memory import LIMIT, Settings, large
from tests.support.databases import NewDatabase
from towline.demo.server import Server

ROWS = 10_000_000


def test_a_transaction_of_ten_million_rows(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """The daemon stays under 256 MB, with all settings as they are by default."""
    began = time.monotonic()
    found = large(ROWS, Settings(), pg18, hub18, new_database, tmp_path, 1200)
    print(f"\n{ROWS:,} rows in one transaction: peak {found / 2**20:.0f} MB, {time.monotonic() - began:.0f} s in all")
    assert found < LIMIT
