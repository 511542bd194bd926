"""The statements of routes over stages: their texts, made once and kept."""

from __future__ import annotations

from collections.abc import Callable

from towline.target.postgres.executor import Executor, Outcome
from towline.target.postgres.staging import Staged
from towline_transforms.dialect import postgres as dialect
from towline_transforms.route import Route


class RouteStatements:
    """Queues them. ``current``: the route whose statement was queued last."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._statements: dict[tuple[object, ...], str | None] = {}
        self.current: Route | None = None

    def sync(self) -> None:
        """See `Executor.sync`."""
        self._executor.sync()

    def run(
        self, verb: str, route: Route, staged: Staged, build: Callable[..., str | None], *details: object
    ) -> Outcome:
        """Queue a statement over a stage. Its text is made once and kept. The route must not ignore it."""
        key = (verb, route.name, *details, *staged.key)
        if key not in self._statements:
            self._statements[key] = build(route, staged.sql(route), *details)
        statement = self._statements[key]
        assert statement is not None
        self.current = route
        return self._executor.run(statement, staged.parameters, prepare=staged.prepare)

    def delete_but(self, route: Route, gone: Staged, kept: Staged) -> None:
        """Queue the deletion of the rows at some keys, but for those that move away from the others."""
        key = ("delete but", route.name, *gone.key, *kept.key)
        statement = self._statements.get(key)
        if statement is None:
            names = gone.sql(route), kept.sql(route, len(gone.parameters) + 1)
            statement = self._statements[key] = dialect.delete_but(route, *names)
        self.current = route
        self._executor.run(statement, (*gone.parameters, *kept.parameters), prepare=gone.prepare and kept.prepare)

    def move(self, route: Route, staged: Staged, missing: frozenset[str], origin: Staged) -> None:
        """Queue giving the target's row another key, and what changed with it."""
        key = ("move", route.name, missing, *staged.key)
        statement = self._statements.get(key)
        if statement is None:
            old_key = origin.sql(route, len(staged.parameters) + 1)
            statement = self._statements[key] = dialect.move(route, staged.sql(route), missing, old_key)
        self.current = route
        self._executor.run(statement, (*staged.parameters, *origin.parameters), prepare=True)
