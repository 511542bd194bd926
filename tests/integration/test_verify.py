"""verify finds every planted difference and nothing else, for identity and SELECT routes, in both forms of values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest

from tests.support.checked import PIPELINE, SCHEMA, Ends, relation, run, spec
from tests.support.databases import NewDatabase
from towline.change import Format
from towline.demo.server import Server
from towline.differences import Report, RouteReport
from towline.errors import SourceReplaced, VerifyUnsettled
from towline.position import format_lsn
from towline.route_verifier import Progress
from towline.source.postgres.tables import PostgresTables
from towline.target import ChunkLoad, RouteState
from towline.target.postgres import setup
from towline.target.postgres.apply import Applier
from towline.target.postgres.compare import CompareSession
from towline.verify import verify_routes
from towline_transforms.route import OnDelete, Route, RouteSpec

SOURCE = """
CREATE TYPE public.state AS ENUM ('draft', 'done');
CREATE TABLE public.item (
    id int PRIMARY KEY, name text, price numeric, doc json, docb jsonb, weight float8, at timestamptz,
    tags text[], bits bytea, size interval, flag bool, code char(4)
);
INSERT INTO public.item
SELECT n, 'item ' || n, 1.0 + n, '{"a": 1}', '{"a": 1}', 0, '2020-01-01', ARRAY['x', NULL],
  '\\x00ff', '30 days', n % 2 = 0, 'ab'
FROM generate_series(1, 50) AS n;
CREATE TABLE public.sale (number int PRIMARY KEY, party int, state public.state NOT NULL, total numeric(10, 2));
INSERT INTO public.sale SELECT n, n % 5, CASE WHEN n % 3 = 0 THEN 'draft' ELSE 'done' END::public.state, n
FROM generate_series(1, 60) AS n;
"""

HUB = """
CREATE SCHEMA hub;
CREATE TABLE hub.customer (src_key text PRIMARY KEY, code text NOT NULL);
INSERT INTO hub.customer SELECT n::text, 'C' || n FROM generate_series(0, 3) AS n;
CREATE TABLE hub.trade_order (order_no text PRIMARY KEY, customer text, total numeric(12, 3), changed_at timestamptz,
    gross numeric GENERATED ALWAYS AS (total * 2) STORED, note text);
