"""What Prometheus can see of a pipeline. Names and labels are here and nowhere else; docs/OPERATIONS.md explains them.

All methods may be called from any thread.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from towline import __version__
from towline.target import Checksum, Committed, RouteState

PIPELINE, ROUTE, OPERATION, CODE, STATE, ROLE = "pipeline", "route", "operation", "code", "state", "role"
ACTION, MODE = "action", "mode"

ROWS = "towline_rows"
BATCHES = "towline_batches"
APPLY_SECONDS = "towline_apply_seconds"
SOURCE_LAG_BYTES = "towline_source_lag_bytes"
LAG_SECONDS = "towline_lag_seconds"
SLOT_RETAINED_BYTES = "towline_slot_retained_bytes"
SLOT_RESTART_POSITION = "towline_slot_restart_position_bytes"
CHECKPOINT_POSITION = "towline_checkpoint_position_bytes"
SPOOL_BYTES = "towline_spool_bytes"
SPOOL_TRANSACTIONS = "towline_spool_transactions"
LAST_APPLIED = "towline_last_applied_timestamp_seconds"
ERRORS = "towline_errors"
SCHEMA_CHANGES = "towline_schema_changes"
ROUTE_STATE = "towline_route_state"
ROUTE_COPIED = "towline_route_copied_rows"
ROUTE_ESTIMATE = "towline_route_estimated_rows"
QUARANTINE_OPEN = "towline_quarantine_open_rows"
ROUTE_SWEEP = "towline_route_sweep"
LEDGER_IMBALANCE = "towline_ledger_imbalance_rows"
LEDGER_CHECKSUM = "towline_ledger_checksum"
ROLE_STATE = "towline_role"
SOURCE_MODE = "towline_source_mode"
BUILD = "towline_build_info"
UP_SINCE = "towline_up_since_timestamp_seconds"

OPERATIONS = ("upserted", "deleted", "superseded", "filtered", "quarantined")
STATES = ("pending", "copying", "streaming")
MODES = ("stream", "catch_up")
ROLES = ("starting", "standby", "active", "backoff", "stopping")

#: Seconds of one target transaction, from a prompt small batch to one that loads a whole chunk.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one pipeline, in a registry of their own."""

    def __init__(self, pipeline: str) -> None:
        # No second series for each counter, which tells when this daemon first met its labels. (Not annotated there.)
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.pipeline = pipeline
        ProcessCollector(registry=self.registry)
        self._rows = self._counter(
            ROWS, "Source rows by what became of them; they add up to all rows seen.", ROUTE, OPERATION
        )
        self._counters: dict[str, Mapping[str, Counter]] = {}
        self._batches = self._counter(BATCHES, "Target transactions committed.")
        self._errors = self._counter(ERRORS, "Errors by code, see docs/ERRORS.md.", CODE)
        self._changes = self._counter(
            SCHEMA_CHANGES, "Changes of source tables met, by what was done about them.", ROUTE, ACTION
        )
        self._seconds = Histogram(
            APPLY_SECONDS, "Seconds of a target transaction.", [PIPELINE], buckets=_BUCKETS, registry=self.registry
        ).labels(pipeline)
        self._lag_bytes = self._gauge(SOURCE_LAG_BYTES, "Log of the source that the target does not show yet.")
        self._lag_seconds = self._gauge(
            LAG_SECONDS, "How far the target is behind the source; 0 when nothing is missing."
        )
        self._retained = self._gauge(SLOT_RETAINED_BYTES, "Log that the source keeps for the replication slot.")
        self._restart = self._gauge(SLOT_RESTART_POSITION, "The slot's restart position, in bytes of log.")
        self._spool_bytes = self._gauge(SPOOL_BYTES, "Disk that transactions under way at the source take here.")
        self._spool_transactions = self._gauge(SPOOL_TRANSACTIONS, "Transactions under way at the source kept here.")
        self._checkpoint = self._gauge(CHECKPOINT_POSITION, "The checkpoint that is durable, in bytes of log.")
        self._applied = self._gauge(LAST_APPLIED, "When the last target transaction was committed.")
        self._state = self._gauge(ROUTE_STATE, "1 for the state that the route's snapshot is in.", ROUTE, STATE)
        self._copied = self._gauge(ROUTE_COPIED, "Rows that the route's snapshot has copied.", ROUTE)
        self._estimate = self._gauge(
            ROUTE_ESTIMATE, "Rows that the table had when its snapshot began, estimated.", ROUTE
        )
        self._quarantine = self._gauge(
            QUARANTINE_OPEN, "Refused rows that were set aside and wait for a person.", ROUTE
        )
        self._sweep = self._gauge(
            ROUTE_SWEEP, "1 while rows that the source no longer has are still to be removed, after a resync.", ROUTE
        )
        self._imbalance = self._gauge(
            LEDGER_IMBALANCE,
            "Rows of the batch in hand that the ledger cannot account for; then it is not committed.",
            ROUTE,
        )
        self._checksum = self._gauge(
            LEDGER_CHECKSUM, "1 for what is known of the route's running checksum of source keys.", ROUTE, STATE
        )
        self._role = self._gauge(ROLE_STATE, "1 for what this daemon is doing.", ROLE)
        self._mode = self._gauge(SOURCE_MODE, "1 for how the source's log is read; 0 for both when it is not.", MODE)
        self._gauge(BUILD, "1; the labels tell the version.", "version", "python").labels(
            pipeline, __version__, platform.python_version()
        ).set(1)
        self._gauge(UP_SINCE, "When this daemon started.").labels(pipeline).set(time.time())
        for unknown in (self._lag_bytes, self._lag_seconds, self._retained):
            unknown.labels(pipeline).set(math.nan)  # 0 would say that all is well before anything was measured
        spool = (self._spool_bytes, self._spool_transactions)
        for plain in (self._batches, self._checkpoint, self._applied, self._restart, *spool):
            plain.labels(pipeline)
        self.role("starting")
        self.mode("")

    def committed(self, committed: Committed, flushed: int) -> None:
        """A target transaction was committed; ``flushed`` is the checkpoint that is durable."""
        self._batches.labels(self.pipeline).inc()
        self._seconds.observe(committed.seconds)
        self._checkpoint.labels(self.pipeline).set(flushed)
        self._applied.labels(self.pipeline).set_to_current_time()
        for route, counts in committed.counts.items():
            for operation, child in self._rows_of(route).items():
                if number := getattr(counts, operation):
                    child.inc(number)
        self.quarantine(committed.quarantine)
        for route, checksum in committed.checksums.items():
            self.checksum(route, checksum)

    def _rows_of(self, route: str) -> Mapping[str, Counter]:
        """The counters of a route's rows by operation. They are kept, since to look one up costs more than to count."""
        if (found := self._counters.get(route)) is None:
            found = {operation: self._rows.labels(self.pipeline, route, operation) for operation in OPERATIONS}
            self._counters[route] = found
        return found

    def quarantine(self, opened: Mapping[str, int]) -> None:
        """Rows by route that are in the quarantine and open."""
        for route, count in opened.items():
            self._quarantine.labels(self.pipeline, route).set(count)

    def checksum(self, route: str, checksum: Checksum) -> None:
        """What is known of a route's running checksum."""
        for each in Checksum:
            self._checksum.labels(self.pipeline, route, each.value).set(each is checksum)

    def imbalance(self, route: str, rows: int) -> None:
        """So many rows of a batch could not be accounted for."""
        self._imbalance.labels(self.pipeline, route).set(rows)

    def error(self, code: str) -> None:
        """An error with that code was met."""
        self._errors.labels(self.pipeline, code).inc()

    def schema_change(self, route: str, action: str) -> None:
        """A source table of a route was found to have changed."""
        self._changes.labels(self.pipeline, route, action).inc()

    def lag(self, bytes_: int, seconds: float) -> None:
        """How far the target is behind the source now."""
        self._lag_bytes.labels(self.pipeline).set(bytes_)
        self._lag_seconds.labels(self.pipeline).set(seconds)

    def slot(self, retained_bytes: int, restart: int) -> None:
        """What the source keeps for the slot."""
        self._retained.labels(self.pipeline).set(retained_bytes)
        self._restart.labels(self.pipeline).set(restart)

    def spool(self, transactions: int, bytes_: int) -> None:
        """What is kept of transactions that are under way."""
        self._spool_transactions.labels(self.pipeline).set(transactions)
        self._spool_bytes.labels(self.pipeline).set(bytes_)

    def route_state(self, state: RouteState) -> None:
        """How far a route's snapshot is."""
        self._rows_of(state.route)
        self._quarantine.labels(self.pipeline, state.route)
        self._imbalance.labels(self.pipeline, state.route)
        for each in Checksum:
            self._checksum.labels(self.pipeline, state.route, each.value)
        for name in STATES:
            self._state.labels(self.pipeline, state.route, name).set(name == state.state)
        self._copied.labels(self.pipeline, state.route).set(state.copied)
        self._estimate.labels(self.pipeline, state.route).set(state.estimate)

    def sweeping(self, route: str, *, wanted: bool) -> None:
        """Whether rows that the source no longer has are still to be removed from a route's table."""
        self._sweep.labels(self.pipeline, route).set(wanted)

    def role(self, role: str) -> None:
        """What this daemon is doing: one of ROLES."""
        for name in ROLES:
            self._role.labels(self.pipeline, name).set(name == role)

    def mode(self, mode: str) -> None:
        """How the source's log is read: one of MODES, or empty when it is not."""
        for name in MODES:
            self._mode.labels(self.pipeline, name).set(name == mode)

    def forget_routes(self, routes: Iterable[str]) -> None:
        """Routes that a new configuration no longer has."""
        for route in routes:
            self._counters.pop(route, None)
            for operation in OPERATIONS:
                self._rows.remove(self.pipeline, route, operation)
            for name in STATES:
                self._state.remove(self.pipeline, route, name)
            for each in Checksum:
                self._checksum.remove(self.pipeline, route, each.value)
            self._imbalance.remove(self.pipeline, route)
            self._copied.remove(self.pipeline, route)
            self._quarantine.remove(self.pipeline, route)
            self._estimate.remove(self.pipeline, route)
            self._sweep.remove(self.pipeline, route)

    def _counter(self, name: str, help_: str, *labels: str) -> Counter:
        return Counter(name, help_, [PIPELINE, *labels], registry=self.registry)

    def _gauge(self, name: str, help_: str, *labels: str) -> Gauge:
        return Gauge(name, help_, [PIPELINE, *labels], registry=self.registry)
