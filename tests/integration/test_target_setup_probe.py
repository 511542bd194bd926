"""What only the target's server can say about a route is asked before the route runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest

from tests.support.checked import Ends, relation, run, spec
from tests.support.databases import NewDatabase
from towline.demo.server import Server
from towline.target.postgres.probe import probe
from towline_transforms.problems import Problem, ProblemKind
from towline_transforms.route import OnDelete, RouteSpec

SOURCE = """
CREATE TYPE public.state AS ENUM ('draft', 'done');
CREATE TABLE public.sale (id int PRIMARY KEY, state public.state, total numeric(10, 2), tags text[], at timestamptz)
"""

HUB = """
CREATE SCHEMA hub;
CREATE TABLE hub.sale (id int PRIMARY KEY, what text, total numeric, gone timestamptz);
CREATE FUNCTION public.steady(t text) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
CREATE FUNCTION public.fickle(t text) RETURNS text LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION public.many(t text) RETURNS SETOF text LANGUAGE sql STABLE AS 'SELECT $1';
CREATE AGGREGATE public.total_of(numeric) (sfunc = numeric_add, stype = numeric, initcond = '0');
CREATE FUNCTION public.fickle_plus(a numeric, b numeric) RETURNS numeric LANGUAGE sql VOLATILE AS 'SELECT $1 + $2';
CREATE OPERATOR public.|+| (leftarg = numeric, rightarg = numeric, function = public.fickle_plus);
"""


@pytest.fixture(params=["pg18", pytest.param("pg15", marks=pytest.mark.debian)])
def ends(request: pytest.FixtureRequest, new_database: NewDatabase) -> Iterator[Ends]:
    server: Server = request.getfixturevalue(request.param)
    with closing(Ends(new_database(server), new_database(server))) as both:
        run(both.source, SOURCE)
        run(both.target, HUB)
        yield both


def sale(expression: str, **options: object) -> RouteSpec:
    return spec("public.sale", "hub.sale", f"SELECT id, {expression} FROM public.sale WHERE id > 0", "sale", **options)


def problems(ends: Ends, route: RouteSpec) -> list[Problem]:
    routes = ends.check(route)
    return probe(ends.target, routes, [relation(each) for each in routes])


@pytest.mark.parametrize(
    "expression",
    [
        "upper(state) AS what, total * 2 AS total",
        "steady(state) AS what",
        "to_char(at, 'YYYY') AS what, round(total) AS total",
        "array_to_string(tags, ',') AS what, coalesce(total, 0)::numeric(5) AS total",
    ],
)
def test_statements_that_the_server_takes(ends: Ends, expression: str) -> None:
    """Built-in and stable functions, casts and enums that travel as text are fine, and the probe leaves nothing."""
    assert problems(ends, sale(expression)) == []
    assert problems(ends, sale(expression, on_delete=OnDelete.MARK, mark_column="gone")) == []
    assert ends.target.execute("SELECT FROM pg_prepared_statements").fetchall() == []
    assert ends.target.execute("SELECT FROM pg_class WHERE relname = 'towline_probe'").fetchall() == []


@pytest.mark.parametrize(
    ("expression", "kind", "says"),
    [
        ("state IS NULL AS total", ProblemKind.STATEMENT, "is of type numeric but expression is of type boolean"),
        ("upper(total) AS what", ProblemKind.STATEMENT, "function upper(numeric) does not exist"),
        ("no_such(state) AS what", ProblemKind.STATEMENT, "no_such"),
        ("state + 1 AS total", ProblemKind.STATEMENT, "operator does not exist"),
        ("'x'::no_such_type::text AS what", ProblemKind.STATEMENT, "no_such_type"),
        ("fickle(state) AS what", ProblemKind.FUNCTION, "public.fickle is declared VOLATILE"),
        ("public.fickle(state) AS what", ProblemKind.FUNCTION, "public.fickle is declared VOLATILE"),
        ("total OPERATOR(public.|+|) 1 AS total", ProblemKind.FUNCTION, "public.fickle_plus is declared VOLATILE"),
        ("many(state) AS what", ProblemKind.FUNCTION, "public.many returns a set"),
        ("pg_catalog.brin_summarize_new_values(id::oid)::text AS what", ProblemKind.FUNCTION, "VOLATILE"),
    ],
)
def test_statements_that_it_does_not(ends: Ends, expression: str, kind: ProblemKind, says: str) -> None:
    """Types that do not fit; functions that do not exist, are volatile or return sets: named before the first row."""
    (problem,) = problems(ends, sale(expression))
    assert (problem.kind, problem.route) == (kind, "sale")
    assert says in problem.detail
    assert problem.remedy


def test_an_aggregate_of_the_admin_s_own(ends: Ends) -> None:
    """That a function is an aggregate shows when the statement is prepared, or by its kind."""
    (problem,) = problems(ends, sale("total_of(total) AS total"))
    assert problem.kind in (ProblemKind.STATEMENT, ProblemKind.AGGREGATE)


def test_privileges_are_missed(ends: Ends) -> None:
    """The role that writes must be able to; the remedy is the statement to run."""
    run(ends.target, "CREATE ROLE towline_probe_role; GRANT USAGE ON SCHEMA hub TO towline_probe_role")
    try:
        run(ends.target, "GRANT SELECT, INSERT ON hub.sale TO towline_probe_role; SET ROLE towline_probe_role")
        (problem,) = problems(ends, sale("state::text AS what"))
        assert "lacks UPDATE, DELETE on hub.sale" in problem.detail
        assert 'GRANT UPDATE, DELETE ON "hub"."sale"' in problem.remedy
    finally:
        run(ends.target, "RESET ROLE; DROP OWNED BY towline_probe_role; DROP ROLE towline_probe_role")


def test_the_probe_changes_nothing(ends: Ends) -> None:
    """A route that is refused leaves the session fit for the next one."""
    problems(ends, sale("state IS NULL AS total"))
    assert ends.target.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert problems(ends, sale("state::text AS what")) == []


def test_joined_tables_that_the_role_may_not_read(ends: Ends) -> None:
    """A missing SELECT on a joined table is told by `check`, not by the first row."""
    run(
        ends.target,
        """
        CREATE TABLE hub.rate (day int PRIMARY KEY, rate numeric, secret text);
        DROP ROLE IF EXISTS towline_joins;
        CREATE ROLE towline_joins;
        GRANT USAGE ON SCHEMA hub TO towline_joins;
        GRANT SELECT, INSERT, UPDATE, DELETE ON hub.sale TO towline_joins;
        GRANT SELECT (day) ON hub.rate TO towline_joins;
        SET ROLE towline_joins
        """,
    )
    try:
        select = "SELECT s.id, r.rate AS total FROM public.sale s LEFT JOIN hub.rate r ON r.day = s.id"
        (found,) = problems(ends, spec("public.sale", "hub.sale", select, "sale"))
        assert (found.kind, "hub.rate" in found.detail) == (ProblemKind.TARGET_TABLE, True)
        assert found.remedy.startswith("Run at the target: GRANT SELECT ON hub.rate TO ")
        run(ends.target, "RESET ROLE; GRANT SELECT (rate) ON hub.rate TO towline_joins; SET ROLE towline_joins")
        assert problems(ends, spec("public.sale", "hub.sale", select, "sale")) == []
    finally:
        run(ends.target, "RESET ROLE; DROP OWNED BY towline_joins; DROP ROLE towline_joins")
