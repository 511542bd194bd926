"""Which sources are asked for transactions under way."""

from __future__ import annotations

from pathlib import Path

import pytest

from towline.config import load
from towline.spooling import wanted


@pytest.mark.parametrize(
    ("plugin", "streaming", "server_version", "answer"),
    [
        ("pgoutput", "auto", 130022, False),  # knows protocol 1 only, and refuses another
        ("pgoutput", "auto", 140000, True),
        ("pgoutput", "auto", 180006, True),
        ("pgoutput", "off", 180006, False),
        ("wal2json", "auto", 130022, False),
        ("wal2json", "auto", 140000, False),  # has no such protocol
        ("wal2json", "auto", 180006, False),
    ],
)
def test_wanted(plugin: str, streaming: str, server_version: int, answer: bool, tmp_path: Path) -> None:
    """Those from version 14 on, with pgoutput, unless the pipeline file says otherwise."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "pipeline: p\n"
        f"source: {{kind: postgres, dsn: dbname=a, plugin: {plugin}, streaming: {streaming}}}\n"
        "target: {kind: postgres, dsn: dbname=b}\n"
        "routes:\n  - {from: public.t, into: replica.t}\n",
        "utf-8",
    )
    assert wanted(load(path), server_version) is answer
