"""Random histories with bad rows: after each batch every row is at the target as the source has it, or set aside."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.integration.apply_cases import START, Batch, Hub, Values
from tests.support.checked import spec
from tests.support.databases import create_database, drop_database
from towline.breaker import Limits
from towline.change import Format
from towline.demo.server import Server
from towline.target import ChunkLoad, RouteState
from towline_transforms.route import OnError

TABLES = """
CREATE SCHEMA src; CREATE SCHEMA hub;
CREATE TABLE src.item (id int PRIMARY KEY, price int, note text);
CREATE TABLE hub.item (id int PRIMARY KEY, price int CHECK (price > 0), note text);
CREATE TABLE hub.lax (id int PRIMARY KEY, price int, note text);
"""
HISTORIES, BATCHES = 8, 12
ROWS = "SELECT id::text, price::text, note FROM {}"
OPENED = "SELECT DISTINCT key::json->>'id' FROM towline.quarantine WHERE route = 'strict' AND state = 'open'"


@pytest.fixture(scope="module")
def database(pg18: Server) -> Iterator[str]:
    name = create_database(pg18)
    yield pg18.dsn(name)
    drop_database(pg18, name)


class History:
    """A source that changes at random. Notes are long, and not sent when they do not change."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.rows: dict[str, Values] = {}
        self._next = 0

    def batch(self, batch: Batch) -> Batch:
        """Some transactions of some changes."""
        self._change(batch)
        for _ in range(self._random.randint(0, 14)):
            if self._random.random() < 0.4:
                batch.commit()
            self._change(batch)
        return batch

    def _change(self, batch: Batch) -> None:
        deed = self._random.choice(["insert", "price", "price", "note", "delete", "rekey", "again"])
        if deed == "insert" or not self.rows:
            return self._insert(batch, self._new_key())
        key = self._random.choice(list(self.rows))
        row = self.rows[key]
        if deed == "price":
            row = self.rows[key] = {**row, "price": self._price()}
            batch.update("item", missing="note", id=key, price=row["price"])
        elif deed == "note":
            row = self.rows[key] = {**row, "price": self._price(), "note": f"note {self._random.random()}"}
            batch.update("item", "", "", **row)
        elif deed == "rekey":
            new = self._new_key()
            row = self.rows[new] = {**self.rows.pop(key), "id": new, "price": self._price()}
            batch.rekey("item", {"id": key}, missing="note", id=new, price=row["price"])
        else:
            del self.rows[key]
            batch.delete("item", id=key)
            if deed == "again":
                self._insert(batch, key)
        return None

    def _insert(self, batch: Batch, key: str) -> None:
        self.rows[key] = {"id": key, "price": self._price(), "note": f"first {self._random.random()}"}
        batch.insert("item", **self.rows[key])

    def _price(self) -> str:
        return str(self._random.choice([-1, -2, 1, 2, 3, 4]))

    def _new_key(self) -> str:
        self._next += 1
        return str(self._next)


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_every_row_is_at_the_target_or_set_aside(database: str, seed: int) -> None:
    """And of two routes from the table, the one that refuses nothing has all rows as they are."""
    hub = Hub(database, list(Format)[seed % 2], limits=Limits(max_share=1.0))
    hub.set_up(
        TABLES,
        spec("src.item", "hub.item", name="strict", on_error=OnError.QUARANTINE),
        spec("src.item", "hub.lax", name="lax"),
    )
    history = History(seed)
    chance = random.Random(seed)
    try:
        for _ in range(BATCHES):
            batch = history.batch(hub.batch())
            hub.source_rows["item"] = list(history.rows.values())
            if chance.random() < 0.2 and hub.targets:
                hub.targets.pop().close()  # the next daemon knows what is behind from the table
            hub.apply(batch)
            if chance.random() < 0.1 and history.rows:
                load(hub, history)
            there = {row[0]: row for row in hub.rows(ROWS.format("hub.item"))}
            opened = {key for (key,) in hub.rows(OPENED)}
            wanted = {key: (key, row["price"], row["note"]) for key, row in history.rows.items()}
            assert {row[0]: row for row in hub.rows(ROWS.format("hub.lax"))} == wanted
            bad = {key for key, (_, price, _) in wanted.items() if str(price).startswith("-")}
            assert opened == bad
            assert {key: row for key, row in there.items() if key not in bad} == {
                key: row for key, row in wanted.items() if key not in bad
            }
            assert there.keys() <= wanted.keys()
    finally:
        hub.close()


def load(hub: Hub, history: History) -> None:
    """Copy the table again."""
    route = next(route for route in hub.routes if route.name == "strict")
    (target, *_) = hub.targets
    target.begin()
    chunk = hub.chunk("item", list(history.rows.values()))
    target.load(ChunkLoad(route, chunk, RouteState("strict", "streaming")))
    target.commit(START, None)
