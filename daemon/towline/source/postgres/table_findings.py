"""What `towline check` finds of the tables at a source, of the rights to read them, and of the publication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
from psycopg import sql

from towline.change import Relation
from towline.errors import SourceRefused, SourceSettings, SourceTableChanged
from towline.postgres import statements
from towline.source import Finding
from towline.source.postgres import publication as publications
from towline.source.postgres.finding_parts import Server, fatal, identifiers, listed, text, warning
from towline.source.postgres.key_order import base_type
from towline_transforms.schema import TableName

_SQL = statements.load("towline.source.postgres", "setup.sql")

_GENERATED_SENT_SINCE = 180000


def of_privileges(connection: psycopg.Connection, server: Server, relations: Sequence[Relation]) -> Iterator[Finding]:
    """Whether the role may read all columns that are wanted, and all rows."""
    columns = [(relation.name, column.name) for relation in relations for column in relation.columns]
    parameters = {
        "schemas": [name.schema for name, _ in columns],
        "tables": [name.name for name, _ in columns],
        "columns": [column for _, column in columns],
    }
    rows = connection.execute(_SQL["unreadable"], parameters).fetchall()
    if rows:
        tables = [TableName(schema, name) for schema, name, _ in rows]
        role = sql.Identifier(server.role)
        schemas = sorted({schema for schema, _, usage in rows if not usage})
        grants = [
            *(text(connection, "GRANT USAGE ON SCHEMA {} TO {};", sql.Identifier(s), role) for s in schemas),
            text(connection, "GRANT SELECT ON {} TO {};", identifiers(tables), role),
        ]
        yield fatal(
            SourceRefused,
            f"the role {server.role} may not read {len(rows)} tables: {listed(tables)}",
            " ".join(grants),
        )
    rows = connection.execute(_SQL["tables"], publications.names_of(relations)).fetchall()
    hidden = [TableName(schema, name) for schema, name, row_security, _ in rows if row_security]
    if hidden:
        yield fatal(
            SourceRefused,
            f"row security may hide rows of {len(hidden)} tables from the role {server.role}: {listed(hidden)}",
            text(connection, "ALTER ROLE {} BYPASSRLS;", sql.Identifier(server.role)),
        )


def of_tables(connection: psycopg.Connection, relations: Sequence[Relation], plugin: str) -> Iterator[Finding]:
    """What costs more than it has to, and columns that the log does not carry."""
    full = [relation.name for relation in relations if relation.table.replica_identity_full]
    if full:
        yield warning(
            SourceSettings,
            f"REPLICA IDENTITY FULL on {listed(full)}: updates and deletes log the whole old row",
            "ALTER TABLE … REPLICA IDENTITY DEFAULT, where nothing else needs it.",
        )
    generated = {
        (TableName(schema, name), column): kind
        for schema, name, column, kind in connection.execute(_SQL["generated"], publications.names_of(relations))
    }
    stored_sent = plugin == "wal2json" or connection.info.server_version >= _GENERATED_SENT_SINCE
    for relation in relations:
        for column in relation.columns:
            kind = generated.get((relation.name, column.name))
            if kind is not None and not (kind == "s" and stored_sent):
                yield fatal(
                    SourceTableChanged,
                    f"column {column.name} of {relation.name} is generated, and the log does not carry it",
                    f"Write its expression in the route's SELECT instead: {column.generated}",
                )
    if plugin == "wal2json":
        for relation in relations:
            for column in relation.key_columns:
                if base_type(column.type).name in ("float4", "float8", "numeric"):
                    yield warning(
                        SourceSettings,
                        f"wal2json prints NaN and Infinity as null: column {column.name} of {relation.name}'s identity",
                        "Use `plugin: pgoutput` if that column can hold them.",
                    )


def of_partitions(connection: psycopg.Connection, relations: Sequence[Relation]) -> Iterator[Finding]:
    """A partition names rows by an identity of its own, which must be that of the table at its root."""
    identities = {relation.name: frozenset(relation.table.identity) for relation in relations}
    for leaf in publications.leaves_of(connection, relations):
        if leaf.kind != "f" and leaf.columns != identities[leaf.root]:
            yield fatal(
                SourceTableChanged,
                f"the replica identity of partition {leaf.name} is not that of {leaf.root}",
                text(
                    connection,
                    "ALTER TABLE {} REPLICA IDENTITY USING INDEX …; with an index like that of {}.",
                    identifiers([leaf.name]),
                    identifiers([leaf.root]),
                ),
            )


def of_publication(
    connection: psycopg.Connection, server: Server, relations: Sequence[Relation], publication: str
) -> Iterator[Finding]:
    """Whether the role may do what is to be done to the publication; else who may can run it."""
    columns = publications.wanted(
        relations, publications.leaves_of(connection, relations), connection.info.server_version
    )
    found = publications.read(connection, publication)
    needed = publications.changes(publication, found, columns)
    if not needed:
        return
    statements_ = " ".join(statement.as_string(connection) + ";" for _, statement in needed)
    if server.in_recovery:
        yield fatal(SourceSettings, f"the publication {publication} must be made at the primary", statements_)
        return
    owned = found.owned if found is not None else server.may_create
    rows = connection.execute(_SQL["tables"], publications.names_of(relations)).fetchall()
    foreign = [TableName(schema, name) for schema, name, _, owner in rows if not owner]
    if not owned and publications.suffices(found, columns):
        yield warning(
            SourceRefused,
            f"the publication {publication} has more than the routes need, and the role {server.role} does not own it",
            f"Nothing has to be done. As its owner, to send less: {statements_}",
        )
    elif not owned or foreign:
        reason = (
            f"does not own {listed(foreign)}"
            if foreign
            else "has no CREATE on the database"
            if found is None
            else "does not own it"
        )
        yield fatal(
            SourceRefused,
            f"the role {server.role} may not make or change the publication {publication}: it {reason}",
            f"As the owner of the tables, or as a superuser: {statements_}",
        )
