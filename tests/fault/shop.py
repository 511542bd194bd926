"""A small shop whose rows change in every way that has broken replication somewhere.

Deterministic: the same seed makes the same transactions. One writer, so that the end state is known to be the source's.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import psycopg

SCHEMA = """
CREATE TABLE item (
    id bigint PRIMARY KEY, sku text NOT NULL UNIQUE, price numeric NOT NULL, note text, attributes jsonb,
    made timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
CREATE TABLE sale (
    id bigint PRIMARY KEY, item bigint REFERENCES item ON UPDATE CASCADE, quantity int NOT NULL, state text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE stock (warehouse text, sku text, quantity numeric NOT NULL, remark text, PRIMARY KEY (warehouse, sku));
ALTER TABLE stock ALTER remark SET STORAGE EXTERNAL;
CREATE SCHEMA private;
CREATE TABLE private.journal (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, line text);
"""

#: At the hub: constraints that only hold if changes are applied in an order that the source had.
HUB = """
CREATE SCHEMA replica;
CREATE TABLE replica.item (
    id bigint PRIMARY KEY, sku text NOT NULL UNIQUE, price numeric NOT NULL, note text, attributes jsonb,
    made timestamptz NOT NULL
);
CREATE TABLE replica.sale (
    id bigint PRIMARY KEY, item bigint REFERENCES replica.item, quantity int NOT NULL, state text NOT NULL,
    at timestamptz NOT NULL
);
CREATE SCHEMA hub;
CREATE TABLE hub.channel (code text PRIMARY KEY, name text NOT NULL);
INSERT INTO hub.channel VALUES ('0', 'web'), ('1', 'shop');
CREATE TABLE hub.open_sale (
    sale_no text PRIMARY KEY, quantity int NOT NULL, channel text, changed_at timestamptz NOT NULL
);
"""

ROUTES = """
routes:
  - {from: public.*, into: replica.*, on_truncate: delete}
  - name: open_sale
    from: public.sale
    into: hub.open_sale
    on_truncate: delete
    select: |
      SELECT 'S-' || s.id AS sale_no, s.quantity, c.name AS channel, s._commit_time AS changed_at
      FROM sale s LEFT JOIN hub.channel c ON c.code = (s.quantity % 3)::text
      WHERE s.state <> 'done'
"""


def fill(connection: psycopg.Connection, rows: int) -> None:
    """Rows that are there before the daemon is."""
    connection.execute(
        "INSERT INTO item SELECT n, 'sku-' || n, n * 1.10, CASE WHEN n %% 10 = 0 THEN repeat(md5(n::text), 200) END,"
        " jsonb_build_object('n', n) FROM generate_series(1, %s) n",
        (rows,),
    )
    connection.execute(
        "INSERT INTO sale SELECT n, 1 + n %% %s, n %% 7, (ARRAY['new','done'])[1 + n %% 2]"
        " FROM generate_series(1, %s) n",
        (rows, rows * 2),
    )
    connection.execute(
        "INSERT INTO stock SELECT 'w' || n %% 4, 'sku-' || n, n, repeat('x', 3000) FROM generate_series(1, %s) n",
        (rows,),
    )


class Shop:
    """Transactions against the shop, one after the other, in a thread; `stop` ends it and raises what went wrong
    there."""

    def __init__(
        self, connect: Callable[[], psycopg.Connection], *, seed: int, rate: float, rows: int, first: int = 0
    ) -> None:
        self._connect = connect
        self._random = random.Random(seed)
        self._pause = 1 / rate
        self._next = {"item": rows + first, "sale": rows * 2 + first}
        self._deeds = [
            (self._new_item, 10), (self._new_price, 20), (self._new_note, 4), (self._swap, 5), (self._new_key, 4),
            (self._drop_item, 3), (self._new_sale, 25), (self._advance, 25), (self._drop_sale, 6), (self._count, 15),
            (self._move_stock, 5), (self._rolled_back, 3), (self._journal, 5), (self._month_end, 1),
        ]  # fmt: skip
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="shop")
        self._error: BaseException | None = None
        self.transactions = 0

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def stop(self) -> None:
        """Stop writing; all is committed then."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        deeds, weights = zip(*self._deeds, strict=True)
        connection: psycopg.Connection | None = None
        try:
            while not self._stop.wait(self._pause):
                try:
                    if connection is None or connection.closed:
                        connection = self._connect()
                    (deed,) = self._random.choices(deeds, weights)
                    with connection.transaction():
                        deed(connection)
                    self.transactions += 1
                except psycopg.OperationalError:  # the server is being restarted by the test
                    connection = None
        except BaseException as error:
            self._error = error
        finally:
            if connection is not None:
                connection.close()

    def _some(self, connection: psycopg.Connection, query: str) -> tuple[object, ...] | None:
        row: tuple[object, ...] | None = connection.execute(query, (self._random.random(),)).fetchone()
        return row

    def _item(self, connection: psycopg.Connection) -> object:
        row = self._some(
            connection, "SELECT id FROM item WHERE id >= %s * (SELECT max(id) FROM item) ORDER BY id LIMIT 1"
        )
        return row[0] if row else None

    def _sale(self, connection: psycopg.Connection) -> object:
        row = self._some(
            connection, "SELECT id FROM sale WHERE id >= %s * (SELECT max(id) FROM sale) ORDER BY id LIMIT 1"
        )
        return row[0] if row else None

    def _new_item(self, connection: psycopg.Connection) -> None:
        self._next["item"] += 1
        number = self._next["item"]
        note = "n" * self._random.choice([0, 10, 4000])
        connection.execute(
            "INSERT INTO item VALUES (%s, %s, %s, %s, '{\"a\": 1.0}')", (number, f"sku-{number}", "1.00", note)
        )

    def _new_price(self, connection: psycopg.Connection) -> None:
        price = self._random.choice(["1.0", "1.00", "1", "NaN", "-0.5", "Infinity", "12345678901234567890.123456789"])
        connection.execute("UPDATE item SET price = %s WHERE id = %s", (price, self._item(connection)))

    def _new_note(self, connection: psycopg.Connection) -> None:
        note = chr(self._random.randint(97, 122)) * self._random.choice([0, 2500, 9000])
        connection.execute("UPDATE item SET note = %s WHERE id = %s", (note, self._item(connection)))

    def _swap(self, connection: psycopg.Connection) -> None:
        one, other = self._item(connection), self._item(connection)
        if one == other:
            return
        connection.execute("UPDATE item SET sku = sku || '~' WHERE id = %s", (one,))
        first = connection.execute("SELECT rtrim(sku, '~') FROM item WHERE id = %s", (one,)).fetchone()
        second = connection.execute("SELECT sku FROM item WHERE id = %s", (other,)).fetchone()
        assert first is not None and second is not None
        connection.execute("UPDATE item SET sku = %s WHERE id = %s", (first[0], other))
        connection.execute("UPDATE item SET sku = %s WHERE id = %s", (second[0], one))

    def _new_key(self, connection: psycopg.Connection) -> None:
        self._next["item"] += 1
        one = self._item(connection)
        unused = connection.execute("SELECT NOT EXISTS (SELECT FROM sale WHERE item = %s)", (one,)).fetchone()
        if unused == (True,):
            connection.execute("UPDATE item SET id = %s WHERE id = %s", (self._next["item"], one))

    def _drop_item(self, connection: psycopg.Connection) -> None:
        one = self._item(connection)
        connection.execute("DELETE FROM sale WHERE item = %s", (one,))
        connection.execute("DELETE FROM item WHERE id = %s", (one,))

    def _new_sale(self, connection: psycopg.Connection) -> None:
        for _ in range(self._random.randint(1, 4)):
            self._next["sale"] += 1
            connection.execute(
                "INSERT INTO sale VALUES (%s, %s, %s, 'new')",
                (self._next["sale"], self._item(connection), self._random.randint(0, 9)),
            )

    def _advance(self, connection: psycopg.Connection) -> None:
        state = self._random.choice(["new", "packed", "done"])
        connection.execute("UPDATE sale SET state = %s WHERE id = %s", (state, self._sale(connection)))

    def _drop_sale(self, connection: psycopg.Connection) -> None:
        connection.execute("DELETE FROM sale WHERE id = %s", (self._sale(connection),))

    def _count(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "INSERT INTO stock VALUES (%s, %s, %s, 'counted') ON CONFLICT (warehouse, sku)"
            " DO UPDATE SET quantity = excluded.quantity",
            (f"w{self._random.randint(0, 3)}", f"sku-{self._random.randint(1, 300)}", self._random.randint(0, 99)),
        )

    def _move_stock(self, connection: psycopg.Connection) -> None:
        """A change of key that leaves the TOASTed column untouched: the log does not carry its value."""
        connection.execute(
            "UPDATE stock s SET warehouse = %s WHERE (warehouse, sku) = (SELECT warehouse, sku FROM stock"
            " OFFSET %s LIMIT 1) AND NOT EXISTS (SELECT FROM stock o WHERE o.warehouse = %s AND o.sku = s.sku)",
            (target := f"w{self._random.randint(0, 9)}", self._random.randint(0, 100), target),
        )

    def _rolled_back(self, connection: psycopg.Connection) -> None:
        # By statements: a `psycopg.Rollback` whose own rollback fails, as the server goes down, is raised on as it is.
        connection.execute("SAVEPOINT undone")
        connection.execute("UPDATE item SET price = -1")
        connection.execute("ROLLBACK TO SAVEPOINT undone")

    def _journal(self, connection: psycopg.Connection) -> None:
        connection.execute("INSERT INTO private.journal (line) VALUES ('not routed')")

    def _month_end(self, connection: psycopg.Connection) -> None:
        """A transaction of many pieces."""
        connection.execute("UPDATE sale SET quantity = (quantity + 1) % 10 WHERE id % 2 = 0")
