"""Identity routes: patterns, tables that exist at the target, and tables that are to be created."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tests.unit.transforms.catalogs import SOURCE, STATE, TYPES, catalog, named, route, table
from towline_transforms.check import check_routes, expand, tables_needed
from towline_transforms.problems import Problem, ProblemKind, RouteError
from towline_transforms.route import OnDelete, OnError, Route, RouteSpec
from towline_transforms.schema import Catalog, Column, SqlType, Table, TypeKind

K = ProblemKind
EMPTY = catalog()


def one(spec: RouteSpec, source: Catalog, target: Catalog = EMPTY) -> Route:
    (found,) = check_routes([spec], source, target)
    return found


def problems(spec: RouteSpec, source: Catalog, target: Catalog = EMPTY) -> tuple[Problem, ...]:
    with pytest.raises(RouteError) as caught:
        check_routes([spec], source, target)
    return caught.value.problems


# ---- Patterns -------------------------------------------------------------------------------------------------

ERP = catalog(
    table("public.orders", "id int!, note text", "id"),
    table("public.Item List", "id int!", "id"),
    table("public.events", "id int!, at date!", "id at", partitions=("public.events_1", "public.events_2")),
    table("public.events_1", "id int!, at date!", "id at"),
    table("archive.orders", "id int!", "id"),
)


def test_pattern_stands_for_all_tables_of_the_schema() -> None:
    """One route for each table, named as the table; partitions come through their root."""
    routes = check_routes([route(source="public.*", into="replica.*")], ERP, EMPTY)
    assert [(r.name, str(r.into)) for r in routes] == [
        ("public.Item List", "replica.Item List"),
        ("public.events", "replica.events"),
        ("public.orders", "replica.orders"),
    ]
    assert all(r.create and r.identity for r in routes)


def test_pattern_masks_the_columns_that_a_table_has() -> None:
    """A column that some tables lack is no mistake beside a pattern."""
    spec = replace(route(source="public.*", into="replica.*"), sensitive=("note", "id"))
    routes = {found.name: found.sensitive for found in check_routes([spec], ERP, EMPTY)}
    assert routes == {"public.Item List": {"id"}, "public.events": {"id"}, "public.orders": {"note", "id"}}


def test_explicit_route_comes_before_a_pattern() -> None:
    """The pattern leaves out what an explicit route puts into the same table, and only that."""
    own = route(name="own", source="public.orders", into="replica.orders")
    other = route(name="other", source="public.orders", into="hub.orders")
    routes = check_routes([route(source="public.*", into="replica.*"), own, other], ERP, EMPTY)
    assert sorted((r.name, str(r.into)) for r in routes if r.source.name == named("public.orders")) == [
        ("other", "hub.orders"),
        ("own", "replica.orders"),
    ]


def test_into_may_be_a_pattern_for_one_table() -> None:
    """``into: replica.*`` keeps the table's name."""
    assert one(route(source="public.orders", into="replica.*"), ERP).into == named("replica.orders")


def test_expand_tells_what_it_makes() -> None:
    """Settings of a pattern go to each of its routes."""
    specs, found = expand([route(source="archive.*", into="old.*", on_delete=OnDelete.IGNORE)], ERP)
    assert not found
    assert [(s.name, s.source, s.into, s.on_delete) for s in specs] == [
        ("archive.orders", named("archive.orders"), named("old.orders"), OnDelete.IGNORE)
    ]


def test_tables_needed() -> None:
    """What the catalogs must describe: patterns as they are, joined tables too, even where the SELECT has errors."""
    specs = [
        route(source="public.*", into="replica.*"),
        route(source="public.orders", into="copies.*"),
        route(
            'SELECT x FROM orders o LEFT JOIN Hub.Customer c ON c.x = 1 JOIN "Hub"."a.b" ON true',
            source="public.orders",
        ),
        route("SELECT ( FROM orders JOIN hub.broken WHERE JOIN", source="public.orders", into="hub.b"),
        route("SELECT 'open FROM orders JOIN hub.never", source="public.orders", into="hub.c"),
    ]
    sources, targets = tables_needed(specs)
    assert sources == (named("public.*"), named("public.orders"))
    assert list(map(str, targets)) == [
        "replica.*", "copies.orders", "hub.trade_order", "hub.customer", "Hub.a.b", "hub.b", "hub.broken", "hub.c",
    ]  # fmt: skip


