"""The direct path: new rows are written without looking for older ones.

Those of an identity route are COPYed straight into its table, when the bytes of the source's columns are what the
target's types read: binary forms, and the same types. Others are staged, and what the route makes of them is inserted.
Where rows are at the target already (a replay, or a snapshot that ran into its stream) it fails, and the rows
are merged; it is tried less often then, until it works again.
"""

from __future__ import annotations

from towline.change import Format, Relation, RowSet
from towline.target.postgres.staging import FEW
from towline_transforms.identifier import quote_list, quote_table
from towline_transforms.route import OnDelete, Route
from towline_transforms.schema import SqlType, TypeKind

#: How many times at most the path is left out after failures in a row.
_MOST = 64


class Direct:
    """Decides when the path is taken. ``enabled``: False in tests of the other paths."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._fits: dict[str, bool] = {}
        self._pause: dict[str, int] = {}
        self._skips: dict[str, int] = {}

    def fits(self, route: Route, rowset: RowSet) -> bool:
        """Whether the route copies such rows byte for byte."""
        if route.name not in self._fits:
            self._fits[route.name] = fits(route, rowset.relation)
        return self._fits[route.name]

    def wanted(self, route: Route, rowset: RowSet) -> bool:
        """Whether to try it for these rows, all of which are new."""
        if not self._enabled or len(rowset) <= FEW:
            return False
        if self._skips.get(route.name, 0) > 0:
            self._skips[route.name] -= 1
            return False
        return True

    def noted(self, route: Route, *, worked: bool) -> None:
        """Take it from now on, or leave it out for a while, twice as long as the last time."""
        if worked:
            self._pause.pop(route.name, None)
            return
        pause = min(self._pause.get(route.name, 1) * 2, _MOST)
        self._pause[route.name] = self._skips[route.name] = pause

    @staticmethod
    def statement(route: Route, rowset: RowSet) -> str:
        """The COPY statement."""
        columns = quote_list(column.name for column in rowset.relation.columns)
        return f"COPY {quote_table(route.into)} ({columns}) FROM STDIN (FORMAT binary)"


def fits(route: Route, relation: Relation) -> bool:
    """Whether a relation's rows are the rows of the route's target table, byte for byte."""
    if not route.identity or relation.format is not Format.BINARY or route.on_delete is OnDelete.MARK:
        return False
    if {column.name for column in relation.columns} != {each.column for each in route.assignments}:
        return False
    return all(_same_bytes(column.type, route.target.column(column.name).type) for column in relation.columns)


def _same_bytes(source: SqlType, target: SqlType) -> bool:
    """Whether the target's type reads the binary form of the source's."""
    if source.kind is TypeKind.DOMAIN and source.element is not None:
        return _same_bytes(source.element, target)
    if target.kind is TypeKind.DOMAIN and target.element is not None:
        return _same_bytes(source, target.element)
    if source.kind is TypeKind.ENUM:
        return target.kind is TypeKind.ENUM
    return source.builtin and (source.schema, source.name) == (target.schema, target.name)
