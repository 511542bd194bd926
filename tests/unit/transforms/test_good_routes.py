"""Routes that are accepted, and what is known of them then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlglot

from tests.unit.transforms.catalogs import SOURCE, TARGET, route
from towline_transforms.check import check_routes, functions_called
from towline_transforms.route import Assignment, OnDelete, Route, RouteSpec


def checked(spec: RouteSpec) -> Route:
    (found,) = check_routes([spec], SOURCE, TARGET)
    return found


@dataclass(frozen=True)
class Good:
    """A SELECT list (with ``number AS order_no`` before it) or a whole SELECT, and the facts that follow."""

    id: str
    sql: str
    sources: str = ""  # of the last output column
    joined: str = ""
    pseudo: str = ""
    columns: str = "number"  # that travel
    filters: str | None = None
    spec: dict[str, Any] = field(default_factory=dict)


def items(id_: str, expression: str, sources: str = "", *, pseudo: str = "") -> Good:
    """One more column ``total`` from an expression."""
    order = ["id", "number", "party", "state", "total_amount", "due", "tags", "data", "created", "year"]
    travels = " ".join(name for name in order if name in {*sources.split(), "number"})
    return Good(id_, f"SELECT number AS order_no, {expression} AS total FROM sale_sale s", sources, "", pseudo, travels)


FROM = "FROM sale_sale s"
GOOD = [
    items("plain", "s.total_amount", "total_amount"),
    items("unqualified", "total_amount", "total_amount"),
    items("upper-case", "S.TOTAL_AMOUNT", "total_amount"),
    items("quoted", '"s"."total_amount"', "total_amount"),
    items("arithmetic", "(s.total_amount * 2 - 1) / 3", "total_amount"),
    items("literal", "42"),
    items("null", "NULL::numeric"),
    items("case", "CASE WHEN s.state = 'x' THEN s.total_amount ELSE 0 END", "state total_amount"),
    items("coalesce", "coalesce(s.total_amount, 0)", "total_amount"),
    items("nullif-cast", "nullif(s.state, '')::numeric(10,2)", "state"),
    items("cast", "CAST(s.state AS numeric(10,2))", "state"),
    items("json", "(s.data #>> '{a,b}')::numeric", "data"),
    items("json-contains", "(s.data @> '{\"a\": 1}')::int", "data"),
    items("json-key", "(s.data ? 'a')::int", "data"),
    items("array", "s.tags[1]::numeric", "tags"),
    items("any", "(s.state = ANY(s.tags))::int", "state tags"),
    items("is-distinct-from", "(s.state IS DISTINCT FROM s.number)::int", "number state"),
    items("extract", "EXTRACT(year FROM s.due)", "due"),
    items("substring", "substring(s.number from 2 for 3)::int", "number"),
    items("trim", "trim(both 'x' from s.number)::int", "number"),
    items("position", "position('-' in s.number)", "number"),
    items("at-time-zone", "extract(epoch from s.created at time zone 'UTC')", "created"),
    items("interval", "extract(day from s.due + interval '1 day')", "due"),
    items("between", "(s.total_amount BETWEEN 1 AND 2)::int", "total_amount"),
    items("regexp", "regexp_replace(s.number, '[^0-9]', '', 'g')::numeric", "number"),
    items("escape-string", r"length(E'it\'s, not' || s.number)", "number"),
    items("dollar-string", "length($x$it's, FROM sale_sale$x$ || s.number)", "number"),
    items("md5", "length(md5(s.number))", "number"),
    items("own-function", "hub.rounded(s.total_amount)", "total_amount"),
    items("age-of-two", "extract(day from age(s.created, s.due))", "due created"),
    items("left-right", "left(s.number, 3)::int + right(s.number, 3)::int", "number"),
    items("greatest", "greatest(s.total_amount, 0)", "total_amount"),
    items("row-comparison", "((s.party, s.year) = (1, 2))::int", "party year"),
    items("uuid-v5-is-immutable", "length(uuid_generate_v5(uuid_nil(), s.number)::text)", "number"),
    items("collate", "length(s.number COLLATE \"C\")", "number"),
    items("percent-sign", "length(s.number || '%s' || '%')", "number"),
    items("modulo", "s.party % s.year", "party year"),
    items("keyword-column", "s.year", "year"),
    items("pseudo", "extract(epoch from _commit_time)", pseudo="_commit_time"),
    items("pseudo-qualified", "length(s._op || _source)", pseudo="_op _source"),
    items("comment", "/* not FROM here, ; nor $1 */ s.total_amount -- nor 'here\n", "total_amount"),
    Good("literal-today-is-text", f"SELECT number AS order_no, 'today'::text AS state {FROM}"),
    Good("schema-qualified", "SELECT s.number AS order_no FROM public.sale_sale AS s", "number"),
    Good("no-alias", "SELECT sale_sale.number AS order_no FROM sale_sale", "number"),
    Good("no-alias-qualified", "SELECT sale_sale.number AS order_no FROM public.sale_sale", "number"),
    Good("quoted-table", 'SELECT number AS order_no FROM "public"."sale_sale"', "number"),
    Good("tight", 'SELECT"s"."number"AS"order_no"FROM"sale_sale"AS"s"', "number"),
    Good("mixed-case", "select NUMBER as Order_No from Sale_Sale S where S.State = 'x'", "number", filters="state",
         columns="number state"),
    Good("alias-without-as", f"SELECT number order_no, party {FROM}", "party", columns="number party"),
    Good("semicolon", f"SELECT number AS order_no {FROM};", "number"),
    Good("semicolon-and-comment", f"SELECT number AS order_no {FROM}; -- done", "number"),
    Good("last-comment", f"SELECT number AS order_no {FROM} -- done", "number"),
    Good("select-all", f"SELECT ALL number AS order_no {FROM}", "number"),
    Good("where", f"SELECT number AS order_no {FROM} WHERE s.state <> 'draft' AND year > 1", "number",
         filters="state year", columns="number state year"),
    Good("where-source", f"SELECT number AS order_no {FROM} WHERE _source <> 'x'", "number", filters=""),
    Good(
        "left-join",
        f"SELECT number AS order_no, upper(c.code) AS customer_code {FROM} "
        "LEFT JOIN hub.crosswalk c ON c.src_key = s.party::text",
        "party", "hub.crosswalk.code", columns="number party",
    ),
    Good(
        "left-outer-join-reversed",
        f"SELECT number AS order_no, code AS customer_code {FROM} "
        "LEFT OUTER JOIN hub.crosswalk ON (s.party::text = src_key)",
        "party", "hub.crosswalk.code", columns="number party",
    ),
    Good(
        "inner-join",
        f"SELECT number AS order_no, c.code AS customer_code {FROM} "
        "JOIN hub.crosswalk c ON c.src_key = s.party::text AND c.active",
        "party", "hub.crosswalk.code", columns="number party", filters="party",
    ),
    Good(
        "join-by-other-unique-key",
        f"SELECT number AS order_no, c.src_key AS customer_code {FROM} "
        "INNER JOIN hub.crosswalk c ON 'party' = c.kind AND (c.code = s.state)",
        "state", "hub.crosswalk.src_key", columns="number state", filters="state",
    ),
    Good(
        "join-by-row",
        f"SELECT number AS order_no, r.rate AS total {FROM} "
        "LEFT JOIN hub.rate r ON (r.currency, r.day) = (s.state, s.due)",
        "state due", "hub.rate.rate", columns="number state due",
    ),
    Good(
        "join-by-pseudo",
        f"SELECT number AS order_no, r.rate AS total {FROM} "
        "LEFT JOIN hub.rate r ON r.currency = s.state AND r.day = _commit_time::date",
        "state", "hub.rate.rate", "_commit_time", columns="number state",
    ),
    Good(
        "join-chain",
        f"SELECT number AS order_no, g.label AS customer_code {FROM} "
        "LEFT JOIN hub.crosswalk x ON x.src_key = s.party::text "
        "LEFT JOIN hub.customer c ON c.code = x.code "
        "LEFT JOIN hub.segment g ON g.id = c.segment",
        "party", "hub.segment.label", columns="number party",
    ),
    Good(
        "join-filters-through-chain",
        f"SELECT number AS order_no {FROM} LEFT JOIN hub.crosswalk x ON x.src_key = s.party::text "
        "JOIN hub.customer c ON c.code = x.code WHERE s.year > 1",
        "number", columns="number party year", filters="party year",
    ),
    Good(
        "join-only-for-where",
        f"SELECT number AS order_no {FROM} LEFT JOIN hub.customer c ON c.code = s.state WHERE c.name IS NOT NULL",
        "number", columns="number state", filters="state",
    ),
    Good("composite-key", "SELECT 'SO' || sale AS order_no, line_no, qty FROM sale_line", "qty",
         columns="sale line_no qty", spec={"source": "public.sale_line", "into": "hub.order_line"}),
    Good("literal-in-key", "SELECT 'SO' || sale || '/' || line_no AS order_no, 1 AS line_no FROM sale_line",
         columns="sale line_no", spec={"source": "public.sale_line", "into": "hub.order_line"}),
    Good("identity-always", "SELECT number AS order_no FROM sale_sale", "number", columns="number",
         spec={"into": "hub.numbered"}),
    Good("named-key", "SELECT number AS order_no, total_amount AS total FROM sale_sale", "total_amount",
         columns="number total_amount", spec={"key": "order_no"}),
    Good("key-from-all-identity", f"SELECT 'SO-' || s.number AS order_no {FROM}", "number"),
    Good("real-column-before-pseudo", "SELECT id::text AS order_no, _source AS state FROM named_like_pseudo", "_source",
         columns="id _source", spec={"source": "public.named_like_pseudo"}),
    Good("default-fills", "SELECT number AS order_no, 1 AS must FROM sale_sale", spec={"into": "hub.strict"}),
    Good("odd-names", 'SELECT t.id, t."Über", "a""b", t."x.y" FROM "sale-Sale" t', "x.y", columns='id Über a"b x.y',
         spec={"source": "public.sale-Sale", "into": "hub.odd"}),
    Good("odd-table-without-alias", 'SELECT id, "sale-Sale"."Über" FROM public."sale-Sale"', "Über", columns="id Über",
         spec={"source": "public.sale-Sale", "into": "hub.odd"}),
]  # fmt: skip


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_accepted(case: Good) -> None:
    """A good route is accepted, and its lineage, its filter and what must travel are found."""
    found = checked(route(case.sql, **case.spec))
    last = found.assignments[-1]
    assert last.sources == set(case.sources.split())
    assert last.joined == set(case.joined.split())
    assert last.pseudo == set(case.pseudo.split())
    assert found.pseudo == tuple(case.pseudo.split()) or case.id == "where-source"
    assert found.columns == tuple(case.columns.split())
    assert found.filtered == (case.filters is not None)
    assert found.filter_sources == set((case.filters or "").split())
    assert not found.create


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_any_relation_can_stand_for_the_source(case: Good) -> None:
    """Head and tail hold any relation between them, bare or in parentheses, and inside a larger statement."""
    found = checked(route(case.sql, **case.spec))
    assert found.select is not None
    for stage in ("pg_temp.stage", '"towline stage"', "(SELECT * FROM stage)", "(\nSELECT * FROM stage\n)"):
        text = stage.join(found.select)
        tree = sqlglot.parse_one(f"SELECT q.* FROM ({text}) AS q", dialect="postgres")
        assert sum(t.name.endswith("stage") for t in tree.find_all(sqlglot.exp.Table)) == 1
        assert found.source.name.name not in [t.name for t in tree.find_all(sqlglot.exp.Table)]


def test_the_text_is_the_admins_own() -> None:
    """Nothing but the reference to the source is cut out; comments, case and spacing stay."""
    text = (
        "SELECT  number/*key*/ AS order_no,\n\tTotal_Amount total -- sum\nFROM   public . sale_sale   s\nWHERE year>1"
    )
    found = checked(route(text))
    assert found.select == (
        "SELECT  number/*key*/ AS order_no,\n\tTotal_Amount total -- sum\nFROM   ",
        "   s\nWHERE year>1",
    )
    assert [(each.column, each.sql) for each in found.assignments] == [
        ("order_no", "number"),
        ("total", "Total_Amount"),
    ]


def test_alias_is_added_when_there_is_none() -> None:
    """Columns qualified with the table's name still find it when another relation stands there."""
    found = checked(route("SELECT sale_sale.number AS order_no FROM public.sale_sale WHERE sale_sale.year > 1"))
    assert found.select == ("SELECT sale_sale.number AS order_no FROM ", ' AS "sale_sale" WHERE sale_sale.year > 1')


