"""Messages that came together: as one run of bytes, with the places where each begins and ends (numpy arrays).

Looking at a message costs about as much as a change is worth, and at a thousand of them at once not much more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Ints = NDArray[np.int64]
else:
    Bytes = Ints = Any

#: Zeros after the joined messages, so that a number of up to 8 bytes can be read at any place within them.
PAD = bytes(8)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Message *i* is ``data[begins[i]:ends[i]]``, ``at`` bytes of it the envelope. After the last there is `PAD`."""

    data: bytes
    begins: Ints
    ends: Ints
    at: int = 0

    @classmethod
    def of(cls, messages: Sequence[bytes | memoryview], at: int = 0) -> Block:
        """Join messages."""
        sizes = np.fromiter(map(len, messages), dtype=np.int64, count=len(messages))
        ends = np.cumsum(sizes)
        return cls(b"".join((*messages, PAD)), ends - sizes, ends, at)

    def __len__(self) -> int:
        return len(self.begins)

    @property
    def size(self) -> int:
        """Bytes of all of them, with their envelopes."""
        return int(self.ends[-1] - self.begins[0]) if len(self) else 0

    def message(self, number: int) -> bytes:
        """One of them, with its envelope."""
        return self.data[int(self.begins[number]) : int(self.ends[number])]

    def messages(self, first: int, stop: int) -> list[bytes]:
        """Some of them, each by itself, with their envelopes."""
        data, span = self.data, slice(first, stop)
        return [
            data[begin:end] for begin, end in zip(self.begins[span].tolist(), self.ends[span].tolist(), strict=True)
        ]

    def part(self, first: int, stop: int) -> Block:
        """Some of them."""
        return Block(self.data, self.begins[first:stop], self.ends[first:stop], self.at)

    @property
    def bytes(self) -> Bytes:
        """All of them."""
        return np.frombuffer(self.data, dtype=np.uint8)