# ---- Tables that exist ----------------------------------------------------------------------------------------

ORDERS = table("public.orders", "id int!, code varchar20!, total numeric10_2, note text, twice numeric=", "id")


def orders_at_target(columns: str, key: str = "id", unique: tuple[str, ...] = ()) -> Catalog:
    return catalog(table("hub.orders", columns, key, unique=unique))


def test_existing_table() -> None:
    """Columns go to those of the same name, in the source's order; generated ones do not travel."""
    target = orders_at_target("note text, id int!, code text!, total numeric, extra int, seen date!?, twice numeric")
    found = one(route(source="public.orders", into="hub.orders"), catalog(ORDERS), target)
    assert found.columns == ("id", "code", "total", "note")
    assert [(a.column, a.sql, a.sources) for a in found.assignments][:1] == [("id", '"id"', frozenset({"id"}))]
    assert (found.key, found.create, found.filtered, found.select) == (("id",), False, False, None)
    assert found.target is target.tables[named("hub.orders")]


def test_identity_always_is_filled_and_generated_is_not() -> None:
    """What GENERATED ALWAYS AS IDENTITY makes can be overridden; what both ends generate is left alone."""
    target = orders_at_target("id int#!, code varchar20!, total numeric10_2, note text, twice numeric=, own text=")
    found = one(route(source="public.orders", into="hub.orders"), catalog(ORDERS), target)
    assert found.columns == ("id", "code", "total", "note")


def test_key_is_the_targets_unique_key_of_the_identity() -> None:
    """Where the target's primary key is another, the unique key over the source's identity is used."""
    source = catalog(table("public.orders", "id int!, code text!", "id", identity="code", unique=("code",)))
    target = orders_at_target("id int!, code text!", unique=("code",))
    assert one(route(source="public.orders", into="hub.orders"), source, target).key == ("code",)
    assert one(route(source="public.orders", into="hub.orders", key="code"), source, target).key == ("code",)


def test_type_in_the_targets_schema() -> None:
    """An enum of the route's source schema is the one of the same name in its target schema."""
    source = catalog(table("public.t", "id int!, state state, states state[]", "id"))
    state = SqlType(30001, "hub", "order_state", "hub.order_state", TypeKind.ENUM)
    states = SqlType(30002, "hub", "_order_state", "hub.order_state[]", TypeKind.ARRAY, element=state)
    target = catalog(
        table("hub.t", "id int!, state state, states state[]", "id", types={"state": state, "state[]": states})
    )
    assert one(route(source="public.t", into="hub.t"), source, target).columns == ("id", "state", "states")


CARRIED = [
    ("varchar20", "varchar20"), ("varchar20", "varchar40"), ("varchar20", "varchar"), ("varchar20", "text"),
    ("varchar", "text"), ("text", "varchar"), ("numeric10_2", "numeric12_2"), ("numeric10_2", "numeric"),
    ("timestamp3", "timestamp"), ("char5", "char5"), ("intervalds", "interval"), ("varchar5[]", "varchar9[]"),
    ("state", "state"), ("state[]", "state[]"), ("citext", "citext"), ("code", "code"), ("jsonb", "jsonb"),
]  # fmt: skip
NOT_CARRIED = [
    ("varchar20", "varchar5"), ("varchar", "varchar40"), ("text", "varchar40"), ("numeric10_2", "numeric8_2"),
    ("numeric10_2", "numeric12_4"), ("numeric", "numeric10_2"), ("timestamp", "timestamp3"), ("char5", "char9"),
    ("char5", "text"), ("int", "bigint"), ("int", "text"), ("timestamp", "timestamptz"), ("jsonb", "text"),
    ("varchar5[]", "text[]"), ("text[]", "text"), ("state", "text"), ("state", "code"), ("interval", "intervalds"),
    ("text", "citext"), ("code", "text"), ("varchar9[]", "varchar5[]"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), CARRIED)
