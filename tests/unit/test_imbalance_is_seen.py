"""An imbalance of the ledger ends the daemon; that it is to be seen in the metrics is tried by reading them."""

from __future__ import annotations

import http.client
import threading
import time
from pathlib import Path

import pytest

from towline import supervisor
from towline.config import load
from towline.demo.server import free_port
from towline.errors import LedgerImbalance
from towline.metrics import Metrics
from towline.supervisor import Supervisor

IMBALANCE = 'towline_ledger_imbalance_rows{pipeline="p",route="sale"} 3.0'


class Unbalanced:
    """An attempt that fails as `Replication` does when a batch does not add up."""

    class handle:
        session = pipeline = None

    def __init__(self, config: object, *, metrics: Metrics, **rest: object) -> None:
        self._metrics = metrics

    def run(self, *, until_caught_up: bool) -> None:
        self._metrics.imbalance("sale", 3)
        raise LedgerImbalance("route sale: 5 rows came", route="sale", rows=3)


def read(port: int) -> str:
    """The metrics, as Prometheus reads them; waits for the endpoint."""
    deadline = time.monotonic() + 20
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/metrics")
            body = connection.getresponse().read().decode()
            if IMBALANCE in body or time.monotonic() > deadline:
                return body
        except OSError:
            if time.monotonic() > deadline:
                raise
        finally:
            connection.close()


def test_it_is_served_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon ends with the error, but only after the gauge could be read; a request to stop cuts that short."""
    monkeypatch.setattr(supervisor, "Replication", Unbalanced)
    monkeypatch.setattr(supervisor, "_GRACE", 3600.0)  # after that the whole process would be ended, and it is ours
    port = free_port()
    path = tmp_path / "p.yaml"
    path.write_text(
        f"pipeline: p\nsource: {{kind: postgres, dsn: dbname=a}}\ntarget: {{kind: postgres, dsn: dbname=b}}\n"
        f"web: {{port: {port}}}\nroutes: [{{from: public.sale, into: x.sale}}]\n"
    )
    daemon = Supervisor(path, load(path), lambda point: None)
    found: list[str] = []

    def scrape() -> None:
        try:
            found.append(read(port))
        finally:
            daemon.request_stop()

    thread = threading.Thread(target=scrape)
    thread.start()
    began = time.monotonic()
    with pytest.raises(LedgerImbalance):
        daemon.run(until_caught_up=False)
    thread.join()
    assert IMBALANCE in found[0]
    assert time.monotonic() - began < supervisor.SEEN_FOR / 2