"""

ORDER = spec(
    "public.sale",
    "hub.trade_order",
    "SELECT 'SO-' || s.number AS order_no, upper(c.code) AS customer, s.total AS total, _commit_time AS changed_at "
    "FROM public.sale s LEFT JOIN hub.customer c ON c.src_key = s.party::text WHERE s.state <> 'draft'",
    name="order",
)
ITEM = spec("public.item", "copy.item", name="item")


class Pair:
    """A source and a target that were brought to the same state, and what verifies them."""

    def __init__(self, ends: Ends, form: Format | None = None) -> None:
        self.ends = ends
        self.form = form
        self.chunk_rows = 7
        self.pending: Callable[[int, int], bool] = lambda applied, upto: False
        self.timeout = 30.0
        run(ends.source, SOURCE)
        run(ends.target, HUB)

    def copy(self, *specs: RouteSpec) -> tuple[Route, ...]:
        """Set the target up, copy everything, and say so in the control tables."""
        routes = self.ends.apply(*specs)
        with self.tables() as tables:
            identity, position = tables.identity(), tables.position()
            sources = [relation(route, self.form) for route in routes]
            applier = Applier(self.ends.target, pipeline=PIPELINE, routes=routes, relations=sources)
            for route, source in zip(routes, sources, strict=True):
                with self.ends.target.transaction():
                    applier.begin()
                    chunk = tables.chunk(source, None, 1_000_000)
                    applier.load(ChunkLoad(route, chunk, RouteState(route.name, "streaming")))
                    applier.executor.sync()
        setup.initialise(
            self.ends.target,
            schema=SCHEMA,
            pipeline=PIPELINE,
            position=position,
            identity=identity,
            slot="none",
            plugin="pgoutput",
        )
        run(self.ends.target, "UPDATE towline.route_state SET state = 'streaming'")
        return routes

    @contextmanager
    def tables(self) -> Iterator[PostgresTables]:
        with closing(PostgresTables(self.ends.source_dsn, slot="none")) as tables:
            yield tables

    def verify(self, *routes: Route, repair: bool = False) -> Report:
        pairs = [(route, relation(route, self.form)) for route in routes]
        dsn = self.ends.target_dsn
        with (
            self.tables() as tables,
            closing(CompareSession(dsn, schema=SCHEMA, pipeline=PIPELINE, routes=pairs)) as session,
        ):
            return verify_routes(
                tables,
                session,
                Progress(lambda: session.checkpoint().position, self.pending, self.timeout),
                pairs,
                chunk_rows=self.chunk_rows,
                repair=repair,
            )

    def one(self, route: Route, repair: bool = False) -> RouteReport:
        (report,) = self.verify(route, repair=repair).routes
        return report


@pytest.fixture(
    params=[("pg18", None), ("pg18", Format.TEXT), pytest.param(("pg15", Format.TEXT), marks=pytest.mark.debian)],
    ids=["18-binary", "18-text", "15-text"],
)
def pair(request: pytest.FixtureRequest, hub18: Server, new_database: NewDatabase) -> Iterator[Pair]:
    server: Server = request.getfixturevalue(request.param[0])
    with closing(Ends(new_database(server), new_database(hub18))) as ends:
        yield Pair(ends, request.param[1])


@pytest.fixture
def pair18(pg18: Server, hub18: Server, new_database: NewDatabase) -> Iterator[Pair]:
    with closing(Ends(new_database(pg18), new_database(hub18))) as ends:
        yield Pair(ends)


def found(report: RouteReport) -> dict[str, list[tuple[str | None, ...]]]:
    return {
        kind: sorted((sample.key for sample in report.samples if sample.kind == kind), key=str)
        for kind in ("missing", "extra", "different")
        if getattr(report, kind)
    }


def test_equal_tables_have_no_differences(pair: Pair) -> None:
    """Every row of both routes is compared, filtered ones included, and none differs."""
    report = pair.verify(*pair.copy(ITEM, ORDER))
    assert [(route.route, route.rows, route.differing, route.unsettled) for route in report.routes] == [
        ("item", 50, 0, 0),
        ("order", 60, 0, 0),
    ]
    assert report.total == "verified: 110 rows compared, 0 differ"
    assert report.exit_code == 0


CORRUPTIONS = [
    ("price = price * 1.0", "price"),  # the same number, of another scale
    ("price = NULL", "price"),
    ("name = ''", "name"),
    ("name = NULL", "name"),
    ("name = name || ' '", "name"),
    ("""doc = '{"a":1}'""", "doc"),
    ("""docb = '{"a": 1.0}'""", "docb"),
    ("weight = '-0'", "weight"),
    ("weight = 'NaN'", "weight"),
    ("at = '2020-01-01 00:00:00.000001Z'", "at"),
    ("tags = '{x}'", "tags"),
    ("tags = '[0:1]={x,NULL}'", "tags"),
    ("bits = ''", "bits"),
    ("size = '1 mon'", "size"),
    ("flag = NULL", "flag"),
    ("code = NULL", "code"),
]


def test_any_change_of_a_value_is_found(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are compared as they are stored, so that nothing which a type holds equal slips through."""
    monkeypatch.setattr("towline.differences.SAMPLES", 100)
    (route,) = pair.copy(ITEM)
    for number, (corruption, _) in enumerate(CORRUPTIONS):
        run(pair.ends.target, f"UPDATE copy.item SET {corruption} WHERE id = {number + 5}")
    report = pair.verify(route)
    samples = {sample.key: (sample.kind, sample.columns) for sample in report.routes[0].samples}
    assert samples == {(str(number + 5),): ("different", (column,)) for number, (_, column) in enumerate(CORRUPTIONS)}
    assert report.routes[0].columns["name"] == 3
    assert report.exit_code == 4
    assert report.total == f"verified: 50 rows compared, {len(CORRUPTIONS)} differ"


