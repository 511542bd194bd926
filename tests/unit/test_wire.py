"""The proxy's view of PostgreSQL's protocol: which messages, and where they end, however the bytes arrive."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from tests.support.wire import HEAD, STARTUP, Message, Messages, asks

CUTS = st.lists(st.integers(1, 40), min_size=1, max_size=60)


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


BODIES = [b"", b"\0BEGIN\0\0\0", b"x" * HEAD, b"y" * (HEAD + 1), b"z" * 1000]
#: A request for TLS, the startup message, and messages with a letter.
SENT = message(b"", struct.pack("!i", 80877103)) + message(b"", b"\0\3\0\0user\0me\0\0")
SENT += b"".join(message(b"P", body) for body in BODIES)


def found(messages: Messages, data: bytes, cuts: list[int]) -> list[tuple[Message, int]]:
    """Each message with its end in the whole, for data that arrive in parts of those lengths."""
    seen: list[tuple[Message, int]] = []
    at = 0
    while at < len(data):
        part = data[at : at + cuts[len(seen) % len(cuts)]]
        for known, end, each in messages.feed(part):
            assert 0 <= known <= len(part)
            assert end >= known
            seen.append((each, at + end))
        at += len(part)
    return seen


@given(CUTS)
def test_of_the_client(cuts: list[int]) -> None:
    """Every message once, with its head, its size and its end."""
    seen = found(Messages(up=True), SENT, cuts)
    assert [each.kind for each, _ in seen] == [STARTUP, STARTUP, *"PPPPP"]
    assert [asks(each) for each, _ in seen] == [True, *[False] * 6]
    assert [each.head for each, _ in seen[2:]] == [body[:HEAD] for body in BODIES]
    ends = [8, len(SENT) - sum(5 + len(body) for body in BODIES)]
    for body in BODIES:
        ends.append(ends[-1] + 5 + len(body))
    assert [end for _, end in seen] == ends
    assert [each.size for each, _ in seen[2:]] == [5 + len(body) for body in BODIES]


@given(CUTS)
def test_of_the_server(cuts: list[int]) -> None:
    """The byte that answers a request for TLS is no message."""
    messages = Messages(up=False)
    messages.raw = 1
    seen = found(messages, b"N" + message(b"R", b"\0\0\0\0") + message(b"Z", b"I"), cuts)
    assert [each.kind for each, _ in seen] == ["R", "Z"]


@given(CUTS)
def test_what_is_run(cuts: list[int]) -> None:
    """The statement that a message sends or prepares, and the one that it runs by the name it was prepared under."""
    bodies = [(b"P", b"one\0BEGIN\0\0\0"), (b"B", b"\0one\0\0\0"), (b"P", b"\0COMMIT\0\0\0"), (b"B", b"\0\0\0\0")]
    sent = message(b"", b"\0\3\0\0user\0me\0\0") + b"".join(message(*each) for each in [*bodies, (b"Q", b"SELECT\0")])
    queries = [each.query.partition(b"\0")[0] for each, _ in found(Messages(up=True), sent, cuts)]
    assert queries == [b"", b"BEGIN", b"BEGIN", b"COMMIT", b"", b"SELECT"]
