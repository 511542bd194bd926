"""Makes a Tryton database: what `trytond-admin --update … --activate-dependencies` does, a stage at a time.

In one go the server plans Tryton's catalog queries with the statistics of an empty database, since all is one
transaction, and takes half of the time for them. So each stage is committed and the catalog is analyzed.
"""

from __future__ import annotations

import logging

import psycopg
from trytond import backend  # type: ignore[import-not-found]
from trytond.pool import Pool  # type: ignore[import-not-found]
from trytond.transaction import Transaction  # type: ignore[import-not-found]

#: Modules, in stages; what they depend on comes with them.
STAGES = (
    ("ir", "res"),
    ("party", "product"),
    ("account_invoice", "account_product", "stock"),
    ("account_invoice_stock", "account_payment", "sale", "purchase", "production"),
    (
        *("carrier", "product_price_list", "purchase_request", "purchase_shipment_cost"),
        *("sale_supply", "sale_stock_quantity", "sale_shipment_cost"),
        *("stock_supply", "stock_supply_forecast", "stock_lot", "stock_package", "stock_package_shipping"),
        *("stock_shipment_measurements", "stock_shipment_cost", "stock_assign_manual"),
        *("stock_inventory_location", "stock_product_location", "stock_location_sequence", "stock_location_move"),
    ),
)

log = logging.getLogger(__name__)


def create(uri: str) -> None:
    """Fill an empty database with Tryton's tables, and give it the administrator ``admin``."""
    name = uri.rpartition("/")[2]
    database = backend.Database(name)
    database.connect()
    database.init()
    Pool.start()
    for stage in STAGES:
        Pool(name).init(update=list(stage), lang=["en"], activatedeps=True)
        with psycopg.connect(uri, autocommit=True) as connection:
            connection.execute("ANALYZE")
        log.info("modules of %s are there", ", ".join(stage))
    _administrator(name)


def _administrator(database: str) -> None:
    with Transaction().start(database, 0) as transaction:
        Pool().get("res.user")(login="admin", name="Administrator", administrator=True, active=True).save()
        transaction.commit()
