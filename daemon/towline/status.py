"""How a pipeline is, seen from outside: the control tables at the target, and the slot at the source.

Works while the daemon does not run, and while one side is down: what could not be read is None, and ``errors`` says
why. `Status.as_json` is the stable form of ``towline status --json``; docs/OPERATIONS.md describes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any

import psycopg
from psycopg import sql

from towline import remembered, republish
from towline.config import PipelineConfig
from towline.errors import Action, NotSetUp, TowlineError
from towline.plan import source_identity
from towline.position import format_lsn, parse_lsn
from towline.postgres import session
from towline.schema_change import Remembered
from towline.source import Identity, LargeTransactions, SlotState
from towline.source.postgres.tables import PostgresTables
from towline.source.postgres.timelines import Timelines
from towline.spooling import wanted
from towline.start_checks import SourceNow, check_start
from towline.table_name import ALL_TABLES
from towline.target import Checkpoint, Counts, RouteState
from towline.target.postgres import control

#: The version of the JSON form; raised when a field goes or changes its meaning, not when one is added.
FORMAT = 1

_ASIDE = "SELECT route, count(DISTINCT key) FROM {quarantine} WHERE pipeline = %s AND state = 'open' GROUP BY route"

_TOTALS = """
SELECT route, sum(seen)::bigint, sum(upserted)::bigint, sum(deleted)::bigint, sum(superseded)::bigint,
       sum(filtered)::bigint, sum(quarantined)::bigint, max(applied_at), max(to_position)::text
FROM {ledger} WHERE pipeline = %s GROUP BY route
"""


@dataclass(frozen=True, slots=True)
class RouteStatus:
    """A route's snapshot and ledger. ``state`` None: not known to the control tables (yet).

    ``sweep``: rows that the source no longer has are still to be removed. ``quarantine_open``: refused rows that are
    set aside and wait for a person. ``known`` False: the control tables could not be read, and nothing here says
    anything.
    """

    name: str
    state: str | None = None
    copied: int = 0
    estimate: int = 0
    counts: Counts = field(default_factory=Counts)
    last_applied: datetime | None = None
    known: bool = True
    sweep: bool = False
    quarantine_open: int = 0


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something that is not as it should be, or could not be read."""

    code: str
    side: str
    detail: str
    advice: str
    action: Action


@dataclass(frozen=True, slots=True)
class Status:
    """A pipeline at one moment. Positions are of the source's log; None is what could not be read.

    ``role``: ``active`` when a daemon reads from the slot, ``stopped`` when none does, else ``unknown``.
    ``lag_seconds``: at most so far is the target behind; exact to ``checkpoint_seconds`` when idle.
    ``streaming``: whether the source sends large transactions while they are under way: ``off`` where it is not to,
    else ``on``, or ``suspended`` when the daemon does not ask for it; None while that cannot be seen.
    """

    pipeline: str
    role: str
    checkpoint: Checkpoint | None
    source: Identity | None
    source_position: int | None
    slot_name: str
    slot: SlotState | None
    lag_bytes: int | None
    lag_seconds: float | None
    routes: tuple[RouteStatus, ...]
    errors: tuple[Trouble, ...]
    large: LargeTransactions | None = None
    streaming: str | None = None

    @property
    def exit_code(self) -> int:
        """0 when all is well; else of the most severe error: 1 unreachable, 2 configuration, 3 a person must act."""
        return max((int(error.action) for error in self.errors), default=0)

    def as_json(self) -> dict[str, Any]:
        """Plain values for JSON; positions as PostgreSQL prints them, times in ISO 8601."""
        checkpoint, slot, large = self.checkpoint, self.slot, self.large
        return {
            "format": FORMAT,
            "pipeline": self.pipeline,
            "role": self.role,
            "healthy": not self.errors,
            "checkpoint": None
            if checkpoint is None
            else {
                "position": format_lsn(checkpoint.position),
                "commit_time": _iso(checkpoint.commit_time),
                "updated_at": _iso(checkpoint.updated_at),
                "epoch": checkpoint.epoch,
            },
            "source_position": None if self.source_position is None else format_lsn(self.source_position),
            "lag_bytes": self.lag_bytes,
            "lag_seconds": None if self.lag_seconds is None else round(self.lag_seconds, 3),
            "slot": None
            if slot is None
            else {
                "name": self.slot_name,
                "exists": slot.exists,
                "active": _read(slot),
                "catching_up": slot.catching_up,
                "wal_status": slot.wal_status,
                "confirmed": format_lsn(slot.confirmed),
                "restart": format_lsn(slot.restart),
                "retained_bytes": slot.retained_bytes,
            },
            "large_transactions": None
            if large is None
            else {
                "streaming": self.streaming,
                "streamed": large.streamed,
                "streamed_bytes": large.streamed_bytes,
                "spilled": large.spilled,
                "spilled_bytes": large.spilled_bytes,
            },
            "routes": [
                {
                    "name": route.name,
                    "state": route.state,
                    "copied": route.copied,
                    "estimate": route.estimate,
                    "sweep": route.sweep,
                    "seen": route.counts.seen,
                    "upserted": route.counts.upserted,
                    "deleted": route.counts.deleted,
                    "superseded": route.counts.superseded,
                    "filtered": route.counts.filtered,
                    "quarantined": route.counts.quarantined,
                    "quarantine_open": route.quarantine_open,
                    "last_applied": _iso(route.last_applied),
                }
                for route in self.routes
            ],
            "errors": [
                {"code": error.code, "side": error.side, "detail": error.detail, "advice": error.advice}
                for error in self.errors
            ],
        }


