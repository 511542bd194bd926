"""Set-up of a target: control tables, types and tables as the source has them, and nothing twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from tests.support.checked import PIPELINE, SCHEMA, Ends, run, spec
from tests.support.databases import NewDatabase
from towline.demo.server import Server
from towline.errors import ControlTablesForeign, ControlTablesOld, NotSetUp
from towline.position import parse_lsn
from towline.source import Identity
from towline.target.postgres import control, setup
from towline_transforms.problems import ProblemKind

TYPES = r"""
CREATE SCHEMA shop;
CREATE SCHEMA shared;
CREATE TYPE shop.state AS ENUM ('draft', 'it''s "odd" \ ', 'done', 'größe');
CREATE TYPE shared.level AS ENUM ('low', 'high');
CREATE DOMAIN shop.positive AS numeric(12, 3) NOT NULL CHECK (VALUE > 0) CONSTRAINT small CHECK (VALUE < 1e6);
CREATE DOMAIN shop.code AS text COLLATE "C" DEFAULT 'x' CHECK (VALUE ~ '^[a-z]+$');
CREATE DOMAIN shop.codes AS shop.code[];
CREATE TYPE shop.place AS (aisle shop.code, "Shelf No" int, level shared.level, size numeric(4,1)[]);
CREATE TYPE shop.stop AS (at timestamptz, place shop.place);
CREATE TYPE shop.span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE TYPE shop.words AS RANGE (subtype = text, collation = "C");
CREATE TABLE shop."All Kinds" (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    state shop.state NOT NULL DEFAULT 'draft',
    states shop.state[],
    price shop.positive NOT NULL,
    tags shop.codes,
    stop shop.stop,
    stops shop.stop[],
    span shop.span,
    words shop.words,
    level shared.level,
    name varchar(20) COLLATE "C" NOT NULL DEFAULT 'none',
    amount numeric(10, 2) DEFAULT 0,
    gross numeric GENERATED ALWAYS AS (amount * 1.19) STORED,
    ratio numeric,
    code char(3),
    at timestamptz(3) DEFAULT now()
);
"""

IDENTITY = Identity("7123456789", 1, "erp", 180000)


@pytest.fixture(params=["pg18", pytest.param("pg15", marks=pytest.mark.debian)])
def ends(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Ends]:
    server: Server = request.getfixturevalue(request.param)
    with closing(Ends(new_database(server), new_database(server))) as both:
        yield both


def columns(connection: psycopg.Connection, table: str) -> list[tuple[object, ...]]:
    return connection.execute(
        "SELECT attname::text, format_type(atttypid, atttypmod), attnotnull, attcollation::regcollation::text,"
        " attgenerated::text FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 ORDER BY attnum",
        (table,),
    ).fetchall()


def test_every_kind_of_type_is_made_and_holds_the_source_s_values(ends: Ends) -> None:
    """Types are made in dependency order, in the mapped schema, and take the text of the source's values."""
    run(ends.source, TYPES)
    run(
        ends.source,
        """INSERT INTO shop."All Kinds" (state, states, price, tags, stop, stops, span, words, level)
        VALUES ('größe', '{done,draft}', 1.5, '{a,b}', ROW('2020-01-01', ROW('a', 1, 'low', '{1.5}')),
                ARRAY[ROW('2020-01-01', ROW('a', 1, 'low', '{1.5}'))::shop.stop], '[1,2)', '[a,b]', 'high')""",
    )
    ends.apply(spec("shop.*", "copy.*"))
    (row,) = ends.source.execute(
        'SELECT (state, states, price, tags, stop, stops, span, words, level)::text FROM shop."All Kinds"'
    ).fetchone() or ("",)
    ends.target.execute("SELECT set_config('search_path', '', false)")
    made = columns(ends.target, 'copy."All Kinds"')
    mapped = [
        (name, str(kind).replace("shop.", "copy."), *rest)
        for name, kind, *rest in columns(ends.source, 'shop."All Kinds"')
    ]
    assert made == mapped
    (same,) = ends.target.execute(
        "SELECT (v[1]::copy.state, v[2]::copy.state[], v[3]::copy.positive, v[4]::copy.codes, v[5]::copy.stop,"
        " v[6]::copy.stop[], v[7]::copy.span, v[8]::copy.words, v[9]::shared.level)::text"
        " FROM (SELECT %(v)s::text[] AS v) AS given",
        {
            "v": ends.source.execute(
                "SELECT ARRAY[state::text, states::text, price::text, tags::text, stop::text, stops::text, span::text,"
                ' words::text, level::text] FROM shop."All Kinds"'
            ).fetchone()[0]  # type: ignore[index]
        },
    ).fetchone() or ("",)
    assert same == row


