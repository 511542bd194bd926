"""`towline resync`: a stream that cannot go on is begun anew, over rows that stay readable; nothing is left over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result

from tests.support.databases import NewDatabase
from tests.support.line import Line
from tests.support.wait import until
from towline import plan, resync
from towline.cli import cli
from towline.demo.programs import embedded_bindir
from towline.demo.server import Server
from towline.errors import (
    AlreadyRunning,
    NotSetUp,
    ResyncUnfinished,
    RowRefused,
    SlotAhead,
    SlotInvalidated,
    SlotLost,
    SlotMissing,
    SlotOfAnotherPlugin,
    SlotUnusable,
    SourceReplaced,
    SourceRewound,
    TowlineError,
)
from towline.status import read
from towline.target.postgres.ledger import lock_key

ROUTES = """
  - {from: public.*, into: replica.*}
  - name: open_sale
    from: public.sale
    into: hub.open_sale
    select: SELECT 'S-' || s.id AS no, s.quantity FROM sale s WHERE s.quantity > 0
"""

SOURCE = """
CREATE TABLE item (id int PRIMARY KEY, name text, sku text NOT NULL UNIQUE);
CREATE TABLE sale (id int PRIMARY KEY, item int REFERENCES item, quantity int);
INSERT INTO item SELECT n, 'item ' || n, 'sku ' || n FROM generate_series(1, 500) n;
INSERT INTO sale SELECT n, 1 + n % 500, n % 3 FROM generate_series(1, 1000) n;
"""

HUB = """
CREATE SCHEMA replica; CREATE SCHEMA hub;
CREATE TABLE replica.item (id int PRIMARY KEY, name text, sku text NOT NULL UNIQUE);
CREATE TABLE replica.sale (id int PRIMARY KEY, item int REFERENCES replica.item, quantity int);
CREATE TABLE hub.open_sale (no text PRIMARY KEY, quantity int);
"""

#: What the pipeline does not see, since nothing keeps it: rows that go, come and change, and unique values that go from
#: row to row, within a chunk and over their bounds.
MEANWHILE = """
DELETE FROM sale WHERE item > 450;
DELETE FROM item WHERE id > 450;
DELETE FROM sale WHERE id % 10 = 0;
UPDATE item SET name = 'changed ' || id WHERE id % 7 = 0;
UPDATE sale SET quantity = 0 WHERE id % 9 = 0;
INSERT INTO item VALUES (1000, 'new', 'sku 460');
UPDATE item SET sku = 'in between' WHERE id = 5;
UPDATE item SET sku = 'sku 5' WHERE id = 440;
UPDATE item SET sku = 'sku 440' WHERE id = 441;
UPDATE item SET sku = 'sku 441' WHERE id = 5;
UPDATE item SET sku = CASE id WHEN 20 THEN 'one' ELSE 'other' END WHERE id IN (20, 21);
UPDATE item SET sku = CASE id WHEN 20 THEN 'sku 21' ELSE 'sku 20' END WHERE id IN (20, 21);
INSERT INTO sale VALUES (5000, 1000, 2);
"""


@pytest.fixture
def line(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> Line:
    """Three routes, replicated once, in several chunks."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), ROUTES, more="snapshot: {chunk_rows: 200}")
    line.at_source(SOURCE)
    line.at_hub(HUB)
    line.apply()
    line.run()
    equal(line)
    return line


def equal(line: Line) -> None:
    """All three tables hold what the source has, and no more; nothing is left to be done."""
    line.same("item", "replica.item")
    line.same("sale", "replica.sale")
    line.same("(SELECT 'S-' || id AS no, quantity FROM sale WHERE quantity > 0)", "hub.open_sale")
    assert line.at_hub("SELECT bool_or(sweep) FROM towline.route_state") == [(False,)]
    assert line.verify().differing == 0


def again(line: Line, *routes: str) -> Result:
    return CliRunner().invoke(cli, ["resync", str(line.path), *routes, "--yes"], catch_exceptions=False)


def table_made_anew(line: Line) -> None:
    """As on another server: tables of the same names and rows, which the checkpoint has never heard of."""
    line.at_source("CREATE TABLE anew (LIKE sale INCLUDING ALL); INSERT INTO anew SELECT * FROM sale")
    line.at_source("DROP TABLE sale; ALTER TABLE anew RENAME TO sale")
    other_server(line)


def drop(line: Line) -> None:
    line.at_source("SELECT pg_drop_replication_slot(%s)", line.config.source.slot)


