"""Lines that are cut while a pipeline still reads the catalogs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.proxy import Proxy
from towline import plan
from towline.demo.server import Server
from towline.errors import SourceUnavailable, TargetUnavailable


@pytest.mark.parametrize("end", ["source", "target"])
def test_a_line_cut_anywhere_is_worth_another_try(
    end: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Wherever the line ends, what is raised is a coded error that has the supervisor try again."""
    source, hub = new_database(pg18), new_database(hub18)
    straight = Line.make(tmp_path, source, hub, "  - {from: public.*, into: replica.*}")
    straight.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    straight.apply()
    with Proxy((pg18 if end == "source" else hub18).port) as proxy:
        text = straight.path.read_text("utf-8")
        dsn = source if end == "source" else hub
        path = tmp_path / "through.yaml"
        path.write_text(text.replace(f'"{dsn}"', f'"{proxy.dsn(dsn)}"'), "utf-8")
        line = replace(straight, path=path)
        with plan.prepare(line.config, applied=True):
            whole = proxy.sent_down
        raised = 0
        for part in range(24):
            proxy.cut_after(whole * part // 24 + 1)
            try:
                with plan.prepare(line.config, applied=True):
                    pass
            except (SourceUnavailable, TargetUnavailable):
                raised += 1
    assert raised > 12