def test_a_domain_keeps_its_constraints(ends: Ends) -> None:
    """CHECK, NOT NULL and collation of a domain hold at the target; its default is left out."""
    run(ends.source, TYPES)
    ends.apply(spec("shop.All Kinds", "copy.kinds"))
    found = ends.target.execute(
        "SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE contypid = 'copy.positive'::regtype AND contype = 'c' ORDER BY 1"
    ).fetchall()
    assert found == [
        ("positive_check", "CHECK ((VALUE > (0)::numeric))"),
        ("small", "CHECK ((VALUE < '1000000'::numeric))"),
    ]
    with pytest.raises(psycopg.errors.NotNullViolation):
        ends.target.execute("SELECT NULL::copy.positive")
    assert ends.target.execute(
        "SELECT typcollation::regcollation::text, typdefault FROM pg_type WHERE oid = 'copy.code'::regtype"
    ).fetchone() == ('"C"', None)


def test_primary_key_not_null_and_nothing_else(ends: Ends) -> None:
    """A created table has the source's primary key, in its order, and no defaults or foreign keys."""
    run(
        ends.source,
        """CREATE SCHEMA shop;
        CREATE TABLE shop.parent (a int, b text, c int DEFAULT 7 NOT NULL, PRIMARY KEY (b, a));
        CREATE TABLE shop.child (id int PRIMARY KEY, a int, b text, UNIQUE (a, b),
        FOREIGN KEY (b, a) REFERENCES shop.parent)""",
    )
    ends.apply(spec("shop.*", "copy.*"))
    found = ends.target.execute(
        "SELECT conrelid::regclass::text, contype::text, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'copy'::regnamespace AND contype <> 'n' ORDER BY 1"
    ).fetchall()
    assert found == [("copy.child", "p", "PRIMARY KEY (id)"), ("copy.parent", "p", "PRIMARY KEY (b, a)")]
    assert not ends.target.execute("SELECT FROM pg_attrdef WHERE adrelid = 'copy.parent'::regclass").fetchall()


def test_key_of_the_replica_identity_is_unique_too(ends: Ends) -> None:
    """REPLICA IDENTITY USING INDEX: rows are found by that index, which the target gets beside the primary key."""
    run(
        ends.source,
        """CREATE TABLE public.t (id int PRIMARY KEY, code text NOT NULL);
        CREATE UNIQUE INDEX t_code ON public.t (code); ALTER TABLE public.t REPLICA IDENTITY USING INDEX t_code""",
    )
    (route,) = ends.apply(spec("public.t", "copy.t"))
    assert route.key == ("code",)
    assert set(route.target.unique_keys) == {("id",), ("code",)}


def test_a_partitioned_source_becomes_one_table(ends: Ends) -> None:
    """The root of a partitioned table is created as an ordinary table; its partitions are not."""
    run(
        ends.source,
        """CREATE TABLE public.events (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
        CREATE TABLE public.events_2020 PARTITION OF public.events FOR VALUES FROM ('2020-01-01') TO ('2021-01-01')""",
    )
    ends.apply(spec("public.*", "copy.*"))
    rows = ends.target.execute(
        "SELECT relname::text, relkind::text FROM pg_class"
        " WHERE relnamespace = 'copy'::regnamespace AND relkind IN ('r', 'p')"
    ).fetchall()
    assert rows == [("events", "r")]


def test_repeating_changes_nothing(ends: Ends) -> None:
    """A second plan is empty, and the first one's steps can be executed again."""
    run(ends.source, TYPES)
    plan = ends.plan(spec("shop.*", "copy.*"))
    assert {step.side for step in plan.steps} == {"target"}
    setup.execute(ends.target, plan.steps)
    assert ends.plan(spec("shop.*", "copy.*")).steps == ()
    tables = [step for step in plan.steps if not step.title.startswith("type ")]
    setup.execute(ends.target, tables)
    assert ends.plan(spec("shop.*", "copy.*")).steps == ()