def test_comment_at_the_end_does_not_swallow_what_follows() -> None:
    """A route whose last line is a comment can be put in parentheses."""
    found = checked(route("SELECT number AS order_no FROM sale_sale -- done"))
    assert found.select == ("SELECT number AS order_no FROM ", ' AS "sale_sale" -- done\n')


@pytest.mark.parametrize("star", ["*", "s.*", "S.*", '"s".*'])
def test_star(star: str) -> None:
    """A star is replaced by the source's columns but for generated ones, and only the star."""
    found = checked(route(f"SELECT {star} FROM sale_sale s WHERE s.year > 1", into="hub.copy"))
    names = ["id", "number", "party", "state", "total_amount", "due", "tags", "data", "created", "year"]
    assert found.columns == tuple(names)
    assert [(each.column, each.sources) for each in found.assignments] == [(name, frozenset({name})) for name in names]
    listed = ", ".join(f'"s"."{name}"' for name in names)
    assert found.select == (f"SELECT {listed} FROM ", " s WHERE s.year > 1")


def test_star_of_odd_names() -> None:
    """The names that a star stands for are quoted."""
    found = checked(route('SELECT "sale-Sale".* FROM "sale-Sale"', source="public.sale-Sale", into="hub.odd"))
    assert [each.column for each in found.assignments] == ["id", "Über", 'a"b', "x.y"]
    assert found.select is not None
    assert found.select[0] == 'SELECT "sale-Sale"."id", "sale-Sale"."Über", "sale-Sale"."a""b", "sale-Sale"."x.y" FROM '


