"""The pipeline file: what is accepted, what is refused and how, and that no secret is ever told."""

from __future__ import annotations

import json
import re
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError

from towline import config
from towline.config import PipelineConfig
from towline.errors import ConfigurationInvalid, SecretMissing
from towline_transforms.route import OnDelete, OnTruncate, RouteSpec
from towline_transforms.schema import TableName

ROOT = Path(__file__).parents[2]
SENTINEL = "s3ntinel-hunter2"

Write = Callable[[str], Path]

A_TABLE = 'expected a table as schema.table (or schema.*; odd names in "double quotes")'

HEAD = """\
pipeline: erp-to-hub
source: {kind: postgres, dsn: "host=erp dbname=erp"}
target: {kind: postgres, dsn: "postgresql://towline@hub/hub"}
"""
MINIMAL = HEAD + "routes:\n  - {from: public.item, into: hub.item}\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a pipeline file."""

    def write(text: str) -> Path:
        path = tmp_path / "p.yaml"
        path.write_text(text)
        return path

    return write


def refusal(path: Path) -> list[str]:
    """The lines of the refusal, without the file's name: ``line: path: text``."""
    with pytest.raises(ConfigurationInvalid) as caught:
        config.load(path)
    return [line.removeprefix(f"{path}:") for line in caught.value.detail.splitlines()]


def test_minimal(write: Write) -> None:
    """Only names, ends and routes are needed; the rest has defaults."""
    loaded = config.load(write(MINIMAL))
    assert (loaded.pipeline, loaded.source.slot, loaded.source.publication) == (
        "erp-to-hub",
        "towline_erp_to_hub",
        "towline_erp_to_hub",
    )
    assert (loaded.source.plugin, loaded.target.schema_name) == ("pgoutput", "towline")
    assert (loaded.batch.max_rows, loaded.batch.max_bytes, loaded.snapshot.chunk_rows) == (50_000, 8_388_608, 20_000)
    assert (loaded.source.streaming, str(loaded.spool.directory), loaded.spool.max_bytes) == (
        "auto",
        "/var/tmp",
        10 << 30,
    )
    assert (loaded.checkpoint_seconds, loaded.web.host, loaded.web.port) == (10.0, "127.0.0.1", 9464)
    assert loaded.specs() == (RouteSpec("public.item", TableName("public", "item"), TableName("hub", "item")),)


def test_specs_have_defaults_filled_in(write: Write) -> None:
    """What a route says wins over the defaults; the mark column only travels with on_delete: mark."""
    loaded = config.load(
        write(
            HEAD
            + """\
defaults: {on_delete: mark, mark_column: gone, on_truncate: delete}
routes:
  - {name: a, from: public.a, into: hub.a, key: [no, 'on'], select: "SELECT 1"}
  - {name: b, from: public.b, into: hub.b, on_delete: ignore, on_truncate: ignore}
  - {name: c, from: public.c, into: hub.c, mark_column: gone_at}
"""
        )
    )
    a, b, c = loaded.specs()
    assert (a.on_delete, a.mark_column, a.on_truncate, a.key) == (
        OnDelete.MARK,
        "gone",
        OnTruncate.DELETE,
        ("no", "on"),
    )
    assert (b.on_delete, b.mark_column, b.on_truncate) == (OnDelete.IGNORE, None, OnTruncate.IGNORE)
    assert c.mark_column == "gone_at"


