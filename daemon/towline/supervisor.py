"""Runs one attempt after the other: signals, backoff, reload, and what health checks are told.

SIGTERM and SIGINT finish or abandon the batch in hand and exit 0. SIGHUP reads the configuration again. An error that
may pass is tried again after a growing, jittered delay; one that needs a person ends the process with its exit code.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from towline import new_tables
from towline.backoff import MOST, Backoff
from towline.breaker import Breaker
from towline.catch_up import CatchUp
from towline.config import PipelineConfig, load
from towline.errors import Action, LedgerImbalance, ReloadRefused, TowlineError
from towline.first_look import SWITCH, FirstLook
from towline.lag import LagClock
from towline.logs import configure, event
from towline.metrics import Metrics
from towline.monitor import Monitor
from towline.notify import notify
from towline.plan import known_routes, prepare, unapplied
from towline.replication import Replication
from towline.signals import answered
from towline.source.postgres.spool import probe
from towline.source.postgres.tables import PostgresTables
from towline.spooling import wanted
from towline.streaming import Streaming
from towline.target.postgres.writing_session import Session
from towline.web import Health, serve

log = logging.getLogger(__name__)

#: After a request to stop: when a batch in hand is abandoned, and when the process ends whatever hangs (seconds; 10 are
#: promised).
_GRACE, _LAST = 7.0, 2.0
#: How long metrics that nobody could have read yet are served after the last attempt: more than the minute that
#: Prometheus lets pass between two readings at most, if nothing is said (seconds).
SEEN_FOR = 75.0
#: Without a sign of life from the loop for so long, /healthz says so (seconds).
_LIVE = 120.0


class Supervisor:
    """The daemon's process: one pipeline file, from start to exit. ``first``: a look that was begun before."""

    def __init__(
        self,
        path: Path,
        config: PipelineConfig,
        announce: Callable[[str], None],
        first: FirstLook | None = None,
    ) -> None:
        self._path = path
        self._config = config
        self._announce = announce
        self._first = first
        self._stop = threading.Event()
        self._reload = threading.Event()
        self._wake = threading.Event()
        self._metrics = Metrics(config.pipeline)
        self._role = "starting"
        self._detail = ""
        self._attempt: Replication | None = None
        self._backoff = Backoff()
        self._clock = LagClock()
        self._between: Monitor | None = None
        self._reached: int | None = None

    # ---- what happens from outside ---------------------------------------------------------------------------

    def request_stop(self) -> None:
        """Stop as soon as it is safe; from any thread."""
        if not self._stop.is_set():
            self._stop.set()
            threading.Thread(target=self._abandon_late_batch, name="towline-stop", daemon=True).start()
        self._interrupt()

    def request_reload(self) -> None:
        """Read the configuration again at the next safe place; from any thread."""
        self._reload.set()
        self._interrupt()

    def _interrupt(self) -> None:
        self._wake.set()
        attempt = self._attempt
        if attempt is not None and attempt.handle.pipeline is not None:
            attempt.handle.pipeline.stop()

    def _abandon_late_batch(self) -> None:
        time.sleep(_GRACE)
        attempt = self._attempt
        if attempt is not None:
            event(log, logging.WARNING, "batch_abandoned", pipeline=self._config.pipeline)
            attempt.handle.abort()
        time.sleep(_LAST)
        event(log, logging.WARNING, "exit_forced", pipeline=self._config.pipeline)
        logging.shutdown()
        os._exit(0)  # what is durable is at the target; nothing in this process needs to be saved

    def health(self) -> Health:
        """For /healthz and /readyz."""
        attempt = self._attempt
        live = attempt is None or attempt.handle.alive(_LIVE)
        ready = self._role in ("active", "standby") and not self._stop.is_set()
        return Health(live, ready, self._role if not self._detail else f"{self._role}: {self._detail}")

    def _set_role(self, role: str, detail: str = "") -> None:
        self._role, self._detail = role, detail
        self._metrics.role(role)
        if role in ("active", "standby", "stopping"):
            self._watch(False)
        if role in ("active", "standby"):
            notify("READY=1\nSTATUS=" + role)

    # ---- the life of the process -----------------------------------------------------------------------------

    def run(self, *, until_caught_up: bool) -> int:
        """Returns the exit code."""
        answers = {
            signal.SIGTERM: self.request_stop,
            signal.SIGINT: self.request_stop,
            signal.SIGHUP: self.request_reload,
        }
        with answered(answers):
            return self._run(until_caught_up)

    def _run(self, until_caught_up: bool) -> int:
        sys.setswitchinterval(SWITCH)
        web = None
        try:
            if self._config.web.port:
                web = serve(self._config.web.host, self._config.web.port, self._metrics, self.health)
            code = self._attempts(until_caught_up)
            event(log, logging.INFO, "stopped", pipeline=self._config.pipeline)
            return code
        except LedgerImbalance as error:
            if web is not None:
                self._be_seen(error)
            raise
        finally:
            self._set_role("stopping")
            notify("STOPPING=1")
            if web is not None:
                web.close()

    def _be_seen(self, error: LedgerImbalance) -> None:
        """Serve the metrics for a while: the one that tells of this was set just now, and nobody has read it."""
        self._set_role("stopping", f"{error.code} {error.detail}")
        self._watch(False)
        event(log, logging.INFO, "metrics_kept", pipeline=self._config.pipeline, seconds=SEEN_FOR)
        self._stop.wait(SEEN_FOR)

    def _attempts(self, until_caught_up: bool) -> int:
        failures = 0
        predecessor: Session | None = None
        streaming, breaker, catch_up = Streaming(), Breaker(), CatchUp()
        while not self._stop.is_set():
            self._wake.clear()
            if self._reload.is_set():
                self._reload.clear()
                if (first := self._take_first()) is not None:
                    first.end()
                self._read_configuration_again()
            self._set_role("starting", self._detail)
            attempt = Replication(
                self._config,
                metrics=self._metrics,
                stopping=lambda: self._stop.is_set() or self._reload.is_set(),
                role=self._set_role,
                announce=self._announce,
                predecessor=predecessor,
                streaming=streaming,
                catch_up=catch_up,
                clock=self._clock,
                breaker=breaker,
                first=self._take_first(),
            )
            self._attempt = attempt
            started = time.monotonic()
            try:
                attempt.run(until_caught_up=until_caught_up)
            except TowlineError as error:
                if self._stop.is_set():
                    break
                self._metrics.error(error.code)
                event(
                    log,
                    logging.WARNING if error.action is Action.RETRY else logging.ERROR,
                    "attempt_failed",
                    pipeline=self._config.pipeline,
                    code=error.code,
                    detail=error.detail,
                    remedy=error.advice,
                )
                if error.action is not Action.RETRY:
                    error.told = True
                    raise
                if time.monotonic() - started > 2 * MOST:
                    failures = 0
                failures += 1
                self._back_off(failures, error)
            else:
                failures = 0
                if until_caught_up and not self._reload.is_set() and not attempt.again:
                    break
            finally:
                predecessor = attempt.handle.session or predecessor
                if attempt.handle.pipeline is not None:
                    self._reached = attempt.handle.pipeline.durable
                self._attempt = None
        return 0

    def _take_first(self) -> FirstLook | None:
        """The look that was begun; once, since what it has found is soon long ago."""
        first, self._first = self._first, None
        return first

    def _back_off(self, failures: int, error: TowlineError) -> None:
        """Wait; meanwhile, and until an attempt has come far enough to do so, look at the source for the metrics."""
        self._set_role("backoff", f"{error.code} {error.detail}")
        self._watch(True)
        self._wake.wait(self._backoff.after(failures))

    def _watch(self, wanted: bool) -> None:
        """Look at the source between attempts, so that the lag is told also while the target is down."""
        if wanted and self._between is None:
            source = self._config.source
            self._between = Monitor(
                lambda: PostgresTables(source.dsn.get_secret_value(), slot=source.slot),
                lambda: self._reached,
                self._metrics,
                clock=self._clock,
            )
            self._between.start()
        elif not wanted and self._between is not None:
            self._between.close()
            self._between = None

    def _read_configuration_again(self) -> None:
        """Take the new configuration if it holds; else say so, and go on with the old one."""
        notify("RELOADING=1")
        try:
            config = load(self._path)
            if config.pipeline != self._config.pipeline:
                raise ReloadRefused("the pipeline's name changed")
            if (config.source, config.target) != (self._config.source, self._config.target):
                raise ReloadRefused("source or target changed")
            if config.web != self._config.web:
                raise ReloadRefused("the web address changed")
            with prepare(config, applied=True) as prepared:
                if new := unapplied(prepared.routes, known_routes(config, prepared.target)):
                    raise ReloadRefused(new, hint="Run `towline apply`, then send SIGHUP again.")
                if config.spool != self._config.spool and wanted(config, prepared.source_catalog.server_version):
                    probe(config.spool.directory)
        except TowlineError as error:
            self._metrics.error(error.code)
            self._detail = f"reload refused: {error.code}"
            event(log, logging.ERROR, "reload_refused", code=error.code, detail=error.detail, remedy=error.advice)
            return
        self._config = config
        self._detail = ""
        configure(config.log.format, config.log.level, pipeline=config.pipeline)
        event(log, logging.INFO, "reloaded", pipeline=config.pipeline)
        try:
            new_tables.add(config)
        except TowlineError as error:
            self._metrics.error(error.code)
            event(log, logging.ERROR, "tables_not_added", code=error.code, detail=error.detail, remedy=error.advice)


def run(
    path: Path,
    *,
    until_caught_up: bool = False,
    announce: Callable[[str], None] = lambda point: None,
    first: FirstLook | None = None,
) -> int:
    """Run the pipeline file until stopped or caught up. Returns the exit code; raises what needs a person.

    ``first``: with the configuration that was read from the file.
    """
    config = load(path) if first is None else first.config
    return Supervisor(path, config, announce, first).run(until_caught_up=until_caught_up)
