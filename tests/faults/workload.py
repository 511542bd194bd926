"""What the source of a trial holds and does: known in advance, to the row, from the seed alone.

The transactions are made before the first is run, on a model of the keys there are. Each notes its number at the
source, so that after a failed connection it is known whether it was committed: none is lost, none is run twice.

At both ends triggers note each row that is inserted, updated or deleted, with its key. At the source that is what the
ledger of the target must add up to; at the target it shows rows that were inserted more often than at the source, which
idempotent statements would hide.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import psycopg

AUDIT = """
CREATE SCHEMA audit;
CREATE TABLE audit.deed (number bigint GENERATED ALWAYS AS IDENTITY, at_table text, op text, key text);
CREATE FUNCTION audit.note() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    before text := CASE WHEN TG_OP <> 'INSERT' THEN to_jsonb(OLD) ->> TG_ARGV[0] END;
    after  text := CASE WHEN TG_OP <> 'DELETE' THEN to_jsonb(NEW) ->> TG_ARGV[0] END;
BEGIN
    IF before = after THEN
        INSERT INTO audit.deed (at_table, op, key) VALUES (TG_TABLE_NAME, 'update', after);
    ELSE
        IF before IS NOT NULL THEN
            INSERT INTO audit.deed (at_table, op, key) VALUES (TG_TABLE_NAME, 'delete', before);
        END IF;
        IF after IS NOT NULL THEN
            INSERT INTO audit.deed (at_table, op, key) VALUES (TG_TABLE_NAME, 'insert', after);
        END IF;
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION audit.hook() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
"""

TABLES = """
CREATE TABLE item (
    id bigint PRIMARY KEY, sku text NOT NULL UNIQUE, price numeric NOT NULL, note text, version int NOT NULL DEFAULT 1
);
ALTER TABLE item ALTER note SET STORAGE EXTERNAL;
CREATE TABLE sale (
    id bigint PRIMARY KEY, item bigint REFERENCES item, quantity int NOT NULL, version int NOT NULL DEFAULT 1
);
CREATE TABLE journal (id bigint PRIMARY KEY, amount numeric NOT NULL, memo text);
"""

SOURCE = f"""
{TABLES}
CREATE SCHEMA private;
CREATE TABLE private.done (number int PRIMARY KEY);
{AUDIT}
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION audit.note('id');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON sale FOR EACH ROW EXECUTE FUNCTION audit.note('id');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON journal FOR EACH ROW EXECUTE FUNCTION audit.note('id');
"""

#: At the target, with constraints that hold only if changes are applied in an order that the source had.
TARGET = f"""
CREATE SCHEMA replica;
SET search_path = replica;
{TABLES}
CREATE SCHEMA hub;
CREATE TABLE hub.open_sale (sale_no text PRIMARY KEY, quantity int NOT NULL);
{AUDIT}
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON item FOR EACH ROW EXECUTE FUNCTION audit.note('id');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON sale FOR EACH ROW EXECUTE FUNCTION audit.note('id');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON journal FOR EACH ROW EXECUTE FUNCTION audit.note('id');
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON hub.open_sale
    FOR EACH ROW EXECUTE FUNCTION audit.note('sale_no');
CREATE TRIGGER hook BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION audit.hook();
CREATE TRIGGER hook BEFORE INSERT OR UPDATE ON sale FOR EACH ROW EXECUTE FUNCTION audit.hook();
CREATE TRIGGER hook BEFORE INSERT OR UPDATE ON journal FOR EACH ROW EXECUTE FUNCTION audit.hook();
"""

ROUTES = """
routes:
  - {from: public.*, into: replica.*}
  - name: open_sale
    from: public.sale
    into: hub.open_sale
    select: SELECT 'S-' || s.id AS sale_no, s.quantity FROM sale s WHERE s.quantity > 0
