"""Where time goes: `python -m bench profile W1`.

py-spy samples the daemon's threads, when it is installed; pg_stat_statements tells of both servers' statements, and
/proc of their processes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.contender import Contender
from bench.drain import Patience, drain
from bench.live import live
from bench.processes import Process
from bench.results import Result
from bench.runner import line
from bench.servers import Servers, rows, run
from bench.stage import Stage
from bench.workloads import Workload

#: What the servers of a profile are started with.
SETTINGS: Final[Mapping[str, str]] = {
    "shared_preload_libraries": "pg_stat_statements",
    "pg_stat_statements.track": "all",
    "track_io_timing": "on",
}
_RATE: Final = 200
_LINE: Final = re.compile(r":\d+(?=\)$)")
_STATEMENTS: Final = r"""
    SELECT calls, rows, round(total_exec_time::numeric, 1), wal_bytes,
           regexp_replace(left(query, 400), '\s+', ' ', 'g')
    FROM pg_stat_statements
    WHERE query !~ 'pg_stat_statements|^SELECT count[(][*][)], coalesce[(]sum[(]hashtextextended[(]t::text'
    ORDER BY total_exec_time DESC LIMIT 15
"""


@dataclass(frozen=True, slots=True)
class Samples:
    """How often a function was met in a thread: running itself, or anywhere on the stack. ``whole``: samples in all."""

    own: Mapping[str, Counter[str]]
    within: Mapping[str, Counter[str]]
    whole: int

    @classmethod
    def read(cls, text: str) -> Samples:
        """From py-spy's raw form: ``thread;outermost;…;innermost COUNT`` on each line, functions with their lines."""
        own: defaultdict[str, Counter[str]] = defaultdict(Counter)
        within: defaultdict[str, Counter[str]] = defaultdict(Counter)
        whole = 0
        for each in text.splitlines():
            stack, _, number = each.rpartition(" ")
            thread, *frames = (_LINE.sub("", frame) for frame in stack.split(";"))
            if not frames:  # what py-spy could not read
                continue
            name, count = thread.rpartition(": ")[2], int(number)
            whole += count
            own[name][frames[-1]] += count
            for frame in dict.fromkeys(frames):
                within[name][frame] += count
        return cls(own, within, whole)

    def text(self, top: int = 20) -> str:
        """The functions that take most, in per cent of all samples, thread by thread."""
        lines = []
        for name in sorted(self.own, key=lambda name: -self.own[name].total()):
            for title, counter in (("themselves", self.own[name]), ("with all that they call", self.within[name])):
                lines.append(f"\n{name}, {self._share(self.own[name].total())}: functions, {title}")
                lines += [f"  {self._share(count)}  {function}" for function, count in counter.most_common(top)]
        return "\n".join(lines)

    def _share(self, count: int) -> str:
        return f"{100 * count / self.whole:5.1f} %"


def profile(
    servers: Servers,
    directory: Path,
    workload: Workload,
    contender: Contender,
    scale: float,
    patience: Patience,
    output: Path | None,
) -> Result:
    """One run, looked at; prints what was found. ``output``: where py-spy's samples are put, for other tools."""
    stage = Stage(servers, workload, workload.scaled(scale), directory)
    stage.build([contender])
    for server in (servers.source, servers.target):
        run(servers.dsn(server, "postgres"), "CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
    raw = directory / "samples"
    sampler: list[subprocess.Popen[bytes]] = []

    def started(process: Process | None) -> None:
        for server in (servers.source, servers.target):
            run(servers.dsn(server, "postgres"), "SELECT pg_stat_statements_reset()")
        if process is not None and (command := _py_spy()) is not None:
            sampler.append(
                subprocess.Popen(
                    [
                        *(command, "record", "--pid", str(process.pid), "--format", "raw", "--rate", str(_RATE)),
                        *("--duration", "36000", "--threads", "--nonblocking", "--output", str(raw)),
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )

    measure = live if workload.mode in ("live", "idle") else drain
    result = measure(stage, contender, patience, started=started)
    for each in sampler:
        each.wait(60)
    print(line(result))
    print("\nserver processes, CPU seconds: " + ", ".join(f"{name} {used}" for name, used in result.kinds.items()))
    if raw.exists():
        text = raw.read_text("utf-8")
        print(Samples.read(text).text())
        if output is not None:
            output.write_text(text, "utf-8")
    elif result.peak:
        print("\n(py-spy is not installed, or may not attach: no samples)")
    for name, server in (("source", servers.source), ("target", servers.target)):
        print(f"\nstatements at the {name}: calls, rows, ms, bytes of log")
        print(_statements(rows(servers.dsn(server, "postgres"), _STATEMENTS)))
    return result


def _statements(found: Sequence[tuple[object, ...]]) -> str:
    return "\n".join(f"  {calls:>8} {count:>9} {ms:>10} {log:>11}  {query}" for calls, count, ms, log, query in found)


def _py_spy() -> str | None:
    """The program, beside our Python or anywhere."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")