def advance(line: Line) -> None:
    line.at_source("SELECT pg_replication_slot_advance(%s, pg_current_wal_lsn())", line.config.source.slot)


def other_plugin(line: Line) -> None:
    drop(line)
    line.at_source("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", line.config.source.slot)


def other_server(line: Line) -> None:
    line.at_hub("UPDATE towline.checkpoint SET system_identifier = '42'")
    drop(line)


def rewound(line: Line) -> None:
    line.at_hub("UPDATE towline.checkpoint SET position = 'FFFFFFFF/0'")


@pytest.mark.parametrize(
    ("harm", "error"),
    [
        (drop, SlotMissing),
        (advance, SlotAhead),
        (other_plugin, SlotOfAnotherPlugin),
        (other_server, SourceReplaced),
        (table_made_anew, SourceReplaced),
        (rewound, SourceRewound),
    ],
)
def test_a_stream_that_cannot_go_on(line: Line, harm: Callable[[Line], None], error: type[TowlineError]) -> None:
    """It halts, and names `towline resync`, which brings the target in line: vanished rows go, correct ones stay."""
    line.at_hub("CREATE TABLE before AS SELECT id, xmin::text AS version FROM replica.item")
    line.at_hub("DELETE FROM before WHERE id % 7 = 0 OR id > 450 OR id IN (5, 20, 21, 440, 441)")
    line.at_source(MEANWHILE)
    harm(line)
    with pytest.raises(error) as caught:
        line.run()
    assert "towline resync" in caught.value.advice
    done = again(line)
    assert done.exit_code == 0, done.output
    assert error.code in done.output
    assert len(line.at_hub("SELECT FROM replica.item")) == 500  # nothing is gone before there is something better
    line.run()
    equal(line)
    untouched = "SELECT count(*) FROM before b JOIN replica.item i ON i.id = b.id AND i.xmin::text = b.version"
    assert line.at_hub(untouched) == line.at_hub("SELECT count(*) FROM before")
    line.at_source("INSERT INTO item VALUES (1001, 'later', 'sku 470')")
    line.run()
    equal(line)


@pytest.mark.parametrize("point", ["target: 3", "source: replication slot", "publication", "target: checkpoint"])
def test_interrupted(line: Line, point: str) -> None:
    """Killed between any two steps, nothing goes on from a wrong place, and running it again finishes it."""
    line.at_source(MEANWHILE)
    drop(line)
    line.at_source(f'DROP PUBLICATION "{line.config.source.publication}"')

    def killed(step: str) -> None:
        if step.startswith(point) or point in step:
            raise InterruptedError

    with plan.prepare(line.config) as prepared, pytest.raises(InterruptedError):
        resync.execute(prepared, resync.plan(prepared), killed)
    line.at_source("UPDATE item SET name = 'while interrupted' WHERE id = 1")
    if point != "target: checkpoint":
        with pytest.raises(ResyncUnfinished):
            line.run()
        with pytest.raises(ResyncUnfinished):
            line.apply()
    assert again(line).exit_code == 0
    line.run()
    equal(line)


@pytest.mark.parametrize("point", ["chunk-loaded", "committing", "committed"])
def test_the_copying_is_interrupted(line: Line, point: str) -> None:
    """The daemon dies in the middle of the second copy: the next one goes on from the last chunk, and still sweeps."""
    line.at_source(MEANWHILE)
    drop(line)
    again(line)
    left = 4

    def killed(passed: str) -> None:
        nonlocal left
        left -= passed == point
        if left == 0:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        line.replication(announce=killed).run(until_caught_up=True)
    assert line.at_hub("SELECT bool_and(sweep) FROM towline.route_state") == [(True,)]
    line.run()
    equal(line)


def test_changes_during_the_copy(line: Line) -> None:
    """Rows come, go and change between the chunks: what the stream says holds, and what it says is deleted stays so."""
    line.at_source(MEANWHILE)
    drop(line)
    again(line)
    with psycopg.connect(line.source, autocommit=True) as source:
        numbers = iter(range(2000, 3000))

        def disturb(passed: str) -> None:
            if passed == "chunk-read":
                n = next(numbers)
                source.execute("INSERT INTO item VALUES (%s, 'late', 'sku ' || %s - 1520)", (n, n))
                source.execute("INSERT INTO sale VALUES (%s, %s, 1)", (n, n))
                source.execute("DELETE FROM sale WHERE id IN (SELECT id FROM sale ORDER BY id LIMIT 3)")
                source.execute("UPDATE item SET name = name || '!' WHERE id % 50 = 0")

        line.replication(announce=disturb).run(until_caught_up=True)
    line.run()
    equal(line)