def test_type_that_carries_values_exactly(source: str, target: str) -> None:
    """The same type, with the same, a larger or no limit."""
    left = catalog(table("public.t", f"id int!, a {source}", "id"))
    one(route(source="public.t", into="public.t"), left, catalog(table("public.t", f"id int!, a {target}", "id")))


@pytest.mark.parametrize(("source", "target"), NOT_CARRIED)
def test_type_that_does_not(source: str, target: str) -> None:
    """Any other type is refused, with the statement that makes it right."""
    left = catalog(table("public.t", f"id int!, a {source}", "id"))
    right = catalog(table("public.t", f"id int!, a {target}", "id"))
    (problem,) = problems(route(source="public.t", into="public.t"), left, right)
    assert (problem.kind, problem.column) == (K.TYPE, "a")
    wanted = (TYPES[source]).sql
    assert f'ALTER TABLE "public"."t" ALTER COLUMN "a" TYPE {wanted};' in problem.remedy


@pytest.mark.parametrize(
    ("source", "target", "good"),
    [("text", "varchar", True), ("text", "text", True), ("varchar40", "varchar20", False)],
)
def test_domains_by_their_base(source: str, target: str, good: bool) -> None:
    """Domains of the same name carry each other's values when their bases do."""

    def domain(schema: str, base: str) -> SqlType:
        return SqlType(20009, schema, "d", f"{schema}.d", TypeKind.DOMAIN, element=TYPES[base])

    left = catalog(table("public.t", "id int!, a d", "id", types={"d": domain("public", source)}))
    right = catalog(table("hub.t", "id int!, a d", "id", types={"d": domain("hub", target)}))
    spec = route(source="public.t", into="hub.t")
    if good:
        one(spec, left, right)
    else:
        assert [p.kind for p in problems(spec, left, right)] == [K.TYPE]


def test_extension_type_in_another_schema() -> None:
    """A type of an extension is the same wherever the extension was put; its modifier counts."""
    left = catalog(table("public.t", "id int!, a citext, g geometry", "id"))
    citext = SqlType(30003, "ext", "citext", "ext.citext", extension="citext")
    point = SqlType(30004, "ext", "geometry", "ext.geometry(Point,4326)", extension="postgis")
    anything = SqlType(30004, "ext", "geometry", "ext.geometry", extension="postgis")
    for shape in (point, anything):
        right = catalog(
            table("hub.t", "id int!, a citext, g geometry", "id", types={"citext": citext, "geometry": shape})
        )
        one(route(source="public.t", into="hub.t"), left, right)
    line = SqlType(30004, "ext", "geometry", "ext.geometry(LineString,4326)", extension="postgis")
    right = catalog(table("hub.t", "id int!, a citext, g geometry", "id", types={"citext": citext, "geometry": line}))
    assert [p.column for p in problems(route(source="public.t", into="hub.t"), left, right)] == ["g"]


# ---- Tables to create -----------------------------------------------------------------------------------------


def test_created_table() -> None:
    """The source's columns, types, NOT NULL, primary key and generated columns; no defaults, no identity."""
    source = table("public.t", "id int#!, name varchar20!?, twice numeric=, note text", "id", unique=("name",))
    found = one(route(source="public.t", into="replica.t"), catalog(source))
    assert found.create
    assert found.target == Table(
        named("replica.t"),
        (
            Column("id", TYPES["int"], not_null=True),
            Column("name", TYPES["varchar20"], not_null=True),
            Column("twice", TYPES["numeric"], generated="upper(number::text)"),
            Column("note", TYPES["text"]),
        ),
        primary_key=("id",),
        unique_keys=(("id",),),
    )
    assert found.columns == ("id", "name", "note")
    assert [a.column for a in found.assignments] == ["id", "name", "note"]
    assert found.key == ("id",)


def test_created_key_without_a_primary_key() -> None:
    """The identity is the primary key of the copy."""
    source = catalog(table("public.t", "a int!, b int!", identity="b a", unique=("b a",)))
    found = one(route(source="public.t", into="replica.t"), source)
    assert (found.target.primary_key, found.key) == (("b", "a"), ("b", "a"))


