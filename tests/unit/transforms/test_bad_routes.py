"""Routes that are refused: the kind of problem, the column it names, and words of the way out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.unit.transforms.catalogs import SOURCE, TARGET, catalog, route, table
from towline_transforms.check import check_routes
from towline_transforms.problems import Problem, ProblemKind, RouteError
from towline_transforms.route import OnDelete, RouteSpec

K = ProblemKind


def problems(*specs: RouteSpec) -> tuple[Problem, ...]:
    with pytest.raises(RouteError) as caught:
        check_routes(specs, SOURCE, TARGET)
    return caught.value.problems


@dataclass(frozen=True)
class Bad:
    """A route, and the one problem it must have; ``says``: words of its detail or remedy."""

    id: str
    spec: RouteSpec
    kind: ProblemKind
    column: str = ""
    says: str = ""


def sql(id_: str, text: str, kind: ProblemKind, column: str = "", says: str = "") -> Bad:
    """A whole SELECT from sale_sale into hub.trade_order."""
    return Bad(id_, route(text), kind, column, says)


def expr(id_: str, expression: str, kind: ProblemKind, says: str = "") -> Bad:
    """One expression, as column ``total``."""
    return Bad(id_, route(f"SELECT number AS order_no, {expression} AS total FROM sale_sale s"), kind, "total", says)


def join(id_: str, text: str, kind: ProblemKind = K.JOIN, says: str = "", column: str = "") -> Bad:
    """One more part of FROM."""
    return Bad(id_, route(f"SELECT s.number AS order_no FROM sale_sale s {text}"), kind, column, says)


def line(id_: str, select: str, kind: ProblemKind, column: str = "", says: str = "", key: str = "") -> Bad:
    """A SELECT list over sale_line, whose identity has two columns, into hub.order_line."""
    spec = route(f"SELECT {select} FROM sale_line", source="public.sale_line", into="hub.order_line", key=key)
    return Bad(id_, spec, kind, column, says)


FROM = "FROM sale_sale s"
S = f"SELECT number AS order_no {FROM}"

FORM = [
    sql("empty", "", K.SYNTAX, says="not a SELECT"),
    sql("not-sql", "order_no <- number", K.SYNTAX),
    sql("insert", "INSERT INTO x VALUES (1)", K.SYNTAX),
    sql("drop", "DROP TABLE sale_sale", K.SYNTAX),
    sql("values", "VALUES (1)", K.SYNTAX),
    sql("table", "TABLE sale_sale", K.SYNTAX),
    sql("explain", f"EXPLAIN {S}", K.SYNTAX),
    sql("in-parentheses", f"({S})", K.SYNTAX),
    sql("open-parenthesis", f"{S} WHERE (year > 1", K.SYNTAX, says="Line 1"),
    sql("open-string", f"{S} WHERE state = 'x", K.SYNTAX, says="does not end"),
    sql("open-comment", f"{S} /* so", K.SYNTAX),
    sql("open-name", f'{S} WHERE "state = 1', K.SYNTAX),
    sql("two-statements", f"{S}; {S}", K.SYNTAX, says="more than one"),
    sql("injected", f"{S}; DROP TABLE x;", K.SYNTAX),
    sql("no-columns", "SELECT FROM sale_sale", K.SYNTAX),
    sql("comma-too-many", "SELECT number AS order_no, FROM sale_sale", K.SYNTAX),
    sql("no-from", "SELECT 1 AS order_no", K.SYNTAX, says="FROM"),
    sql("other-table", "SELECT number AS order_no FROM sale", K.SYNTAX, says="public.sale_sale"),
    sql("other-schema", "SELECT number AS order_no FROM erp.sale_sale", K.SYNTAX, says="public.sale_sale"),
    sql("quoted-wrong-case", 'SELECT number AS order_no FROM "Sale_Sale"', K.SYNTAX, says="public.sale_sale"),
    sql("with-database", "SELECT number AS order_no FROM erp.public.sale_sale", K.SYNTAX),
    sql("from-function", "SELECT number AS order_no FROM sale_sale()", K.SYNTAX),
    sql("from-values", "SELECT number AS order_no FROM (VALUES (1)) AS v(number)", K.SUBQUERY),
    sql("only", "SELECT number AS order_no FROM ONLY sale_sale", K.SYNTAX, says="alias"),
    sql("sample", "SELECT number AS order_no FROM sale_sale TABLESAMPLE system (1)", K.SYNTAX),
    sql("column-aliases", "SELECT a AS order_no FROM sale_sale s (a)", K.SYNTAX),
    sql("with-children", "SELECT number AS order_no FROM sale_sale *", K.SYNTAX),
    sql("with", "WITH x AS (SELECT 1) SELECT number AS order_no FROM sale_sale", K.SYNTAX, says="WITH"),
    sql("into", "SELECT number AS order_no INTO t FROM sale_sale", K.SYNTAX, says="`into`"),
    sql("for-update", f"{S} FOR UPDATE", K.SYNTAX, says="lock"),
    sql("for-share", f"{S} FOR KEY SHARE", K.SYNTAX),
    sql("no-name", "SELECT number AS order_no, upper(state) FROM sale_sale", K.SYNTAX, "upper(state)", "AS column"),
    sql("cast-without-name", "SELECT number AS order_no, state::text FROM sale_sale", K.SYNTAX, "state::text"),
    sql("star-with-join", f"SELECT * {FROM} LEFT JOIN hub.customer c ON c.code = s.state", K.SYNTAX, "*", "s.*"),
    sql("star-of-joined", f"SELECT c.* {FROM} LEFT JOIN hub.customer c ON c.code = s.state", K.SYNTAX, "c.*"),
    sql("star-of-hidden-name", "SELECT sale_sale.* FROM sale_sale s", K.SYNTAX, "sale_sale.*", "s.*"),
    sql("star-of-schema", "SELECT public.sale_sale.* FROM public.sale_sale", K.SYNTAX, "public.sale_sale.*"),
    sql("parameter-number", f"{S} WHERE year = $1", K.SYNTAX),
    sql("parameter-name", f"{S} WHERE year = :year", K.SYNTAX, says="parameter"),
    sql("parameter-percent", f"{S} WHERE year = %s", K.SYNTAX, says="parameter"),
    sql("parameter-named-percent", f"{S} WHERE year = %(year)s", K.SYNTAX, says="parameter"),
    sql("parameter-question", f"{S} WHERE year = ?", K.SYNTAX, says="parameter"),
    sql("operator-unknown", "SELECT number AS order_no, @ s.party AS party FROM sale_sale s", K.SYNTAX),
    Bad("pattern-with-select", route(S, source="public.*", into="replica.*"), K.SYNTAX, says="each table"),
]  # fmt: skip

MANY_ROWS = [
    expr("count", "count(*)", K.AGGREGATE, "view"),
    expr("sum", "SUM(s.total_amount)", K.AGGREGATE),
    expr("max-nested", "coalesce(max(s.total_amount), 0)", K.AGGREGATE),
    expr("string-agg", "string_agg(s.state, ',')", K.AGGREGATE),
    expr("array-agg", "array_agg(s.state ORDER BY s.year)", K.AGGREGATE),
    expr("jsonb-agg-qualified", "pg_catalog.jsonb_agg(s.state)", K.AGGREGATE),
    expr("own-aggregate-filter", "hub.mine(s.state) FILTER (WHERE s.year > 1)", K.AGGREGATE, "FILTER"),
    expr("within-group", "hub.mine(0.5) WITHIN GROUP (ORDER BY s.year)", K.AGGREGATE, "WITHIN"),
    expr("percentile", "percentile_cont(0.5) WITHIN GROUP (ORDER BY s.year)", K.AGGREGATE),
    sql("aggregate-in-where", f"{S} WHERE count(*) > 1", K.AGGREGATE),
    sql("group-by", f"{S} GROUP BY number", K.AGGREGATE, says="GROUP BY"),
    sql("having", f"{S} HAVING year > 1", K.AGGREGATE, says="HAVING"),
    sql("distinct", "SELECT DISTINCT number AS order_no FROM sale_sale", K.AGGREGATE, says="DISTINCT"),
    sql("distinct-on", "SELECT DISTINCT ON (party) number AS order_no FROM sale_sale", K.AGGREGATE),
    sql("limit", f"{S} LIMIT 1", K.AGGREGATE, says="LIMIT"),
    sql("fetch", f"{S} FETCH FIRST 1 ROW ONLY", K.AGGREGATE),
    sql("offset", f"{S} OFFSET 1", K.AGGREGATE, says="OFFSET"),
    sql("order-by", f"{S} ORDER BY number", K.AGGREGATE, says="Leave it out"),
    sql("union", f"{S} UNION ALL {S}", K.AGGREGATE, says="UNION"),
    sql("except", f"{S} EXCEPT {S}", K.AGGREGATE),
    expr("window", "hub.mine(s.total_amount) OVER (PARTITION BY s.party)", K.WINDOW, "view"),
    expr("window-function", "row_number() OVER (ORDER BY s.year)", K.WINDOW),
    expr("window-name", "lag(s.total_amount) OVER w", K.WINDOW),
    sql("window-clause", f"{S} WINDOW w AS (ORDER BY year)", K.WINDOW),
]

SUBQUERIES = [
    sql("scalar-subquery", f"SELECT number AS order_no, (SELECT 1) AS total {FROM}", K.SUBQUERY, says="LEFT JOIN"),
    sql("over-source", f"{S} WHERE year = (SELECT max(year) FROM sale_sale)", K.SUBQUERY),
    sql("correlated", "SELECT number AS order_no, (SELECT c.name FROM hub.customer c WHERE c.code = s.state) AS state "
        f"{FROM}", K.SUBQUERY, says="LEFT JOIN"),
    sql("exists", f"{S} WHERE EXISTS (SELECT 1 FROM hub.customer)", K.SUBQUERY),
    sql("in", f"{S} WHERE state IN (SELECT code FROM hub.customer)", K.SUBQUERY),
    sql("any-of", f"{S} WHERE state = ANY (SELECT code FROM hub.customer)", K.SUBQUERY),
    sql("array-of", "SELECT number AS order_no, ARRAY(SELECT 1) AS total FROM sale_sale", K.SUBQUERY),
    sql("derived-table", "SELECT number AS order_no FROM (SELECT * FROM sale_sale) q", K.SUBQUERY),
    join("joined-subquery", "LEFT JOIN (SELECT * FROM hub.customer) c ON c.code = s.state", K.SUBQUERY),
    join("lateral-subquery", "LEFT JOIN LATERAL (SELECT 1) c ON true", K.SUBQUERY),
]  # fmt: skip

FUNCTIONS = [
    expr("unnest", "unnest(s.tags)", K.FUNCTION, "set"),
    expr("generate-series", "generate_series(1, s.year)", K.FUNCTION, "set"),
    expr("json-elements", "jsonb_array_elements(s.data)", K.FUNCTION, "set"),
    expr("regexp-matches", "regexp_matches(s.state, 'x')", K.FUNCTION, "regexp_match"),
    expr("json-to-record", "jsonb_to_recordset(s.data)", K.FUNCTION),
    expr("split-to-table", "REGEXP_SPLIT_TO_TABLE(s.state, ',')", K.FUNCTION),
    expr("random", "random()", K.FUNCTION, "default"),
    expr("now", "now()", K.FUNCTION, "_commit_time"),
    expr("now-qualified", "pg_catalog.now()", K.FUNCTION, "_commit_time"),
    expr("current-timestamp", "current_timestamp", K.FUNCTION, "_commit_time"),
    expr("current-date", "CURRENT_DATE", K.FUNCTION, "_commit_time"),
    expr("localtime", "localtime", K.FUNCTION),
    expr("timeofday", "timeofday()", K.FUNCTION),
    expr("current-timestamp-precision", "current_timestamp(3)", K.FUNCTION, "_commit_time"),
    expr("clock", "clock_timestamp()", K.FUNCTION),
    expr("age-of-one", "age(s.created)", K.FUNCTION, "_commit_time"),
    expr("literal-now", "'now'::timestamptz", K.FUNCTION, "_commit_time"),
    expr("literal-today", "s.due - DATE 'today'", K.FUNCTION),
    expr("current-user", "current_user", K.FUNCTION, "session"),
    expr("bare-user", "user", K.FUNCTION, "session"),
    expr("setting", "current_setting('x')", K.FUNCTION, "session"),
    expr("nextval", "nextval('x')", K.FUNCTION),
    expr("currval", "currval('x')", K.FUNCTION),
    expr("uuid", "gen_random_uuid()", K.FUNCTION, "md5"),
    expr("uuid-extension", "ext.uuid_generate_v4()", K.FUNCTION),
    expr("txid", "txid_current()", K.FUNCTION),
    expr("pg-function", "pg_backend_pid()", K.FUNCTION),
    expr("set-config", "set_config('a', 'b', true)", K.FUNCTION),
    expr("dblink", "ext.dblink_exec('x')", K.FUNCTION),
    sql("volatile-in-where", f"{S} WHERE random() < 0.5", K.FUNCTION),
    join("volatile-in-join", "LEFT JOIN hub.rate r ON r.currency = s.state AND r.day = current_date", K.FUNCTION),
    join("literal-in-join", "LEFT JOIN hub.rate r ON r.currency = s.state AND r.day = 'today'::date", K.FUNCTION),
    sql("pseudo-in-where", f"{S} WHERE _op = 'insert'", K.FUNCTION, "_op"),
    join("pseudo-in-inner-join", "JOIN hub.rate r ON r.currency = s.state AND r.day = _commit_time::date", K.FUNCTION,
         column="_commit_time"),
]  # fmt: skip

JOINS = [
    join("comma", ", hub.customer c", says="no condition"),
    join("cross", "CROSS JOIN hub.customer c", says="CROSS"),
    join("right", "RIGHT JOIN hub.customer c ON c.code = s.state", says="RIGHT"),
    join("full", "FULL OUTER JOIN hub.customer c ON c.code = s.state", says="FULL"),
    join("natural", "NATURAL JOIN hub.customer c", says="NATURAL"),
    join("using", "LEFT JOIN hub.order_line c USING (party)", says="USING"),
    join("no-schema", "LEFT JOIN customer c ON c.code = s.state", says="schema.customer"),
    join("self", "LEFT JOIN sale_sale p ON p.number = s.state", says="twice"),
    join("self-qualified", "LEFT JOIN public.sale_sale p ON p.number = s.state", says="twice"),
    join("lateral-function", "CROSS JOIN LATERAL unnest(s.tags) t", says="LATERAL"),
    join("function", "LEFT JOIN f(s.year) t ON true"),
    join("nested", "LEFT JOIN (hub.customer c JOIN hub.segment g ON g.id = c.segment) ON c.code = s.state"),
    join("same-alias", "LEFT JOIN hub.customer s ON s.code = 'x'", says="alias"),
    join("own-target", "LEFT JOIN hub.trade_order o ON o.order_no = s.number", says="fills"),
    join("system-catalog", "LEFT JOIN pg_catalog.pg_class k ON k.oid = s.party", says="system"),
    join("condition-true", "LEFT JOIN hub.customer c ON true", says='c."code" ='),
    join("not-by-key", "LEFT JOIN hub.customer c ON c.name = s.state", says="could multiply rows"),
    join("half-of-key", "LEFT JOIN hub.rate r ON r.currency = s.state", says='r."day"'),
    join("or", "LEFT JOIN hub.customer c ON c.code = s.state OR c.code = s.number", says="AND"),
    join("inequality", "LEFT JOIN hub.customer c ON c.code > s.state"),
    join("expression-of-key", "LEFT JOIN hub.crosswalk c ON lower(c.src_key) = s.state", says="stand alone"),
    join("cast-of-key", "LEFT JOIN hub.segment g ON g.id::text = s.state"),
    join("key-to-itself", "LEFT JOIN hub.crosswalk c ON c.src_key = c.kind"),
    join("key-in-list", "LEFT JOIN hub.customer c ON c.code IN ('a', 'b')"),
    join("key-any", "LEFT JOIN hub.customer c ON c.code = ANY(s.tags)"),
    join("null-safe", "LEFT JOIN hub.customer c ON c.code IS NOT DISTINCT FROM s.state"),
    join("other-collation", 'LEFT JOIN hub.customer c ON c.code = s.state COLLATE "und-x-icu"'),
    join("no-unique-key", "LEFT JOIN hub.bag b ON b.code = s.state", says="no unique key"),
    join("missing", "LEFT JOIN hub.custmer c ON c.code = s.state", K.TARGET_TABLE, "does not exist"),
    join("table-of-source", "LEFT JOIN public.party p ON p.id = s.party", K.TARGET_TABLE, "replicate it"),
]

COLUMNS = [
    expr("unknown", "totl_amount", K.UNKNOWN_COLUMN, "total_amount"),
    expr("unknown-qualified", "s.totals", K.UNKNOWN_COLUMN),
    expr("quoted-case", 's."Number"', K.UNKNOWN_COLUMN, "number"),
    sql("unknown-in-where", f"{S} WHERE s.stat = 'x'", K.UNKNOWN_COLUMN, says="state"),
    join("unknown-in-on", "LEFT JOIN hub.customer c ON c.cod = s.state AND c.code = s.state", K.UNKNOWN_COLUMN, "code"),
    join("used-before-joined", "LEFT JOIN hub.customer c ON c.code = x.code AND c.code = s.state "
         "LEFT JOIN hub.crosswalk x ON x.src_key = s.state", K.UNKNOWN_COLUMN),
    expr("unknown-table", "t.total_amount", K.UNKNOWN_COLUMN),
    expr("hidden-by-alias", "sale_sale.total_amount", K.UNKNOWN_COLUMN, "s.total_amount"),
    expr("schema-qualified", "public.sale_sale.total_amount", K.UNKNOWN_COLUMN, "s.total_amount"),
    join("ambiguous", "LEFT JOIN hub.customer c ON c.code = s.state LEFT JOIN hub.party q ON q.id = s.party "
         "WHERE name = 'x'", K.UNKNOWN_COLUMN, "c.name or q.name"),
    join("ambiguous-pseudo", "LEFT JOIN hub.with_pseudo_name w ON w.src_key = s.state WHERE _lsn = 'x'",
         K.UNKNOWN_COLUMN),
    expr("whole-row", "to_jsonb(s)", K.UNKNOWN_COLUMN, "jsonb_build_object"),
    expr("field-of-row", "(s).total_amount", K.UNKNOWN_COLUMN, "whole row"),
    expr("system-column", "s.xmin::text::int", K.UNKNOWN_COLUMN, "_xid"),
    expr("generated", "length(s.number_upper)", K.UNKNOWN_COLUMN, "upper(number::text)"),
]  # fmt: skip

TARGETS = [
    Bad("target-missing", route(S, into="hub.trade_ordr"), K.TARGET_TABLE, says="hub.trade_order"),
    sql("no-such-column", "SELECT number AS order_no, party AS totl FROM sale_sale", K.TARGET_TABLE, "totl", "total"),
    sql("plain-name-not-there", f"SELECT number AS order_no, total_amount {FROM}", K.TARGET_TABLE, "total_amount"),
    sql("generated-at-target", "SELECT number AS order_no, 1 AS doubled FROM sale_sale", K.TARGET_TABLE, "doubled"),
    Bad("always-generated", route("SELECT id, number AS order_no FROM sale_sale", into="hub.numbered"), K.TARGET_TABLE,
        "id", "SET GENERATED BY DEFAULT"),
    sql("column-twice", "SELECT number AS order_no, 1 AS total, 2 AS Total FROM sale_sale", K.DUPLICATE, "total"),
    Bad("not-null", route(S, into="hub.strict"), K.NOT_NULL, "must", "SET DEFAULT"),
    Bad("no-key", route(S, into="hub.keyless"), K.TARGET_KEY, says="PRIMARY KEY"),
    Bad("key-unknown", route(S, key="orderno"), K.TARGET_KEY, "orderno", "order_no"),
    Bad("key-not-unique", route(f"SELECT number AS state, number AS order_no {FROM}", key="state"), K.TARGET_KEY,
        says="customer_code, state"),
    Bad("key-nullable", route(S, into="hub.loose", key="order_no"), K.TARGET_KEY, "order_no", "SET NOT NULL"),
    sql("key-not-filled", "SELECT number AS state FROM sale_sale", K.KEY, "order_no"),
    sql("key-from-other-column", "SELECT state AS order_no FROM sale_sale", K.KEY, "order_no", "REPLICA IDENTITY"),
    sql("key-from-more", "SELECT number || year AS order_no FROM sale_sale", K.KEY, "order_no", "year"),
    sql("key-from-pseudo", "SELECT number || _source AS order_no FROM sale_sale", K.KEY, "order_no", "_source"),
    sql("key-from-join", f"SELECT c.code AS order_no {FROM} LEFT JOIN hub.customer c ON c.code = s.number", K.KEY,
        "order_no"),
    sql("key-literal", "SELECT 'x' AS order_no FROM sale_sale", K.KEY, "order_no", "number"),
    line("key-misses-identity", "'SO' || sale AS order_no, 1 AS line_no", K.KEY, says="line_no"),
    line("key-one-of-two", "qty::text AS order_no, line_no", K.KEY, "order_no", "qty"),
    Bad("mark-none", route(S, on_delete=OnDelete.MARK), K.TARGET_TABLE, says="mark_column"),
    Bad("mark-unknown", route(S, on_delete=OnDelete.MARK, mark="delete_at"), K.TARGET_TABLE, "delete_at", "deleted_at"),
    Bad("mark-type", route(S, on_delete=OnDelete.MARK, mark="state"), K.TARGET_TABLE, "state", "another"),
    Bad("mark-not-null", route(S, on_delete=OnDelete.MARK, mark="hard_time"), K.NOT_NULL, "hard_time"),
    Bad("mark-filled", route("SELECT number AS order_no, due FROM sale_sale", on_delete=OnDelete.MARK, mark="due"),
        K.DUPLICATE, "due"),
    Bad("source-missing", route(S, source="public.sale_sales"), K.SOURCE_TABLE, says="public.sale_sale"),
    Bad("no-identity", route("SELECT line AS order_no FROM log", source="public.log"), K.IDENTITY, says="ALTER TABLE"),
    Bad("generated-identity", route("SELECT number AS order_no FROM generated_key", source="public.generated_key"),
        K.IDENTITY, "number_upper"),
]  # fmt: skip

BAD = [*FORM, *MANY_ROWS, *SUBQUERIES, *FUNCTIONS, *JOINS, *COLUMNS, *TARGETS]


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_refused(case: Bad) -> None:
    """A bad route is refused with the kind of problem, the column and the way out."""
    found = problems(case.spec)
    matching = [p for p in found if p.kind is case.kind and p.column == case.column]
    assert matching, "\n".join(map(str, found))
    assert any(case.says.lower() in f"{p.detail} {p.remedy}".lower() for p in matching), "\n".join(map(str, found))
    for problem in found:
        assert problem.route == case.spec.name
        assert problem.detail and problem.remedy


#: Of these one mistake cannot be told from another, or there are two.
SEVERAL = {
    "no-from", "joined-subquery", "from-values", "derived-table", "star-of-joined", "lateral-subquery", "function",
    "over-source", "lateral-function", "distinct-on",
}  # fmt: skip


@pytest.mark.parametrize("case", [case for case in BAD if case.id not in SEVERAL], ids=lambda case: case.id)
def test_one_mistake_is_one_problem(case: Bad) -> None:
    """A mistake is told once: nothing that merely follows from it is reported beside it."""
    assert {p.kind for p in problems(case.spec)} == {case.kind}


def test_every_kind_has_a_bad_case() -> None:
    """No kind of problem goes untested (statements are refused by the server, not here)."""
    from tests.unit.transforms.test_identity_routes import BAD as IDENTITY_BAD

    kinds = {case.kind for case in BAD} | {case.kind for case in IDENTITY_BAD}
    assert kinds == set(ProblemKind) - {ProblemKind.STATEMENT}


def test_all_problems_of_all_routes() -> None:
    """Everything that is wrong is told at once, in the order of the routes."""
    found = problems(
        route("SELECT state AS order_no, now() AS changed_at, nothing AS total FROM sale_sale", name="a"),
        route(S, name="b", into="hub.strict"),
        route("SELEC", name="c", into="hub.x"),
    )
    assert [(p.route, p.kind) for p in found] == [
        ("a", K.FUNCTION),
        ("a", K.UNKNOWN_COLUMN),
        ("a", K.KEY),
        ("b", K.NOT_NULL),
        ("c", K.TARGET_TABLE),
        ("c", K.SYNTAX),
    ]


def test_the_message_names_code_route_column_and_way_out() -> None:
    """What an admin reads."""
    (found,) = problems(route("SELECT number AS order_no, now() AS changed_at FROM sale_sale", name="sales"))
    assert str(found) == (
        "TL-207: route sales, column changed_at: now depends on when it is called: the same row would not give the "
        "same result. Use _commit_time, the time of the source's commit, or give the target's column a default and "
        "leave it out."
    )


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ((route(S, name="a"), route(S, name="a", into="hub.keyed")), "name"),
        ((route(S, name="a"), route(S, name="b")), "fills hub.trade_order too"),
        ((route(S, name="a"), route(None, name="b", source="public.party", into="hub.trade_order")), "fills"),
    ],
)
def test_duplicates(specs: tuple[RouteSpec, ...], words: str) -> None:
    """Two routes have neither one name nor one target table."""
    found = [p for p in problems(*specs) if p.kind is K.DUPLICATE]
    assert len(found) == 1
    assert words in f"{found[0].detail} {found[0].remedy}"


def test_a_multirange_needs_version_14_at_the_target() -> None:
    """A built-in type that the target's version does not have is refused, where its column travels."""
    source = catalog(table("public.t", "id int!, spans multirange", "id"))
    old = catalog(table("hub.t", "id int!, spans text", "id"), server_version=130010)
    spec = route("SELECT id, spans::text AS spans FROM t", source="public.t", into="hub.t")
    with pytest.raises(RouteError) as caught:
        check_routes([spec], source, old)
    assert [(p.kind, p.column) for p in caught.value.problems] == [(K.TYPE, "spans")]
    check_routes([route("SELECT id FROM t", source="public.t", into="hub.t")], source, old)