def test_references(write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Variables, defaults and secret files are put in; numbers may come from them; $$ of SQL stays."""
    secret = tmp_path / "secret"
    secret.write_text(f"{SENTINEL}@/'\\ %\n")
    monkeypatch.setenv("ERP_DSN", "host=erp")
    monkeypatch.setenv("PORT", "9999")
    monkeypatch.setenv("EMPTY", "")
    loaded = config.load(
        write(
            f"""\
pipeline: ${{NAME:-pipe}}
source: {{kind: postgres, dsn: "${{ERP_DSN}} dbname=${{EMPTY:-erp}}", password: "${{file:{secret}}}"}}
target: {{kind: postgres, dsn: "postgresql://u@hub/hub", password: "${{file:secret}}"}}
web: {{port: "${{PORT}}"}}
checkpoint_seconds: ${{SECONDS_:-2.5}}
routes:
  - from: public.item
    into: hub.item
    select: SELECT $$a$$ AS x, '$${{NOT}}' AS y, $1 AS z
"""
        )
    )
    assert (loaded.pipeline, loaded.web.port, loaded.checkpoint_seconds) == ("pipe", 9999, 2.5)

    password = f"{SENTINEL}@/'\\ %"
    assert conninfo_to_dict(loaded.source.dsn.get_secret_value()) == {
        "host": "erp",
        "dbname": "erp",
        "password": password,
    }
    assert conninfo_to_dict(loaded.target.dsn.get_secret_value())["password"] == password
    assert loaded.routes[0].select == "SELECT $$a$$ AS x, '${NOT}' AS y, $1 AS z"
    assert SENTINEL not in repr(loaded) + str(loaded) + loaded.model_dump_json() + repr(loaded.model_dump())


def test_missing_secrets_are_told_together(write: Write, tmp_path: Path) -> None:
    """Each missing variable or file is named with its line."""
    path = write(
        """\
pipeline: p
source: {kind: postgres, dsn: "${TOWLINE_TEST_A} ${TOWLINE_TEST_B}"}
target:
  kind: postgres
  dsn: ${file:/nonexistent/secret}
routes: [{from: public.a, into: hub.a}]
"""
    )
    with pytest.raises(SecretMissing) as caught:
        config.load(path)
    assert caught.value.detail.splitlines() == [
        f"{path}:2: source.dsn: the environment variable TOWLINE_TEST_A is not set; "
        "the environment variable TOWLINE_TEST_B is not set",
        f"{path}:5: target.dsn: the secret file /nonexistent/secret cannot be read (No such file or directory)",
    ]


ROUTE = "routes:\n  - {from: public.a, into: hub.a}\n"
BAD = {
    "empty": ("", ["1: expected a mapping (got nothing)"]),
    "a list": ("- a\n", ["1: expected a mapping (got a list)"]),
    "nothing but a name": (
        "pipeline: p\n",
        [f"1: {name}: expected, but missing" for name in ("source", "target", "routes")],
    ),
    "not yaml": (
        "pipeline: [a\nsource: b\n",
        ["2: not YAML: while parsing a flow sequence expected ',' or ']', but got ':'"],
    ),
    "a tab": (
        "a:\n\tb: 1\n",
        ["2: not YAML: while scanning for the next token found character '\\t' that cannot start any token"],
    ),
    "two documents": (
        MINIMAL + "---\na: 1\n",
        ["6: not YAML: expected a single document in the stream but found another document"],
    ),
    "a tag": (HEAD + "web: !!python/object:os.system {}\n" + ROUTE, ["4: web: tags (!…) are not supported"]),
    "a circle": (
        HEAD + "web: &w {port: *w}\n" + ROUTE,
        ["4: web.port: an alias to something that it is itself a part of"],
    ),
    "a key twice": (
        HEAD + "web: {port: 1}\nbatch: {}\nweb: {port: 2}\n" + ROUTE,
        ["6: web: the key is there twice (first in line 4)"],
    ),
    "unknown keys": (
        HEAD + "retries: 3\nweb: {porrt: 1}\n" + ROUTE,
        [
            "4: retries: unknown key: did you mean routes?; known: pipeline, source, target, defaults, routes, batch, "
            "snapshot, quarantine, spool, checkpoint_seconds, web, log",
            "5: web.porrt: unknown key: did you mean port?; known: host, port",
        ],
    ),
    "wrong types": (
        HEAD + "web: 9464\nbatch: {max_rows: '1', max_bytes: 1.5}\ncheckpoint_seconds: true\n" + ROUTE,
        [
            "4: web: expected a mapping (got an integer)",
            "5: batch.max_rows: expected an integer (got a string)",
            "5: batch.max_bytes: expected an integer (got a number)",
            "6: checkpoint_seconds: expected a number (got a boolean)",
        ],
    ),
    "out of bounds": (
        HEAD + "web: {port: 70000}\nbatch: {max_rows: 0}\nsnapshot: {chunk_rows: 0}\n" + ROUTE,
        [
            "4: web.port: expected at most 65535",
            "5: batch.max_rows: expected at least 1",
            "6: snapshot.chunk_rows: expected at least 1",
        ],
    ),
    "spool": (
        HEAD.replace('dbname=erp"', 'dbname=erp", streaming: parallel')
        + "spool: {directory: spool, max_bytes: 1000}\n"
        + ROUTE,
        [
            "2: source.streaming: expected auto or off",
            "4: spool.directory: expected an absolute path",
            "4: spool.max_bytes: expected at least 1048576",
        ],
    ),
    "no routes": (HEAD + "routes: []\n", ["4: routes: expected at least 1 entry"]),
    "names": (
        """\
pipeline: ERP
source: {kind: postgres, dsn: host=a, slot: Slot-1, publication: 1x, plugin: wal2jsn}
target: {kind: mysql, dsn: host=a, schema: a b}
"""
        + ROUTE,
        [
            "1: pipeline: expected a string of the form ^[a-z][a-z0-9_-]{0,54}$",
            "2: source.plugin: expected pgoutput or wal2json: did you mean wal2json?",
            "2: source.slot: expected a string of the form ^[a-z0-9_]{1,63}$",
            "2: source.publication: expected a string of the form ^[a-z_][a-z0-9_]{0,62}$",
            "3: target.kind: expected postgres",
            "3: target.schema: expected a string of the form ^[a-z_][a-z0-9_]{0,62}$",
        ],
    ),
    "unknown ways": (
        HEAD + "defaults: {on_error: skip}\nroutes:\n  - {from: public.a, into: b.a, on_schema_change: follow}\n",
        [
            "4: defaults.on_error: expected halt or quarantine",
            "6: routes[0].on_schema_change: expected halt or evolve or ignore",
        ],
    ),
    "impossible routes": (
        HEAD
        + """\
defaults: {mark_column: gone}
routes:
  - from: public.*
    into: hub.item
  - from: public.a
    into: hub.*
  - from: public.*
    into: replica.*
    name: all
    select: SELECT 1
    key: [a]
  - {from: public.b, into: hub.b, key: [a, a]}
  - {from: public.b, into: hub.c, mark_column: gone}
""",
        [
            "4: defaults.mark_column: expected on_delete: mark beside mark_column",
            "7: routes[0].into: expected schema.*, because `from` is all tables of a schema",
            "9: routes[1].into: expected one table, because `from` is one",
            "13: routes[2].select: expected no select, because `from` is all tables of a schema",
            "14: routes[2].key: expected no key, because `from` is all tables of a schema",
            "15: routes[3].key: expected each column once",
            "16: routes[4].from: expected a name of its own for the route (routes[3] goes by the same)",
            "16: routes[4].mark_column: expected on_delete: mark beside mark_column",
        ],
    ),
    "mark without its column": (
        HEAD + "routes:\n  - {from: public.a, into: hub.a, on_delete: mark}\n",
        ["5: routes[0].on_delete: expected a mark_column beside on_delete: mark"],
    ),
    "tables": (
        HEAD
        + """\
routes:
  - {from: item, into: 3}
  - {from: "*.item", into: hub.sale_*}
  - {from: 'public."*"', into: 'public."a'}
  - {from: 'public. a', into: .a}
""",
        [
            f"5: routes[0].from: {A_TABLE}",
            f"5: routes[0].into: {A_TABLE} (got an integer)",
            "6: routes[1].from: expected * only in place of the table, as in public.*",
            "6: routes[1].into: expected * alone, as in public.* (patterns such as sale_* are not supported)",
            "7: routes[2].from: expected * only in place of the table, as in public.*",
            f"7: routes[2].into: {A_TABLE}",
            "8: routes[3].from: expected a table name of 1 to 63 bytes, without spaces around it",
            f"8: routes[3].into: {A_TABLE}",
        ],
    ),
    "bad references": (
        HEAD + 'web: {host: "${", port: "${1X}"}\nlog: {level: "${X:-${Y}}"}\n' + ROUTE,
        [
            "4: web.host: expected ${NAME}, ${NAME:-default} or ${file:/path} (write $${ for a literal ${)",
            "4: web.port: expected ${NAME}, ${NAME:-default} or ${file:/path} (write $${ for a literal ${)",
            "5: log.level: expected ${NAME}, ${NAME:-default} or ${file:/path} (write $${ for a literal ${)",
        ],
    ),
}


@pytest.mark.parametrize("case", BAD.items(), ids=lambda case: case[0])
def test_refused(write: Write, case: tuple[str, tuple[str, list[str]]]) -> None:
    """Every mistake is reported, with its line, its path and what was expected."""
    _, (text, expected) = case
    assert refusal(write(text)) == expected


def test_unreadable(tmp_path: Path) -> None:
    """A file that is absent, a folder, or not UTF-8 is told apart from a wrong one."""
    assert refusal(tmp_path / "absent.yaml")[0].endswith("cannot be read: No such file or directory")
    assert refusal(tmp_path)[0].endswith("cannot be read: Is a directory")
    path = tmp_path / "latin1.yaml"
    path.write_bytes(b"pipeline: caf\xe9\n")
    assert refusal(path)[0].endswith("not UTF-8, at byte 13")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("public.item", ("public", "item")),
        ("public.party-party", ("public", "party-party")),
        ("public.ir.model", ("public", "ir.model")),
        ("public.Mixed Case", ("public", "Mixed Case")),
        ('"Odd.Schema"."Odd ""Name"""', ("Odd.Schema", 'Odd "Name"')),
        ('public."Odd.Name"', ("public", "Odd.Name")),
        ("größe.straße", ("größe", "straße")),
    ],
)
def test_table_names(write: Write, text: str, name: tuple[str, str]) -> None:
    """A table is split at the first dot, unless it is quoted; nothing is folded."""
    loaded = config.load(write(HEAD + f"routes:\n  - from: {json.dumps(text, ensure_ascii=False)}\n    into: hub.a\n"))
    assert loaded.routes[0].source == TableName(*name)


