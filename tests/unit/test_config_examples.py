"""The examples of config/, the starter file, and the YAML in the documents: all load, as a reader will expect."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from towline import config
from towline.table_name import ALL_TABLES
from towline_transforms.route import OnDelete

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "config").glob("*.yaml"))
VARIABLES = ("ERP_DSN", "HUB_DSN", "SOURCE_DSN", "TARGET_DSN")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples refer to."""
    for name in VARIABLES:
        monkeypatch.setenv(name, f"host={name.lower()} dbname=x")
    monkeypatch.setenv("ERP_PASSWORD", "p")


def yaml_blocks() -> list[tuple[str, str]]:
    """Complete pipeline files among the ```yaml blocks of all documents."""
    found = []
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("config/*.md")]:
        for number, block in enumerate(re.findall(r"^```ya?ml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            if re.search(r"^pipeline:", block, re.MULTILINE):
                found.append((f"{page.name}-{number}", block))
    return found


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_loads(path: Path) -> None:
    """Every example is accepted, with nothing to warn of."""
    loaded = config.load(path)
    assert loaded.specs() and not loaded.warnings()


def test_examples_show_what_they_say() -> None:
    """SELECT routes with a marked delete; all tables; the other plugin."""
    erp, everything, wal2json = (
        config.load(ROOT / "config" / f"{name}.yaml") for name in ("erp-to-hub", "replicate-everything", "wal2json")
    )
    assert all(spec.select for spec in erp.specs())
    assert [spec.on_delete for spec in erp.specs()] == [OnDelete.DELETE, OnDelete.DELETE, OnDelete.MARK]
    assert everything.specs()[0].source.name == ALL_TABLES
    assert wal2json.source.plugin == "wal2json"


def test_starter_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `towline init` writes is right as it is, and also with everything uncommented that can be."""
    text = (ROOT / "daemon/towline/cli/starter.yaml").read_text()
    path = tmp_path / "starter.yaml"
    path.write_text(text)
    assert config.load(path).pipeline == "erp-to-hub"
    (tmp_path / "secret").write_text("p")
    uncommented = re.sub(r"^( *)# (?=[a-z_]+:(?: |$)| {2}[a-z_]+:|- name:|   )", r"\1", text, flags=re.MULTILINE)
    uncommented = uncommented.replace("/run/secrets/erp-password", "secret")
    path.write_text(uncommented)
    assert [spec.name for spec in config.load(path).specs()] == ["public.*", "order"]


@pytest.mark.parametrize("block", [pytest.param(text, id=name) for name, text in yaml_blocks()])
def test_documented_files_load(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A complete pipeline file in a document can be copied as it is."""
    for name in re.findall(r"\$\{([A-Z_]+)[}:]", block):
        monkeypatch.setenv(name, "host=x dbname=y" if name.endswith("DSN") or name.endswith("URL") else "p")
    for secret in re.findall(r"\$\{file:([^}]+)\}", block):
        (tmp_path / "secret").write_text("host=x dbname=y")
        block = block.replace(secret, "secret")
    path = tmp_path / "p.yaml"
    path.write_text(block)
    config.load(path)


def test_examples_hold_no_secret() -> None:
    """Connection strings and passwords are references."""
    for path in EXAMPLES:
        for line in path.read_text().splitlines():
            value = re.match(r"\s*(?:dsn|password): *(\S+)", line)
            assert value is None or value[1].startswith('"${'), (path.name, line)
