"""Where the messages of transactions under way are kept until these commit: in memory while few, else in files.

A transaction's messages are collected into blocks, which are compressed (each a Zstandard frame with a checksum) and
appended to a file of its own. A block comes back as it was put together, with the places of its messages, so that
nobody has to take it apart. What is held uncompressed is bounded: a block for each transaction, and `HELD` bytes for
all of them together. The files together are bounded by ``max_bytes``; beyond it, or when the file system has no room,
`SpoolFull` is raised and the spool is of no more use; likewise `SpoolFailed`, when the file system fails.

**The files have no name** (``O_TMPFILE``, or unlinked as soon as they are made where that is not known), so the kernel
frees them when the process ends, in whatever way. There is nothing to clean up after a crash, nothing of another
daemon to be mistaken for one's own, and no other user can open them. They are not durable state: after a crash the
server sends again what had not committed.

Zstandard at its fastest level packs such messages to a fifth or less at several hundred MB/s, with the interpreter's
lock released. The package is the standard library's own module of Python 3.14 for those before it.

What the messages say is not known here: see `streamed`. Not for several threads at once; ``bytes`` and
``transactions`` may be read from any.
"""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path

import numpy as np

from towline.errors import SpoolCorrupt, SpoolFailed, SpoolFull, SpoolUnusable
from towline.source.postgres.block import PAD, Block

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bytes of messages in a block.
BLOCK = 1 << 18
#: Bytes of messages that all transactions together hold in memory; the largest are written to their files first.
HELD = 8 << 20

_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 1,
    zstd.CompressionParameter.checksum_flag: 1,
}
#: What `probe` writes.
_PAGE = 4096
#: No room for more, in one sense or another.
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE))


def probe(directory: Path) -> None:
    """See whether files can be made and written there. Raises SpoolUnusable, or SpoolFull when there is no room."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(bytes(_PAGE))
    except OSError as error:
        raise (SpoolFull if error.errno in _FULL else SpoolUnusable)(_said(error, directory)) from None


def _said(error: OSError, directory: Path) -> str:
    return f"{error.strerror or 'an error'} in the spool's directory {directory}"


class Spool:
    """The spool of one stream. The constructor raises as `probe` does."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory
        self.max_bytes = max_bytes
        self.bytes = 0  # of the files
        self._open: set[SpooledTransaction] = set()
        probe(directory)

    @property
    def transactions(self) -> int:
        """How many transactions are kept."""
        return len(self._open)

    def open(self) -> SpooledTransaction:
        """Room for another transaction."""
        transaction = SpooledTransaction(self)
        self._open.add(transaction)
        return transaction

    def settle(self) -> None:
        """Write to files what is more than memory is meant to hold. Raises SpoolFull and SpoolFailed."""
        held = sum(transaction.held for transaction in self._open)
        if held > HELD:
            for transaction in sorted(self._open, key=lambda transaction: transaction.held, reverse=True):
                held -= transaction.held
                transaction.flush()
                if held <= HELD // 2:
                    break

    def close(self) -> None:
        """Forget everything."""
        for transaction in tuple(self._open):
            transaction.drop()

    # ---- for its transactions --------------------------------------------------------------------------------

    def _file(self) -> FileIO:
        try:
            return tempfile.TemporaryFile(dir=self.directory, buffering=0)
        except OSError as error:
            raise self._error(error) from None

    def _append(self, file: FileIO, data: bytes, of: SpooledTransaction) -> None:
        if self.bytes + len(data) > self.max_bytes:
            raise SpoolFull(
                f"what is under way takes more than spool.max_bytes ({self.max_bytes}) in {self.directory} "
                f"(transactions: {self.transactions})"
            )
        rest = memoryview(data)
        try:
            while rest:
                written = file.write(rest)
                self.bytes += written
                of.size += written
                rest = rest[written:]
        except OSError as error:
            raise self._error(error) from None

    def _truncate(self, file: FileIO | None, size: int, of: SpooledTransaction) -> None:
        assert file is not None
        try:
            file.truncate(size)
            file.seek(size)
        except OSError as error:
            raise self._error(error) from None
        self.bytes -= of.size - size
        of.size = size

    def _error(self, error: OSError) -> SpoolFull | SpoolFailed:
        what = f"{_said(error, self.directory)} (transactions in it: {self.transactions}, bytes: {self.bytes})"
        return SpoolFull(what) if error.errno in _FULL else SpoolFailed(what)

    def _forget(self, transaction: SpooledTransaction) -> None:
        self._open.discard(transaction)
        self.bytes -= transaction.size
        transaction.size = 0