def test_yaml_1_2_words(write: Write) -> None:
    """``no``, ``on`` and a date are strings, as a column or a table may be called so; 010 is ten."""
    loaded = config.load(
        write(
            """\
pipeline: "on"
source: &end {kind: postgres, dsn: host=a}
target: {<<: *end, dsn: host=b}
batch: {max_rows: 010}
routes:
  - {from: public.no, into: hub.yes, key: [no, 2024-01-01, off]}
"""
        )
    )
    assert loaded.routes[0].key == ("no", "2024-01-01", "off")
    assert (loaded.target.dsn.get_secret_value(), loaded.batch.max_rows) == ("host=b", 10)


def test_aliases_cannot_explode(write: Write) -> None:
    """A small file that stands for billions of values is refused, not expanded."""
    bombs = "".join(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert any("more than 100000 values" in line for line in refusal(write("b0: &b0 x\n" + bombs)))


SECRET_FILES = {
    "in an unquoted place": f"pipeline: {SENTINEL}!\nsource: {SENTINEL}\ntarget: [{SENTINEL}]\nroutes: {SENTINEL}\n",
    "not a dsn": HEAD.replace("host=erp dbname=erp", SENTINEL) + ROUTE,
    "half a dsn": HEAD.replace("host=erp dbname=erp", f"host=a {SENTINEL}") + ROUTE,
    "a bad url": HEAD.replace("towline@hub", f"u:{SENTINEL}%zz@hub") + ROUTE,
    "as a key": HEAD.replace("kind: postgres", f"'postgresql://u:{SENTINEL}@h'", 1) + ROUTE,
    "as a key twice": f"? 'pw={SENTINEL}'\n: 1\n? 'pw={SENTINEL}'\n: 2\n",
    "as an anchor": f"pipeline: p\nsource: *{SENTINEL}\n",
    "as a tag": f"pipeline: !{SENTINEL} p\n",
    "in every field": HEAD
    + f"""\
batch: {{max_rows: {SENTINEL}, max_bytes: {SENTINEL}}}
checkpoint_seconds: {SENTINEL}
web: {{host: [{SENTINEL}], port: {SENTINEL}}}
log: {{format: {SENTINEL}, level: {SENTINEL}}}
defaults: {{on_delete: {SENTINEL}, on_error: {SENTINEL}}}
routes:
  - {{from: {SENTINEL}, into: {SENTINEL}, name: "{SENTINEL} x", key: {SENTINEL}, on_truncate: {SENTINEL}}}
""",
    "broken off": f'pipeline: p\nsource: {{dsn: "postgresql://u:{SENTINEL}@h',
    "a reference without end": HEAD.replace("host=erp", f"${{{SENTINEL}"),
    "the default of a reference": HEAD.replace("host=erp dbname=erp", f"${{X:-{SENTINEL}}}"),
}


@pytest.mark.parametrize("text", SECRET_FILES.values(), ids=SECRET_FILES.keys())
def test_no_secret_is_told(write: Write, text: str) -> None:
    """However wrong the file is, a password in any place of it is not in the message, nor in a traceback."""

    with pytest.raises((ConfigurationInvalid, SecretMissing)) as caught:
        config.load(write(text))
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caught.value.advice
    assert SENTINEL not in told


def test_models_check_themselves() -> None:
    """A configuration made in code passes the same rules as a file."""
    data = {
        "pipeline": "p",
        "source": {"kind": "postgres", "dsn": "host=a"},
        "target": {"kind": "postgres", "dsn": "host=b"},
        "routes": [{"from": "public.*", "into": "hub.x"}],
    }
    with pytest.raises(ValidationError, match="all tables of a schema"):
        PipelineConfig.model_validate(data)


def test_same_database_is_warned_of(write: Write) -> None:
    """Source and target may be one database; a table that feeds itself is pointed out."""
    same = MINIMAL.replace("postgresql://towline@hub/hub", "postgresql://other@erp/erp")
    assert config.load(write(same)).warnings() == ("source and target are the same database",)
    assert len(config.load(write(same.replace("hub.item", "public.item"))).warnings()) == 2
    assert config.load(write(MINIMAL)).warnings() == ()


def test_json_schema_describes_every_key() -> None:
    """Editors get a description for each key, and know required and allowed ones."""
    schema = config.json_schema()
    assert schema["required"] == ["pipeline", "source", "target", "routes"]
    for name, model in schema["$defs"].items():
        if model["type"] == "object":
            assert model["additionalProperties"] is False
            for key, property_ in model["properties"].items():
                assert "description" in json.dumps(property_) or "$ref" in property_, (name, key)
    assert set(schema["$defs"]["RouteConfig"]["properties"]) >= {"from", "into", "select", "key", "on_delete"}


def test_one_reader_of_the_environment() -> None:
    """Only config.py looks at the process's environment (the demo starts processes of its own)."""
    readers = [
        path.relative_to(ROOT).as_posix()
        for root in ("daemon", "transforms")
        for path in (ROOT / root).rglob("*.py")
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text()) and "demo" not in path.parts
    ]
    assert readers == ["daemon/towline/config.py"]


@given(st.integers(0, len(MINIMAL)), st.integers(0, 12), st.text(alphabet=st.characters(codec="utf-8"), max_size=12))
@settings(max_examples=150, deadline=None)
def test_damaged_files_are_refused_cleanly(place: int, removed: int, inserted: str) -> None:
    """Whatever is done to a file, it is accepted or refused with a coded error: nothing else is ever raised."""
    text = MINIMAL[:place] + inserted + MINIMAL[place + removed :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yaml"
        path.write_text(text, "utf-8")
        try:
            config.load(path)
        except (ConfigurationInvalid, SecretMissing) as error:
            assert all(re.match(r".*p\.yaml(:\d+)?: ", line) for line in error.detail.split("\n"))


@given(st.text(alphabet="[]{}&*!|>'\"%@`#-?:,. \n\tab01~<=$", max_size=60))
@settings(max_examples=150, deadline=None)
def test_noise_is_refused_cleanly(text: str) -> None:
    """No arrangement of YAML's own characters gets past the reader's errors."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p.yaml"
        path.write_text(text, "utf-8")
        with pytest.raises((ConfigurationInvalid, SecretMissing)):
            config.load(path)