"""

#: Rows there are before the pipeline is: items; twice as many sales; as many of the journal.
ROWS = 300

Statement = tuple[str, tuple[object, ...]]


def fill(connection: psycopg.Connection) -> None:
    """The rows of the beginning."""
    connection.execute(
        "INSERT INTO item SELECT n, 'sku-' || n, n * 1.10, CASE WHEN n %% 5 = 0 THEN repeat(md5(n::text), 90) END"
        " FROM generate_series(1, %s) n",
        (ROWS,),
    )
    connection.execute("INSERT INTO sale SELECT n, 1 + n %% %s, n %% 7 FROM generate_series(1, %s) n", (ROWS, ROWS * 2))
    connection.execute("INSERT INTO journal SELECT n, n * 0.10 FROM generate_series(1, %s) n", (ROWS,))


@dataclass
class Model:
    """The keys there are, as the transactions go; makes one after the other."""

    random: random.Random
    items: list[int] = field(default_factory=lambda: list(range(1, ROWS + 1)))
    sales: list[int] = field(default_factory=lambda: list(range(1, 2 * ROWS + 1)))
    next_item: int = ROWS
    next_sale: int = 2 * ROWS
    next_entry: int = ROWS

    def transaction(self) -> list[Statement]:
        """Some changes that belong together."""
        deeds: list[tuple[Callable[[], list[Statement]], int]] = [
            (self._new_item, 12), (self._price, 15), (self._note, 6), (self._swap, 6), (self._new_sale, 20),
            (self._quantity, 20), (self._drop_sale, 6), (self._new_key, 6), (self._entries, 25),
            (self._unrouted, 4), (self._rolled_back, 4), (self._message, 3), (self._nothing, 3),
        ]  # fmt: skip
        makers, weights = [maker for maker, _ in deeds], [weight for _, weight in deeds]
        (maker,) = self.random.choices(makers, weights)
        return maker()

    def large(self) -> list[Statement]:
        """A transaction of several pieces."""
        update = "UPDATE sale SET quantity = (quantity + 1) %% 7, version = version + 1 WHERE id %% 2 = %s"
        return [(update, (self.random.randint(0, 1),))]

    def _item(self) -> int:
        return self.random.choice(self.items)

    def _sale(self) -> int:
        return self.random.choice(self.sales)

    def _new_item(self) -> list[Statement]:
        self.next_item += 1
        self.items.append(self.next_item)
        values = (self.next_item, f"sku-{self.next_item}", "1.00", "n" * self.random.choice([0, 10, 4000]))
        return [("INSERT INTO item (id, sku, price, note) VALUES (%s, %s, %s, %s)", values)]

    def _price(self) -> list[Statement]:
        price = self.random.choice(["1.0", "1.00", "1", "NaN", "-0.5", "12345678901234567890.123456789"])
        return [("UPDATE item SET price = %s, version = version + 1 WHERE id = %s", (price, self._item()))]

    def _note(self) -> list[Statement]:
        note = self.random.choice("abc") * self.random.choice([0, 2500, 9000])
        return [("UPDATE item SET note = %s, version = version + 1 WHERE id = %s", (note, self._item()))]

    def _swap(self) -> list[Statement]:
        one, other = self.random.sample(self.items, 2)
        return [
            ("UPDATE item SET sku = sku || '~', version = version + 1 WHERE id IN (%s, %s)", (one, other)),
            (
                "UPDATE item i SET sku = rtrim(o.sku, '~'), version = i.version + 1 FROM item o"
                " WHERE i.id IN (%s, %s) AND o.id IN (%s, %s) AND i.id <> o.id",
                (one, other, one, other),
            ),
        ]

    def _new_sale(self) -> list[Statement]:
        made: list[Statement] = []
        for _ in range(self.random.randint(1, 5)):
            self.next_sale += 1
            self.sales.append(self.next_sale)
            values = (self.next_sale, self._item(), self.random.randint(0, 6))
            made.append(("INSERT INTO sale (id, item, quantity) VALUES (%s, %s, %s)", values))
        return made

    def _quantity(self) -> list[Statement]:
        update = "UPDATE sale SET quantity = %s, version = version + 1 WHERE id = %s"
        return [(update, (self.random.randint(0, 6), self._sale())) for _ in range(self.random.randint(1, 6))]

    def _drop_sale(self) -> list[Statement]:
        gone = self._sale()
        self.sales.remove(gone)
        return [("DELETE FROM sale WHERE id = %s", (gone,))]

    def _new_key(self) -> list[Statement]:
        old = self._sale()
        self.sales.remove(old)
        self.next_sale += 1
        self.sales.append(self.next_sale)
        return [("UPDATE sale SET id = %s, version = version + 1 WHERE id = %s", (self.next_sale, old))]

    def _entries(self) -> list[Statement]:
        first = self.next_entry + 1
        self.next_entry += self.random.randint(1, 8)
        insert = "INSERT INTO journal SELECT n, n * 0.01 FROM generate_series(%s::int, %s::int) n"
        return [(insert, (first, self.next_entry))]

    def _unrouted(self) -> list[Statement]:
        return [("INSERT INTO private.done VALUES (%s)", (-1 - self.random.randrange(1 << 30),))]

    def _message(self) -> list[Statement]:
        """A logical message of the transaction, and one of nobody's."""
        emit = "SELECT pg_logical_emit_message(%s, 'towline', 'told')"
        return [(emit, (True,)), (emit, (False,)), *self._price()]

    def _nothing(self) -> list[Statement]:
        """Rows that come and go within it, all rolled back."""
        first = self.next_entry + 1000
        insert = "INSERT INTO journal SELECT n, 0 FROM generate_series(%s::int, %s::int) n"
        return [("SAVEPOINT here", ()), (insert, (first, first + 9)), ("ROLLBACK TO here", ())]

    def _rolled_back(self) -> list[Statement]:
        return [
            ("SAVEPOINT here", ()),
            ("UPDATE item SET price = -1 WHERE id <= 20", ()),
            ("ROLLBACK TO here", ()),
            *self._price(),
        ]


