"""Removes from the target what the source no longer has, after tables were copied again over it (`towline resync`).

A copy brings every row that the source has; rows that were deleted there while the stream was interrupted are still at
the target. They are found as `towline verify` finds extra rows, beside the stream, and removed as it repairs them.
Tables that refer to others go first. When it ends early, it begins again with the routes that are still marked.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Protocol

import psycopg

from towline.change import Relation
from towline.config import PipelineConfig
from towline.errors import Action, TowlineError, VerifyUnsettled
from towline.logs import event
from towline.route_verifier import Progress, RouteVerifier
from towline.snapshot import copy_order
from towline.source.postgres.tables import PostgresTables
from towline.target import RouteState
from towline.target.postgres.compare import CompareSession
from towline.target.postgres.resync import ResyncState
from towline_transforms.route import Route

log = logging.getLogger(__name__)

#: How often to look whether the copying is done, and how long to wait after an outage (seconds).
_LOOK, _AGAIN = 0.2, 5.0
#: A route in which more rows are found wrong than could be mended is gone through again, so often.
_PASSES = 5


class Observer(Protocol):
    """Who wants to know."""

    def sweeping(self, route: str, *, wanted: bool) -> None:
        """A route is still to be swept, or has been."""


class Sweeper:
    """A thread beside the loop of one attempt.

    ``shown``: the position up to which the target has everything. ``copied``: whether every route streams.
    ``failed`` is called, once, when a person must act; ``error`` says why.
    """

    def __init__(
        self,
        config: PipelineConfig,
        connect: Callable[[], PostgresTables],
        routes: Sequence[Route],
        relations: Sequence[Relation],
        states: Mapping[str, RouteState],
        *,
        epoch: int,
        shown: Callable[[], int],
        copied: Callable[[], bool],
        failed: Callable[[], None],
        observer: Observer,
    ) -> None:
        self._config = config
        self._connect = connect
        by_name = {relation.name: relation for relation in relations}
        marked = [route for route in reversed(copy_order(routes)) if states[route.name].sweep]
        #: The routes that were to be swept when the attempt began.
        self.marked = frozenset(route.name for route in marked)
        self._left = [(route, by_name[route.source.name]) for route in marked]
        self._epoch = epoch
        self._shown = shown
        self._copied = copied
        self._failed = failed
        self._observer = observer
        self._stop = threading.Event()
        self._ends: tuple[PostgresTables, CompareSession] | None = None
        self._thread: threading.Thread | None = None
        self.error: TowlineError | None = None
        for route in routes:
            observer.sweeping(route.name, wanted=route in marked)

    @property
    def unfinished(self) -> bool:
        """Whether a route is still to be swept."""
        return bool(self._left) and self.error is None

    @property
    def routes(self) -> frozenset[str]:
        """The routes that are still to be swept."""
        return frozenset(route.name for route, _ in list(self._left))

    def start(self) -> None:
        """Begin, if there is anything to be swept."""
        if self._left:
            self._thread = threading.Thread(target=self._run, name="towline-sweep", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop; what is under way is abandoned."""
        self._stop.set()
        ends = self._ends
        if ends is not None:
            with contextlib.suppress(psycopg.Error):
                ends[1].connection.cancel_safe(timeout=1.0)
            ends[0].close()
        if self._thread is not None:
            self._thread.join(timeout=3.0)

    def _run(self) -> None:
        while not self._copied():
            if self._stop.wait(_LOOK):
                return
        while self._left and not self._stop.is_set():
            try:
                self._sweep()
            except TowlineError as error:
                if self._stop.is_set():
                    return
                event(log, logging.WARNING, "sweep_failed", code=error.code, detail=error.detail, remedy=error.advice)
                if error.action is not Action.RETRY:
                    self.error = error
                    self._failed()
                    return
                self._stop.wait(_AGAIN)

    def _sweep(self) -> None:
        """Go through the routes that are left."""
        config = self._config
        with ExitStack() as stack:
            tables = stack.enter_context(closing(self._connect()))
            session = stack.enter_context(
                closing(
                    CompareSession(
                        config.target.dsn.get_secret_value(),
                        schema=config.target.schema_name,
                        pipeline=config.pipeline,
                        routes=self._left,
                    )
                )
            )
            self._ends = tables, session
            state = ResyncState(session.connection, config.target.schema_name, config.pipeline)
            progress = Progress(self._position, lambda applied, wanted: True)
            while self._left:
                route, relation = self._left[0]
                self._one(tables, session, progress, route, relation)
                state.swept(route.name, self._epoch)
                self._left.pop(0)
                self._observer.sweeping(route.name, wanted=False)

    def _one(
        self, tables: PostgresTables, session: CompareSession, progress: Progress, route: Route, relation: Relation
    ) -> None:
        for _ in range(_PASSES):
            with session.route(route, relation) as comparing:
                chunk_rows = self._config.snapshot.chunk_rows
                report = RouteVerifier(tables, comparing, progress, chunk_rows=chunk_rows, repair=True).run()
            event(
                log,
                logging.INFO,
                "route_swept",
                route=route.name,
                removed=report.extra,
                mended=report.missing + report.different - report.refused,
                seconds=round(report.seconds, 3),
            )
            if report.repaired >= report.differing:
                return
            if report.refusal is not None and not report.repaired:
                break
        if report.refusal is not None:  # else its room may be made by what was removed after it was tried
            raise report.refusal
        raise VerifyUnsettled(f"rows of route {route.name} kept changing while they were to be removed")

    def _position(self) -> int:
        if self._stop.is_set():
            raise VerifyUnsettled("stopped")
        return self._shown()
