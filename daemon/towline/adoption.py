"""What a look at both ends has found, and what is to be done about it before the stream begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from towline.errors import SourceTableChanged
from towline.plan import Prepared
from towline.source import Identity
from towline.source.postgres import published
from towline.target import RouteState
from towline.telling import Change


@dataclass(frozen=True, slots=True)
class Adoption:
    """What is to be made durable at the target, in one transaction, before the stream begins.

    ``ddl``: columns (and their types) to add; ``rows``: statements that remember tables, and what is to be swept;
    ``again``: routes whose rows are all to be read again.
    """

    ddl: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    again: frozenset[str] = frozenset()

    def states(self, states: Mapping[str, RouteState]) -> list[RouteState]:
        """The states that routes go back to: their rows are copied from the first key on, beside the stream."""
        return [
            RouteState(name, "copying", None, 0, states[name].estimate)
            for name in sorted(self.again)
            if name in states and states[name].state != "pending"
        ]


@dataclass(frozen=True, slots=True)
class Intake:
    """``halt``: the error to end with at ``halt_at``, or where the log shows the change. ``oids``, ``footprint`` and
    ``revision``: what a later look at both ends is compared with; ``server``: whose catalog was looked at. ``at_once``:
    nothing more may be applied before the halt, since the log of the plugin does not tell a table from a former one of
    its name. ``interrupted``: routes of which changes were not published for a while (see `towline.remembered`).
    """

    prepared: Prepared
    adoption: Adoption
    changes: tuple[Change, ...]
    halt: SourceTableChanged | None
    halt_at: int
    at_once: bool
    oids: tuple[int, ...]
    footprint: str
    revision: int
    server: Identity
    publication: published.Standing | None
    interrupted: tuple[str, ...]
