"""The circuit before it is a circuit: a graph of exact integer values, each with the interval that it provably stays in.

    input      params (port, element)           a value from outside
    constant   params (value,)
    add        args (a, b), params (i, j, s)    (a << i) + s·(b << j), s = ±1, min(i, j) = 0
    multiply   args (a, b)                      a·b
    maximum    args (a, b)
    settle     args (t,), params (k, odd)       the last step of rounding half to even, see ``settled``
    clip       args (a,), params (lo, hi)
    table      args (a,), params (lo, v0, v1 …) v[a − lo]
    at_least   args (a, b)                      1 where a ≥ b, else 0
    select     args (c, a, b)                   a where c = 1, b where c = 0

Widths follow from the intervals: a value that is never negative is unsigned, any other one two's complement. A node is
made once, however often it is asked for, and its arguments come before it, so that the order of nodes is an order of evaluation.
Read next: ``lower.py``, which makes a network of a model; ``interpret.py``, which runs it; ``verilog.py``, which writes it down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

Op = Literal["input", "constant", "add", "multiply", "maximum", "settle", "clip", "table", "at_least", "select"]


@dataclass(frozen=True, slots=True)
class Node:
    """One value. See the module's table for what ``params`` are."""

    op: Op
    args: tuple[int, ...]
    params: tuple[int, ...]
    lo: int
    hi: int
    """The value is proven to be in lo … hi."""
    layer: int
    """Index into ``Network.layers`` of the operation that it belongs to."""

    @property
    def signed(self) -> bool:
        return self.lo < 0

    @property
    def bits(self) -> int:
        """Width of a wire that holds it, its sign included; 1 for a value that is always 0."""
        return max(1, bits_of(self.lo, self.hi))


def bits_of(lo: int, hi: int) -> int:
    """Bits that hold lo … hi, two's complement where lo is negative."""
    return (max(hi, 0) if lo >= 0 else max(hi, -lo - 1)).bit_length() + (lo < 0)


@dataclass(frozen=True)
class Port:
    """A tensor that enters or leaves: its elements in C order."""

    value: str
    """The ONNX name of the integer value."""
    shape: tuple[int, ...]
    dtype: str
    """numpy's name of the type in which ONNX keeps it."""
    lo: int
    hi: int

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def bits(self) -> int:
        """Width of one element on the wire."""
        return max(1, bits_of(self.lo, self.hi))

    @property
    def signed(self) -> bool:
        return self.lo < 0


@dataclass(frozen=True)
class Network:
    """A whole design: what enters, how values are made, which of them leave."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    results: tuple[tuple[int, ...], ...]
    """Per output port the node of each element."""
    layers: tuple[str, ...]
    """Names of the operations (ONNX nodes), for messages and reports."""
    traced: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Inner integer tensors: ONNX name, shape, nodes. Empty where only the outputs are of interest."""

    def pruned(self) -> Network:
        """Without the nodes that no output needs; inputs stay ports, whether read or not."""
        live = self.live(node for nodes in self.results for node in nodes)
        renamed = {old: new for new, old in enumerate(index for index, keep in enumerate(live) if keep)}
        nodes = tuple(
            Node(n.op, tuple(renamed[a] for a in n.args), n.params, n.lo, n.hi, n.layer)
            for n, keep in zip(self.nodes, live, strict=True) if keep
        )  # fmt: skip
        results = tuple(tuple(renamed[node] for node in nodes_) for nodes_ in self.results)
        traced = tuple((name, shape, tuple(renamed[i] for i in ids)) for name, shape, ids in self.traced if all(i in renamed for i in ids))
        return Network(self.inputs, self.outputs, nodes, results, self.layers, traced)

    def live(self, roots: Any) -> list[bool]:
        """Per node whether one of ``roots`` depends on it."""
        found = [False] * len(self.nodes)
        for root in roots:
            found[root] = True
        for index in range(len(self.nodes) - 1, -1, -1):
            if found[index]:
                for argument in self.nodes[index].args:
                    found[argument] = True
        return found


def settled(t: int, k: int, odd: int) -> int:
    """The quotient of t = v + z·2^k + 2^(k−1) − odd by 2^k, where that is rne(v·2^−k) + z for z with the parity ``odd``.

    The half that rounding adds is part of the constant of the sum that v is, so it costs nothing. What is left is the tie:
    there v + 2^(k−1) has k zeros below, and the quotient is rounded up: even if its last bit is cleared. Where z is odd the same
    holds mirrored: with one less, a tie has k ones below and is rounded down, and its last bit is set.
    """
    rest = t & ((1 << k) - 1)
    quotient = t >> k
    if odd:
        return quotient | 1 if rest == (1 << k) - 1 else quotient
    return quotient & ~1 if rest == 0 else quotient


