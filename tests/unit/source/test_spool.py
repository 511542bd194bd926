"""The spool: what is put in comes out, within bounds; what went wrong with its files is said."""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from towline.errors import SpoolCorrupt, SpoolFailed, SpoolFull, SpoolUnusable
from towline.source.postgres import spool as module
from towline.source.postgres.spool import Spool, SpooledTransaction


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    """An empty spool."""
    made = Spool(tmp_path, 1 << 20)
    yield made
    made.close()


def messages_of(transaction: SpooledTransaction) -> list[bytes]:
    """Everything in it."""
    return [message for block in transaction.blocks() for message in block.messages(0, len(block))]


def noise(dice: random.Random, size: int) -> bytes:
    """Bytes that cannot be compressed."""
    return dice.randbytes(size)


def test_what_goes_in_comes_out(spool: Spool) -> None:
    """Messages of all sizes, of several transactions at once, in order, however they were written."""
    dice = random.Random(3)
    transactions = [spool.open() for _ in range(3)]
    put: list[list[bytes]] = [[] for _ in transactions]
    for _ in range(3000):
        which = dice.randrange(3)
        message = bytes(dice.choices(b"abc", k=dice.choice([0, 1, 30, 900])))
        transactions[which].add([message])
        put[which].append(message)
        if dice.random() < 0.01:
            transactions[which].flush()
    for transaction, expected in zip(transactions, put, strict=True):
        assert messages_of(transaction) == expected
        assert messages_of(transaction) == expected  # reading takes nothing away
    assert spool.transactions == 3
    assert 0 < spool.bytes < sum(map(len, itertools.chain(*put))) / 2
    for transaction in transactions:
        transaction.drop()
        transaction.drop()
    assert (spool.transactions, spool.bytes) == (0, 0)


def test_a_message_larger_than_a_block(spool: Spool) -> None:
    """It is a block of its own."""
    transaction = spool.open()
    large = b"x" * (3 * module.BLOCK)
    for message in (b"a", large, b"b"):
        transaction.add([message])
    assert messages_of(transaction) == [b"a", large, b"b"]


def test_small_transactions_stay_in_memory(spool: Spool, tmp_path: Path) -> None:
    """No file is made for less than a block; many of them together are written, the largest first."""
    few = [spool.open() for _ in range(50)]
    for number, transaction in enumerate(few):
        transaction.add([bytes(module.BLOCK // 2 + number)])
    spool.settle()
    assert spool.bytes == 0
    more = [spool.open() for _ in range(20)]
    for transaction in more:
        transaction.add([bytes(module.BLOCK - 1)])
    spool.settle()
    assert spool.bytes > 0
    assert sum(transaction.held for transaction in (*few, *more)) <= module.HELD
    assert few[0].held and not more[0].held


def test_files_have_no_names(spool: Spool, tmp_path: Path) -> None:
    """Nothing is left in the directory, whatever becomes of the process."""
    transaction = spool.open()
    transaction.add([b"x" * module.BLOCK])
    assert spool.bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_full(spool: Spool) -> None:
    """More than may be used is SpoolFull, before it is written; room that is given back can be used."""
    dice = random.Random(4)
    one, other = spool.open(), spool.open()
    with pytest.raises(SpoolFull, match=r"more than spool\.max_bytes \(1048576\) in .* \(transactions: 2\)"):
        for _ in range(10):
            one.add([noise(dice, module.BLOCK)])
    assert spool.bytes <= 1 << 20
    one.drop()
    assert spool.bytes == 0
    other.add([noise(dice, module.BLOCK)])


class Broken:
    """A file system that writes so many bytes and then fails."""

    def __init__(self, room: int, number: int) -> None:
        self.room = room
        self.number = number

    def write(self, data: memoryview) -> int:
        if not self.room:
            raise OSError(self.number, os.strerror(self.number))
        written = min(self.room, len(data), 1000)
        self.room -= written
        return written

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, SpoolFull),
        (errno.EDQUOT, SpoolFull),
        (errno.EMFILE, SpoolFull),
        (errno.EIO, SpoolFailed),
        (errno.EROFS, SpoolFailed),
    ],
)
def test_disk(number: int, kind: type[Exception], spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room is a full spool, one that fails is not. What fitted in is counted, and given back."""
    monkeypatch.setattr(spool, "_file", lambda: Broken(5000, number))
    transaction = spool.open()
    with pytest.raises(kind, match=os.strerror(number)):
        transaction.add([noise(random.Random(5), module.BLOCK)])
    transaction.drop()
    assert spool.bytes == 0


def test_directory(tmp_path: Path) -> None:
    """That it cannot be used is known at the start."""
    with pytest.raises(SpoolUnusable, match=r"No such file or directory in the spool's directory .*/absent"):
        Spool(tmp_path / "absent", 1 << 20)


def test_directory_that_goes(tmp_path: Path) -> None:
    """Later that is another error."""
    directory = tmp_path / "spool"
    directory.mkdir()
    spool = Spool(directory, 1 << 20)
    directory.rmdir()
    with pytest.raises(SpoolFailed, match="No such file or directory"):
        spool.open().add([bytes(module.BLOCK)])


def test_cut(spool: Spool) -> None:
    """The end of a transaction is forgotten, wherever it is; what it took is given back, and can be used again."""
    dice = random.Random(8)
    transaction = spool.open()
    put: list[bytes] = []
    for _ in range(60):
        for _ in range(dice.randrange(1, 200)):
            put.append(noise(dice, dice.choice([0, 50, 700])))
            transaction.add([put[-1]])
        if dice.random() < 0.3:
            transaction.flush()
        if dice.random() < 0.6:
            del put[dice.randrange(len(put) + 1) :]
            transaction.cut(len(put))
        assert transaction.count == len(put)
        assert messages_of(transaction) == put
        assert transaction.held <= module.BLOCK + 700
        if transaction._file is not None:
            assert spool.bytes == transaction.size == os.fstat(transaction._file.fileno()).st_size
    for _ in range(900):
        put.append(noise(dice, 700))
        transaction.add([put[-1]])
    transaction.flush()
    before = spool.bytes
    assert before > module.BLOCK
    transaction.cut(len(put) // 2)
    assert spool.bytes < before
    transaction.cut(0)
    assert (spool.bytes, transaction.held, messages_of(transaction)) == (0, 0, [])


@pytest.mark.parametrize("place", [0, 5, 40, -1])
def test_corrupt(place: int, spool: Spool) -> None:
    """A byte that changed on the disk is found out, wherever it is."""
    dice = random.Random(6)
    transaction = spool.open()
    for _ in range(2 * module.BLOCK // 100):
        transaction.add([noise(dice, 100)])
    file = transaction._file
    assert file is not None
    size = os.fstat(file.fileno()).st_size
    byte = os.pread(file.fileno(), 1, place % size)
    os.pwrite(file.fileno(), bytes((byte[0] ^ 0x10,)), place % size)
    with pytest.raises(SpoolCorrupt):
        messages_of(transaction)


def test_truncated(spool: Spool) -> None:
    """So is a file that lost its end."""
    transaction = spool.open()
    transaction.add([b"x" * module.BLOCK])
    assert transaction._file is not None
    os.ftruncate(transaction._file.fileno(), spool.bytes - 1)
    with pytest.raises(SpoolCorrupt):
        messages_of(transaction)