def test_missing_and_extra_rows_of_an_identity_route(pair: Pair) -> None:
    """Rows that only one side has are told apart, at the ends of chunks too."""
    (route,) = pair.copy(ITEM)
    run(pair.ends.target, "DELETE FROM copy.item WHERE id IN (1, 7, 8, 50)")
    run(pair.ends.target, "INSERT INTO copy.item (id) VALUES (0), (51), (1000)")
    report = pair.one(route)
    assert found(report) == {"missing": [("1",), ("50",), ("7",), ("8",)], "extra": [("0",), ("1000",), ("51",)]}


def test_all_kinds_of_differences_of_a_select_route(pair: Pair) -> None:
    """Through WHERE, a join and expressions: also a row that the filter rejects and the target has."""
    (route,) = pair.copy(ORDER)
    run(
        pair.ends.target,
        """DELETE FROM hub.trade_order WHERE order_no = 'SO-1';
        UPDATE hub.trade_order SET customer = 'c2' WHERE order_no = 'SO-2';
        UPDATE hub.trade_order SET note = 'not of the route', changed_at = now() WHERE order_no = 'SO-4';
        INSERT INTO hub.trade_order (order_no) VALUES ('SO-3'), ('other')""",
    )
    report = pair.one(route)
    assert found(report) == {"missing": [("SO-1",)], "different": [("SO-2",)], "extra": [("SO-3",), ("other",)]}
    assert report.columns == {"customer": 1}


def test_a_change_of_a_joined_table_shows(pair: Pair) -> None:
    """The route is evaluated with what the target's tables hold now."""
    (route,) = pair.copy(ORDER)
    run(pair.ends.target, "UPDATE hub.customer SET code = 'new' WHERE src_key = '1'")
    report = pair.one(route)
    assert report.columns == {"customer": report.different}
    assert report.different == 8


def test_repair_mends_and_nothing_else_is_touched(pair: Pair) -> None:
    """Missing, different and extra rows are mended; the report says what was, and what is now."""
    routes = pair.copy(ITEM, ORDER)
    run(
        pair.ends.target,
        """DELETE FROM copy.item WHERE id < 20; UPDATE copy.item SET name = 'x', price = 0 WHERE id > 40;
        INSERT INTO copy.item (id) SELECT n FROM generate_series(100, 130) AS n;
        DELETE FROM hub.trade_order WHERE order_no < 'SO-3'; 
        UPDATE hub.trade_order SET total = 0 WHERE order_no > 'SO-5';
        INSERT INTO hub.trade_order (order_no) SELECT 'x' || n FROM generate_series(1, 30) AS n;
        UPDATE hub.trade_order SET note = 'kept'""",
    )
    before = pair.verify(*routes)
    assert before.exit_code == 4
    report = pair.verify(*routes, repair=True)
    assert report.exit_code == 0
    assert [repaired.differing for repaired in report.repairs] == [route.differing for route in before.routes]
    assert [repaired.repaired for repaired in report.repairs] == [route.differing for route in before.routes]
    assert pair.verify(*routes).differing == 0
    notes = "SELECT count(*) FROM hub.trade_order WHERE note = 'kept'"
    assert pair.ends.target.execute(notes).fetchone() != (0,)


