"""The thread that reads chunks."""

from __future__ import annotations

import threading
from typing import Any, cast

from tests.support.wait import until
from tests.unit.test_snapshot import chunk, route
from towline.change import Visibility
from towline.chunk_reader import BackgroundChunkReader
from towline.snapshot import Snapshots


class Connecting:
    """A connection that takes its time, and notes that it was closed."""

    def __init__(self) -> None:
        self.entered, self.go_on, self.closed = threading.Event(), threading.Event(), threading.Event()

    def connect(self) -> Connecting:
        self.entered.set()
        assert self.go_on.wait(20)
        return self

    def visibility(self) -> Visibility:
        return Visibility(10, 10)

    def chunk(self, *_: Any) -> Any:
        return None

    def close(self) -> None:
        self.closed.set()


def test_what_was_being_connected_is_closed_too() -> None:
    """Closed while the first request still connects, the reader leaves no session behind."""
    only = route("t")
    snapshots = Snapshots([only], {})
    snapshots.listen(Visibility(5, 5))
    connecting = Connecting()
    reader = BackgroundChunkReader(cast(Any, connecting.connect), snapshots)
    reader.request(only, chunk(only, 0, None, Visibility(5, 5)).relation, None, 1)
    assert connecting.entered.wait(20)
    reader.close()
    connecting.go_on.set()
    until(connecting.closed.is_set, 20, "the session to be closed")