@dataclass
class Builder:
    """Makes nodes. Values that are known to be constant become constants, and equal requests one node."""

    nodes: list[Node] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)
    _made: dict[tuple[Op, tuple[int, ...], tuple[int, ...]], int] = field(default_factory=dict)

    def layer(self, name: str) -> None:
        """From here on nodes belong to the operation ``name``."""
        self.layers.append(name)

    def input(self, port: int, element: int, lo: int, hi: int) -> int:
        return self._node("input", (), (port, element), lo, hi)

    def constant(self, value: int) -> int:
        return self._node("constant", (), (int(value),), int(value), int(value))

    def add(self, a: int, b: int, shifts: tuple[int, int], sign: int, bounds: tuple[int, int] | None = None) -> int:
        """(a << shifts[0]) + sign·(b << shifts[1]). ``bounds``: proven ones that may be narrower than the operands' own give."""
        (a_lo, a_hi), (b_lo, b_hi) = self.bounds(a), self.bounds(b)
        ends = (b_lo, b_hi) if sign > 0 else (-b_hi, -b_lo)
        lo = (a_lo << shifts[0]) + (ends[0] << shifts[1])
        hi = (a_hi << shifts[0]) + (ends[1] << shifts[1])
        if bounds is not None:
            lo, hi = max(lo, bounds[0]), min(hi, bounds[1])
        return self._node("add", (a, b), (*shifts, sign), lo, hi)

    def multiply(self, a: int, b: int) -> int:
        corners = [x * y for x in self.bounds(a) for y in self.bounds(b)]
        return self._node("multiply", (min(a, b), max(a, b)), (), min(corners), max(corners))

    def maximum(self, a: int, b: int) -> int:
        (a_lo, a_hi), (b_lo, b_hi) = self.bounds(a), self.bounds(b)
        if a == b or a_lo >= b_hi:
            return a
        if b_lo >= a_hi:
            return b
        return self._node("maximum", (min(a, b), max(a, b)), (), max(a_lo, b_lo), max(a_hi, b_hi))

    def settle(self, t: int, k: int, odd: int) -> int:
        if k == 0:
            return t
        lo, hi = self.bounds(t)
        return self._node("settle", (t,), (k, odd), settled(lo, k, odd), settled(hi, k, odd))

    def clip(self, a: int, lo: int, hi: int) -> int:
        a_lo, a_hi = self.bounds(a)
        if lo <= a_lo and a_hi <= hi:
            return a
        return self._node("clip", (a,), (lo, hi), min(max(a_lo, lo), hi), min(max(a_hi, lo), hi))

    def table(self, a: int, first: int, values: Sequence[int]) -> int:
        """values[a − first]; entries that a never reaches are left out."""
        lo, hi = self.bounds(a)
        kept = tuple(int(v) for v in values[lo - first : hi - first + 1])
        return self._node("table", (a,), (lo, *kept), min(kept), max(kept))

    def at_least(self, a: int, b: int) -> int:
        (a_lo, a_hi), (b_lo, b_hi) = self.bounds(a), self.bounds(b)
        return self._node("at_least", (a, b), (), int(a_lo >= b_hi), int(a_hi >= b_lo))

    def select(self, condition: int, a: int, b: int) -> int:
        known = self.bounds(condition)
        if known[0] == known[1] or a == b:
            return a if known[0] else b
        (a_lo, a_hi), (b_lo, b_hi) = self.bounds(a), self.bounds(b)
        return self._node("select", (condition, a, b), (), min(a_lo, b_lo), max(a_hi, b_hi))

    def bounds(self, node: int) -> tuple[int, int]:
        found = self.nodes[node]
        return found.lo, found.hi

    def known(self, node: int) -> int | None:
        """The value of a node that has only one."""
        found = self.nodes[node]
        return found.lo if found.op == "constant" else None

    def _node(self, op: Op, args: tuple[int, ...], params: tuple[int, ...], lo: int, hi: int) -> int:
        if lo == hi and op not in ("constant", "input"):
            return self.constant(lo)
        key = (op, args, params)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = len(self.nodes)
            self.nodes.append(Node(op, args, params, lo, hi, len(self.layers) - 1))
        return found
