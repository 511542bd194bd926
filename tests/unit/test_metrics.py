"""Metrics: what each call changes, in the text that Prometheus reads; and that the page about them is complete."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from towline import metrics as module
from towline.errors import all_errors
from towline.metrics import Metrics
from towline.target import Committed, Counts, RouteState

ROOT = Path(__file__).parents[2]
LABELS = ("route", "operation", "state", "code", "role", "le", "version")


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """(name, label values but the pipeline's…) → value, as parsed from the text form."""
    text = generate_latest(metrics.registry).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("towline_"):
                assert sample.labels["pipeline"] == "p"
                labels = [sample.labels[name] for name in LABELS if name in sample.labels]
                found[(sample.name, *labels)] = sample.value
    return found


def test_committed_counts_rows_by_operation() -> None:
    """A commit counts a batch, its seconds, its rows by route and operation, and moves the checkpoint."""
    metrics = Metrics("p")
    counts = Counts(seen=10, upserted=5, deleted=2, superseded=1, filtered=1, quarantined=1)
    metrics.committed(Committed({"order": counts}, seconds=0.004), 0x16_B374_D848)
    metrics.committed(Committed({"order": counts, "item": Counts(seen=1, upserted=1)}, seconds=0.2), 0x16_B374_D900)
    found = samples(metrics)
    assert found["towline_batches_total",] == 2
    assert found["towline_rows_total", "order", "upserted"] == 10
    assert sum(value for key, value in found.items() if key[:2] == ("towline_rows_total", "order")) == 20
    assert found["towline_rows_total", "item", "upserted"] == 1
    assert found["towline_checkpoint_position_bytes",] == 0x16_B374_D900
    assert found["towline_apply_seconds_count",] == 2
    assert found["towline_apply_seconds_sum",] == pytest.approx(0.204)
    assert found["towline_last_applied_timestamp_seconds",] > 1.7e9


def test_rows_that_are_set_aside() -> None:
    """How many wait for a person: of each route from the start, and as a commit finds them."""
    metrics = Metrics("p")
    metrics.route_state(RouteState("item", "streaming"))
    metrics.quarantine({"order": 3})
    assert samples(metrics)["towline_quarantine_open_rows", "order"] == 3
    assert samples(metrics)["towline_quarantine_open_rows", "item"] == 0
    metrics.committed(Committed({"order": Counts(seen=1, quarantined=1)}, quarantine={"order": 4}), 0x10)
    assert samples(metrics)["towline_quarantine_open_rows", "order"] == 4


def test_lag_is_unknown_before_it_is_measured() -> None:
    """Nothing claims a lag of zero that nobody has measured."""
    metrics = Metrics("p")
    found = samples(metrics)
    unknown = ("towline_lag_seconds", "towline_source_lag_bytes", "towline_slot_retained_bytes")
    assert all(math.isnan(found[name,]) for name in unknown)
    metrics.lag(4096, 1.5)
    metrics.slot(8192, 77)
    found = samples(metrics)
    assert (found["towline_lag_seconds",], found["towline_source_lag_bytes",]) == (1.5, 4096)
    assert (found["towline_slot_retained_bytes",], found["towline_slot_restart_position_bytes",]) == (8192, 77)


def test_states_are_one_hot() -> None:
    """Exactly one role, and one state of each route, is 1."""
    metrics = Metrics("p")
    metrics.role("active")
    metrics.route_state(RouteState("order", "copying", copied=5, estimate=9))
    metrics.route_state(RouteState("item", "streaming"))
    found = samples(metrics)
    assert {key[1] for key, value in found.items() if key[0] == "towline_role" and value} == {"active"}
    states = {key[1:] for key, value in found.items() if key[0] == "towline_route_state" and value}
    assert states == {("order", "copying"), ("item", "streaming")}
    assert (found["towline_route_copied_rows", "order"], found["towline_route_estimated_rows", "order"]) == (5, 9)
    assert found["towline_rows_total", "order", "deleted"] == 0  # known to rate() from the first scrape on


def test_routes_can_be_forgotten() -> None:
    """A route that the configuration no longer has is no longer exported."""
    metrics = Metrics("p")
    metrics.route_state(RouteState("order", "streaming"))
    metrics.forget_routes(["order"])
    assert not any("order" in key for key in samples(metrics))


def test_errors_by_code() -> None:
    """Every error code can be counted."""
    metrics = Metrics("p")
    for error in all_errors():
        metrics.error(error.code)
    found = samples(metrics)
    assert {key[1] for key in found if key[0] == "towline_errors_total"} == {error.code for error in all_errors()}


def test_two_pipelines_do_not_share() -> None:
    """Each pipeline has a registry of its own."""
    first, second = Metrics("p"), Metrics("p")
    first.error("TL-301")
    assert ("towline_errors_total", "TL-301") not in samples(second)


def test_every_metric_is_documented() -> None:
    """docs/OPERATIONS.md has a row for each metric, by the name that Prometheus shows, and no other."""
    metrics = Metrics("p")
    exported = set()
    for family in text_string_to_metric_families(generate_latest(metrics.registry).decode()):
        if family.name.startswith("towline_") and not family.name.endswith("_created"):
            exported.add(family.name + ("_total" if family.type == "counter" else ""))
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    documented = set(re.findall(r"^\| `(towline_\w+)`", page, re.MULTILINE))
    assert documented == exported


def test_names_are_in_one_file() -> None:
    """No other module of the daemon spells a metric's name."""
    names = {value for name, value in vars(module).items() if name.isupper() and str(value).startswith("towline_")}
    for path in (ROOT / "daemon").rglob("*.py"):
        if path.name != "metrics.py":
            text = path.read_text()
            assert not [name for name in names if f'"{name}' in text], path