class SpooledTransaction:
    """The messages of one transaction, in the order in which they came."""

    def __init__(self, spool: Spool) -> None:
        self.held = 0  # bytes of messages that are in no file
        self.size = 0  # bytes of the file
        self._spool = spool
        self._messages: list[bytes] = []
        self._file: FileIO | None = None
        self._frames = array("L")  # the sizes of what is in the file
        self._counts = array("L")  # how many messages there are up to the end of each

    @property
    def count(self) -> int:
        """How many messages there are."""
        return self._filed + len(self._messages)

    @property
    def _filed(self) -> int:
        return self._counts[-1] if self._counts else 0

    def add(self, messages: Sequence[bytes]) -> None:
        """Keep messages. Raises SpoolFull and SpoolFailed."""
        self._messages += messages
        self.held += sum(map(len, messages))
        if self.held >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write what is held to the file. Raises SpoolFull and SpoolFailed."""
        if not self._messages:
            return
        if self._file is None:
            self._file = self._spool._file()
        sizes = np.fromiter(map(len, self._messages), dtype="<u4", count=len(self._messages))
        block = b"".join((len(sizes).to_bytes(4, "little"), sizes.tobytes(), *self._messages, PAD))
        frame = zstd.compress(block, options=_OPTIONS)
        self._spool._append(self._file, frame, self)
        self._frames.append(len(frame))
        self._counts.append(self._filed + len(sizes))
        self._messages = []
        self.held = 0

    def cut(self, count: int) -> None:
        """Forget all messages but the first so many, and give back what they took.

        Raises SpoolCorrupt, as `blocks` does, when the block that is cut in two cannot be read, and SpoolFailed.
        """
        filed = self._filed
        if count >= filed:
            self.held -= sum(map(len, self._messages[count - filed :]))
            del self._messages[count - filed :]
            return
        whole = bisect_right(self._counts, count)  # so many blocks stay as they are
        size, before = self.size - sum(self._frames[whole:]), self._counts[whole - 1] if whole else 0
        some = count - before
        self._messages = self._block(size, self._frames[whole]).messages(0, some) if some else []
        self.held = sum(map(len, self._messages))
        self._spool._truncate(self._file, size, self)
        del self._frames[whole:], self._counts[whole:]

    def blocks(self) -> Iterator[Block]:
        """All messages, some at a time. Raises SpoolCorrupt when a file does not hold what was written to it."""
        if self._file is not None:
            at = 0
            for size in self._frames:
                yield self._block(at, size)
                at += size
        yield Block.of(self._messages)

    def _block(self, at: int, size: int) -> Block:
        assert self._file is not None
        try:
            frame = os.pread(self._file.fileno(), size, at)
            block = zstd.decompress(frame)
        except OSError as error:
            raise SpoolCorrupt(f"{error.strerror or 'an error'} while the spool was read") from None
        except zstd.ZstdError:
            raise SpoolCorrupt(f"{size} bytes at {at} of a transaction's file are not what was written") from None
        count = int.from_bytes(block[:4], "little")
        sizes = np.frombuffer(block, dtype="<u4", count=count, offset=4)
        ends = np.cumsum(sizes, dtype=np.int64) + (4 + 4 * count)
        return Block(block, ends - sizes, ends)

    def drop(self) -> None:
        """Forget it, and free what it takes. May be called twice."""
        self._messages = []
        self.held = 0
        if self._file is not None:
            self._file.close()
            self._file = None
        self._spool._forget(self)
        self._frames, self._counts = array("L"), array("L")
