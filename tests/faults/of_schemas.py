"""Faults that are changes of the source's tables: followed, or halted for until a person does something.

They strike beside verify, too, which reads the same tables: what the daemon has yet to follow is no difference to it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.fault import Fault
from tests.faults.phases import Phase
from tests.faults.trial import PATIENCE, Trial
from tests.support.wait import until

GROUP = "Changes of the source's tables"
#: As the source's journal is made, and made anew.
_ANEW = """
LOCK TABLE journal;
CREATE TEMP TABLE kept AS TABLE journal;
DROP TABLE journal;
CREATE TABLE journal (id bigint PRIMARY KEY, amount numeric NOT NULL, memo text);
INSERT INTO journal TABLE kept;
DROP TABLE kept;
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON journal FOR EACH ROW EXECUTE FUNCTION audit.note('id');
"""
_OTHER_KEY = "ALTER TABLE {}journal DROP CONSTRAINT journal_pkey, ADD PRIMARY KEY (id, amount)"
#: Verify reads two chunks of another table, and then two of the journal: it is changed before the last of these.
_BEFORE_THE_END = {Phase.VERIFYING: 4}
_NOVEL = "SELECT id, v FROM {}novel ORDER BY id"


def followed(change: str) -> Callable[[Trial], None]:
    """The table is changed while the daemon waits at the point; nobody does anything about it."""

    def hit(trial: Trial) -> None:
        trial.at("source", change)
        trial.copied_again()
        trial.go()
        trial.over()

    return hit


def halted_for(change: str, code: str, way_on: str = "", *, apply: bool = False) -> Callable[[Trial], None]:
    """The table is changed; the pipeline halts with that code. Then the target is changed likewise, or `apply` run."""

    def hit(trial: Trial) -> None:
        trial.at("source", change)
        trial.copied_again()
        trial.go()
        trial.halted(code)
        trial.never_ahead()
        if way_on:
            trial.at("target", way_on)
        if apply:
            trial.apply()
        trial.start()
        trial.over()

    return hit


def new_table(trial: Trial) -> None:
    """A table comes that the pattern matches, with rows, and SIGHUP: it is taken in, the others go on."""
    trial.at("source", "CREATE TABLE novel (id int PRIMARY KEY, v text)")
    trial.at("source", "INSERT INTO novel SELECT n, 'v' || n FROM generate_series(1, 500) n")
    trial.daemon.signal(signal.SIGHUP)
    trial.go()
    trial.over()
    trial.at("source", "DELETE FROM novel WHERE id % 3 = 0; UPDATE novel SET v = 'new' WHERE id % 3 = 1")
    wanted = trial.at("source", _NOVEL.format(""))
    there = "SELECT to_regclass('replica.novel') IS NOT NULL"
    until(
        lambda: trial.at("target", there) == [(True,)] and trial.at("target", _NOVEL.format("replica.")) == wanted,
        PATIENCE,
        lambda: f"the new table's rows: {trial.daemon.log()}",
    )


def _row(name: str, title: str, hit: Callable[[Trial], None], policy: str = "halt") -> Fault:
    return Fault(name, GROUP, title, hit, passings=_BEFORE_THE_END, options=f"on_schema_change: {policy}")


FAULTS = (
    _row("column-added", "a column is added, with a default (`on_schema_change: evolve`)",
         followed("ALTER TABLE journal ADD more text DEFAULT 'all alike'"), "evolve"),
    _row("column-added-halt", "a column is added: halts (TL-315), then the target gets it",
         halted_for("ALTER TABLE journal ADD more text DEFAULT 'all alike'", "TL-315",
                    "ALTER TABLE replica.journal ADD more text", apply=True)),
    _row("column-dropped", "a column is dropped: halts (TL-316), then the target drops it",
         halted_for("ALTER TABLE journal DROP memo", "TL-316", "ALTER TABLE replica.journal DROP memo")),
    _row("column-renamed", "a column is renamed: halts (TL-316), then the target renames it",
         halted_for("ALTER TABLE journal RENAME memo TO remark", "TL-316",
                    "ALTER TABLE replica.journal RENAME memo TO remark")),
    _row("column-retyped", "a column gets another type: halts (TL-316), then the target's gets it",
         halted_for("ALTER TABLE journal ALTER memo TYPE int USING id::int", "TL-316",
                    "ALTER TABLE replica.journal ALTER memo TYPE int USING 0", apply=True)),
    _row("key-changed", "the primary key gets another column: halts (TL-317), then the target's, and `apply`",
         halted_for(_OTHER_KEY.format(""), "TL-317", _OTHER_KEY.format("replica."), apply=True)),
    _row("table-anew", "a table is dropped and made anew, with its rows: halts (TL-319), then `apply`",
         halted_for(_ANEW, "TL-319", apply=True)),
    _row("table-new", "a table is added, which a pattern matches; SIGHUP", new_table),
)  # fmt: skip