def test_marked_rows_are_not_extra(pair18: Pair) -> None:
    """With on_delete: mark, a marked row is no difference, an unmarked extra one is marked by a repair, and a marked
    row that the source has is different."""
    run(pair18.ends.target, "CREATE TABLE hub.item (LIKE hub.customer); ALTER TABLE hub.item ADD gone timestamptz")
    run(pair18.ends.target, "ALTER TABLE hub.item ADD PRIMARY KEY (src_key)")
    select = "SELECT id::text AS src_key, coalesce(name, '') AS code FROM public.item"
    (route,) = pair18.copy(
        spec("public.item", "hub.item", select, name="m", on_delete=OnDelete.MARK, mark_column="gone")
    )
    run(
        pair18.ends.target,
        "INSERT INTO hub.item VALUES ('a', 'x', now()), ('b', 'x', NULL);"
        "UPDATE hub.item SET gone = now() WHERE src_key = '9'",
    )
    report = pair18.one(route)
    assert found(report) == {"extra": [("b",)], "different": [("9",)]}
    assert report.columns == {"gone": 1}
    assert pair18.verify(route, repair=True).exit_code == 0
    rows = pair18.ends.target.execute("SELECT src_key FROM hub.item WHERE gone IS NOT NULL ORDER BY 1").fetchall()
    assert rows == [("a",), ("b",)]


def test_ignored_deletes_leave_no_extras(pair18: Pair) -> None:
    """With on_delete: ignore, the target may have more rows than the source."""
    (route,) = pair18.copy(spec("public.item", "copy.item", name="item", on_delete=OnDelete.IGNORE))
    run(pair18.ends.source, "DELETE FROM public.item WHERE id = 1")
    run(pair18.ends.target, "DELETE FROM copy.item WHERE id = 2")
    assert found(pair18.one(route)) == {"missing": [("2",)]}


def test_a_composite_key_with_odd_types(pair: Pair) -> None:
    """Keys of several columns: text with blanks, an enum, a date before Christ, a numeric that shows its scale."""
    run(
        pair.ends.source,
        """CREATE TABLE public."Odd %t" ("a b" text, day date, n numeric, s public.state, v int,
        PRIMARY KEY (n, "a b", s, day));
        INSERT INTO public."Odd %t" SELECT 'k ' || n, '0044-03-15 BC'::date + n, n * 1.00, 'done', n
        FROM generate_series(1, 20) AS n""",
    )
    (route,) = pair.copy(spec("public.Odd %t", "copy.odd"))
    assert pair.one(route).differing == 0
    run(pair.ends.target, "DELETE FROM copy.odd WHERE v = 3; UPDATE copy.odd SET v = 0 WHERE v = 4")
    run(pair.ends.target, "INSERT INTO copy.odd SELECT 'new', day, n, s, v FROM copy.odd WHERE v IN (5, 6)")
    report = pair.one(route)
    assert (report.missing, report.different, report.extra) == (1, 1, 2)
    assert pair.verify(route, repair=True).exit_code == 0


def test_a_key_that_is_equal_but_not_the_same(pair18: Pair) -> None:
    """A numeric key of another scale is the same row, with a difference."""
    run(pair18.ends.source, "CREATE TABLE public.n (k numeric PRIMARY KEY); INSERT INTO public.n VALUES (1.0), (2)")
    (route,) = pair18.copy(spec("public.n", "copy.n"))
    run(pair18.ends.target, "UPDATE copy.n SET k = 1.00 WHERE k = 1")
    report = pair18.one(route)
    assert (report.missing, report.different, report.extra) == (0, 1, 0)


def test_many_differences_are_counted_and_few_are_shown(pair18: Pair) -> None:
    """A report holds up to ten keys of each kind, whatever the number of differences."""
    (route,) = pair18.copy(ITEM)
    run(pair18.ends.target, "DELETE FROM copy.item WHERE id <= 15; UPDATE copy.item SET name = '' WHERE id > 20")
    report = pair18.one(route)
    assert (report.missing, report.different) == (15, 30)
    assert len(report.samples) == 20
    assert report.as_dict()["columns"] == {"name": 30}
    assert len(list(report.lines())) == 22


