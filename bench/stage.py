"""A workload that is set up: the source with its changes, and for each contender a target to begin each run with."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import psycopg
from psycopg import sql

from bench import settings
from bench.contender import Contender, Place
from bench.contents import Contents, Pair, contents
from bench.servers import TEMPLATE, BenchFailed, Servers, run, value
from bench.workloads import END, GENERATORS, MARKER, SCHEMA, START, Workload, mark

_numbers = itertools.count(1)


class Stage:
    """One workload, of one size. All runs on it read the same log."""

    def __init__(self, servers: Servers, workload: Workload, size: int, directory: Path) -> None:
        self.servers = servers
        self.workload = workload
        self.size = size
        self.changes = workload.changes(size) if workload.mode in ("stream", "snapshot") else 0
        self.wal = 0
        self._directory = directory
        self._start = self._end = ""
        self._templates: dict[str, str] = {}
        self._expected: dict[str, Contents] = {}
        self._broken: dict[str, str] = {}

    def build(self, contenders: Iterable[Contender]) -> None:
        """Make the base, let contenders set up what has to be there before the changes, and make the changes."""
        servers, workload = self.servers, self.workload
        source = servers.make_source()
        run(source, SCHEMA.read_text("utf-8"))
        workload.base(servers, self.size)
        servers.make_template(GENERATORS)
        published = sql.SQL(", ").join(sql.Identifier("public", name) for name in (*workload.tables, MARKER))
        run(
            source,
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(settings.PUBLICATION), published),
        )
        if workload.mode != "snapshot":
            run(source, "CHECKPOINT")
            run(source, "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", settings.BASE_SLOT)
            for contender in contenders:
                if contender.staged:
                    try:
                        self._stage(contender)
                    except (BenchFailed, psycopg.Error) as error:
                        self._broken[contender.name] = str(error)
        begun = value(source, "SELECT pg_current_wal_insert_lsn()")
        if workload.mode == "stream":
            mark(servers, START)
        workload.generate(servers, self.size)
        if workload.mode in ("stream", "snapshot"):
            mark(servers, END)
        self._start, self._end = str(begun), str(value(source, "SELECT pg_current_wal_flush_lsn()"))
        self.wal = int(value(source, "SELECT %s::pg_lsn - %s::pg_lsn", self._end, self._start))
        run(source, "VACUUM ANALYZE")

    def _stage(self, contender: Contender) -> None:
        name = "staged_" + contender.slot
        place = self._place(contender, self.servers.copy_target(TEMPLATE, name))
        contender.stage(place)
        self.servers.drop_slots(keep=settings.BASE_SLOT)
        self._templates[contender.name] = name

    def place(self, contender: Contender) -> Place:
        """Target and slot for a run, made anew. Raises BenchFailed when the contender could not be set up."""
        if contender.name in self._broken:
            raise BenchFailed(self._broken[contender.name])
        self.servers.drop_target(settings.DATABASE)
        self.servers.drop_slots(keep=settings.BASE_SLOT)
        target = self.servers.copy_target(self._templates.get(contender.name, TEMPLATE))
        if self.workload.mode != "snapshot":
            self.servers.copy_slot(contender.slot, contender.plugin)
        return self._place(contender, target)

    def _place(self, contender: Contender, target: str) -> Place:
        name = f"{next(_numbers):04}-{self.workload.name.replace('/', '-')}-{contender.name}"
        directory = self._directory / name
        directory.mkdir()
        source = self.servers.dsn(self.servers.source)
        return Place(
            self.servers,
            self.workload,
            self.size,
            directory,
            source,
            target,
            remote_source=source,
            remote_target=target,
            start=self._start,
            end=self._end,
        )

    def expected(self, pairs: Sequence[Pair]) -> list[tuple[Pair, Contents]]:
        """What the source has; computed once, unless the workload is live."""
        source = self.servers.dsn(self.servers.source)
        found = []
        for pair in pairs:
            text = pair.source.as_string(None)
            if text not in self._expected or self.workload.mode in ("live", "idle"):
                self._expected[text] = contents(source, pair.source)
            found.append((pair, self._expected[text]))
        return found

    def clear(self) -> None:
        """Drop what was staged."""
        for name in self._templates.values():
            self.servers.drop_target(name)
        self._templates.clear()


def through(place: Place, source: str, target: str) -> Place:
    """The same, with the other end reached through a line of its own."""
    return replace(place, remote_source=source, remote_target=target)
