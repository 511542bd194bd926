"""What must be there before trade begins: company, accounts, taxes, products, partners, carriers, goods on stock.

Some of it is made with the functions that Tryton ships for this in its wheels (``modules/*/tests/tools.py``).
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from proteus import Model  # type: ignore[import-not-found]

from tests.tryton.erp.client import connect, take_preferences

#: Names with what trips careless quoting and encoding.
GOODS = ("Euro pallet", "Stretch film 23µ", "Käfig №7", "木箱 (crate)", "O'Ring \\ set", 'Label "A" 4', "Dunnage bag")
CARRIERS = ("Spedition Nord", "Kühne & Söhne", "Express")
CUSTOMERS = 10


def stock_up(uri: str) -> None:
    """Fill a new Tryton database with master data."""
    session = connect(uri)
    from trytond.modules.account.tests.tools import (  # type: ignore[import-not-found]
        create_chart,
        create_fiscalyear,
        create_tax,
        get_accounts,
    )
    from trytond.modules.account_invoice.tests.tools import (  # type: ignore[import-not-found]
        create_payment_term,
        set_fiscalyear_invoice_sequences,
    )
    from trytond.modules.company.tests.tools import create_company  # type: ignore[import-not-found]

    create_company()
    create_chart()
    _employ(session)
    set_fiscalyear_invoice_sequences(create_fiscalyear()).click("create_period")
    accounts = get_accounts()
    _payment_method(accounts)
    create_payment_term().save()
    tax = create_tax(Decimal(".10"))
    tax.save()
    category = _category(accounts, tax)
    _goods(category)
    _partners()
    _carriers(category)
    Model.get("stock.package.type")(name="Box").save()
    _first_count()


def _employ(session: Any) -> None:
    party = Model.get("party.party")(name="Warehouse clerk")
    party.save()
    employee = Model.get("company.employee")(party=party)
    employee.save()
    user = Model.get("res.user")(session.user)
    user.employees.append(employee)
    user.employee = employee
    user.save()
    take_preferences(session)


def _payment_method(accounts: Any) -> None:
    (cash,) = Model.get("account.journal").find([("type", "=", "cash")])
    method = Model.get("account.invoice.payment.method")(name="Cash", journal=cash)
    method.credit_account = method.debit_account = accounts["cash"]
    method.save()


def _category(accounts: Any, tax: Any) -> Any:
    category = Model.get("product.category")(name="Goods", accounting=True)
    category.account_expense = accounts["expense"]
    category.account_revenue = accounts["revenue"]
    category.customer_taxes.append(tax)
    category.save()
    return category


def _goods(category: Any) -> None:
    units = Model.get("product.uom")
    (unit,) = units.find([("name", "=", "Unit")])
    (kilogram,) = units.find([("name", "=", "Kilogram")])
    for number, name in enumerate(GOODS):
        template = Model.get("product.template")(name=name, default_uom=unit, type="goods")
        template.list_price = Decimal("10.0000") + number
        template.account_category = category
        template.salable = template.purchasable = True
        (product,) = template.products
        product.code = f"SKU-{number:03}"
        product.weight = 0.1 + number
        product.weight_uom = kilogram
        template.save()


def _partners() -> None:
    parties = Model.get("party.party")
    for number in range(CUSTOMERS):
        customer = parties(name=f"Customer {number}")
        customer.addresses[0].city = f"City {number}"
        customer.save()
    supplier = parties(name="Supplier GmbH")
    supplier.addresses[0].street = "Hafenstraße 1\nHalle 3"
    supplier.addresses[0].city = "Hamburg"
    supplier.save()


def _carriers(category: Any) -> None:
    (unit,) = Model.get("product.uom").find([("name", "=", "Unit")])
    template = Model.get("product.template")(name="Freight", default_uom=unit, type="service", salable=True)
    template.list_price = Decimal("7.5000")
    template.account_category = category
    template.save()
    (freight,) = template.products
    freight.cost_price = Decimal("5")
    freight.save()
    for name in CARRIERS:
        party = Model.get("party.party")(name=name)
        party.save()
        carrier = Model.get("carrier")(party=party, carrier_product=freight)
        carrier.save()
        Model.get("carrier.selection")(carrier=carrier).save()


def _first_count() -> None:
    (storage,) = Model.get("stock.location").find([("code", "=", "STO")])
    count = Model.get("stock.inventory")(location=storage)
    for product in Model.get("product.product").find([("template.type", "=", "goods")]):
        count.lines.new(product=product).quantity = 100_000.0
    count.save()
    count.click("confirm")
