"""The files in deploy/ name things that exist. What they do was tried by hand: deploy/README.md says what of it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.core import Metric

from towline.config import load
from towline.metrics import Metrics
from towline.target import RouteState

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"


def parsed(name: str) -> Any:
    """A YAML file of deploy/."""
    return yaml.safe_load((DEPLOY / name).read_text())


def locked(path: Path) -> dict[str, set[str]]:
    """The packages of a lock file with their versions (there are several where they depend on Python's)."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", path.read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def exported() -> set[str]:
    """Names of all time series that the daemon exports."""
    metrics = Metrics("p")
    metrics.route_state(RouteState("r", "copying"))
    metrics.error("TL-301")
    metrics.sweeping("r", wanted=True)
    families: list[Metric] = list(metrics.registry.collect())
    return {sample.name for family in families for sample in family.samples} | {"up"}


def test_alerts_use_metrics_and_labels_that_exist() -> None:
    """A renamed metric would silence its alert for ever."""
    series = exported()
    rules = [rule for group in parsed("alerts.yml")["groups"] for rule in group["rules"]]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        used = set(re.findall(r"\b(?:towline_\w+|up)\b(?=[{)\[ ])", rule["expr"]))
        assert used, rule["alert"]
        assert used <= series, rule["alert"]
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert {"summary", "description"} <= rule["annotations"].keys()
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            assert label in ("pipeline", "route", "code", "instance")


def test_prometheus_reads_the_alerts_and_scrapes_the_composed_daemon() -> None:
    """The names in the three files agree."""
    prometheus, compose = parsed("prometheus.yml"), parsed("compose.yaml")
    assert prometheus["rule_files"] == ["alerts.yml"]
    (job,) = prometheus["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert host in compose["services"]
    assert int(port) == yaml.safe_load((DEPLOY / "compose" / "pipeline.yaml").read_text())["web"]["port"]


def test_compose_mounts_what_exists_and_declares_its_secrets() -> None:
    """Every mounted file is in the repository; all secrets are declared; no port is open to the world."""
    compose = parsed("compose.yaml")
    services = compose["services"]
    for name, service in services.items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"], volume
        assert set(service.get("secrets", [])) <= compose["secrets"].keys(), name
        assert set(service.get("depends_on", [])) <= services.keys(), name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
    ignored = (TOP / ".gitignore").read_text().splitlines()
    assert "deploy/secrets/" in ignored
    assert all(secret["file"].startswith("./secrets/") for secret in compose["secrets"].values())


def test_the_composed_pipeline_is_accepted(tmp_path: Path) -> None:
    """It loads once its secrets are there, and the roles and databases are those that compose makes."""
    text = (DEPLOY / "compose" / "pipeline.yaml").read_text()
    secrets = parsed("compose.yaml")["services"]["towline"]["secrets"]
    for name in re.findall(r"\$\{file:/run/secrets/(\w+)\}", text):
        assert name in secrets
        (tmp_path / name).write_text("secret")
    file = tmp_path / "pipeline.yaml"
    file.write_text(text.replace("/run/secrets/", ""))
    config = load(file)
    services = parsed("compose.yaml")["services"]
    for end, host in ((config.source, "source"), (config.target, "hub")):
        dsn = end.dsn.get_secret_value()
        assert f"host={host}" in dsn
        assert f"dbname={services[host]['environment']['POSTGRES_DB']}" in dsn
        assert "CREATE ROLE towline LOGIN" in (DEPLOY / "compose" / f"{host}-role.sh").read_text()


def test_the_image_is_built_from_files_that_are_let_in() -> None:
    """Each COPY names a file that exists and that .dockerignore does not keep out."""
    let_in = [line[1:] for line in (TOP / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (TOP / "Dockerfile").read_text(), re.MULTILINE)
    assert len(copies) >= 5
    for source in " ".join(copies).split():
        assert (TOP / source).exists(), source
        assert source in let_in, source


@pytest.mark.parametrize("name", ["deploy/requirements.lock", "deploy/build.lock", "bench/requirements.lock"])
def test_what_is_deployed_is_what_is_tested(name: str) -> None:
    """The image's packages are those of requirements.lock, by version; so are the benchmark's that are in both."""
    everything = locked(TOP / "requirements.lock")
    deployed = locked(TOP / name)
    assert deployed
    shared = deployed.keys() & everything.keys()
    assert shared == deployed.keys() or name.startswith("bench/")
    assert {package: everything[package] for package in shared} == {package: deployed[package] for package in shared}


def test_locks_hold_every_dependency_with_hashes_and_no_address() -> None:
    """Whoever installs decides where from."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    extras = [package for extra in project["optional-dependencies"].values() for package in extra]
    named = {re.split(r"[\[<>=]", package)[0].lower() for package in [*project["dependencies"], *extras]}
    assert named <= locked(TOP / "requirements.lock").keys() | locked(TOP / "bench" / "requirements.lock").keys()
    for path in (
        *(TOP / "requirements.lock", TOP / "bench" / "requirements.lock"),
        *(DEPLOY / "requirements.lock", DEPLOY / "build.lock"),
    ):
        text = path.read_text()
        assert "://" not in text
        assert "--index" not in text
        blocks = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
        assert all("--hash=sha256:" in block for block in blocks)


def test_the_unit_does_not_retry_what_a_person_must_mend() -> None:
    """The exit codes in the unit are those of docs/OPERATIONS.md."""
    unit = (DEPLOY / "towline@.service").read_text()
    assert "RestartPreventExitStatus=2 3\n" in unit
    assert "Type=notify\n" in unit