def test_one_route(line: Line) -> None:
    """Only that one is copied again; slot, checkpoint and the other routes are left alone."""
    line.at_hub("DELETE FROM hub.open_sale WHERE quantity = 1")
    line.at_hub("INSERT INTO hub.open_sale VALUES ('S-0', 7)")
    line.at_hub("UPDATE hub.open_sale SET quantity = 99 WHERE no = 'S-2'")
    before = line.at_hub("SELECT position, created_at FROM towline.checkpoint")
    done = again(line, "open_sale")
    assert done.exit_code == 0, done.output
    assert line.at_hub("SELECT position, created_at FROM towline.checkpoint") == before
    assert line.at_hub("SELECT route FROM towline.route_state WHERE sweep") == [("open_sale",)]
    line.run()
    equal(line)


def test_it_asks(line: Line) -> None:
    """Without --yes nothing is done before the answer; an unknown route and a stream that needs all are refused."""
    drop(line)
    runner = CliRunner()
    asked = runner.invoke(cli, ["resync", str(line.path)], input="n\n")
    assert asked.exit_code == 1
    assert "make the replication slot" in asked.output
    assert line.at_hub("SELECT bool_or(sweep) FROM towline.route_state") == [(False,)]
    assert runner.invoke(cli, ["resync", str(line.path), "open_sal", "--yes"]).exit_code == 2
    one = runner.invoke(cli, ["resync", str(line.path), "open_sale", "--yes"])
    assert (one.exit_code, "TL-304" in one.output) == (3, True)
    again(line)
    line.run()
    equal(line)


def test_another_slot_is_never_dropped(line: Line) -> None:
    """A slot that exists under a name that is new to the pipeline belongs to somebody else; so does a physical one."""
    name = f"{line.config.source.slot}_other"
    text = line.path.read_text("utf-8")
    line.path.write_text(text.replace("plugin: pgoutput", f"plugin: pgoutput, slot: {name}"), "utf-8")
    line.at_source("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", name)
    with plan.prepare(line.config) as prepared, pytest.raises(SlotUnusable, match="not this pipeline's"):
        resync.plan(prepared)
    line.at_source("SELECT pg_drop_replication_slot(%s)", name)
    assert again(line).exit_code == 0
    line.run()
    equal(line)


def test_a_daemon_runs(line: Line) -> None:
    """What has a slot made anew waits for nobody who reads from it: it is refused, and nothing is changed."""
    drop(line)
    before = line.at_hub("SELECT position, epoch FROM towline.checkpoint")
    with psycopg.connect(line.hub) as daemon:
        daemon.execute("SELECT pg_advisory_lock(%s)", (lock_key(line.config.target.schema_name, line.config.pipeline),))
        refused = again(line)
    assert (refused.exit_code, "TL-502" in refused.output) == (int(AlreadyRunning.action), True)
    assert line.at_hub("SELECT position, epoch FROM towline.checkpoint") == before


