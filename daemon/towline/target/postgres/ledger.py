"""The writer's statements on the control tables: epoch, checkpoint, route states and ledger.

Their form is in control.sql. A pipeline's checkpoint row is locked for the length of each of its transactions, so that
a repair, which writes to the same tables, and the daemon take turns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime

from towline.key_sum import MODULUS, KeySum
from towline.position import format_lsn
from towline.running_sums import Answer, Entry
from towline.target import Counts, RouteState
from towline.target.postgres.params import bigints, texts
from towline_transforms.identifier import quote


def lock_key(schema: str, pipeline: str) -> int:
    """The key of the pipeline's session lock (``pg_advisory_lock(bigint)``), in its target database.

    The first 64 bits, signed, of SHA-256 of ``towline``, schema and pipeline, each followed by a NUL.
    """
    digest = hashlib.sha256(f"towline\0{schema}\0{pipeline}\0".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)


class Control:
    """Statements (``$1`` parameters) with their parameters, for the control tables of one schema and pipeline."""

    def __init__(self, schema: str, pipeline: str) -> None:
        self._pipeline = pipeline
        where = quote(schema)
        self._raise = f"UPDATE {where}.checkpoint SET epoch = epoch + 1, updated_at = now() WHERE pipeline = $1"
        self._hold = (
            f"SELECT position::text, EXISTS (SELECT FROM {where}.recount WHERE pipeline = $1 AND position IS NULL) "
            f"FROM {where}.checkpoint WHERE pipeline = $1 AND epoch = $2::bigint FOR UPDATE"
        )
        self._advance = (
            f"UPDATE {where}.checkpoint SET position = $3::pg_lsn, updated_at = now(), "
            "commit_time = coalesce($4::timestamptz, commit_time), ahead = greatest(ahead, $5::pg_lsn) "
            "WHERE pipeline = $1 AND epoch = $2::bigint AND position <= $3::pg_lsn"
        )
        self._timeline = (
            f"UPDATE {where}.checkpoint SET timeline = $3::int, updated_at = now() "
            "WHERE pipeline = $1 AND epoch = $2::bigint"
        )
        self._publication = (
            f"UPDATE {where}.checkpoint SET publication = $3::bigint WHERE pipeline = $1 AND epoch = $2::bigint"
        )
        self._state = (
            f"INSERT INTO {where}.route_state AS s (pipeline, route, state, cursor, copied, estimate, updated_at) "
            "VALUES ($1, $2, $3, $4::text[], $5::bigint, $6::bigint, now()) "
            "ON CONFLICT (pipeline, route) DO UPDATE SET state = EXCLUDED.state, cursor = EXCLUDED.cursor, "
            "copied = EXCLUDED.copied, estimate = EXCLUDED.estimate, updated_at = EXCLUDED.updated_at"
        )
        figures = ("seen", "upserted", "deleted", "superseded", "filtered", "quarantined")
        names = ", ".join(figures)
        columns = ", ".join(f"u.{name}" for name in figures)
        arrays = ", ".join(f"unnest(${place}::bigint[])" for place, _ in enumerate(figures, 5))
        added = ", ".join(f"{name} = l.{name} + EXCLUDED.{name}" for name in figures)
        sums = ("keys", "key_sum", "operation_sum", "total_keys", "total_sum")
        summed = ", ".join(f"u.{name}" for name in ("key_form", *sums))
        some = "unnest($11::text[]), " + ", ".join(f"unnest(${place}::text[]::numeric[])" for place in range(12, 17))
        alike = "CASE WHEN l.key_form = EXCLUDED.key_form THEN {} END"
        self._ledger = (
            f"INSERT INTO {where}.ledger AS l "
            f"(pipeline, route, hour, from_position, to_position, {names}, key_form, {', '.join(sums)}, applied_at) "
            f"SELECT $1, u.route, date_trunc('hour', now()), $2::pg_lsn, $3::pg_lsn, {columns}, {summed}, now() "
            f"FROM ROWS FROM (unnest($4::text[]), {arrays}, {some}) AS u (route, {names}, key_form, {', '.join(sums)}) "
            f"ON CONFLICT (pipeline, route, hour) DO UPDATE SET to_position = EXCLUDED.to_position, {added}, "
            f"keys = {alike.format('l.keys + EXCLUDED.keys')}, "
            f"key_sum = {alike.format(f'mod(l.key_sum + EXCLUDED.key_sum, {MODULUS})')}, "
            f"operation_sum = {alike.format(f'mod(l.operation_sum + EXCLUDED.operation_sum, {MODULUS})')}, "
            "key_form = EXCLUDED.key_form, total_keys = EXCLUDED.total_keys, total_sum = EXCLUDED.total_sum, "
            "applied_at = EXCLUDED.applied_at"
        )
        self._totals = (
            f"UPDATE {where}.route_state AS s SET key_form = u.key_form, total_keys = u.keys::bigint, "
            "total_sum = u.sum::numeric FROM ROWS FROM (unnest($2::text[]), unnest($3::text[]), unnest($4::text[]), "
            "unnest($5::text[])) AS u (route, key_form, keys, sum) WHERE s.pipeline = $1 AND s.route = u.route"
        )
        self._asked = f"SELECT route, anew FROM {where}.recount WHERE pipeline = $1 AND position IS NULL"
        self._renewed = f"DELETE FROM {where}.recount WHERE pipeline = $1 AND route = $2 AND anew"
        self._answered = (
            f"UPDATE {where}.recount SET position = $3::pg_lsn, keys = $4::bigint, key_sum = $5::text::numeric, "
            "total_keys = $6::bigint, total_sum = $7::text::numeric WHERE pipeline = $1 AND route = $2 AND NOT anew"
        )

    def raise_epoch(self) -> tuple[str, tuple[object, ...]]:
        """Updates one row, or none when there is no checkpoint."""
        return self._raise, (self._pipeline,)

    def hold(self, epoch: int) -> tuple[str, tuple[object, ...]]:
        """Locks the checkpoint and returns its position, and whether somebody waits for a count; no row when the epoch
        is another's.
        """
        return self._hold, (self._pipeline, epoch)

    def advance(
        self, epoch: int, position: int, commit_time: datetime | None, ahead: int
    ) -> tuple[str, tuple[object, ...]]:
        """Moves the checkpoint; no row is updated when the epoch is another's or the position would go back.

        ``ahead``: up to where rows were read from the source's tables (see `Checkpoint`).
        """
        return self._advance, (self._pipeline, epoch, format_lsn(position), commit_time, format_lsn(ahead))

    def timeline(self, epoch: int, timeline: int) -> tuple[str, tuple[object, ...]]:
        """Notes the source's timeline; no row is updated when the epoch is another's."""
        return self._timeline, (self._pipeline, epoch, timeline)

    def publication(self, epoch: int, oid: int) -> tuple[str, tuple[object, ...]]:
        """Notes which publication the slot can read; no row is updated when the epoch is another's."""
        return self._publication, (self._pipeline, epoch, oid)

    def state(self, state: RouteState) -> tuple[str, tuple[object, ...]]:
        """Writes a route's state."""
        cursor = None if state.cursor is None else list(state.cursor)
        return self._state, (self._pipeline, state.route, state.state, cursor, state.copied, state.estimate)

    def ledger(
        self, begin: int, end: int, counts: Mapping[str, Counts], entries: Mapping[str, Entry]
    ) -> tuple[str, tuple[object, ...]]:
        """Adds to the ledger what became of the rows between two positions, and what that did to their keys.

        For the routes of ``entries``; those without counts had no rows.
        """
        figures = zip(
            *(
                (c.seen, c.upserted, c.deleted, c.superseded, c.filtered, c.quarantined)
                for c in (counts.get(route) or Counts() for route in entries)
            ),
            strict=True,
        )
        sums = zip(
            *(
                (entry.form, *_pair(entry.keys), str(entry.operations), *_pair(entry.total))
                for entry in entries.values()
            ),
            strict=True,
        )
        columns = (*map(bigints, figures), *map(texts, sums))
        return self._ledger, (self._pipeline, format_lsn(begin), format_lsn(end), texts(tuple(entries)), *columns)

    def totals(self, entries: Mapping[str, Entry]) -> tuple[str, tuple[object, ...]]:
        """Writes the running sums."""
        rows = [(route, entry.form, *_pair(entry.total)) for route, entry in entries.items()]
        return self._totals, (self._pipeline, *map(texts, zip(*rows, strict=True)))

    def asked(self) -> tuple[str, tuple[object, ...]]:
        """The routes that somebody wants counted, and whether the running sum is to be made anew."""
        return self._asked, (self._pipeline,)

    def answer(self, answer: Answer, position: int) -> tuple[str, tuple[object, ...]]:
        """Tells who asked what was counted as of that position."""
        if answer.anew:
            return self._renewed, (self._pipeline, answer.route)
        found = (answer.counted.keys, str(answer.counted.sum))
        total = (None, None) if answer.total is None else (answer.total.keys, str(answer.total.sum))
        return self._answered, (self._pipeline, answer.route, format_lsn(position), *found, *total)


def _pair(keys: KeySum | None) -> tuple[str | None, str | None]:
    return (None, None) if keys is None else (str(keys.keys), str(keys.sum))
