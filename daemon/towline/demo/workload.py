"""What people and scanners do to the demo's source all day: small transactions, at a bounded rate.

Which transaction comes next, and which rows it picks, follows from a seed: the same seed over the same rows makes the
same changes (but for clocks and generated uuids). Some are rolled back, some are several statements with savepoints.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib import resources

import psycopg
from psycopg import errors

#: One transaction in so many is rolled back at its end; one in so many is several statements.
ROLLED_BACK, COMPOUND = 40, 15


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of transaction: its share of the whole, and its statement, with the parameters a, b and c."""

    name: str
    weight: int
    statement: bytes


def script(name: str) -> bytes:
    """The text of one of the files beside this module."""
    return (resources.files("towline.demo") / name).read_bytes()


@cache
def kinds() -> tuple[Kind, ...]:
    """What workload.sql holds."""
    parts = re.split(rb"^-- name: (\w+) (\d+)\n", script("workload.sql"), flags=re.MULTILINE)[1:]
    found = zip(parts[0::3], parts[1::3], parts[2::3], strict=True)
    return tuple(Kind(name.decode(), int(weight), statement.strip()) for name, weight, statement in found)


class Workload:
    """Makes transactions at ``dsn``, one after the other. ``done`` counts those committed, by kind."""

    def __init__(self, dsn: str, *, seed: int = 1) -> None:
        self._dsn = dsn
        self._random = random.Random(seed)
        self.done: Counter[str] = Counter()

    def run(self, transactions: int) -> None:
        """Make that many, as fast as the server takes them. Raises psycopg.Error."""
        with psycopg.connect(self._dsn, application_name="demo workload") as connection:
            for _ in range(transactions):
                self.step(connection)

    def step(self, connection: psycopg.Connection) -> None:
        """One transaction."""
        count = 2 + self._random.randrange(3) if self._random.randrange(COMPOUND) == 0 else 1
        undo = self._random.randrange(ROLLED_BACK) == 0
        chosen = self._random.choices(kinds(), [kind.weight for kind in kinds()], k=count)
        picks = [{letter: self._random.random() for letter in "abc"} for _ in chosen]
        try:
            with connection.transaction(force_rollback=undo):
                for kind, pick in zip(chosen, picks, strict=True):
                    if count == 1:
                        connection.execute(kind.statement, pick)
                    else:
                        with connection.transaction():
                            connection.execute(kind.statement, pick)
        except (errors.SerializationFailure, errors.DeadlockDetected, errors.UniqueViolation):
            return  # somebody else, another workload perhaps, was at the same rows
        if not undo:
            self.done.update(kind.name for kind in chosen)


class Pacer(threading.Thread):
    """Runs a workload in a thread at ``rate`` transactions a second until `stop`. ``error`` is what ended it early."""

    def __init__(self, workload: Workload, dsn: str, *, rate: float = 300.0) -> None:
        super().__init__(name="workload", daemon=True)
        self._workload = workload
        self._dsn = dsn
        self._interval = 1.0 / rate
        self._stopping = threading.Event()
        self.transactions = 0
        self.error: psycopg.Error | None = None

    def run(self) -> None:
        """Keep to the rate; what could not be done in time is not made up for."""
        try:
            with psycopg.connect(self._dsn, application_name="demo workload") as connection:
                due = time.monotonic()
                while not self._stopping.wait(max(0.0, due - time.monotonic())):
                    self._workload.step(connection)
                    self.transactions += 1
                    due = max(due + self._interval, time.monotonic() - self._interval)
        except psycopg.Error as error:
            self.error = error

    def stop(self) -> None:
        """Return once the transaction in hand is over. May be called twice."""
        self._stopping.set()
        if self.is_alive():
            self.join()
