"""When the reader of a stream gives the consumer pieces, by how much the source has to send."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence

import pytest

from tests.support.wait import until
from tests.unit.source.rows import changes
from tests.unit.source.test_pgoutput import SMALL, B, C, R, ins
from towline.change import Piece
from towline.source.postgres import stream
from towline.source.postgres.notices import Notices
from towline.source.postgres.stream import FLOW, FLOWS, PostgresStream
from towline.source.postgres.walsender import XLOG_DATA, XLOG_HEADER

T = R(("id", 23, 1), ("v", 25, 0))


class Script:
    """In place of a walsender: what each burst brings, and how many bytes are said to wait before it.

    Bursts come when the consumer waits.
    """

    def __init__(self, bursts: Sequence[tuple[int, list[bytes]]]) -> None:
        self.notices = Notices()
        self.left = list(bursts)
        self.socket, self._other_end = os.pipe()
        self.reader: PostgresStream | None = None
        self.wanted = threading.Event()
        self._messages: list[bytes] = []

    def waiting(self) -> int:
        """Of the next burst; 0 after the last."""
        assert self.wanted.wait(10)
        if not self.left:
            return 0
        reader = self.reader
        assert reader is not None
        until(lambda: not reader._handover.busy, 10)
        size, self._messages = self.left.pop(0)
        return size

    def receive(self) -> None:
        """It is there already."""

    def messages(self) -> Iterator[bytes]:
        """The burst's."""
        while self._messages:
            yield bytes((XLOG_DATA,)).ljust(XLOG_HEADER, b"\0") + self._messages.pop(0)

    def timeout(self) -> float:
        """None."""
        return 0.0

    def flush(self) -> bool:
        """All is sent."""
        return True

    def close(self) -> None:
        """Both ends."""
        os.close(self.socket)
        os.close(self._other_end)

    def nothing(self, *arguments: object, **named: object) -> None:
        """What needs a server."""

    check_slot = start = send_status = nothing


def test_pieces_while_data_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as much waits to be read, pieces are some time apart; when little does, what is there comes at once.

    It takes more to begin than to go on: after a short nap there is less.
    """
    monkeypatch.setattr(stream, "APART", 60.0)
    few, many, still, less = 100, FLOW, FLOWS, FLOWS - 1
    sizes = [few, FLOW - 1, many, still, still, less, still, many, many, few]
    script = Script([(size, [B, T, ins(b"%d" % number, b"x"), C]) for number, size in enumerate(sizes)])
    monkeypatch.setattr(stream, "Walsender", lambda dsn, application_name: script)
    reader = script.reader = PostgresStream(
        "",
        slot="s",
        publication="p",
        plugin="pgoutput",
        relations=SMALL,
        start=0,
        max_rows=100,
        max_bytes=1 << 20,
        publication_checked=True,
    )
    script.wanted.set()
    pieces: list[Piece] = []

    def all_there() -> bool:
        if (piece := reader.poll(0.5)) is not None:
            pieces.append(piece)
        return sum(len(changes([each])) for each in pieces) == 10

    try:
        until(all_there, 30)
    finally:
        reader.close()
    assert [[int(change.values[0] or b"") for change in changes([piece])] for piece in pieces] == [
        [0],
        [1],
        [2, 3, 4, 5],
        [6],
        [7, 8, 9],
    ]
