"""What the supervisor keeps from one attempt to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from towline import supervisor
from towline.backoff import Backoff
from towline.config import load
from towline.errors import TargetUnavailable
from towline.replication import Handle

FILE = """
pipeline: p
source: {kind: postgres, dsn: "host=nowhere"}
target: {kind: postgres, dsn: "host=nowhere"}
routes: [{from: public.*, into: copy.*}]
"""


def test_what_attempts_have_in_common(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The breaker, the state of streaming and the clock are the daemon's, not the attempt's."""
    given: list[dict[str, Any]] = []

    class Attempt:
        """Fails the first two times."""

        def __init__(self, config: object, **options: Any) -> None:
            given.append(options)
            self.handle, self.again = Handle(), False

        def run(self, *, until_caught_up: bool) -> None:
            if len(given) < 3:
                raise TargetUnavailable("it is down")

    monkeypatch.setattr(supervisor, "Replication", Attempt)
    monkeypatch.setattr(supervisor.Supervisor, "_watch", lambda self, wanted: None)
    monkeypatch.setattr(Backoff, "after", lambda self, failures: 0.0)
    path = tmp_path / "p.yaml"
    path.write_text(FILE, "utf-8")
    assert supervisor.Supervisor(path, load(path), lambda point: None)._attempts(True) == 0
    for name in ("breaker", "streaming", "clock"):
        assert len({id(options[name]) for options in given}) == 1 and len(given) == 3