def test_created_key_beside_the_primary_key() -> None:
    """Where another index than the primary key names the rows, the copy needs a unique key of it too."""
    source = catalog(table("public.t", "id int!, code text!", "id", identity="code", unique=("code",)))
    found = one(route(source="public.t", into="replica.t"), source)
    assert (found.target.primary_key, found.target.unique_keys) == (("id",), (("id",), ("code",)))
    assert found.key == ("code",)


def test_created_types() -> None:
    """Types of the route's source schema go to its target schema, others stay; the target's extensions are found."""
    other = SqlType(20010, "My Types", "x", '"My Types".x', TypeKind.COMPOSITE)
    source = catalog(
        table("public.t", "id int!, a state, b state[], c code, d other, e citext", "id", types={"other": other})
    )
    target = catalog(types=frozenset({("ext", "citext")}))
    found = one(route(source="public.t", into="Replica.t"), source, target)
    types = [column.type for column in found.target.columns[1:]]
    assert [t.sql for t in types] == [
        '"Replica".order_state',
        '"Replica".order_state[]',
        '"Replica".code',
        '"My Types".x',
        "ext.citext",
    ]
    assert types[1].element == types[0]
    assert types[0].oid == STATE.oid


def test_created_types_when_the_targets_are_not_known() -> None:
    """Without a list of the target's types those of extensions are taken to be there."""
    source = catalog(table("public.t", "id int!, e citext", "id"))
    found = one(route(source="public.t", into="replica.t"), source, catalog(types=None))
    assert found.target.column("e").type.sql == "public.citext"


def test_created_mark_column() -> None:
    """A mark column that the source does not have is added to the copy."""
    source = catalog(table("public.t", "id int!", "id"))
    found = one(route(source="public.t", into="r.t", on_delete=OnDelete.MARK, mark="deleted_at"), source)
    assert [(c.name, c.type.sql) for c in found.target.columns] == [
        ("id", "integer"),
        ("deleted_at", "timestamp with time zone"),
    ]
    assert found.columns == ("id",)


# ---- Refused --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    id: str
    spec: RouteSpec
    source: Catalog
    target: Catalog
    kind: ProblemKind
    column: str = ""
    says: str = ""


