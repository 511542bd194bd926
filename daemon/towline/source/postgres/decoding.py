"""What reads a plugin's messages, and what the plugin is asked for: the same in the stream and in the backlog."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from towline.change import Format
from towline.source.postgres import pgoutput, wal2json
from towline.source.postgres.batches import RowBatch
from towline.source.postgres.gather import Gatherer
from towline.source.postgres.routed import Routed
from towline.source.postgres.spool import Spool
from towline.source.postgres.streamed import StreamingDecoder
from towline.source.postgres.tuple_batch import TupleBatch


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where decoding begins, and how much a piece may hold: changes, and bytes of the plugin's messages."""

    start: int
    max_rows: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Decoding:
    """``options``: what to ask of the plugin. The decoder adds to the gatherer."""

    decoder: pgoutput.Decoder | wal2json.Decoder
    gatherer: Gatherer[TupleBatch] | Gatherer[RowBatch]
    options: dict[str, str]


def of_pgoutput(
    routed: Routed,
    publication: str,
    bounds: Bounds,
    spool: Spool | None = None,
    pace: Callable[[], None] | None = None,
) -> Decoding:
    """With ``spool``, large transactions come while they are under way; ``pace`` waits until there is room for more."""
    binary = any(relation.format is Format.BINARY for relation in routed.relations)
    format_ = Format.BINARY if binary else Format.TEXT
    options = pgoutput.options(publication, format_, streaming=spool is not None)
    gatherer = Gatherer[TupleBatch](bounds.start, bounds.max_rows, bounds.max_bytes)
    if spool is not None and pace is not None:
        return Decoding(StreamingDecoder(routed, gatherer, spool, pace), gatherer, options)
    return Decoding(pgoutput.Decoder(routed, gatherer), gatherer, options)


def of_wal2json(routed: Routed, bounds: Bounds, *, partitioned: bool) -> Decoding:
    """``partitioned``: some of the relations are partitioned tables."""
    gatherer = Gatherer[RowBatch](bounds.start, bounds.max_rows, bounds.max_bytes)
    options = wal2json.options(routed.relations, partitioned=partitioned)
    return Decoding(wal2json.Decoder(routed, gatherer), gatherer, options)
