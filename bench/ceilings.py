"""How fast the parts can be: the source alone, the target alone, a copy with nothing between.

Measured with PostgreSQL's own programs; each of them ends by itself.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from psycopg import sql

from bench import settings
from bench.contender import Contender, Place
from bench.contents import Pair
from bench.processes import Process
from bench.workloads import Workload

_STREAMS: Final = ("W1", "W2", "W3", "W4", "W7", "W8")
_ROOT: Final = Path(__file__).parents[1]


class _Ceiling(Contender):
    ends = True
    ceiling = True


class Received(_Ceiling):
    """pg_recvlogical, which takes what the walsender sends, and throws it away."""

    def __init__(self, *, binary: bool = False) -> None:
        form = "binary" if binary else "text"
        super().__init__(f"recvlogical-{form}", f"source: pg_recvlogical to /dev/null, {form}", _STREAMS)
        self._binary = binary

    def start(self, place: Place) -> Process:
        """Up to where the changes end."""
        options = ["proto_version=1", f"publication_names={settings.PUBLICATION}"]
        options += ["binary=true"] if self._binary else []
        command = [
            *(place.servers.program("pg_recvlogical"), "-d", place.source, "--slot", self.slot, "--start", "--no-loop"),
            *("--fsync-interval=0", "--endpos", place.end, "-f", "/dev/null"),
            *(part for option in options for part in ("-o", option)),
        ]
        return Process(command, place.log)

    def pairs(self, workload: Workload) -> Sequence[Pair]:
        """Nothing arrives at the target."""
        return []


class Decoded(_Ceiling):
    """The slot read through SQL, in one gulp: the decoding, without a system call for each message."""

    def __init__(self, *, binary: bool = False) -> None:
        form = "binary" if binary else "text"
        super().__init__(f"sql-{form}", f"source: the slot read through SQL, {form}", _STREAMS)
        self._binary = binary

    def start(self, place: Place) -> Process:
        """Peek at the slot, and throw it away."""
        query = sql.SQL(
            "COPY (SELECT lsn, xid, data FROM pg_logical_slot_peek_binary_changes({}, {}, NULL, {})) "
            "TO STDOUT (FORMAT binary)"
        ).format(
            sql.Literal(self.slot),
            sql.Literal(place.end),
            sql.SQL(", ").join(
                map(
                    sql.Literal,
                    (
                        *("proto_version", "1", "publication_names", settings.PUBLICATION),
                        *(("binary", "true") if self._binary else ()),
                    ),
                )
            ),
        )
        psql = [place.servers.program("psql"), "-Xq", "-d", place.source, "-c", query.as_string(None)]
        return Process(["bash", "-c", f"exec {shlex.join(psql)} >/dev/null"], place.log)

    def pairs(self, workload: Workload) -> Sequence[Pair]:
        """Nothing arrives at the target."""
        return []


class Applied(_Ceiling):
    """The target alone: the rows of W1 by COPY, 10,000 a transaction, into the table or through a staging table."""

    def __init__(self, *, direct: bool) -> None:
        how = "COPY" if direct else "COPY and upsert"
        name = "target-copy" if direct else "target-upsert"
        super().__init__(name, f"target: {how}, 10,000 rows a transaction", ["W1"])
        self._direct = direct

    def prepare(self, place: Place) -> None:
        """Put the rows on disk, a file a transaction, as COPY has them in binary form."""
        (place.directory / "rows").mkdir()
        self._run(place, "read", place.source).wait(600.0)

    def start(self, place: Place) -> Process:
        """Write them."""
        return self._run(place, "copy" if self._direct else "upsert", place.target)

    def _run(self, place: Place, what: str, dsn: str) -> Process:
        command = [sys.executable, "-m", "bench.batches", what, dsn, str(place.directory / "rows"), str(place.size)]
        return Process(command, place.log, {"PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]])})


class Piped(_Ceiling):
    """One COPY into another, through a pipe."""

    def __init__(self, *, binary: bool) -> None:
        form = "binary" if binary else "text"
        super().__init__(f"pipe-{form}", f"`COPY | COPY`, {form}", ["W6"])
        self._form = form

    def start(self, place: Place) -> Process:
        """Two psql."""
        psql = place.servers.program("psql")
        first = [psql, "-Xq", "-d", place.source, "-c", f"COPY orders TO STDOUT (FORMAT {self._form})"]
        second = [psql, "-Xq", "-d", place.target, "-c", f"COPY orders FROM STDIN (FORMAT {self._form})"]
        return Process(["bash", "-o", "pipefail", "-c", f"{shlex.join(first)} | {shlex.join(second)}"], place.log)