def test_pseudo_columns_are_listed_once_and_in_order() -> None:
    """Those of the list, of joins and of WHERE."""
    found = checked(
        route(
            "SELECT number AS order_no, _lsn::text AS state, _commit_time AS changed_at FROM sale_sale "
            "LEFT JOIN hub.customer ON code = _op WHERE _source = 'x'"
        )
    )
    assert found.pseudo == ("_commit_time", "_lsn", "_op", "_source")


def test_lineage_of_the_founding_example() -> None:
    """The route of the design document, whole."""
    found = checked(
        route(
            "SELECT 'SO-' || s.number AS order_no, upper(c.code) AS customer_code, s.total_amount AS total,\n"
            "       _commit_time AS changed_at\n"
            "FROM sale_sale s LEFT JOIN hub.crosswalk c ON c.src_key = s.party::text\nWHERE s.state <> 'draft'\n",
            key="order_no",
        )
    )
    assert found.assignments == (
        Assignment("order_no", "'SO-' || s.number", frozenset({"number"})),
        Assignment("customer_code", "upper(c.code)", frozenset({"party"}), joined=frozenset({"hub.crosswalk.code"})),
        Assignment("total", "s.total_amount", frozenset({"total_amount"})),
        Assignment("changed_at", "_commit_time", frozenset(), frozenset({"_commit_time"})),
    )
    assert found.key == ("order_no",)
    assert found.columns == ("number", "party", "state", "total_amount")
    assert found.filter_sources == {"state"}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ("s.total_amount", set()),
        ("coalesce(s.total_amount, 0)::numeric(10,2)", set()),
        ("hub.Rounded(s.total_amount, upper(s.state))", {"hub.rounded", "upper"}),
        ('"Hub"."F g"(s.total_amount)', {"Hub.F g"}),
        ("length('random()') -- now()\n", {"length"}),
        ("CASE WHEN s.state IN ('a') AND (s.year) > 1 THEN mine(1) END", {"mine"}),
    ],
)
def test_functions_called(expression: str, names: set[str]) -> None:
    """The names of functions are found as the catalog has them; words of SQL and texts are not among them."""
    found = checked(route(f"SELECT number AS order_no, {expression} AS total FROM sale_sale s"))
    assert functions_called(found) == names


def test_functions_called_in_conditions() -> None:
    """Functions in ON and WHERE count; an identity route calls none."""
    found = checked(
        route("SELECT number AS order_no FROM sale_sale LEFT JOIN hub.customer c ON c.code = f(party) WHERE g(year)")
    )
    assert functions_called(found) == {"f", "g"}
    assert functions_called(checked(route(None, source="public.party", into="hub.party"))) == frozenset()


@pytest.mark.parametrize("mark", ["deleted_at", "gone", "due"])
def test_marks(mark: str) -> None:
    """A time or a truth value that the route leaves alone can be the mark."""
    found = checked(route("SELECT number AS order_no FROM sale_sale", on_delete=OnDelete.MARK, mark=mark))
    assert (found.on_delete, found.mark_column) == (OnDelete.MARK, mark)
