"""Does a publication, as it is now, send all that the routes need? What it leaves out would be lost without a word."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from towline.change import Relation
from towline.errors import (
    NotSetUp,
    PublicationFiltered,
    PublicationLacksColumn,
    PublicationLacksOperation,
    PublicationLacksTable,
    PublicationMissing,
    PublicationNotViaRoot,
)
from towline_transforms.schema import TableName

#: One row for the publication, with the operations that it lacks and publish_via_partition_root.
PUBLICATION = """
    SELECT concat_ws(', ', CASE WHEN NOT pubinsert THEN 'inserts' END, CASE WHEN NOT pubupdate THEN 'updates' END,
                     CASE WHEN NOT pubdelete THEN 'deletes' END, CASE WHEN NOT pubtruncate THEN 'truncates' END),
           pubviaroot
    FROM pg_catalog.pg_publication WHERE pubname = {name}
"""

#: Its tables, with their published columns and their row filter (from version 15 on; null before).
PUBLISHED = """
    SELECT schemaname, tablename, pg_catalog.to_jsonb(t) -> 'attnames', pg_catalog.to_jsonb(t) ->> 'rowfilter'
    FROM pg_catalog.pg_publication_tables t WHERE pubname = {name}
"""


def problem(
    publication: str,
    found: Sequence[Sequence[object]],
    tables: Iterable[Sequence[object]],
    relations: Iterable[Relation],
) -> NotSetUp | None:
    """What a publication lacks; ``found`` and ``tables`` are the rows of `PUBLICATION` and `PUBLISHED`."""
    if not found:
        return PublicationMissing(f"there is no publication {publication}")
    lacking, via_root = found[0]
    if lacking:
        return PublicationLacksOperation(f"the publication {publication} does not publish {lacking}")
    published = {TableName(str(row[0]), str(row[1])): (row[2], row[3]) for row in tables}
    for relation in relations:
        if relation.frozen:
            continue  # what it was then is published as of then
        if relation.name not in published:
            if not via_root and published.keys() & set(relation.table.partitions):
                return PublicationNotViaRoot(
                    f"the publication {publication} publishes {relation.name} under the names of its partitions"
                )
            return PublicationLacksTable(f"the publication {publication} does not publish {relation.name}")
        columns, row_filter = published[relation.name]
        if row_filter is not None:
            return PublicationFiltered(f"the publication {publication} has a row filter on {relation.name}")
        if isinstance(columns, list):
            missing = [
                column.name for column in relation.columns if column.generated is None and column.name not in columns
            ]
            if missing:
                return PublicationLacksColumn(
                    f"the publication {publication} does not publish {', '.join(missing)} of {relation.name}"
                )
    return None