def test_a_difference_is_reported_only_at_a_common_position(pair18: Pair) -> None:
    """While the target is behind, a row that differs is no difference; when it does not catch up, that is an error."""
    (route,) = pair18.copy(ITEM)
    pair18.pending = lambda applied, upto: True
    assert pair18.verify(route).exit_code == 0  # what is equal needs no waiting
    run(pair18.ends.source, "UPDATE public.item SET name = 'new' WHERE id = 3")
    pair18.timeout = 0.3
    with pytest.raises(VerifyUnsettled):
        pair18.verify(route)
    looks: list[int] = []

    def catches_up(applied: int, upto: int) -> bool:
        looks.append(upto)
        if len(looks) == 3:
            run(
                pair18.ends.target,
                "UPDATE copy.item SET name = 'new' WHERE id = 3;"
                f"UPDATE towline.checkpoint SET position = '{format_lsn(upto)}'",
            )
        return True

    pair18.pending = catches_up
    pair18.timeout = 30.0
    assert pair18.verify(route).exit_code == 0
    assert len(looks) == 3


def test_rows_deleted_or_inserted_meanwhile_are_no_differences(pair18: Pair) -> None:
    """A key that leaves the source after it was read, and one that comes back, are not reported."""
    (route,) = pair18.copy(ITEM)
    run(pair18.ends.target, "INSERT INTO copy.item (id) VALUES (60); DELETE FROM copy.item WHERE id = 5")
    run(pair18.ends.source, "CREATE TABLE public.unrelated ()")  # the log goes on
    calls: list[int] = []

    def change(applied: int, upto: int) -> bool:
        calls.append(upto)
        if len(calls) == 1:
            run(pair18.ends.source, "INSERT INTO public.item (id) VALUES (60); DELETE FROM public.item WHERE id = 5")
        return False

    pair18.pending = change
    report = pair18.one(route)
    assert (report.differing, report.unsettled) == (0, 0)


def test_a_row_that_never_rests_is_unsettled(pair18: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source row that changes around every look is neither equal nor different."""
    monkeypatch.setattr("towline.route_verifier.ROUNDS", 6)
    (route,) = pair18.copy(ITEM)
    run(pair18.ends.target, "UPDATE copy.item SET name = 'wrong' WHERE id IN (7, 8)")
    run(pair18.ends.source, "CREATE TABLE public.unrelated ()")  # the log goes on

    def change(applied: int, upto: int) -> bool:
        run(pair18.ends.source, "UPDATE public.item SET price = price + 1 WHERE id = 7")
        return False

    pair18.pending = change
    report = pair18.verify(route)
    assert found(report.routes[0]) == {"different": [("8",)]}
    assert report.unsettled == 1
    run(pair18.ends.target, "UPDATE copy.item SET name = 'item 8' WHERE id = 8")
    assert pair18.verify(route).exit_code == 1


def test_a_route_that_is_still_copied_is_not_compared(pair18: Pair) -> None:
    """Its line says so, and the exit code says that not everything was verified."""
    (route,) = pair18.copy(ITEM)
    run(pair18.ends.target, "UPDATE towline.route_state SET state = 'copying'")
    report = pair18.verify(route)
    assert (report.rows, report.exit_code) == (0, 1)
    assert "copy is not complete" in next(report.lines())


def test_another_source_is_refused(pair18: Pair, pg18: Server, new_database: NewDatabase) -> None:
    """A checkpoint belongs to one database; verifying against another would report nonsense."""
    (route,) = pair18.copy(ITEM)
    pair18.ends.source_dsn = new_database(pg18)
    with pytest.raises(SourceReplaced):
        pair18.verify(route)


def test_empty_tables(pair18: Pair) -> None:
    """Nothing on either side is equal; rows against nothing are extra."""
    run(pair18.ends.source, "TRUNCATE public.item")
    (route,) = pair18.copy(ITEM)
    assert pair18.one(route).differing == 0
    run(pair18.ends.target, "INSERT INTO copy.item (id) SELECT n FROM generate_series(1, 25) AS n")
    report = pair18.one(route)
    assert (report.rows, report.extra) == (0, 25)
    assert pair18.verify(route, repair=True).exit_code == 0
