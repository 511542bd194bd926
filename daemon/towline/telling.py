"""What is told of changes of the source's tables: a difference, for one route, and what is done about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from towline.config import PipelineConfig
from towline.logs import event
from towline.plan import Prepared
from towline.schema_change import Difference, Kind
from towline_transforms.route import OnSchemaChange

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """A difference, what it means for one route, and what is done about it."""

    route: str
    difference: Difference
    action: str


def waiting(prepared: Prepared) -> tuple[Change, ...]:
    """The columns that were added, and that routes halt for when the log has them."""
    found = []
    for relation in prepared.relations:
        for route in prepared.routes:
            if route.source.name == relation.name and route.on_schema_change is OnSchemaChange.HALT:
                for name in sorted(relation.waiting.intersection(route.left_out)):
                    kind = relation.table.column(name).type.sql
                    found.append(Change(route.name, Difference(Kind.ADDED, relation.name, name, "", kind), "halt"))
    return tuple(found)


def tell(config: PipelineConfig, changes: tuple[Change, ...], **more: str) -> None:
    """Log each change."""
    for change in changes:
        event(
            log,
            logging.ERROR if change.action == "halt" else logging.WARNING,
            "schema_changed",
            pipeline=config.pipeline,
            route=change.route,
            table=str(change.difference.table),
            difference=str(change.difference.kind),
            column=change.difference.column,
            was=change.difference.was,
            now=change.difference.now,
            action=change.action,
            **more,
        )