def test_a_slot_that_was_really_lost(scratch: Path, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """The source has removed its log: every verb says so, and with which code, and resync makes it anew."""
    settings = {"max_slot_wal_keep_size": "1MB", "min_wal_size": "32MB", "max_wal_size": "32MB"}
    with Server(scratch / "keeps_little", embedded_bindir(), settings=settings, durable=False) as server:
        line = Line.make(tmp_path, server.dsn(), new_database(hub18), "  - {from: public.t, into: replica.t}")
        line.at_source("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2)")
        line.apply()
        line.run()
        line.at_source("DELETE FROM t WHERE id = 1; INSERT INTO t VALUES (3)")
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            for _ in range(3):
                connection.execute("SELECT pg_switch_wal()")
                connection.execute("CHECKPOINT")
        assert line.at_source("SELECT wal_status FROM pg_replication_slots") == [("lost",)]
        for verb in ("check", "apply"):
            said = CliRunner().invoke(cli, [verb, str(line.path)])
            assert (said.exit_code, "TL-322" in said.output) == (3, True), verb
        assert [trouble.code for trouble in read(line.config).errors] == ["TL-322"]
        with pytest.raises(SlotLost):
            line.run()
        assert again(line).exit_code == 0
        line.run()
        assert line.same("t", "replica.t") == 2
        assert read(line.config).errors == ()


def test_a_slot_that_was_invalidated(line: Line, pg18: Server) -> None:
    """Nobody read it for longer than the source lets a slot idle: told apart from one that lacks log or is missing."""
    line.at_source("DELETE FROM sale WHERE id > 900; UPDATE sale SET quantity = 0 WHERE id = 1")
    invalidate(line, pg18)
    for verb in ("check", "apply"):
        said = CliRunner().invoke(cli, [verb, str(line.path)])
        assert (said.exit_code, "TL-323" in said.output) == (3, True), verb
    assert [trouble.code for trouble in read(line.config).errors] == ["TL-323"]
    before = line.at_hub("SELECT position, epoch FROM towline.checkpoint")
    with pytest.raises(SlotInvalidated, match="idle_replication_slot_timeout"):
        line.run()
    assert [position for position, _ in line.at_hub("SELECT position, epoch FROM towline.checkpoint")] == [before[0][0]]
    assert again(line).exit_code == 0
    line.run()
    equal(line)
    assert read(line.config).errors == ()


def invalidate(line: Line, source: Server) -> None:
    """Have the source invalidate the slot, as it does at a checkpoint."""
    source.configure(idle_replication_slot_timeout="1s")
    source.reload()
    reason = "SELECT invalidation_reason FROM pg_replication_slots WHERE slot_name = %s"
    try:

        def invalidated() -> bool:
            line.at_source("CHECKPOINT")
            return line.at_source(reason, line.config.source.slot) == [("idle_timeout",)]

        until(invalidated)
    finally:
        source.configure(idle_replication_slot_timeout="0")
        source.reload()


def test_nothing_was_set_up(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """There is nothing to do again before `apply`."""
    line = Line.make(tmp_path, new_database(pg18), new_database(hub18), "  - {from: public.*, into: replica.*}")
    line.at_source("CREATE TABLE t (id int PRIMARY KEY)")
    with plan.prepare(line.config) as prepared, pytest.raises(NotSetUp):
        resync.plan(prepared)


def test_rows_that_were_set_aside(line: Line) -> None:
    """With `on_error: quarantine`: what was set aside is read again; what is refused again does not stop it."""
    line.path.write_text(
        line.path.read_text("utf-8").replace("replica.*}", "replica.*, on_error: quarantine}"), "utf-8"
    )
    line.at_hub("ALTER TABLE replica.item ADD CHECK (name <> 'bad')")
    line.at_source("UPDATE item SET name = 'bad' WHERE id IN (1, 2)")
    line.run()
    assert line.at_hub("SELECT count(*) FROM towline.quarantine WHERE state = 'open'") == [(2,)]
    line.at_source("UPDATE item SET name = 'good' WHERE id = 1; DELETE FROM sale WHERE id > 900")
    drop(line)
    again(line)
    line.run()
    assert line.at_hub("SELECT count(*) FROM towline.quarantine WHERE state = 'open'") == [(1,)]
    assert line.at_hub("SELECT bool_or(sweep) FROM towline.route_state") == [(False,)]
    line.same("sale", "replica.sale")
    line.same("(SELECT * FROM item WHERE id <> 2)", "(SELECT * FROM replica.item WHERE id <> 2)")


# ---- rows that must not be deleted to make room ---------------------------------------------------------------

ITEM = "CREATE TABLE {}.item (id int PRIMARY KEY, name text, sku text NOT NULL UNIQUE{})"
ITEMS = "  - {{name: item, from: public.item, into: replica.item, select: 'SELECT id, name, sku FROM item'{}}}"
#: Two rows change places, and one that is gone leaves its value to another.
SWAPPED = """
UPDATE item SET sku = 'x' || id WHERE id IN (20, 21);
UPDATE item SET sku = CASE id WHEN 20 THEN 's21' ELSE 's20' END WHERE id IN (20, 21);
DELETE FROM item WHERE id = 5;
INSERT INTO item VALUES (99, 'new', 's5');
"""


def items(
    source: Server, hub: Server, new_database: NewDatabase, directory: Path, more: str = "", columns: str = ""
) -> Line:
    """A table with a second unique key, replicated."""
    line = Line.make(directory, new_database(source), new_database(hub), ITEMS.format(more))
    line.at_source(
        ITEM.format("public", "") + "; INSERT INTO item SELECT n, 'n', 's' || n FROM generate_series(1, 30) n"
    )
    line.at_hub(f"CREATE SCHEMA replica; {ITEM.format('replica', columns)}")
    line.apply()
    line.run()
    return line


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "SET DEFAULT"])
def test_rows_of_others_are_not_taken_along(
    action: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """A table that Towline does not copy loses nothing by a foreign key: it halts, and says what is in the way."""
    line = items(pg18, hub18, new_database, tmp_path)
    line.at_hub(f"CREATE TABLE public.note (item int REFERENCES replica.item ON DELETE {action}, text text)")
    line.at_hub("INSERT INTO note VALUES (20, 'mine'), (21, 'mine')")
    line.at_source(SWAPPED)
    drop(line)
    done = again(line)
    assert "note: route item stops (TL-403)" in done.output
    assert "rows of public.note" in done.output
    with pytest.raises(RowRefused) as caught:
        line.run()
    assert "rows of public.note, which are kept or not copied again" in caught.value.advice
    line.at_hub("UPDATE replica.item SET sku = 'away ' || id")
    line.run()
    line.same("item", "replica.item")
    assert line.at_hub("SELECT * FROM note ORDER BY 1") == [(20, "mine"), (21, "mine")]


@pytest.mark.parametrize("on_delete", ["ignore", "mark, mark_column: gone"])
def test_kept_rows_stay(on_delete: str, pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """A row that is gone at the source and kept at the target is not deleted for one that has its unique value now."""
    line = items(pg18, hub18, new_database, tmp_path, f", on_delete: {on_delete}", ", gone timestamptz")
    line.at_source("DELETE FROM item WHERE id = 20")
    line.run()
    line.at_source("INSERT INTO item VALUES (99, 'new', 's20')")
    drop(line)
    assert "keeps rows that are gone" in again(line).output
    with pytest.raises(RowRefused) as caught:
        line.run()
    assert f"on_delete: {on_delete[:4]}" in caught.value.advice
    line.at_hub("UPDATE replica.item SET sku = 'away ' || id WHERE id = 20")
    line.run()
    assert line.at_hub("SELECT id, sku FROM replica.item WHERE id IN (20, 99)") == [(20, "away 20"), (99, "s20")]


def test_children_that_are_kept_stay(pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path) -> None:
    """Nor is what refers to it, where that is copied again but its route keeps what is gone."""
    line = items(pg18, hub18, new_database, tmp_path)
    text = line.path.read_text("utf-8")
    line.path.write_text(f"{text}  - {{from: public.sale, into: replica.sale, on_delete: ignore}}\n", "utf-8")
    line.at_source("CREATE TABLE sale (id int PRIMARY KEY, item int); INSERT INTO sale VALUES (1, 5), (2, 6)")
    line.at_hub("CREATE TABLE replica.sale (id int PRIMARY KEY, item int REFERENCES replica.item ON DELETE CASCADE)")
    line.apply()
    line.run()
    line.at_source("DELETE FROM sale WHERE id = 1")
    line.run()
    line.at_source("DELETE FROM item WHERE id = 5; INSERT INTO item VALUES (0, 'new', 's5')")
    drop(line)
    again(line)
    with pytest.raises(RowRefused) as caught:
        line.run()
    assert "rows of replica.sale, which are kept or not copied again" in caught.value.advice
    assert line.at_hub("SELECT * FROM replica.sale ORDER BY 1") == [(1, 5), (2, 6)]


def test_cascades_among_tables_that_are_copied_again(line: Line) -> None:
    """These come again: room is made as without the action."""
    line.at_hub(
        "ALTER TABLE replica.sale DROP CONSTRAINT sale_item_fkey;"
        "ALTER TABLE replica.sale ADD FOREIGN KEY (item) REFERENCES replica.item ON DELETE CASCADE"
    )
    line.at_source(MEANWHILE)
    drop(line)
    assert "TL-403" not in again(line).output
    line.run()
    equal(line)


def test_nothing_is_lost_where_the_target_has_a_unique_key_more(
    pg18: Server, hub18: Server, new_database: NewDatabase, tmp_path: Path
) -> None:
    """Rows that only the target takes for the same: the sweep finds the one that went, also with a quarantine."""
    line = items(pg18, hub18, new_database, tmp_path, ", on_error: quarantine")
    line.at_source("ALTER TABLE item DROP CONSTRAINT item_sku_key")
    drop(line)
    again(line)
    line.at_source("UPDATE item SET sku = 's20' WHERE id = 21")
    with pytest.raises(RowRefused):
        line.run()
