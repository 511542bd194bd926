"""A 64-bit hash of a row's source key that the daemon and the source's own SQL compute alike.

In SQL (`towline.source.postgres.key_count`), for a key whose framed bytes (see `towline.frame`) are ``key``:

    hashtextextended(encode(key, 'hex') COLLATE "C", 0)

Of all hashes that PostgreSQL 13 to 18 have, this one can be computed here for a batch at once, without a loop over its
rows. It is Bob Jenkins' lookup3 (2006, public domain), as in PostgreSQL's src/common/hashfn.c
(``hash_bytes_extended`` with seed 0), over the digits; the server must be little-endian, which `PROBE` tells.

Hexadecimal digits, since text takes no NUL and may be stored in any encoding; digits are the same in all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from towline.frame import Frame, FrameError, adjoining

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Words = NDArray[np.uint32]
    Ints = NDArray[np.int64]
else:
    Hashes = Words = Ints = Any

#: Keys, of several lengths, whose hashes tell whether a server computes the same: framed bytes.
PROBE = bytes(range(17))

_SEED = 0x9E3779B9 + 3923095
_MASK = 0xFFFFFFFF
#: Up to so many keys, a loop is faster than the some hundred calls of numpy that any number of keys take.
_FEW = 16
#: With more rows than this, hashing a frame with others saves less than it costs to join them.
_APART = 2000
#: Keys that are hashed at a time, so that they stay in the processor's cache.
_STRIDE = 8192
#: Bytes of a key that make a block of the hash: twelve digits.
_BLOCK = 6

_DIGIT = np.frombuffer(b"0123456789abcdef", dtype=np.uint8).astype(np.uint32)
#: The two digits of each byte, and the four of each pair of bytes, as they follow each other in memory (little-endian).
_TWO = (_DIGIT[:, None] | _DIGIT << np.uint32(8)).reshape(256)
_DIGITS = (_TWO | _TWO[:, None] << np.uint32(16)).reshape(1 << 16)
#: What is kept of a word of four digits of which none, one, or both bytes belong to the key.
_KEPT = np.array([0, 0xFFFF, 0xFFFFFFFF], dtype=np.uint32)

#: Rotations, each of the word that was computed before: see ``mix`` and ``final`` in hashfn.c.
_MIX = (4, 6, 8, 16, 19, 4)
_FINAL = (14, 11, 25, 16, 4, 14, 24)


def key_hashes(frame: Frame, columns: Sequence[int]) -> Hashes:
    """The hash of each row's key, which consists of those columns, in that order.

    Raises FrameError when rows end before the last of them.
    """
    count = len(frame)
    if count <= _FEW:
        return np.array([hash_key(key) for key in frame.keys(columns)] if count else [], dtype=np.uint64)
    if adjoining(columns):
        begins, ends = frame.span(columns[0], len(columns))
        return _hashes(frame.data, begins, ends - begins)
    keys = frame.keys(columns)
    sizes = np.fromiter(map(len, keys), dtype=np.int64, count=count)
    return _hashes(b"".join(keys), np.cumsum(sizes) - sizes, sizes)


def each_key_hashes(frames: Sequence[tuple[Frame, Sequence[int]]]) -> list[Hashes]:
    """`key_hashes` of some frames, each with the columns of its key: those of few rows are hashed together."""
    found: dict[int, Hashes] = {}
    together: dict[tuple[int, int], list[int]] = {}
    for place, (frame, columns) in enumerate(frames):
        if 0 < len(frame) <= _APART and adjoining(columns):
            together.setdefault((columns[0], len(columns)), []).append(place)
    for (first, count), places in together.items():
        alike = [frames[place][0] for place in places]
        if len(alike) < 2 or sum(map(len, alike)) <= _FEW:
            continue
        try:
            data, begins, ends = _spans(alike, first, count)
        except FrameError:  # which of them it is, that one will say
            continue
        bounds = np.cumsum([len(frame) for frame in alike])[:-1]
        found.update(zip(places, np.split(_hashes(data, begins, ends - begins), bounds), strict=True))
    return [
        found[place] if place in found else key_hashes(frame, columns) for place, (frame, columns) in enumerate(frames)
    ]


def _spans(frames: Sequence[Frame], first: int, count: int) -> tuple[bytes, Ints, Ints]:
    """`Frame.span` of all of them, with the joined data that it refers to; each is told its own, and need not look
    for its keys again.
    """
    joined = Frame.concat(frames, max(frame.width for frame in frames))
    begins, ends = joined.span(first, count)
    row = base = 0
    for frame in frames:
        rows = slice(row, row + len(frame))
        frame.tell_span(first, count, begins[rows] - base, ends[rows] - base)
        row += len(frame)
        base += len(frame.data)
    return joined.data, begins, ends


def hash_key(key: bytes) -> int:
    """The hash of one key's framed bytes."""
    text = key.hex().encode()
    a = b = c = (_SEED + len(text)) & _MASK
    whole = len(text) // 12 * 12
    for at in range(0, whole, 12):
        a = (a + int.from_bytes(text[at : at + 4], "little")) & _MASK
        b = (b + int.from_bytes(text[at + 4 : at + 8], "little")) & _MASK
        c = (c + int.from_bytes(text[at + 8 : at + 12], "little")) & _MASK
        for bits in _MIX:
            # One of six alike steps, after which the words change their places.
            a = ((a - c) & _MASK) ^ (((c << bits) & _MASK) | (c >> (32 - bits)))
            c = (c + b) & _MASK
            a, b, c = b, c, a
    rest = text[whole:]
    a = (a + int.from_bytes(rest[:4], "little")) & _MASK
    b = (b + int.from_bytes(rest[4:8], "little")) & _MASK
    c = (c + (int.from_bytes(rest[8:], "little") << 8)) & _MASK  # its lowest byte is for the length
    for bits in _FINAL:
        c = ((c ^ b) - (((b << bits) & _MASK) | (b >> (32 - bits)))) & _MASK
        a, b, c = b, c, a
    # Seven steps are one more than two rounds.
    return (a << 32 | b) & 0xFFFFFFFFFFFFFFFF


