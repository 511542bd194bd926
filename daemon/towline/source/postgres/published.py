"""Does a publication, as it is now, send all that the routes need? What it leaves out would be lost without a word."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

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


#: Which publication it is, if there is one.
IDENTITY = "SELECT oid::bigint FROM pg_catalog.pg_publication WHERE pubname = {name}"

#: By table: the publication with the version of its row, which every ALTER PUBLICATION … SET (…) replaces, and the
#: table's place in it, or its ancestors', which has a new OID whenever it is made.
VERSIONS = """
    SELECT c.oid::bigint, pg_catalog.format('%s %s %s', p.oid, p.xmin, (
      SELECT pg_catalog.string_agg(r.oid::text, ' ' ORDER BY r.oid) FROM pg_catalog.pg_publication_rel r
      WHERE r.prpubid = p.oid
        AND (r.prrelid = c.oid OR r.prrelid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(c.oid)))))
    FROM pg_catalog.pg_publication p, pg_catalog.pg_class c
    WHERE p.pubname = {name} AND c.oid = ANY ({oids}::pg_catalog.oid[])
"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A publication, and how it has tables: by OID, a text that is another one after anything was taken out of it,
    though it be back. ``oid`` None: there is none of that name.
    """

    name: str
    oid: int | None
    versions: Mapping[int, str]

    def made_anew(self, slots: int | None) -> PublicationMissing | None:
        """What keeps a slot from being read that was made with the publication of that OID (None: not known)."""
        if self.oid is None:
            return PublicationMissing(f"there is no publication {self.name}")
        if slots is not None and self.oid != slots:
            return PublicationMissing(
                f"the publication {self.name} was dropped and made anew: the slot can only read the former one"
            )
        return None


def standing(connection: psycopg.Connection[Any], name: str, oids: Sequence[int]) -> Standing:
    """The publication of that name, with those tables that exist."""
    literal = sql.Literal(name)
    row = connection.execute(sql.SQL(IDENTITY).format(name=literal)).fetchone()
    query = sql.SQL(VERSIONS).format(name=literal, oids=sql.Literal(list(oids)))
    return Standing(name, None if row is None else row[0], dict(connection.execute(query).fetchall()))


#: The rows of `PUBLICATION` and of `PUBLISHED`.
Rows = tuple[Sequence[Sequence[object]], Sequence[Sequence[object]]]


def rows_of(connection: psycopg.Connection[Any], name: str) -> Rows:
    """What a publication publishes, asked in a session that is no walsender."""
    literal = sql.Literal(name)
    found = connection.execute(sql.SQL(PUBLICATION).format(name=literal)).fetchall()
    return found, connection.execute(sql.SQL(PUBLISHED).format(name=literal)).fetchall()


def lacking(connection: psycopg.Connection[Any], name: str, relations: Iterable[Relation]) -> NotSetUp | None:
    """What a publication lacks for those relations."""
    return problem(name, *rows_of(connection, name), relations)


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