def test_new_labels_are_added_in_their_places(ends: Ends) -> None:
    """An enum that the target has already gets what it lacks, so that its order is the source's."""
    run(ends.source, TYPES)
    run(ends.target, r"""CREATE SCHEMA copy; CREATE TYPE copy.state AS ENUM ('it''s "odd" \ ', 'own', 'done')""")
    ends.apply(spec("shop.*", "copy.*"))
    labels = ends.target.execute(
        "SELECT array_agg(enumlabel::text ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = 'copy.state'::regtype"
    ).fetchone()
    assert labels == (["draft", 'it\'s "odd" \\ ', "own", "done", "größe"],)
    run(ends.source, "ALTER TYPE shop.state ADD VALUE 'late'")
    ends.target.execute('DROP TABLE copy."All Kinds"')
    assert [step.sql for step in ends.plan(spec("shop.*", "copy.*")).steps if "label" in step.title] == [
        """ALTER TYPE "copy"."state" ADD VALUE IF NOT EXISTS 'late' AFTER 'größe'"""
    ]


@pytest.mark.parametrize(
    ("existing", "says"),
    [
        ("CREATE TYPE copy.state AS (a int)", "is of another kind"),
        ("CREATE DOMAIN copy.positive AS numeric(12, 2)", "is a domain over numeric(12,2), not numeric(12,3)"),
        ("CREATE TYPE copy.span AS RANGE (subtype = float4)", "is a range of real, not double precision"),
        ("CREATE TYPE copy.stop AS (at timestamptz)", "has other attributes"),
    ],
)
def test_a_type_that_differs_is_a_problem(ends: Ends, existing: str, says: str) -> None:
    """A type of the same name and another make is not touched, and named."""
    run(ends.source, TYPES)
    run(ends.target, f"CREATE SCHEMA copy; {existing}")
    problems = ends.plan(spec("shop.*", "copy.*")).problems
    assert [problem.kind for problem in problems] == [ProblemKind.TYPE]
    assert says in problems[0].detail


def test_routes_come_and_go(ends: Ends) -> None:
    """A new route is pending; one no longer configured is forgotten, so that it is copied anew if it returns."""
    run(ends.source, "CREATE TABLE public.a (id int PRIMARY KEY); CREATE TABLE public.b (id int PRIMARY KEY)")
    ends.apply(spec("public.a", "copy.a"), spec("public.b", "copy.b"))
    run(ends.target, "UPDATE towline.route_state SET state = 'streaming', cursor = '{5}', copied = 5")
    ends.apply(spec("public.a", "copy.a"))
    states = control.read_states(ends.target, SCHEMA, PIPELINE)
    assert {name: state.state for name, state in states.items()} == {"public.a": "streaming"}
    assert states["public.a"].cursor == ("5",)
    ends.apply(spec("public.a", "copy.a"), spec("public.b", "copy.b"))
    states = control.read_states(ends.target, SCHEMA, PIPELINE)
    assert {name: state.state for name, state in states.items()} == {"public.a": "streaming", "public.b": "pending"}


def initialise(ends: Ends, position: str) -> bool:
    return setup.initialise(
        ends.target,
        schema=SCHEMA,
        pipeline=PIPELINE,
        position=parse_lsn(position),
        identity=IDENTITY,
        slot="towline_test",
        plugin="pgoutput",
    )


def test_a_checkpoint_is_written_once(ends: Ends) -> None:
    """The first checkpoint stands; when an operator removes it, all routes are copied anew."""
    run(ends.source, "CREATE TABLE public.a (id int PRIMARY KEY)")
    with pytest.raises(NotSetUp):
        initialise(ends, "0/10")
    with pytest.raises(NotSetUp):
        control.read_checkpoint(ends.target, SCHEMA, PIPELINE)
    ends.apply(spec("public.a", "copy.a"))
    assert control.read_checkpoint(ends.target, SCHEMA, PIPELINE) is None
    assert initialise(ends, "AB/10")
    run(ends.target, "UPDATE towline.route_state SET state = 'streaming', copied = 5")
    assert not initialise(ends, "FF/10")
    checkpoint = control.read_checkpoint(ends.target, SCHEMA, PIPELINE)
    assert checkpoint is not None
    assert checkpoint.position == parse_lsn("AB/10")
    assert (checkpoint.identity.system_identifier, checkpoint.identity.database) == ("7123456789", "erp")
    assert (checkpoint.epoch, checkpoint.slot, checkpoint.commit_time) == (0, "towline_test", None)
    assert control.read_states(ends.target, SCHEMA, PIPELINE)["public.a"].state == "streaming"
    run(ends.target, "DELETE FROM towline.checkpoint")
    assert initialise(ends, "FF/10")
    assert control.read_states(ends.target, SCHEMA, PIPELINE)["public.a"].state == "pending"


