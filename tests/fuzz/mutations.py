"""Streams that were captured, with something wrong about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

#: Numbers at which a length or a count does harm, as bytes.
_EXTREMES = (
    *(b"\0", b"\xff", b"\0\0", b"\x7f\xff", b"\xff\xff", b"\0\0\0\0", b"\0\0\0\1", b"\x7f\xff\xff\xff"),
    *(b"\x80\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\xfe", b"\xff" * 8, b"\x7f" + b"\xff" * 7),
)
#: More rows than are framed one by one.
_MANY = 50

KINDS = (
    *("flip a bit", "set a byte", "extreme", "insert", "remove", "cut", "overwrite from"),
    *("drop", "repeat", "swap", "splice", "append to"),
)


@dataclass(frozen=True)
class Mutation:
    """One thing done to a stream; numbers are taken modulo what there is."""

    kind: str
    message: int
    place: int
    value: int


MUTATIONS = st.lists(
    st.builds(Mutation, st.sampled_from(KINDS), st.integers(0, 999), st.integers(0, 4095), st.integers(0, 0xFFFF)),
    min_size=1,
    max_size=8,
)


def mutated(messages: Sequence[bytes], mutations: Sequence[Mutation]) -> list[bytes]:
    """The stream with all of that done to it, one after the other."""
    stream = list(messages)
    for mutation in mutations:
        if stream:
            _mutate(stream, mutation)
    return stream


def altered(data: bytes, mutation: Mutation, other: bytes = b"") -> bytes:
    """One message with the mutation, if it is one of bytes."""
    at = mutation.place % (len(data) + 1)
    value = mutation.value
    match mutation.kind:
        case "flip a bit":
            return data[:at] + bytes(byte ^ (1 << value % 8) for byte in data[at : at + 1]) + data[at + 1 :]
        case "set a byte":
            return data[:at] + bytes((value % 256,)) + data[at + 1 :]
        case "extreme":
            extreme = _EXTREMES[value % len(_EXTREMES)]
            return data[:at] + extreme + data[at + len(extreme) :]
        case "insert":
            return data[:at] + bytes((value % 256,)) * (1 + value % 9) + data[at:]
        case "remove":
            return data[:at] + data[at + 1 + value % 9 :]
        case "cut":
            return data[:at]
        case "overwrite from":
            return data[:at] + other[at : at + 1 + value % 64] + data[at + 1 + value % 64 :]
        case "append to":
            return data + other[: value % 64]
        case _:
            return data


def _mutate(stream: list[bytes], mutation: Mutation) -> None:
    here = mutation.message % len(stream)
    there = mutation.value % len(stream)
    match mutation.kind:
        case "drop":
            del stream[here]
        case "repeat":
            stream[here:here] = [stream[here]] * (_MANY if mutation.value % 4 == 0 else 1)
        case "swap":
            stream[here], stream[there] = stream[there], stream[here]
        case "splice":
            stream.insert(here, stream[there])
        case _:
            stream[here] = altered(stream[here], mutation, stream[there])