def transactions(seed: str, count: int) -> list[list[Statement]]:
    """The transactions of a seed. One in the middle of each half is large."""
    model = Model(random.Random(f"workload {seed}"))
    large = (count // 4, count * 3 // 4)
    return [model.large() if number in large else model.transaction() for number in range(count)]


def backlog(number: int) -> str:
    """A statement that writes some hundreds of kilobytes of log, in transactions of a few rows; new ones each time."""
    return f"""
DO $$ BEGIN
  FOR n IN 1..120 LOOP
    UPDATE item SET note = repeat(md5(n::text), 200), version = version + 1 WHERE id = n;
    INSERT INTO journal SELECT {3_000_000 + number * 1000} + n * 3 + m, n FROM generate_series(0, 2) m;
    COMMIT;
  END LOOP;
END $$
"""


class Writer:
    """Runs the transactions in a thread: the first half at once, the second when `resume` is called.

    ``transactions`` are run in order, each exactly once, whatever becomes of server and connection.
    """

    def __init__(self, connect: Callable[[], psycopg.Connection], transactions: list[list[Statement]]) -> None:
        self._connect = connect
        self._transactions = transactions
        self._stop = threading.Event()
        self._resume = threading.Event()
        self._thread = threading.Thread(target=self._run, name="writer", daemon=True)
        self._error: BaseException | None = None
        self.written = 0

    def start(self) -> None:
        """Write the first half."""
        self._thread.start()

    @property
    def half_written(self) -> bool:
        """Whether the first half is."""
        return self.written >= len(self._transactions) // 2

    def resume(self) -> None:
        """Write the second half too."""
        self._resume.set()

    def finish(self, timeout: float = 60.0) -> None:
        """Wait until all is written. Raises what went wrong."""
        self.resume()
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        assert not self._thread.is_alive(), f"{self.written} of {len(self._transactions)} transactions were written"

    def abandon(self) -> None:
        """Write no more, whatever is left. May be called when it was not started."""
        self._stop.set()
        self._resume.set()
        if self._thread.ident is not None:
            self._thread.join(30)

    def _run(self) -> None:
        connection: psycopg.Connection | None = None
        try:
            while self.written < len(self._transactions) and not self._stop.is_set():
                if self.written == len(self._transactions) // 2 and not self._resume.is_set():
                    self._resume.wait(0.05)
                    continue
                try:
                    if connection is None or connection.closed:
                        connection = self._connect()
                        self.written = self._known(connection)
                        continue
                    self._write(connection, self.written)
                    self.written += 1
                except psycopg.OperationalError:  # the trial breaks the source
                    if connection is not None:
                        connection.close()
                    connection = None
                    self._stop.wait(0.05)
        except BaseException as error:
            self._error = error
        finally:
            if connection is not None:
                connection.close()

    def _known(self, connection: psycopg.Connection) -> int:
        with connection.transaction():
            row = connection.execute("SELECT count(*) FROM private.done WHERE number >= 0").fetchone()
        assert row is not None
        return int(row[0])

    def _write(self, connection: psycopg.Connection, number: int) -> None:
        with connection.transaction():
            for statement, parameters in self._transactions[number]:
                connection.execute(statement.encode(), parameters or None)
            connection.execute("INSERT INTO private.done VALUES (%s)", (number,))