def test_the_ledger_is_read_by_route_and_hour(ends: Ends) -> None:
    """Figures come back as they were written; a row that does not balance is refused by the table itself."""
    run(ends.source, "CREATE TABLE public.a (id int PRIMARY KEY)")
    ends.apply(spec("public.a", "copy.a"))
    row = "INSERT INTO towline.ledger VALUES ('test', 'public.a', '2020-01-01', '0/10', '0/20', {}, 4, 3, 2, 1, 0)"
    run(ends.target, row.format(10))
    (entry,) = control.read_ledger(ends.target, SCHEMA, PIPELINE)
    assert entry.counts.balanced
    assert (entry.counts.seen, entry.from_position, entry.to_position) == (10, 16, 32)
    with pytest.raises(psycopg.errors.CheckViolation):
        run(ends.target, row.format(11).replace("2020", "2021"))


@pytest.mark.parametrize(
    "foreign",
    [
        "CREATE TABLE towline.version (version int); INSERT INTO towline.version VALUES (99)",
        "CREATE TABLE towline.version (release text)",
        "CREATE TABLE towline.checkpoint (id int)",
    ],
)
def test_control_tables_of_another_make_are_refused(ends: Ends, foreign: str) -> None:
    """Tables of an unknown version, or without one, are left alone."""
    run(ends.source, "CREATE TABLE public.a (id int PRIMARY KEY)")
    run(ends.target, f"CREATE SCHEMA towline; {foreign}")
    with pytest.raises(ControlTablesForeign):
        ends.plan(spec("public.a", "copy.a"))


@pytest.mark.parametrize(
    ("version", "lacking"),
    [
        (1, "DROP TABLE towline.quarantine"),
        (2, "ALTER TABLE towline.checkpoint DROP publication, DROP ahead"),
        (2, "ALTER TABLE towline.source_table DROP published"),
    ],
)
def test_control_tables_of_an_earlier_version_are_upgraded_by_apply(ends: Ends, version: int, lacking: str) -> None:
    """Nothing but `apply` goes on with them; it adds what they lack, and keeps what they hold."""
    run(ends.source, "CREATE TABLE public.a (id int PRIMARY KEY)")
    ends.apply(spec("public.a", "copy.a"))
    initialise(ends, "0/20")
    run(ends.target, f"{lacking}; UPDATE towline.version SET version = {version}")
    with pytest.raises(ControlTablesOld):
        control.present(ends.target, SCHEMA)
    (step,) = ends.plan(spec("public.a", "copy.a")).steps
    assert step.title == f"control tables in schema {SCHEMA}"
    ends.apply(spec("public.a", "copy.a"))
    assert control.present(ends.target, SCHEMA) == frozenset(control.TABLES)
    checkpoint = control.read_checkpoint(ends.target, SCHEMA, PIPELINE)
    assert checkpoint is not None and checkpoint.position == 0x20
    assert ends.plan(spec("public.a", "copy.a")).steps == ()


def test_the_control_schema_may_have_any_name(ends: Ends) -> None:
    """Names are quoted wherever they stand."""
    run(ends.source, "CREATE TABLE public.a (id int PRIMARY KEY)")
    routes = ends.check(spec("public.a", 'odd "%s".a'))
    for _ in range(2):
        plan = setup.plan(
            ends.target,
            schema='Tow{}"line',
            pipeline="it's",
            routes=routes,
            definitions=setup.definitions_for(ends.source, routes),
        )
        setup.execute(ends.target, plan.steps)
    assert plan.steps == ()
    assert set(control.read_states(ends.target, 'Tow{}"line', "it's")) == {"public.a"}
