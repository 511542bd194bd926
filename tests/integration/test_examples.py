"""The pipelines in config/ hold against databases of the form that their comments describe, and replicate them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from tests.support.databases import NewDatabase
from towline.demo.server import Server

CONFIG = Path(__file__).parents[2] / "config"

SOURCE = """
CREATE TABLE sale_order (
    id bigint PRIMARY KEY, customer_id bigint NOT NULL, state text NOT NULL, currency text, total_amount numeric(14, 2),
    placed_at timestamptz DEFAULT now()
);
CREATE TABLE stock_level (
    warehouse_code text, product_code text, quantity numeric, reserved numeric,
    PRIMARY KEY (warehouse_code, product_code)
);
CREATE TABLE shipment (id bigint PRIMARY KEY, order_id bigint, carrier text, shipped_at timestamptz);
INSERT INTO sale_order
SELECT n, n % 5, (ARRAY['draft', 'open'])[1 + n % 2], 'EUR', n * 1.5 FROM generate_series(1, 40) n;
INSERT INTO stock_level SELECT 'W' || n % 3, 'P' || n, n, 0 FROM generate_series(1, 40) n;
INSERT INTO shipment SELECT n, n, 'DHL', now() FROM generate_series(1, 40) n;
"""

HUB = """
CREATE SCHEMA hub;
CREATE TABLE hub.customer_crosswalk (erp_customer_id bigint PRIMARY KEY, code text);
INSERT INTO hub.customer_crosswalk SELECT n, 'c' || n FROM generate_series(0, 3) n;
CREATE TABLE hub.customer_order (
    order_no text PRIMARY KEY, customer_code text, currency text, total numeric, placed_at timestamptz,
    changed_at timestamptz
);
CREATE TABLE hub.stock_level (
    warehouse text, sku text, on_hand numeric, reserved numeric, PRIMARY KEY (warehouse, sku)
);
CREATE TABLE hub.shipment (
    shipment_no text PRIMARY KEY, order_no text, carrier text, shipped_at timestamptz, withdrawn_at timestamptz
);
"""


def test_every_example_is_tried() -> None:
    """No example is added without being tried here."""
    assert {file.name for file in CONFIG.glob("*.yaml")} == {
        "erp-to-hub.yaml",
        "replicate-everything.yaml",
        "wal2json.yaml",
    }


@pytest.mark.parametrize(
    ("example", "server", "rows"),
    [
        ("erp-to-hub.yaml", "pg18", 120),
        ("replicate-everything.yaml", "pg18", 120),
        pytest.param("wal2json.yaml", "pg15", 120, marks=pytest.mark.debian),
    ],
)
def test_example(
    example: str,
    server: str,
    rows: int,
    request: pytest.FixtureRequest,
    hub18: Server,
    new_database: NewDatabase,
    tmp_path: Path,
) -> None:
    """check, apply, run until caught up, verify: each ends with 0, and all rows are compared."""
    file = tmp_path / example
    file.write_text((CONFIG / example).read_text("utf-8") + "\nweb: {port: 0}\n", "utf-8")  # 9464 may be taken here
    source, hub = new_database(request.getfixturevalue(server)), new_database(hub18)
    for dsn, script in ((source, SOURCE), (hub, HUB)):
        with psycopg.connect(dsn) as connection:
            connection.execute(script.encode())
    environment = {**os.environ, "ERP_DSN": source, "SOURCE_DSN": source, "HUB_DSN": hub, "TARGET_DSN": hub}

    def towline(*arguments: str) -> str:
        command = [sys.executable, "-m", "towline", arguments[0], str(file), *arguments[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "ok:" in towline("check")
    towline("apply")
    towline("run", "--until-caught-up")
    assert towline("verify").splitlines()[-1] == f"verified: {rows} rows compared, 0 differ"
