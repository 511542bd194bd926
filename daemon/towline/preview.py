"""Previews a route of a pipeline: `towline preview`. How: `towline.target.postgres.preview`."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from towline.postgres.session import connect
from towline.source.postgres.tables import PostgresTables
from towline.target.postgres import preview as target
from towline.target.postgres.preview import PreviewResult
from towline_transforms.route import Route

if TYPE_CHECKING:
    from towline.plan import Prepared


def preview(prepared: Prepared, route: Route, rows: int) -> PreviewResult:
    """Apply the first ``rows`` rows of the route's source table, and roll back.

    Raises RowRefused, as the daemon would; NotSetUp when the target table is not there yet.
    """
    config = prepared.config
    relation = next(relation for relation in prepared.relations if relation.name == route.source.name)
    with closing(PostgresTables(config.source.dsn.get_secret_value(), slot=config.source.slot)) as tables:
        chunk = tables.chunk(relation, None, rows)
    connection = connect(
        config.target.dsn.get_secret_value(),
        application_name=f"towline {config.pipeline} preview",
        side="target",
        search_path=None,
    )
    with closing(connection):
        return target.preview(connection, route, chunk, pipeline=config.pipeline)