def _hashes(data: bytes, begins: Ints, sizes: Ints) -> Hashes:
    """The hashes of many keys, of which each is ``size`` bytes of ``data`` from ``begin`` on."""
    found: Hashes = np.empty(len(begins), dtype=np.uint64)
    blocks = sizes // _BLOCK
    if int((begins + blocks * _BLOCK).max()) + _BLOCK > len(data):
        data += bytes(_BLOCK)
    if int(blocks.min()) == int(blocks.max()):
        for at in range(0, len(begins), _STRIDE):
            part = slice(at, at + _STRIDE)
            found[part] = _stride(data, begins[part], sizes[part], blocks[part])
        return found
    longest_first = np.argsort(-blocks, kind="stable")
    for at in range(0, len(begins), _STRIDE):
        rows = longest_first[at : at + _STRIDE]
        found[rows] = _stride(data, begins[rows], sizes[rows], blocks[rows])
    return found


def _stride(data: bytes, begins: Ints, sizes: Ints, blocks: Ints) -> Hashes:
    """The hashes of keys in order of their whole blocks, most first. ``data`` goes on for a block after those."""
    a: Words = (sizes * 2 + (_SEED & _MASK)).astype(np.uint32)
    b, c = a.copy(), a.copy()
    high, low = np.empty_like(a), np.empty_like(a)
    for block in range(int(blocks[0])):
        longer = len(blocks) if int(blocks[-1]) > block else int(np.searchsorted(-blocks, -block))
        _mix(_words(data, begins[:longer] + block * _BLOCK), *(word[:longer] for word in (a, b, c, high, low)))
    rest = sizes - blocks * _BLOCK
    first, second, third = _words(data, begins + blocks * _BLOCK)
    a += first & _KEPT[np.minimum(rest, 2)]
    b += second & _KEPT[np.clip(rest - 2, 0, 2)]
    c += (third & _KEPT[np.maximum(rest - 4, 0)]) << 8
    for bits in _FINAL:
        np.left_shift(b, bits, out=high)
        np.right_shift(b, 32 - bits, out=low)
        high |= low
        c ^= b
        c -= high
        a, b, c = b, c, a
    return a.astype(np.uint64) << np.uint64(32) | b


def _mix(block: Words, a: Words, b: Words, c: Words, high: Words, low: Words) -> None:
    """Add a block of three words to the states; ``high`` and ``low`` are for what is in between."""
    a += block[0]
    b += block[1]
    c += block[2]
    for bits in _MIX:
        np.left_shift(c, bits, out=high)
        np.right_shift(c, 32 - bits, out=low)
        high |= low
        a -= c
        a ^= high
        c += b
        a, b, c = b, c, a


def _words(data: bytes, begins: Ints) -> Words:
    """The digits of a block from each place on, four to a word; of shape (3, keys)."""
    anywhere: Any = np.ndarray((len(data) - _BLOCK + 1,), dtype=f"V{_BLOCK}", buffer=data, strides=(1,))
    pairs = anywhere[begins].view("<u2").reshape(len(begins), 3)
    words: Words = np.take(_DIGITS, pairs.T, mode="clip")
    return words
