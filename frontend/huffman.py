"""Huffman codes of whole numbers, in numpy: canonical, at most 15 bits long, decoded side by side in chunks.

A coded stream, little-endian: u32 symbols, u16 alphabet, ⌈alphabet/2⌉ bytes of code lengths (4 bits each, 0: unused),
u32 for each chunk of 1,024 symbols with the bit at which it begins, u32 payload bytes, the payload, first bit highest.
A stream of one distinct symbol has the code length 0 for it and no payload: an alphabet without a code is its last symbol repeated.

Huffman 1952, A Method for the Construction of Minimum-Redundancy Codes; canonical codes as in RFC 1951, section 3.2.2.
"""

from __future__ import annotations

import heapq
import struct
from dataclasses import dataclass

import numpy as np

from gatewright.errors import ModelError

from .edit import Array

LONGEST = 15
"""Bits of a code: its length fits into 4 bits, and all codes into one table of 2^15."""
CHUNK = 1024
LARGEST_ALPHABET = 1 << 12


@dataclass
class Reader:
    """Bytes of an untrusted file, read in order. Raises ModelError past their end."""

    data: memoryview
    position: int = 0

    def take(self, count: int) -> memoryview:
        if count < 0 or count > len(self.data) - self.position:
            raise ModelError(f"the coded model is cut short: {count} bytes are missing at byte {self.position}")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, kind: str) -> int:
        """One little-endian integer: "B", "H", "I" or "Q"."""
        (found,) = struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))
        return int(found)


def encode(symbols: Array, alphabet: int) -> bytes:
    """``symbols``: integers below ``alphabet``, any number of them."""
    flat = symbols.reshape(-1).astype(np.int64)
    counts = np.bincount(flat, minlength=1)[:alphabet]
    lengths = code_lengths(counts)
    head = struct.pack("<IH", flat.size, len(counts)) + _nibbles(lengths)
    codes, of_symbol = _codes(lengths), lengths[flat]
    ends = np.cumsum(of_symbol)
    starts = ends - of_symbol
    bits = np.zeros(int(ends[-1]) if flat.size else 0, np.uint8)
    for place in range(int(lengths.max(initial=0))):
        has = of_symbol > place
        bits[starts[has] + place] = codes[flat[has]] >> (of_symbol[has] - 1 - place) & 1
    payload = np.packbits(bits).tobytes()
    return head + starts[::CHUNK].astype("<u4").tobytes() + struct.pack("<I", len(payload)) + payload


def decode(reader: Reader, most: int, below: int) -> Array:
    """The symbols of a stream, int64; at most ``most`` of them, all smaller than ``below``. Raises ModelError for a damaged stream."""
    count, alphabet = reader.number("I"), reader.number("H")
    if count > most or not 0 < alphabet <= LARGEST_ALPHABET:
        raise ModelError(f"the coded model is damaged: a stream of {count} symbols out of {alphabet}, where {most} can be")
    if alphabet > below:
        raise ModelError(f"the coded model is damaged: symbols up to {alphabet - 1}, where {below - 1} is the last")
    lengths = _from_nibbles(reader.take((alphabet + 1) // 2), alphabet)
    starts = np.frombuffer(reader.take(4 * -(-count // CHUNK)), "<u4").astype(np.int64)
    payload = np.frombuffer(reader.take(reader.number("I")), np.uint8)
    if not lengths.any():
        if len(payload) or starts.any():
            raise ModelError("the coded model is damaged: a stream without codes has a payload")
        return np.full(count, alphabet - 1, np.int64)
    symbol_of, length_of = _table(lengths)
    return _decoded(payload, starts, count, symbol_of, length_of)


def code_lengths(counts: Array) -> Array:
    """Bits of each symbol's code, int64; 0 for symbols that never come, and for the only one that does."""
    lengths = np.zeros(len(counts), np.int64)
    weights = counts.astype(np.int64)
    while np.count_nonzero(counts) > 1:
        lengths = _huffman(weights)
        if lengths.max() <= LONGEST:
            break
        # Flatter counts give shorter codes; the loss is far below a bit in a thousand.
        weights = np.where(weights > 0, weights // 2 + 1, 0)
    return lengths


def _huffman(counts: Array) -> Array:
    """Depths in the tree that joins the two rarest again and again; ties by age, so that it is the same everywhere."""
    lengths = np.zeros(len(counts), np.int64)
    heap: list[tuple[int, int, list[int]]] = [(int(c), s, [s]) for s, c in enumerate(counts.tolist()) if c]
    heapq.heapify(heap)
    age = len(counts)
    while len(heap) > 1:
        (a, _, left), (b, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        joined = left + right
        lengths[joined] += 1
        heapq.heappush(heap, (a + b, age, joined))
        age += 1
    return lengths


def _codes(lengths: Array) -> Array:
    """The canonical code of each symbol: in order of length, then of the symbol."""
    codes = np.zeros(len(lengths), np.int64)
    code = previous = 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        length = int(lengths[symbol])
        if length:
            code <<= length - previous
            codes[symbol] = code
            code, previous = code + 1, length
    return codes


def _table(lengths: Array) -> tuple[Array, Array]:
    """By the next 15 bits: the symbol and its length, 0 where no code begins so. Raises ModelError where codes overlap."""
    if int((1 << (LONGEST - lengths[lengths > 0])).sum()) > 1 << LONGEST:
        raise ModelError("the coded model is damaged: its code lengths make no code")
    symbols, found = np.zeros(1 << LONGEST, np.int64), np.zeros(1 << LONGEST, np.int64)
    for symbol, code in enumerate(_codes(lengths).tolist()):
        if length := int(lengths[symbol]):
            reach = slice(code << (LONGEST - length), (code + 1) << (LONGEST - length))
            symbols[reach], found[reach] = symbol, length
    return symbols, found


def _decoded(payload: Array, starts: Array, count: int, symbol_of: Array, length_of: Array) -> Array:
    """All chunks at once: a step decodes one symbol of each."""
    end = 8 * len(payload)
    words = np.concatenate([payload, np.zeros(4, np.uint8)]).astype(np.int64)
    if len(starts) and (starts[0] != 0 or starts.max() > end):
        raise _damaged()
    out = np.empty((len(starts), CHUNK), np.int64)
    position = starts.copy()
    last = count - CHUNK * (len(starts) - 1)
    for step in range(min(CHUNK, count)):
        active = position if step < last else position[:-1]
        at = active >> 3
        window = words[at] << 16 | words[at + 1] << 8 | words[at + 2]
        peeked = window >> (24 - LONGEST - (active & 7)) & ((1 << LONGEST) - 1)
        length = length_of[peeked]
        out[: len(active), step] = symbol_of[peeked]
        active += length
        if not length.all() or active.max(initial=0) > end:
            raise _damaged()
    # Every chunk ends where the next begins, the last within the final byte.
    if not np.array_equal(position[:-1], starts[1:]) or (len(starts) and not 0 <= end - position[-1] < 8):
        raise _damaged()
    return out.reshape(-1)[:count]


def _damaged() -> ModelError:
    return ModelError("the coded model is damaged: its bits are no codes")


def _nibbles(lengths: Array) -> bytes:
    padded = np.concatenate([lengths, np.zeros(len(lengths) % 2, np.int64)]).astype(np.uint8)
    return (padded[::2] << 4 | padded[1::2]).tobytes()


def _from_nibbles(data: memoryview, count: int) -> Array:
    both = np.frombuffer(data, np.uint8)
    return np.stack([both >> 4, both & 15], axis=1).reshape(-1)[:count].astype(np.int64)
