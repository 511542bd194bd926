"""What becomes of changes of the source's tables: they are adopted at the target, or end the attempt."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from towline.adoption import Intake
from towline.config import PipelineConfig
from towline.errors import (
    ColumnAdded,
    EvolutionRefused,
    RowRefused,
    SourceTableChanged,
    TargetRefused,
    TargetTableChanged,
)
from towline.logs import event
from towline.metrics import Metrics
from towline.position import format_lsn
from towline.target.postgres.writer import PostgresTarget
from towline.telling import tell, waiting

log = logging.getLogger(__name__)

#: So often the catalogs are looked at again when they do not show what the log does, and after so many seconds each.
_LOOKS, _BETWEEN_LOOKS = 5, 0.5


class TableChanges:
    """Over all looks at both ends that one `towline.replication.Replication` takes."""

    def __init__(self, config: PipelineConfig, metrics: Metrics, announce: Callable[[str], None]) -> None:
        self._config = config
        self._metrics = metrics
        self._announce = announce
        self._last: tuple[str, int] | None = None
        self._fruitless = 0

    def adopt(self, intake: Intake, target: PostgresTarget) -> None:
        """Make durable what the changes of the source's tables take, and tell of them."""
        adoption = intake.adoption
        if adoption.ddl or adoption.rows:
            self._announce("adopting")
            try:
                target.adopt([*adoption.ddl, *adoption.rows], adoption.states(target.states()))
            except (TargetRefused, TargetTableChanged, RowRefused) as error:
                if not adoption.ddl:
                    raise
                raise EvolutionRefused(
                    f"a column that was added at the source cannot be added at the target: {error.detail}",
                    hint=f"Run at the target: {'; '.join(adoption.ddl)};",
                    sqlstate=error.sqlstate,
                ) from error
            self._announce("adopted")
        tell(self._config, tuple(change for change in intake.changes if change.action != "halt"))
        for change in intake.changes:
            self._metrics.schema_change(change.route, change.action)

    def halted(self, intake: Intake, error: SourceTableChanged, position: int) -> SourceTableChanged:
        """The error that ends this attempt, told with what it is about, and where the target is."""
        lsn = format_lsn(position)
        changes = tuple(change for change in intake.changes if change.action == "halt")
        if isinstance(error, ColumnAdded) and intake.halt is None:
            changes = waiting(intake.prepared)
        tell(self._config, changes, lsn=lsn)
        error.detail = f"{error.detail.rstrip('.')}. The target is as of {lsn}."
        return error

    def progressed(self, change: SourceTableChanged, checkpoint: int) -> None:
        """Raises the change when another look has led to nothing, several times.

        A commit can be in the log before others see it (it waits for a synchronous standby, say).
        """
        here = (change.detail, checkpoint)
        self._fruitless = self._fruitless + 1 if here == self._last else 0
        self._last = here
        if self._fruitless >= _LOOKS:
            raise change
        event(log, logging.INFO, "table_changed", pipeline=self._config.pipeline, detail=change.detail)
        if self._fruitless:
            time.sleep(_BETWEEN_LOOKS)
