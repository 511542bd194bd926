"""PostgreSQL's own logical replication: a subscription. As text, its default, it is the reference."""

from __future__ import annotations

from psycopg import sql

from bench import settings
from bench.contender import Contender, Place
from bench.processes import Process
from bench.servers import drop_subscriptions, run
from bench.workloads import Workload


class Subscription(Contender):
    """``CREATE SUBSCRIPTION … WITH (binary = …)``, all else as it is by default."""

    def __init__(self, *, binary: bool = False) -> None:
        form = "binary" if binary else "text"
        workloads = ["W1", "W2", "W3", "W4", "W6", "W7", "W8"]
        super().__init__(
            "builtin-binary" if binary else "builtin",
            f"built-in replication, {form}",
            workloads if binary else [*workloads, "W5/500", "W5/2000", "idle"],
        )
        self._binary = binary

    def can(self, workload: Workload) -> bool:
        """Everything."""
        return True

    def prepare(self, place: Place) -> None:
        """Make it, disabled, for the slot there is."""
        if place.workload.mode != "snapshot":
            self._create(place, "enabled = false, create_slot = false, copy_data = false")

    def start(self, place: Place) -> Process | None:
        """Enable it; for a snapshot make it, as it copies then."""
        if place.workload.mode == "snapshot":
            self._create(place, "copy_data = true")
        else:
            run(place.target, "ALTER SUBSCRIPTION bench_sub ENABLE")
        return None

    def clean(self, place: Place) -> None:
        """Drop it."""
        drop_subscriptions(place.target)

    def _create(self, place: Place, how: str) -> None:
        statement = sql.SQL(
            "CREATE SUBSCRIPTION bench_sub CONNECTION {} PUBLICATION {} WITH (slot_name = {}, binary = {}, {})"
        )
        run(
            place.target,
            statement.format(
                sql.Literal(place.remote_source),
                sql.Identifier(settings.PUBLICATION),
                sql.Identifier(self.slot),
                sql.Literal(self._binary),
                sql.SQL(how),
            ),
        )
