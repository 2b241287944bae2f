"""And-inverter graphs with flip-flops, clocked cycle by cycle in numpy: what a synthesized netlist comes down to.

The file format is binary AIGER (Biere, Heljanko, Wieringa: AIGER 1.9 And Beyond, FMV report 11/2, 2011). A literal is twice a
variable, plus 1 where it is negated; variable 0 is false; then come the inputs, the flip-flops and the AND gates.

64 independent copies of the circuit run at a time, one in each bit of a word, so that no compiler is needed to be fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from gatewright.errors import GatewrightError

from .network import Array

LANES = 64


@dataclass(frozen=True)
class Graph:
    """A circuit. Literals are those of the file."""

    inputs: tuple[str, ...]
    """Names, ``in_data[3]`` for a bit of a vector."""
    outputs: tuple[str, ...]
    latches: tuple[str, ...]
    next: Array
    """Per flip-flop the literal that it takes on at the clock's edge; all start at 0."""
    driven: Array
    """Per output its literal."""
    gates: Array
    """[n, 2]: the literals that each gate is the AND of; its own arguments come before it."""


def read(path: Path) -> Graph:
    """Raises GatewrightError where the file is damaged, or has parts (bad states, justice) that Yosys does not write."""
    data = path.read_bytes()
    try:
        return _parsed(data)
    except (ValueError, IndexError) as error:
        raise GatewrightError(f"{path} is no AIGER file that is understood here: {error}") from None


def _parsed(data: bytes) -> Graph:
    head, _, rest = data.partition(b"\n")
    kind, *words = head.split()
    counts = [int(word) for word in words]
    if kind != b"aig" or len(counts) < 5 or any(counts[5:]):
        raise ValueError(f"its head is {head[:60]!r}")
    most, inputs, latches, outputs, gates = counts[:5]
    if most != inputs + latches + gates:
        raise ValueError("variables are not numbered without a gap")
    lines = rest.split(b"\n", latches + outputs)
    starts = [line.split() for line in lines[:latches]]
    if any(len(words) > 1 and words[1] == b"1" for words in starts):
        raise ValueError("a flip-flop starts at 1")
    literals, used = _deltas(lines[-1], 2 * gates)
    own = 2 * (inputs + latches + 1 + np.arange(gates, dtype=np.int64))
    left = own - literals[0::2]
    names = _symbols(lines[-1][used:])
    return Graph(
        tuple(names.get(f"i{n}", f"i{n}") for n in range(inputs)),
        tuple(names.get(f"o{n}", f"o{n}") for n in range(outputs)),
        tuple(names.get(f"l{n}", f"l{n}") for n in range(latches)),
        np.array([int(words[0]) for words in starts], np.int64),
        np.array([int(line) for line in lines[latches : latches + outputs]], np.int64),
        np.stack([left, left - literals[1::2]], axis=1),
    )


def _deltas(data: bytes, count: int) -> tuple[Array, int]:
    """``count`` numbers of 7 bits a byte, lowest first, the last byte below 128; and how many bytes they take."""
    block = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(block < 128)[:count]
    if len(ends) < count:
        raise ValueError("it ends within its gates")
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    values = np.zeros(count, np.int64)
    for k in range(int((ends - starts).max(initial=-1)) + 1):
        there = starts + k <= ends
        values[there] |= (block[starts[there] + k].astype(np.int64) & 127) << (7 * k)
    return values, int(ends[-1]) + 1 if count else 0


def _symbols(data: bytes) -> dict[str, str]:
    names: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        if line == "c":  # what follows is a comment
            break
        key, _, name = line.partition(" ")
        names[key] = name
    return names


class Circuit:
    """``LANES`` copies of a graph, all flip-flops at 0. A word holds one bit of each copy."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        first = 1 + len(graph.inputs) + len(graph.latches)
        count = first + len(graph.gates)
        order, self._levels = _by_level(graph.gates, first)
        self._count, self._first = count, first
        place = np.arange(count)
        place[first + order] = np.arange(first, count)

        def at(literals: Array) -> Array:
            return np.asarray(place[literals >> 1] + (literals & 1) * count)

        arranged = at(graph.gates[order])
        self._left, self._right = np.ascontiguousarray(arranged[:, 0]), np.ascontiguousarray(arranged[:, 1])
        self._next, self._driven = at(graph.next), at(graph.driven)
        # Every value and, ``count`` further on, its negation.
        self._values = np.zeros(2 * count, np.uint64)
        self._values[count:] = ~np.uint64(0)

    def settle(self, inputs: Array) -> Array:
        """uint64 per input → uint64 per output, before the clock's edge."""
        values, count = self._values, self._count
        given = slice(1, 1 + len(inputs))
        values[given] = inputs
        values[count + 1 : count + 1 + len(inputs)] = ~inputs
        for start, stop in self._levels:
            made = values[self._left[start:stop]] & values[self._right[start:stop]]
            values[self._first + start : self._first + stop] = made
            values[count + self._first + start : count + self._first + stop] = ~made
        return values[self._driven]

    def clock(self) -> None:
        """The edge: every flip-flop takes on what it was last told."""
        start = 1 + len(self.graph.inputs)
        taken = self._values[self._next]
        self._values[start : start + len(taken)] = taken
        self._values[self._count + start : self._count + start + len(taken)] = ~taken

    @property
    def state(self) -> Array:
        """uint64 per flip-flop."""
        start = 1 + len(self.graph.inputs)
        return self._values[start : start + len(self.graph.latches)]


def _by_level(gates: Array, first: int) -> tuple[Array, list[tuple[int, int]]]:
    """Gates ordered by their distance from the inputs, and where each distance starts and stops in that order."""
    level = [0] * first
    for a, b in (gates >> 1).tolist():
        level.append(1 + max(level[a], level[b]))
    own = np.array(level[first:], np.int64)
    order = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[order], np.arange(1, int(own.max(initial=0)) + 2))
    return order, [(int(a), int(b)) for a, b in pairwise(bounds)]