@dataclass(frozen=True, slots=True)
class _Source:
    identity: Identity
    position: int
    slot: SlotState
    large: LargeTransactions | None


@dataclass(frozen=True, slots=True)
class _Target:
    checkpoint: Checkpoint | None
    states: Mapping[str, RouteState]
    totals: Mapping[str, tuple[Counts, datetime]]
    ledger_position: int
    now: datetime
    aside: Mapping[str, int]
    kept: Mapping[str, Remembered]


class Reader:
    """Reads a pipeline's status again and again over the same two connections, opening them anew when they are lost."""

    def __init__(self, config: PipelineConfig) -> None:
        self._config = config
        self._tables: PostgresTables | None = None
        self._target: psycopg.Connection[Any] | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connections."""
        if self._tables is not None:
            self._tables.close()
            self._tables = None
        if self._target is not None:
            self._target.close()
            self._target = None

    def read(self) -> Status:
        """The status now. Never raises a coded error: it is in ``errors``."""
        troubles: list[Trouble] = []
        source = target = None
        try:  # the slot before the checkpoint: then a slot ahead of it is no accident of the moment
            source = self._read_source()
        except TowlineError as error:
            troubles.append(_trouble(error, "source"))
        try:
            target = self._read_target()
        except TowlineError as error:
            troubles.append(_trouble(error, "target"))
        checkpoint = target.checkpoint if target is not None else None
        if source is not None and target is not None and checkpoint is not None:
            try:
                self._check(checkpoint, source, target)
            except TowlineError as error:
                troubles.append(_trouble(error, "source"))
        if target is not None and checkpoint is None:
            troubles.append(_trouble(NotSetUp("the target has no checkpoint of this pipeline"), "target"))
        return self._status(source, target, tuple(troubles))

    def _check(self, checkpoint: Checkpoint, source: _Source, target: _Target) -> None:
        """As the daemon does at its start. The checkpoint may be newer than the position that was read before it."""
        assert self._tables is not None
        config = self._config.source

        def history(timeline: int) -> Mapping[int, int]:
            dsn, name = config.dsn.get_secret_value(), f"towline {self._config.pipeline} status"
            with Timelines(dsn, application_name=name, of=source.identity) as timelines:
                return timelines.history(timeline)

        now = self._tables.position()
        check_start(checkpoint, SourceNow(source.identity, config.slot, config.plugin, source.slot, now, history))
        refused = republish.problem(self._config, self._tables, checkpoint, target.kept, target.states)
        if refused is not None:
            raise refused

    def _status(self, source: _Source | None, target: _Target | None, troubles: tuple[Trouble, ...]) -> Status:
        checkpoint = target.checkpoint if target is not None else None
        lag_bytes = lag_seconds = None
        if source is not None and target is not None and checkpoint is not None:
            lag_bytes = max(0, source.position - checkpoint.position)
            lag_seconds = _lag_seconds(lag_bytes, checkpoint, target)
        return Status(
            pipeline=self._config.pipeline,
            role="unknown" if source is None else "active" if _read(source.slot) else "stopped",
            checkpoint=checkpoint,
            source=source.identity if source is not None else None,
            source_position=source.position if source is not None else None,
            slot_name=self._config.source.slot,
            slot=source.slot if source is not None else None,
            lag_bytes=lag_bytes,
            lag_seconds=lag_seconds,
            routes=self._routes(target),
            errors=troubles,
            large=source.large if source is not None else None,
            streaming=self._streaming(source) if source is not None else None,
        )

    def _streaming(self, source: _Source) -> str | None:
        if not wanted(self._config, source.identity.server_version):
            return "off"
        asked = source.large.asked if source.large is not None else None
        return None if asked is None else "on" if asked else "suspended"

    def _routes(self, target: _Target | None) -> tuple[RouteStatus, ...]:
        """The routes of the file in their order, then those that patterns stand for."""
        names = {spec.name: None for spec in self._config.specs() if spec.source.name != ALL_TABLES}
        if target is None:
            return tuple(RouteStatus(name, known=False) for name in names)
        names |= dict.fromkeys(target.states)
        return tuple(_route(name, target) for name in names)

    def _read_source(self) -> _Source:
        try:
            if self._tables is None:
                source = self._config.source
                self._tables = PostgresTables(source.dsn.get_secret_value(), slot=source.slot)
            slot, large = self._tables.slot(), self._tables.large_transactions()
            return _Source(source_identity(self._config, self._tables), self._tables.position(), slot, large)
        except TowlineError:
            if self._tables is not None:
                self._tables.close()
                self._tables = None
            raise

    def _read_target(self) -> _Target:
        pipeline, schema = self._config.pipeline, self._config.target.schema_name
        try:
            with session.translating("target"):
                if self._target is None:
                    dsn = self._config.target.dsn.get_secret_value()
                    self._target = session.connect(dsn, application_name=f"towline {pipeline} status", side="target")
                if "checkpoint" not in control.present(self._target, schema):
                    raise NotSetUp(f"the target has no control tables in schema {schema}")
                checkpoint = control.read_checkpoint(self._target, schema, pipeline)
                states = control.read_states(self._target, schema, pipeline)
                kept = remembered.read(self._target, schema, pipeline)
                query = sql.SQL(_TOTALS).format(ledger=sql.Identifier(schema, "ledger"))
                totals: dict[str, tuple[Counts, datetime]] = {}
                ledger_position = 0
                for route, *counts, applied_at, position in self._target.execute(query, (pipeline,)):
                    totals[route] = Counts(*counts), applied_at
                    ledger_position = max(ledger_position, parse_lsn(position))
                aside = sql.SQL(_ASIDE).format(quarantine=sql.Identifier(schema, "quarantine"))
                waiting: dict[str, int] = dict(self._target.execute(aside, (pipeline,)).fetchall())
                (now,) = self._target.execute("SELECT clock_timestamp()").fetchone() or (None,)
        except TowlineError:
            if self._target is not None:
                self._target.close()
                self._target = None
            raise
        return _Target(checkpoint, states, totals, ledger_position, now, waiting, kept)


def read(config: PipelineConfig) -> Status:
    """The status of a pipeline now."""
    with Reader(config) as reader:
        return reader.read()


def _lag_seconds(lag_bytes: int, checkpoint: Checkpoint, target: _Target) -> float:
    """How old the state of the source is that the target has.

    A checkpoint beyond the last batch in the ledger was moved by an idle daemon: then nothing was left to apply. Else
    the last batch tells, by the time of its last commit.
    """
    if lag_bytes == 0:
        return 0.0
    idle = checkpoint.position > target.ledger_position
    as_of = checkpoint.updated_at if idle or checkpoint.commit_time is None else checkpoint.commit_time
    return max(0.0, (target.now - as_of).total_seconds())


def _route(name: str, target: _Target) -> RouteStatus:
    state = target.states.get(name)
    counts, last_applied = target.totals.get(name, (Counts(), None))
    aside = target.aside.get(name, 0)
    if state is None:
        return RouteStatus(name, counts=counts, last_applied=last_applied, quarantine_open=aside)
    return RouteStatus(
        name,
        state.state,
        state.copied,
        state.estimate,
        counts,
        last_applied,
        sweep=state.sweep,
        quarantine_open=aside,
    )


def _read(slot: SlotState) -> bool:
    return slot.active_pid != 0 or slot.catching_up


def _trouble(error: TowlineError, side: str) -> Trouble:
    return Trouble(error.code, side, error.detail, error.advice, error.action)


def _iso(time: datetime | None) -> str | None:
    return None if time is None else time.isoformat()