PLAIN = route(source="public.orders", into="hub.orders")
EMAIL = SqlType(20011, "public", "email", "public.email", TypeKind.DOMAIN, element=TYPES["citext"])
AS_IS = "id int!, code varchar20!, total numeric10_2, note text"
BAD = [
    Bad("no-table", route(source="erp.*", into="r.*"), ERP, EMPTY, K.SOURCE_TABLE, says="erp.*"),
    Bad("near-schema", route(source="publik.*", into="r.*"), ERP, EMPTY, K.SOURCE_TABLE, says="public"),
    Bad("unknown-table", route(source="public.order", into="r.o"), ERP, EMPTY, K.SOURCE_TABLE, says="public.orders"),
    Bad("half-pattern", route(source="public.ord*", into="r.o"), ERP, EMPTY, K.SOURCE_TABLE, says="public.*, all"),
    Bad("many-into-one", route(source="public.*", into="r.all"), ERP, EMPTY, K.TARGET_TABLE, says="r.*"),
    Bad("pattern-with-key", route(source="public.*", into="r.*", key="id"), ERP, EMPTY, K.KEY, says="Leave"),
    Bad("column-missing", PLAIN, catalog(ORDERS), orders_at_target("id int!, code varchar20!, note text"),
        K.TARGET_TABLE, "total", 'ADD COLUMN "total" numeric(10,2);'),
    Bad("not-null", PLAIN, catalog(ORDERS), orders_at_target(AS_IS + ", must int!"), K.NOT_NULL, "must", "SET DEFAULT"),
    Bad("generated-source-not-null", PLAIN, catalog(ORDERS), orders_at_target(AS_IS + ", twice numeric!"),
        K.NOT_NULL, "twice"),
    Bad("masked-unknown", replace(PLAIN, sensitive=("notes",)), catalog(ORDERS), EMPTY, K.SENSITIVE, "notes", "note"),
    Bad("masked-key", replace(PLAIN, sensitive=("id",), on_error=OnError.QUARANTINE), catalog(ORDERS), EMPTY,
        K.SENSITIVE, "id", "on_error: halt"),
    Bad("no-key", PLAIN, catalog(ORDERS), orders_at_target(AS_IS, ""), K.TARGET_KEY, says='ADD UNIQUE ("id");'),
    Bad("other-key", PLAIN, catalog(ORDERS), orders_at_target(AS_IS, "code"), K.TARGET_KEY, says='ADD UNIQUE ("id");'),
    Bad("key-not-identity", route(source="public.orders", into="hub.orders", key="code"), catalog(ORDERS),
        orders_at_target(AS_IS, unique=("code",)), K.KEY, "code", "key: [id]"),
    Bad("key-generated", PLAIN, catalog(ORDERS), orders_at_target(AS_IS.replace("int!", "int=!")),
        K.TARGET_TABLE, "id", "DROP EXPRESSION"),
    Bad("generated-at-target", PLAIN, catalog(ORDERS), orders_at_target(AS_IS.replace("note text", "note text=")),
        K.TARGET_TABLE, "note", "DROP EXPRESSION"),
    Bad("no-identity", PLAIN, catalog(table("public.orders", "id int", reason="It has no primary key.")), EMPTY,
        K.IDENTITY, says="REPLICA IDENTITY FULL alone is not enough"),
    Bad("identity-by-index", PLAIN, catalog(table("public.orders", "id int!, a int", unique=("id", "a"))), EMPTY,
        K.IDENTITY, says="USING INDEX <the unique index on id>;"),
    Bad("identity-nothing", PLAIN, catalog(table("public.orders", "id int!", "id", identity="")), EMPTY,
        K.IDENTITY, says="REPLICA IDENTITY DEFAULT;"),
    Bad("extension-type", PLAIN, catalog(table("public.orders", "id int!, a citext", "id")), EMPTY,
        K.TYPE, "a", 'CREATE EXTENSION "citext" SCHEMA "public";'),
    Bad("domain-over-extension-type", PLAIN,
        catalog(table("public.orders", "id int!, a d", "id", types={"d": EMAIL})), EMPTY,
        K.TYPE, "a", "CREATE EXTENSION"),
    Bad("new-type-old-target", PLAIN, catalog(table("public.orders", "id int!, a multirange", "id")),
        catalog(server_version=130010), K.TYPE, "a", "PostgreSQL 14"),
    Bad("mark-is-a-column", route(source="public.t", into="r.t", on_delete=OnDelete.MARK, mark="gone"),
        catalog(table("public.t", "id int!, gone bool", "id")), EMPTY, K.DUPLICATE, "gone"),
    Bad("mark-missing", route(source="public.orders", into="hub.orders", on_delete=OnDelete.MARK, mark="gone"),
        catalog(ORDERS), orders_at_target(AS_IS), K.TARGET_TABLE, "gone", 'ADD COLUMN "gone" timestamptz;'),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_refused(case: Bad) -> None:
    """One problem, of that kind and column, with the way out."""
    (problem,) = problems(case.spec, case.source, case.target)
    assert (problem.kind, problem.column) == (case.kind, case.column), str(problem)
    assert case.says in f"{problem.detail} {problem.remedy}"


def test_a_pattern_tells_every_table_without_identity() -> None:
    """A pattern is refused with each table that cannot be replicated, by name."""
    source = catalog(
        table("public.a", "x int"),
        table("public.b", "id int!", "id"),
        table("public.c", "y int"),
        *SOURCE.tables.values(),
    )
    found = problems(route(source="public.*", into="replica.*"), source)
    assert [(p.route, p.kind) for p in found if p.kind is K.IDENTITY] == [
        ("public.a", K.IDENTITY),
        ("public.c", K.IDENTITY),
        ("public.generated_key", K.IDENTITY),
        ("public.log", K.IDENTITY),
    ]
