"""A trading company's day: sales, shipments, packages, invoices, payments, purchases, returns, stock counts.

Much of it deletes rows: cancelled sales, lines split and taken back, sessions of wizards.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

from proteus import Model, Wizard  # type: ignore[import-not-found]

from tests.tryton.erp.client import connect, take_preferences


def trade(uri: str, rounds: int, seed: int, report: Callable[[str], None]) -> list[str]:
    """Do ``rounds`` rounds of business, the same ones for the same seed; returns what was done, in order."""
    session = connect(uri)
    take_preferences(session)
    return Trader(random.Random(seed), report).work(rounds)


class Trader:
    """All departments in one person. Proteus acts as the desktop client does: a click is a server transaction."""

    def __init__(self, chance: random.Random, report: Callable[[str], None]) -> None:
        self._chance = chance
        self._report = report
        self._done: list[str] = []
        self._products = Model.get("product.product").find([("template.type", "=", "goods")])
        self._customers = Model.get("party.party").find([("name", "like", "Customer %")])
        (self._supplier,) = Model.get("party.party").find([("name", "like", "Supplier%")])
        self._carriers = Model.get("carrier").find([])
        (self._term,) = Model.get("account.invoice.payment_term").find([], limit=1)
        (self._payment_method,) = Model.get("account.invoice.payment.method").find([], limit=1)
        (self._box,) = Model.get("stock.package.type").find([], limit=1)
        locations = Model.get("stock.location")
        (self._storage,) = locations.find([("code", "=", "STO")])
        (self._input,) = locations.find([("code", "=", "IN")])

    def work(self, rounds: int) -> list[str]:
        """Each round a sale; now and then the rest, so that sixteen rounds have some of everything."""
        for number in range(rounds):
            if number % 4 == 0:
                self._purchase()
            if number % 5 == 2:
                self._sell_and_cancel()
            else:
                sale = self._sell(short=number % 6 == 3)
                if number % 7 == 4:
                    self._take_back(sale)
            if number % 8 == 6:
                self._count_stock()
            if number % 8 == 7:
                self._move_inside()
        return self._done

    def _note(self, what: str) -> None:
        self._done.append(what)
        self._report(what)

    def _order(self) -> Any:
        sale = Model.get("sale.sale")(party=self._chance.choice(self._customers))
        sale.payment_term = self._term
        sale.invoice_method = "fulfillment"
        sale.carrier = self._chance.choice(self._carriers)
        sale.shipment_cost_method = "shipment"
        for product in self._chance.sample(self._products, self._chance.randint(2, 4)):
            sale.lines.new(product=product).quantity = self._chance.randint(1, 6)
        sale.save()
        sale.click("quote")
        return sale

    def _sell_and_cancel(self) -> None:
        sale = self._order()
        sale.click("cancel")
        sale.delete()
        self._note("sale_deleted")

    def _sell(self, *, short: bool) -> Any:
        sale = self._order()
        sale.click("confirm")
        if sale.state == "confirmed":
            sale.click("process")
        for reference in sale.shipments:
            self._ship(reference.id, short=short)
        sale.reload()
        for invoice in sale.invoices:
            invoice.click("post")
            pay = invoice.click("pay")
            pay.form.payment_method = self._payment_method
            pay.execute("choice")
            self._note("invoice_paid")
        self._note("sale")
        return sale

    def _ship(self, identifier: int, *, short: bool) -> None:
        shipment = Model.get("stock.shipment.out")(identifier)
        if short:
            shipment.click("draft")
            shipment.outgoing_moves[0].quantity = 1
            shipment.save()
            shipment.click("wait")
            self._note("shipment_cut")
        shipment.click("assign_try")
        shipment.reload()
        if shipment.state != "assigned":
            shipment.click("assign_force")
        shipment.click("pick")
        self._pack(shipment)
        shipment.reload()
        for step in ("pack", "ship", "do"):
            shipment.click(step)
        self._note("shipment")

    def _pack(self, shipment: Any) -> None:
        packing = Wizard("stock.shipment.pack", [shipment])
        packing.form.type = self._box
        packing.execute("add_fill_package")
        for filling in packing.actions:
            for move in list(filling.form.allowed_moves):
                filling.form.source = move
                filling.execute("add_move")
            filling.execute("end")
        packing.execute("end")

    def _take_back(self, sale: Any) -> None:
        wizard = Wizard("sale.return_sale", [sale])
        wizard.execute("return_")
        for returned in wizard.actions[0]:
            returned.click("quote")
            returned.click("confirm")
            if returned.state == "confirmed":
                returned.click("process")
        self._note("return")

    def _purchase(self) -> None:
        purchase = Model.get("purchase.purchase")(party=self._supplier, payment_term=self._term)
        purchase.invoice_method = "fulfillment"
        for product in self._chance.sample(self._products, 3):
            line = purchase.lines.new(product=product)
            line.quantity = self._chance.randint(50, 90)
            line.unit_price = Decimal("4.2500")
        purchase.click("quote")
        purchase.click("confirm")
        if purchase.state == "confirmed":
            purchase.click("process")
        shipment = Model.get("stock.shipment.in")(supplier=self._supplier)
        for move in purchase.moves:
            shipment.incoming_moves.append(Model.get("stock.move")(move.id))
        shipment.save()
        shipment.click("receive")
        shipment.click("do")
        purchase.reload()
        for invoice in purchase.invoices:
            invoice.invoice_date = datetime.date.today()
            invoice.click("post")
        self._note("purchase")

    def _count_stock(self) -> None:
        count = Model.get("stock.inventory")(location=self._storage)
        count.save()
        count.click("complete_lines")
        for line in count.lines:
            line.quantity = (line.expected_quantity if line.quantity is None else line.quantity) + 1
        count.save()
        count.click("confirm")
        self._note("stock_count")

    def _move_inside(self) -> None:
        shipment = Model.get("stock.shipment.internal")(from_location=self._storage, to_location=self._input)
        move = shipment.moves.new(product=self._chance.choice(self._products))
        move.quantity = 1
        move.from_location = self._storage
        move.to_location = self._input
        shipment.save()
        for step in ("wait", "assign_force", "do"):
            shipment.click(step)
        self._note("internal_shipment")
