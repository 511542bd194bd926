"""Towline: the daemon, as `towline run` runs it, with its settings as they are by default.

Variants differ by settings of the pipeline file (``batch.max_rows=50000``).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import psycopg
import yaml
from psycopg import sql

from bench.contender import Contender, Place
from bench.contents import Pair, whole
from bench.processes import Process
from bench.servers import BenchFailed, rows, run
from bench.workloads import MARKER, Workload

#: What `towline` may take to set up, and to copy what the base of a workload holds (seconds).
PATIENCE: Final = 600.0
#: Tables are counted one after the other, a little each; so many are not waited for.
MANY: Final = 20
_STREAMED: Final = ("W1", "W2", "W3", "W4", "W5/500", "W5/2000", "W6", "W7", "W8", "idle")

REPORT: Final = """CREATE TABLE public.order_report (
    order_id bigint PRIMARY KEY, status text NOT NULL, customer text NOT NULL, gross numeric NOT NULL,
    created_at timestamptz NOT NULL, paid text NOT NULL, quantity bigint NOT NULL, order_month date NOT NULL, sku text
)"""
SELECT: Final = """SELECT o.id AS order_id, upper(o.status) AS status,
       o.customer || coalesce(' / ' || o.note, '') AS customer, round(o.amount * 1.19, 2) AS gross, o.created_at,
       CASE WHEN o.paid THEN 'paid' ELSE 'open' END AS paid, o.quantity::bigint * 12 AS quantity,
       date_trunc('month', o.order_date)::date AS order_month, o.attrs ->> 'sku' AS sku
FROM orders o"""


class Towline(Contender):
    """``select``: orders go through a SELECT with expressions into another table. ``options``: by path in the file."""

    staged = True

    def __init__(
        self, name: str = "towline", *, select: bool = False, options: Mapping[str, str] | None = None
    ) -> None:
        title = "Towline, a SELECT with expressions" if select else "Towline"
        if options:
            title += " with " + ", ".join(f"`{path}: {text}`" for path, text in options.items())
        super().__init__(name, title, ("W1", "W3", "W6") if select else _STREAMED)
        self._select = select
        self._options = {path: yaml.safe_load(text) for path, text in (options or {}).items()}
        self.slot = "towline_" + name.replace("-", "_").replace(".", "_")
        self.plugin = str(self._options.get("source.plugin", "pgoutput"))
        self.visible = ("order_report", "order_id") if select else ("orders", "id")

    def can(self, workload: Workload) -> bool:
        """A SELECT is there for orders only."""
        return not self._select or workload.tables == ("orders",)

    def stage(self, place: Place) -> None:
        """Set up, and have the base copied: every run then goes on from there."""
        self._apply(place)
        self._write(place, {"checkpoint_seconds": 0.5})  # the sums are written with a checkpoint
        daemon = self._daemon(place)
        try:
            self._await_streaming(place, daemon)
        finally:
            daemon.stop()
        if daemon.status:
            raise BenchFailed(f"towline run ended with {daemon.status}: {daemon.output()}")

    def prepare(self, place: Place) -> None:
        """For a snapshot all is set up anew; else it was staged."""
        if place.workload.mode == "snapshot":
            self._apply(place)
        else:
            self._write(place)

    def start(self, place: Place) -> Process:
        """`towline run`."""
        return self._daemon(place)

    def pairs(self, workload: Workload) -> Sequence[Pair]:
        """The tables; or what the SELECT makes of them at the source."""
        if not self._select:
            return [whole(table) for table in workload.tables]
        return [Pair(sql.SQL(SELECT), sql.SQL("SELECT * FROM order_report"))]

    def _await_streaming(self, place: Place, daemon: Process) -> None:
        """Until all is copied, and the ledger's sums are known, which a daemon else counts beside its first stream."""
        deadline = time.monotonic() + PATIENCE
        query = "SELECT bool_and(state = 'streaming' AND (total_sum IS NOT NULL OR %s)) FROM towline.route_state"
        many = len(place.tables) > MANY
        while rows(place.target, query, many) != [(True,)]:
            if daemon.status is not None:
                raise BenchFailed(f"towline run ended with {daemon.status}: {daemon.output()}")
            if time.monotonic() > deadline:
                raise BenchFailed(f"towline run did not copy the base within {PATIENCE:g} s: {daemon.output()}")
            time.sleep(0.1)

    def _apply(self, place: Place) -> None:
        if self._select:
            try:
                run(place.target, REPORT)
            except psycopg.errors.DuplicateTable as error:
                raise BenchFailed("the target is not a new one") from error
        path = self._write(place)
        applying = Process([sys.executable, "-m", "towline", "apply", str(path)], place.log)
        status = applying.wait(PATIENCE)
        applying.stop()
        if status != 0:
            raise BenchFailed(f"towline apply ended with {status}: {applying.output()}")

    def _daemon(self, place: Place) -> Process:
        return Process([sys.executable, "-m", "towline", "run", str(self._path(place))], place.log)

    def _path(self, place: Place) -> Path:
        return place.directory / "pipeline.yaml"

    def _write(self, place: Place, more: Mapping[str, Any] | None = None) -> Path:
        document: dict[str, Any] = {
            "pipeline": self.slot.replace("_", "-"),
            "source": {"kind": "postgres", "dsn": place.source, "slot": self.slot},
            "target": {"kind": "postgres", "dsn": place.remote_target},
            "routes": [self._route(table) for table in place.workload.tables]
            + [{"from": f"public.{MARKER}", "into": f"public.{MARKER}"}],
            "web": {"port": 0},
            **(more or {}),
        }
        for path, setting in self._options.items():
            *sections, key = path.split(".")
            inner = document
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[key] = setting
        # JSON is YAML.
        self._path(place).write_text(json.dumps(document, indent=1), "utf-8")
        return self._path(place)

    def _route(self, table: str) -> dict[str, Any]:
        if not self._select:
            return {"from": f"public.{table}", "into": f"public.{table}"}
        return {"name": "order_report", "from": f"public.{table}", "into": "public.order_report", "select": SELECT}
