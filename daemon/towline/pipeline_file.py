"""What a pipeline file holds, as frozen pydantic models, and which combinations make no sense."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from towline.document import Place
from towline.references import Replaced
from towline.table_name import ALL_TABLES, parse_table
from towline_transforms.route import OnDelete, OnError, OnSchemaChange, OnTruncate, RouteSpec
from towline_transforms.schema import TableName

_PIPELINE = r"^[a-z][a-z0-9_-]{0,54}$"
_SLOT = r"^[a-z0-9_]{1,63}$"
_IDENTIFIER = r"^[a-z_][a-z0-9_]{0,62}$"
_ROUTE = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}$"


def _number(value: object) -> object:
    """A number out of a reference, as in ``port: ${PORT}``, is text until here."""
    if isinstance(value, Replaced) and re.fullmatch(r"[0-9]{1,18}(\.[0-9]{1,9})?", value):
        return float(value) if "." in value else int(value)
    return value


def _table(value: object) -> TableName:
    if isinstance(value, TableName):
        return value
    return parse_table(value if isinstance(value, str) else "")


Table = Annotated[
    TableName, PlainValidator(_table), PlainSerializer(str), WithJsonSchema({"type": "string", "pattern": r"\."})
]
Whole = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_number)]
Share = Annotated[float, BeforeValidator(_number)]
Columns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=63)], ...], Field(strict=False)]
OnDeleteText = Annotated[OnDelete, Field(strict=False)]
OnTruncateText = Annotated[OnTruncate, Field(strict=False)]
OnErrorText = Annotated[OnError, Field(strict=False)]
OnSchemaChangeText = Annotated[OnSchemaChange, Field(strict=False)]
ColumnName = Annotated[str, Field(min_length=1, max_length=63)]


class _Model(BaseModel):
    # Built when first used, so that parts are built once, with the whole.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


class _End(_Model):
    """What source and target have in common. The password may be kept apart from the rest of the DSN."""

    kind: Literal["postgres"] = Field(description="The kind of database.")
    password: SecretStr | None = Field(
        default=None,
        description="The password, when it is not in the DSN: put in as it is, so no character needs escaping.",
    )
    dsn: SecretStr = Field(
        description="How to connect: a libpq URL (postgresql://…) or key=value pairs, best as ${NAME}."
    )

    @field_validator("dsn")
    @classmethod
    def _connectable(cls, dsn: SecretStr, info: ValidationInfo) -> SecretStr:
        text = dsn.get_secret_value()
        password = info.data.get("password")
        try:
            if not text.strip():
                raise psycopg.ProgrammingError
            conninfo_to_dict(text)
            return SecretStr(make_conninfo(text, password=password.get_secret_value())) if password else dsn
        except (psycopg.ProgrammingError, UnicodeError):
            raise PydanticCustomError("dsn", "a libpq connection string, URL or key=value pairs") from None


class SourceConfig(_End):
    """Where changes come from."""

    plugin: Literal["pgoutput", "wal2json"] = Field(
        default="pgoutput", description="The output plugin of the replication slot."
    )
    slot: str = Field(
        default="", pattern=_SLOT, description="The replication slot. Default: towline_ and the pipeline's name."
    )
    publication: str = Field(
        default="",
        pattern=_IDENTIFIER,
        description="The publication (pgoutput). Default: towline_ and the pipeline's name.",
    )
    failover: bool = Field(
        default=False,
        description="Have standbys keep a copy of the slot, to go on after a promotion (PostgreSQL 17 and newer).",
    )
    streaming: Literal["auto", "off"] = Field(
        default="auto",
        description="Whether large transactions come while they are under way: auto where the source can, or off.",
    )
    catch_up: Literal["auto", "off"] = Field(
        default="auto",
        description="Whether a large backlog is read through SQL, which costs the source less: auto or off.",
    )


class TargetConfig(_End):
    """Where rows are made durable."""

    schema_name: str = Field(
        "towline",
        alias="schema",
        pattern=_IDENTIFIER,
        description="The schema that holds checkpoint, states, ledger and quarantine.",
    )


class DefaultsConfig(_Model):
    """What holds for routes that do not say otherwise."""

    on_delete: OnDeleteText = Field(
        default=OnDelete.DELETE, description="What a delete at the source does at the target."
    )
    mark_column: ColumnName | None = Field(
        default=None, description="The boolean or timestamp column that on_delete: mark sets."
    )
    on_truncate: OnTruncateText = Field(default=OnTruncate.HALT, description="What TRUNCATE at the source does.")
    on_error: OnErrorText = Field(default=OnError.HALT, description="What a row that the target refuses does.")
    on_schema_change: OnSchemaChangeText = Field(
        default=OnSchemaChange.HALT, description="What a column that is added to the table of an identity route does."
    )


class RouteConfig(_Model):
    """One source table (or all of a schema) and where its rows go."""

    name: str | None = Field(default=None, pattern=_ROUTE, description="The route's name. Default: what `from` says.")
    source: Table = Field(
        alias="from", description="The source table, schema.table; or schema.* for all tables, copied as they are."
    )
    into: Table = Field(description="The target table, schema.table; or schema.* when `from` ends in .* too.")
    select: str | None = Field(
        None,
        min_length=1,
        description="The target's SQL that turns a source row into a target row. Default: all columns.",
    )
    key: Columns = Field(default=(), description="Target columns that find a row. Default: the target's primary key.")
    on_delete: OnDeleteText | None = Field(default=None, description="What a delete at the source does at the target.")
    mark_column: ColumnName | None = Field(
        default=None, description="The boolean or timestamp column that on_delete: mark sets."
    )
    on_truncate: OnTruncateText | None = Field(default=None, description="What TRUNCATE at the source does.")
    on_error: OnErrorText | None = Field(default=None, description="What a row that the target refuses does.")
    on_schema_change: OnSchemaChangeText | None = Field(
        default=None, description="What a column that is added to the table of an identity route does."
    )
    sensitive: Columns = Field(
        default=(), description="Source columns whose values are masked wherever rows are kept or shown to people."
    )

    @property
    def title(self) -> str:
        """The name that the route goes by."""
        return self.name or str(self.source)


class BatchConfig(_Model):
    """How much goes into one transaction at the target, when the source has that much.

    Twice as much does while half of it is void, since the same rows change again and again.
    """

    max_rows: Whole = Field(default=50_000, ge=1, le=1_000_000, description="Rows in one piece of the stream.")
    max_bytes: Whole = Field(
        default=8_388_608, ge=65_536, le=1_073_741_824, description="Bytes in one piece of the stream."
    )


class SnapshotConfig(_Model):
    """How existing rows are copied."""

    chunk_rows: Whole = Field(default=20_000, ge=1, le=1_000_000, description="Rows read and committed at a time.")


class QuarantineConfig(_Model):
    """When rows that are refused are no longer taken for single bad rows (routes with on_error: quarantine)."""

    max_share: Share = Field(
        default=0.1,
        gt=0,
        le=1,
        description="Rows that are set aside, as a part of a route's latest 10,000 changes: how many there may be.",
    )
    min_rows: Whole = Field(
        default=100, ge=1, le=1_000_000, description="The share counts once a route has seen so many changes."
    )
    max_open: Whole = Field(
        default=10_000, ge=1, le=100_000, description="Rows of one route that may be in the quarantine at a time."
    )


class SpoolConfig(_Model):
    """Where large transactions of the source are kept while they are under way."""

    directory: Path = Field(
        default=Path("/var/tmp"), strict=False, description="A directory that the daemon may write to, on a disk."
    )
    max_bytes: Whole = Field(
        default=10_737_418_240, ge=1_048_576, description="Bytes of it that may be used; they are compressed."
    )

    @field_validator("directory")
    @classmethod
    def _absolute(cls, directory: Path) -> Path:
        if not directory.is_absolute():
            raise PydanticCustomError("directory", "an absolute path")
        return directory


class WebConfig(_Model):
    """Where metrics and health are served."""

    host: str = Field(default="127.0.0.1", min_length=1, description="The address to listen on.")
    port: Whole = Field(default=9464, ge=0, le=65_535, description="The port; 0 for none.")


class LogConfig(_Model):
    """How events are written to stderr."""

    format: Literal["logfmt", "json"] = Field(
        default="logfmt", description="One event a line, as logfmt or as a JSON object."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least severe level written."
    )


class PipelineConfig(_Model):
    """A Towline pipeline: one source, one target, many routes."""

    pipeline: str = Field(pattern=_PIPELINE, description="The pipeline's name: lower-case letters, digits, - and _.")
    source: SourceConfig
    target: TargetConfig
    defaults: DefaultsConfig = DefaultsConfig()
    routes: Annotated[tuple[RouteConfig, ...], Field(strict=False, min_length=1)]
    batch: BatchConfig = BatchConfig()
    snapshot: SnapshotConfig = SnapshotConfig()
    quarantine: QuarantineConfig = QuarantineConfig()
    spool: SpoolConfig = SpoolConfig()
    checkpoint_seconds: Seconds = Field(
        default=10.0, ge=0.1, le=3600, description="How often an idle pipeline advances its checkpoint, in seconds."
    )
    web: WebConfig = WebConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="before")
    @classmethod
    def _name_slot(cls, data: Any) -> Any:
        """Slot and publication are named after the pipeline unless they are given."""
        if isinstance(data, Mapping):
            name, source = data.get("pipeline"), data.get("source")
            if isinstance(name, str) and re.match(_PIPELINE, name) and isinstance(source, Mapping):
                own = f"towline_{name.replace('-', '_')}"
                return {**data, "source": {"slot": own, "publication": own, **source}}
        return data

    @model_validator(mode="after")
    def _possible(self) -> PipelineConfig:
        mistakes = [text for _, text in impossible(self.defaults, list(enumerate(self.routes)))]
        if mistakes:
            raise PydanticCustomError("impossible", "{mistakes}", {"mistakes": "; ".join(mistakes)})
        return self

    def specs(self) -> tuple[RouteSpec, ...]:
        """The routes as written, with defaults filled in."""
        defaults = self.defaults
        return tuple(
            RouteSpec(
                name=route.title,
                source=route.source,
                into=route.into,
                select=route.select,
                key=route.key,
                on_delete=(delete := route.on_delete or defaults.on_delete),
                mark_column=(route.mark_column or defaults.mark_column) if delete is OnDelete.MARK else None,
                on_truncate=route.on_truncate or defaults.on_truncate,
                on_error=route.on_error or defaults.on_error,
                on_schema_change=route.on_schema_change or defaults.on_schema_change,
                sensitive=route.sensitive,
            )
            for route in self.routes
        )

    def warnings(self) -> tuple[str, ...]:
        """What is allowed, but probably not meant."""
        ends = [conninfo_to_dict(end.dsn.get_secret_value()) for end in (self.source, self.target)]
        here, there = ([end.get(name) for name in ("host", "hostaddr", "port", "dbname", "service")] for end in ends)
        if here != there:
            return ()
        loops = [route.title for route in self.routes if route.source == route.into]
        return (
            "source and target are the same database",
            *(
                f"route {name}: its own writes come back as changes: source and target table are the same"
                for name in loops
            ),
        )


def impossible(defaults: DefaultsConfig, routes: Sequence[tuple[int, RouteConfig]]) -> Iterator[tuple[Place, str]]:
    """Combinations of which each part is right. ``routes``: with their index in the file."""
    titles: dict[str, int] = {}
    marks = defaults.on_delete is OnDelete.MARK
    for index, route in routes:
        place: Place = ("routes", index)
        whole_schema = route.source.name == ALL_TABLES
        if route.title in titles:
            first = titles[route.title]
            where = (*place, "name" if route.name else "from")
            yield where, f"a name of its own for the route (routes[{first}] goes by the same)"
        titles.setdefault(route.title, index)
        if whole_schema and route.into.name != ALL_TABLES:
            yield (*place, "into"), "schema.*, because `from` is all tables of a schema"
        if not whole_schema and route.into.name == ALL_TABLES:
            yield (*place, "into"), "one table, because `from` is one"
        if whole_schema and route.select is not None:
            yield (*place, "select"), "no select, because `from` is all tables of a schema"
        if whole_schema and route.key:
            yield (*place, "key"), "no key, because `from` is all tables of a schema"
        if len(set(route.key)) < len(route.key):
            yield (*place, "key"), "each column once"
        delete = route.on_delete or defaults.on_delete
        marks = marks or delete is OnDelete.MARK
        if delete is OnDelete.MARK and not (route.mark_column or defaults.mark_column):
            yield (*place, "on_delete"), "a mark_column beside on_delete: mark"
        if delete is not OnDelete.MARK and route.mark_column:
            yield (*place, "mark_column"), "on_delete: mark beside mark_column"
    if defaults.mark_column and not marks:
        yield ("defaults", "mark_column"), "on_delete: mark beside mark_column"


#: The model of each part of the file, by its key.
SECTIONS: dict[str, type[BaseModel]] = {
    "source": SourceConfig,
    "target": TargetConfig,
    "defaults": DefaultsConfig,
    "routes": RouteConfig,
    "batch": BatchConfig,
    "snapshot": SnapshotConfig,
    "quarantine": QuarantineConfig,
    "spool": SpoolConfig,
    "web": WebConfig,
    "log": LogConfig,
}
