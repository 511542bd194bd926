"""Functions that a route may not call, told by name from the tokens of its SELECT.

A route's SELECT must give for one row of the source one row or none, and the same one whenever it is asked: the row
is selected when it is applied, selected again by `verify`, and once more when a snapshot is repeated. So neither
aggregates, window functions and functions that return sets can be used, nor functions whose result depends on the
clock, the session or a sequence.

Names are taken from the tokens rather than from the syntax tree, because the tree names functions
after their counterparts in other SQL dialects. What a name means that is not listed here only the target's server
knows: `check.functions_called` gives the names to ask it about.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlglot.tokenizer_core import Token, TokenType

from towline_transforms.problems import ProblemKind
from towline_transforms.syntax import word


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


AGGREGATES = _names(
    """
    any_value array_agg avg bit_and bit_or bit_xor bool_and bool_or corr count covar_pop covar_samp every grouping
    json_agg json_agg_strict json_arrayagg json_object_agg json_object_agg_strict json_object_agg_unique
    json_object_agg_unique_strict json_objectagg jsonb_agg jsonb_agg_strict jsonb_object_agg jsonb_object_agg_strict
    jsonb_object_agg_unique jsonb_object_agg_unique_strict max min mode percentile_cont percentile_disc range_agg
    range_intersect_agg regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy
    stddev stddev_pop stddev_samp string_agg sum var_pop var_samp variance xmlagg
    """
)

WINDOWS = _names(
    """
    cume_dist dense_rank first_value lag last_value lead nth_value ntile percent_rank rank row_number
    """
)

SETS = _names(
    """
    _pg_expandarray aclexplode connectby crosstab each generate_series generate_subscripts json_array_elements
    json_array_elements_text json_each json_each_text json_object_keys json_populate_recordset json_table json_to_record
    json_to_recordset jsonb_array_elements jsonb_array_elements_text jsonb_each jsonb_each_text jsonb_object_keys
    jsonb_path_query jsonb_path_query_tz jsonb_populate_recordset jsonb_to_record jsonb_to_recordset regexp_matches
    regexp_split_to_table skeys string_to_table svals ts_debug ts_parse ts_stat ts_token_type unnest xmltable
    """
)

VOLATILE = _names(
    """
    clock_timestamp current_query currval dblink gen_random_bytes gen_random_uuid gen_salt lastval nextval now
    pgp_pub_encrypt pgp_pub_encrypt_bytea pgp_sym_encrypt pgp_sym_encrypt_bytea query_to_xml random random_normal
    set_config setseed setval statement_timestamp timeofday transaction_timestamp uuid_generate_v1 uuid_generate_v1mc
    uuid_generate_v4 uuidv4 uuidv7
    """
)

#: Stable for the server, but a function of the session or the database rather than of the row.
SESSION = _names(
    """
    current_database current_schema current_schemas current_setting inet_client_addr inet_client_port inet_server_addr
    inet_server_port version
    """
)

VOLATILE_PREFIXES = ("pg_", "txid_", "dblink_", "lo_")
NOT_VOLATILE = frozenset({"pg_lsn", "pg_size_pretty", "pg_size_bytes", "pg_typeof"})

CLOCK = frozenset({"current_date", "current_time", "current_timestamp", "localtime", "localtimestamp"})
WHO = _names("current_user session_user user current_role current_catalog current_schema system_user")

_TIME_OF_DAY = CLOCK | {"now", "clock_timestamp", "statement_timestamp", "transaction_timestamp", "timeofday"}

#: Words that may stand before a parenthesis without being the name of a function.
_SYNTAX = _names(
    """
    all and any array as between by case cast check coalesce collate cross distinct else end escape except exists fetch
    filter for from full greatest group having ilike in inner intersect into is isnull join lateral least like limit
    materialized natural not notnull null nullif offset on only operator or order outer over partition placing row
    select sets similar some symmetric then to union using values varying when where window with within without zone
    """
)


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it is written. ``schema`` is empty when the name is not qualified; ``arguments`` are counted."""

    schema: str
    name: str
    arguments: int

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}" if self.schema else self.name


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call is refused, and what to write instead."""

    kind: ProblemKind
    detail: str
    remedy: str


def calls(tokens: Sequence[Token]) -> Iterator[Call]:
    """Every call in a piece of SQL; types with a modifier count too where they follow AS: ``CAST(a AS numeric(5))``."""
    for place, token in enumerate(tokens[:-1]):
        name = word(token)
        if not name or tokens[place + 1].token_type != TokenType.L_PAREN:
            continue
        quoted = token.token_type == TokenType.IDENTIFIER
        before = tokens[place - 1].token_type if place else None
        schema = ""
        if before == TokenType.DOT and place >= 2:
            schema = word(tokens[place - 2])
            before = tokens[place - 3].token_type if place >= 3 else None
        elif name in _SYNTAX and not quoted:
            continue
        if before == TokenType.DCOLON:
            continue
        yield Call(schema, name, _arguments(tokens, place + 1))


def _arguments(tokens: Sequence[Token], opening: int) -> int:
    """How many arguments stand between the parenthesis at ``opening`` and the one that closes it."""
    depth = commas = 0
    for place in range(opening, len(tokens)):
        kind = tokens[place].token_type
        if kind in (TokenType.L_PAREN, TokenType.L_BRACKET):
            depth += 1
        elif kind in (TokenType.R_PAREN, TokenType.R_BRACKET):
            depth -= 1
            if depth == 0:
                return 0 if place == opening + 1 else commas + 1
        elif kind == TokenType.COMMA and depth == 1:
            commas += 1
    return commas + 1


def refused_calls(tokens: Sequence[Token]) -> Iterator[tuple[str, Refusal]]:
    """Every call, or value that is called without parentheses, that a route cannot have: its name, and why."""
    for call in calls(tokens):
        if refusal := judge(call):
            yield str(call), refusal
    for place, token in enumerate(tokens):
        before = tokens[place - 1].token_type if place else None
        after = tokens[place + 1].token_type if place + 1 < len(tokens) else None
        if token.token_type == TokenType.IDENTIFIER or before == TokenType.DOT or after == TokenType.DOT:
            continue
        name = word(token)
        if name in CLOCK and after != TokenType.L_PAREN:
            yield name, _clock(name)
        elif name in WHO and after != TokenType.L_PAREN:
            yield name, _session(name)
        elif name == "over" and before == TokenType.R_PAREN:
            yield "OVER", _window("OVER")
        elif name in ("filter", "within") and before == TokenType.R_PAREN:
            yield name.upper(), _aggregate(name.upper())


def judge(call: Call) -> Refusal | None:
    """Why a call is refused; None when it is not, or when only the target's server can tell."""
    name = call.name
    if name.startswith(("dblink", "uuid_generate_v")) and (name in VOLATILE or name.startswith("dblink")):
        return _volatile(name)  # extensions live in any schema
    if call.schema not in ("", "pg_catalog"):
        return None
    if name in AGGREGATES:
        return _aggregate(name)
    if name in WINDOWS:
        return _window(name)
    if name in SETS:
        return Refusal(
            ProblemKind.FUNCTION,
            f"{name}() returns a set, and a route gives one row for a row.",
            "Take one element (array[1], json ->> 'key', regexp_match), or keep the array or document as it is.",
        )
    if name in _TIME_OF_DAY or (name == "age" and call.arguments == 1):
        return _clock(name)
    if name in SESSION:
        return _session(name)
    if name in VOLATILE or (name.startswith(VOLATILE_PREFIXES) and name not in NOT_VOLATILE):
        return _volatile(name)
    return None


def _aggregate(name: str) -> Refusal:
    return Refusal(
        ProblemKind.AGGREGATE,
        f"{name} is about many rows, and a route sees one at a time.",
        "Replicate the rows and aggregate them in a view at the target.",
    )


def _window(name: str) -> Refusal:
    return Refusal(
        ProblemKind.WINDOW,
        f"{name} looks at other rows, and a route sees one at a time.",
        "Replicate the rows and use the window function in a view at the target.",
    )


def _clock(name: str) -> Refusal:
    return Refusal(
        ProblemKind.FUNCTION,
        f"{name} depends on when it is called: the same row would not give the same result.",
        "Use _commit_time, the time of the source's commit, or give the target's column a default and leave it out.",
    )


def _session(name: str) -> Refusal:
    return Refusal(
        ProblemKind.FUNCTION,
        f"{name} depends on the session rather than on the row.",
        "Write the value as a literal, or use _source for the pipeline's name.",
    )


def _volatile(name: str) -> Refusal:
    return Refusal(
        ProblemKind.FUNCTION,
        f"{name}() is not a function of the row: the same row would not give the same result.",
        "Give the target's column a default and leave it out of the SELECT, or derive the value from the row, "
        "as md5(a::text)::uuid does.",
    )
