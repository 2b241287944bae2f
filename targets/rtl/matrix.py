"""Constant matrix times vector as shifted additions: canonical signed digits, and sums of two terms that are made once.

Every weight is written in the non-adjacent form (Reitwieser 1960), so a product is a sum of shifted inputs. Then the pair of
terms that occurs most often, weighted by the width of the adder that it saves, becomes a value of its own in every row that
has it, and so on: two-term subexpression elimination over the whole matrix (Hosangadi, Fallah, Kastner: "Common subexpression
elimination involving multiple variables for linear DSP synthesis", ASAP 2004; Aksoy, Flores, Monteiro: "Optimization of
design complexity in time-multiplexed constant multiplications", DATE 2014), bounded in depth per row as in da4ml (Sun, Que,
Loncar, Luk, Spiropulu: "da4ml: Distributed Arithmetic for Real-time Neural Networks on FPGAs", arXiv:2507.04535). What is left of a row is
summed as a tree, the earliest and narrowest terms first.

Widths are exact: each value is a known linear function of the inputs, so its interval follows from its own coefficients and
not from the intervals of the two values that it was added from.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .network import Array, Builder, bits_of

DEPTH_SLACK = 2
"""Levels of adders that a row may have above the fewest possible, so that terms can be shared."""


@dataclass(frozen=True)
class Strategy:
    """What additions cost on a part."""

    slack: int = DEPTH_SLACK
    negation_costs: bool = False
    """True where subtracting takes a table per bit to invert the subtrahend (iCE40: its carry sees the same inputs as its table).
    Then terms are added up by sign, and a row is one difference; a shared difference must save more than it inverts."""
    rows: int | None = None
    """Terms are shared among so many outputs at most; None: among all. A term that many outputs share is made in one place and
    needed everywhere: sharing among few costs some additions and saves long wires, which is what a large network runs out of."""


DEFAULT = Strategy()

PAIRS_AT_ONCE = 1_500_000
"""Terms are shared among inputs that have at most so many pairs of terms; a larger matrix is shared in blocks of inputs."""

_SHIFT_BITS = 7
_DIFFERENCE_OFFSET = 1 << _SHIFT_BITS


@dataclass(frozen=True)
class Step:
    """value = (a << i) + sign·(b << j). Operands: 0 … inputs − 1 the inputs, from there on earlier steps; below zero the constants,
    −1 the first."""

    a: int
    b: int
    i: int
    j: int
    sign: int


@dataclass(frozen=True)
class Term:
    """sign·(value << shift)."""

    value: int
    shift: int = 0
    sign: int = 1


@dataclass(frozen=True)
class Program:
    """W·x + c in additions. Independent of where it is applied: a convolution's is the same at every position."""

    steps: tuple[Step, ...]
    rows: tuple[Term | None, ...]
    """Per output; None where it is 0."""
    constants: tuple[int, ...]
    coefficients: Array
    """int64 [steps, inputs + 1]: each step as a linear function of the inputs, its constant last."""

    def apply(self, builder: Builder, inputs: Sequence[int]) -> list[int]:
        """The nodes of the outputs, given the nodes of the inputs."""
        ends = np.array([builder.bounds(node) for node in inputs], np.int64).reshape(-1, 2)
        weights, added = self.coefficients[:, :-1], self.coefficients[:, -1]
        positive, negative = np.maximum(weights, 0), np.minimum(weights, 0)
        low = positive @ ends[:, 0] + negative @ ends[:, 1] + added
        high = positive @ ends[:, 1] + negative @ ends[:, 0] + added
        constants = [builder.constant(c) for c in self.constants]
        made = list(inputs)

        def node(value: int) -> int:
            return made[value] if value >= 0 else constants[-1 - value]

        for step, lo, hi in zip(self.steps, low.tolist(), high.tolist(), strict=True):
            made.append(builder.add(node(step.a), node(step.b), (step.i, step.j), step.sign, (lo, hi)))
        return [builder.constant(0) if row is None else _placed(builder, node(row.value), row) for row in self.rows]


def _placed(builder: Builder, node: int, row: Term) -> int:
    """A row that is a single shifted or negated value."""
    if row.shift == 0 and row.sign > 0:
        return node
    return builder.add(builder.constant(0), node, (0, row.shift), row.sign)


def signed_digits(value: int) -> list[tuple[int, int]]:
    """(shift, sign) of each digit of the non-adjacent form.

    >>> signed_digits(7)
    [(0, -1), (3, 1)]
    """
    digits, shift = [], 0
    while value:
        if value & 1:
            digit = 2 - (value & 3)
            digits.append((shift, digit))
            value -= digit
        value >>= 1
        shift += 1
    return digits


def adder_bits(lo: int, hi: int, below: tuple[int, int], i: int, j: int, sign: int) -> int:
    """Full adders of (a << i) + sign·(b << j) with the result in lo … hi; ``below``: bounds of the operand that is not shifted.

    Where only one operand has low bits, they are wires (negating them is not); where an unsigned one ends below the other, all are.
    """
    shift = max(i, j)
    if sign < 0 and j == 0 and shift:
        return bits_of(lo, hi)
    if sign > 0 and shift and below[0] >= 0 and bits_of(*below) <= shift:
        return 0
    return max(0, bits_of(lo, hi) - shift)


@dataclass
class _Solver:
    """Rows of terms over a growing list of values."""

    bounds: list[tuple[int, int]]
    """Of each input."""
    strategy: Strategy
    coefficients: list[Array] = field(default_factory=list)
    """Per value, int64 [inputs + 1]."""
    reach: list[tuple[int, int]] = field(default_factory=list)
    latency: list[int] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    constants: list[int] = field(default_factory=list)
    made: dict[tuple[int, int, int, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.bounds)
        self.coefficients = list(np.eye(count, count + 1, dtype=np.int64))
        self.reach = list(self.bounds)
        self.latency = [0] * count
        ends = np.array([*self.bounds, (1, 1)], np.int64)
        self._low, self._high = ends[:, 0].copy(), ends[:, 1].copy()

    def add(self, a: Term, b: Term, final: bool = False) -> Term:
        """The sum of two terms, one of them brought to shift 0 and the sign taken out. ``final``: a positive one if possible.

        Of a difference the shifted term is subtracted, and the sign of the result turned if need be: then low bits are wires.
        """
        base = min(a.shift, b.shift)
        if a.sign * b.sign < 0 and (a.sign < b.sign if final or a.shift == b.shift else a.shift > b.shift):
            a, b = b, a
        relative = a.sign * b.sign
        if relative > 0 and (a.value, a.shift) > (b.value, b.shift):
            a, b = b, a
        key = (a.value, b.value, a.shift - base, b.shift - base, relative)
        value = self.made.get(key)
        if value is None:
            value = self.made[key] = len(self.coefficients)
            row = (self._row(a.value) << key[2]) + relative * (self._row(b.value) << key[3])
            self.coefficients.append(row)
            self.reach.append(self.interval(row))
            self.latency.append(max(self.late(a.value), self.late(b.value)) + 1)
            self.steps.append(Step(*key))
        return Term(value, base, a.sign)

    def constant(self, value: int) -> int:
        if value not in self.constants:
            self.constants.append(value)
        return -1 - self.constants.index(value)

    def late(self, value: int) -> int:
        return 0 if value < 0 else self.latency[value]

    def between(self, value: int) -> tuple[int, int]:
        return self.reach[value] if value >= 0 else (self.constants[-1 - value],) * 2

    def interval(self, row: Array) -> tuple[int, int]:
        positive, negative = np.maximum(row, 0), np.minimum(row, 0)
        return int(positive @ self._low + negative @ self._high), int(positive @ self._high + negative @ self._low)

    def _row(self, value: int) -> Array:
        if value >= 0:
            return self.coefficients[value]
        row = np.zeros(len(self.bounds) + 1, np.int64)
        row[-1] = self.constants[-1 - value]
        return row

    def saving(self, a: int, b: int, difference: int, sign: int) -> int:
        """Bits of the adder of a + sign·(b << difference), or of (a << −difference) + sign·b."""
        i, j = max(0, -difference), max(0, difference)
        if sign < 0 and j == 0 < i:
            a, b, i, j = b, a, j, i
        row = (self.coefficients[a] << i) + sign * (self.coefficients[b] << j)
        return adder_bits(*self.interval(row), self.reach[a if i == 0 else b], i, j, sign)

    def inversion(self, a: int, b: int, difference: int, sign: int) -> int:
        """Bits that are inverted for it."""
        if sign > 0 or not self.strategy.negation_costs:
            return 0
        return bits_of(*self.reach[a if difference < 0 else b])


Row = dict[int, int]
"""Digit, value << 7 | shift, to its sign."""


def solve(weight: Array, constants: Sequence[int], bounds: Sequence[tuple[int, int]], strategy: Strategy = DEFAULT) -> Program:
    """A program for weight [outputs, inputs] · x + constants, x within ``bounds``. Integers below 2^62 throughout."""
    solver = _Solver(list(bounds), strategy)
    rows: list[Row] = []
    for weights in weight:
        digits = ((index, signed_digits(int(w))) for index, w in enumerate(weights) if w)
        rows.append({index << _SHIFT_BITS | shift: sign for index, found in digits for shift, sign in found})
    limits = [_depth(len(row) + bool(c)) + strategy.slack for row, c in zip(rows, constants, strict=True)]
    results: list[Term | None] = []
    size = strategy.rows or max(len(rows), 1)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        solver.made.clear()
        shared = _shared(solver, rows[part], limits[part], constants[part])
        results += [_sum(solver, row, constant) for row, constant in zip(shared, constants[part], strict=True)]
    coefficients = solver.coefficients[len(bounds) :]
    stacked = np.stack(coefficients) if coefficients else np.zeros((0, len(bounds) + 1), np.int64)
    return Program(tuple(solver.steps), tuple(results), tuple(solver.constants), stacked)


def _shared(solver: _Solver, rows: list[Row], limits: Sequence[int], constants: Sequence[int]) -> list[Row]:
    """The rows with the terms that they share taken out."""
    for block in _blocks(rows, len(solver.bounds)):
        parts = [{digit: sign for digit, sign in row.items() if digit >> _SHIFT_BITS in block} for row in rows]
        outside = [len(row) - len(part) + bool(c) for row, part, c in zip(rows, parts, constants, strict=True)]
        found = _Sharing(solver, parts, limits, outside).run()
        rows = [
            {**{digit: sign for digit, sign in row.items() if digit >> _SHIFT_BITS not in block}, **part}
            for row, part in zip(rows, found, strict=True)
        ]
    return rows


def _depth(terms: int) -> int:
    return max(0, terms - 1).bit_length()


def _blocks(rows: Sequence[Row], inputs: int) -> list[range]:
    """Ranges of inputs small enough to be searched for pairs at once."""
    blocks, start = [], 0
    counts = np.zeros((inputs, len(rows)), np.int64)
    for index, row in enumerate(rows):
        for digit in row:
            counts[digit >> _SHIFT_BITS, index] += 1
    held = np.zeros(len(rows), np.int64)
    for position in range(inputs):
        grown = held + counts[position]
        if position > start and int((grown * grown).sum()) // 2 > PAIRS_AT_ONCE:
            blocks.append(range(start, position))
            start, grown = position, counts[position]
        held = grown
    return [*blocks, range(start, inputs)]


class _Sharing:
    """Takes out the best pair of terms again and again.

    A pattern is (a, b, difference, sign): a << i and ±b << j in one row with j − i = difference, packed in one integer, a ≤ b.
    """

    def __init__(self, solver: _Solver, rows: list[Row], limits: Sequence[int], outside: Sequence[int]) -> None:
        self.solver, self.rows, self.limits = solver, rows, limits
        self.weights: dict[int, int] = {}
        self.prices: dict[int, int] = {}
        self.counts: dict[int, int] = {}
        self.heap: list[tuple[int, int]] = []
        self.loads = [held + sum(1 << solver.latency[d >> _SHIFT_BITS] for d in row) for row, held in zip(rows, outside, strict=True)]
        """Per row Σ 2^latency: a tree over its terms has depth d where this is at most 2^d (Kraft)."""
        self.shifts: list[dict[int, set[int]]] = []
        for row in rows:
            found: dict[int, set[int]] = {}
            for digit in row:
                found.setdefault(digit >> _SHIFT_BITS, set()).add(digit & (_DIFFERENCE_OFFSET - 1))
            self.shifts.append(found)

    def run(self) -> list[Row]:
        for row in self.rows:
            digits = sorted(row.items())
            for position, (digit, sign) in enumerate(digits):
                for other, other_sign in digits[position + 1 :]:
                    key = _pattern(digit, sign, other, other_sign)
                    self.counts[key] = self.counts.get(key, 0) + 1
        self.heap = [(-self._score(key, count), key) for key, count in self.counts.items() if count > 1]
        heapq.heapify(self.heap)
        while self.heap:
            score, key = heapq.heappop(self.heap)
            count = self.counts.get(key, 0)
            if count < 2:
                continue
            now = -self._score(key, count)
            if now >= 0:
                continue
            if now > score:  # it has lost occurrences since it was put here
                heapq.heappush(self.heap, (now, key))
                continue
            if not self._take(key):
                self.counts[key] = 0  # only its depth or its own overlaps stood in the way, and neither gets better
        return self.rows

    def _score(self, key: int, count: int) -> int:
        weight = self.weights.get(key)
        if weight is None:
            a, b, difference, sign = _unpacked(key)
            weight = self.weights[key] = 2 * self.solver.saving(a, b, difference, sign) + 1
            self.prices[key] = 2 * self.solver.inversion(a, b, difference, sign)
        return weight * (count - 1) - self.prices[key]

    def _take(self, key: int) -> bool:
        """Replace every occurrence by one value; False, and nothing done, where fewer than two can be replaced."""
        a, b, difference, sign = _unpacked(key)
        late = max(self.solver.latency[a], self.solver.latency[b]) + 1
        grown = (1 << late) - (1 << self.solver.latency[a]) - (1 << self.solver.latency[b])
        found: list[tuple[int, list[tuple[int, int]]]] = []
        for index, shifts in enumerate(self.shifts):
            if a in shifts and b in shifts:
                places = self._places(index, a, b, difference, sign)
                room = (1 << self.limits[index]) - self.loads[index]
                places = places[: room // grown] if grown > 0 else places
                if places:
                    found.append((index, places))
        if sum(len(places) for _, places in found) < 2:
            return False
        i, j = max(0, -difference), max(0, difference)
        value = self.solver.add(Term(a, i), Term(b, j, sign))
        for index, places in found:
            row = self.rows[index]
            self.loads[index] += grown * len(places)
            for first, second in places:
                digit, other = a << _SHIFT_BITS | first, b << _SHIFT_BITS | second
                # Term(…) may have swapped the operands, or taken out a sign or a shift; none is left to take out but the sign.
                new_sign = row[digit] * value.sign
                self._remove(index, digit)
                self._remove(index, other)
                self._insert(index, value.value << _SHIFT_BITS | min(first, second), new_sign)
        return True

    def _places(self, index: int, a: int, b: int, difference: int, sign: int) -> list[tuple[int, int]]:
        """Shifts of a and b of each occurrence, no digit in two of them."""
        row, shifts = self.rows[index], self.shifts[index]
        taken: set[int] = set()
        places = []
        for first in sorted(shifts[a]):
            second = first + difference
            digit, other = a << _SHIFT_BITS | first, b << _SHIFT_BITS | second
            if second in shifts[b] and digit not in taken and other not in taken and row[digit] * row[other] == sign:
                taken |= {digit, other}
                places.append((first, second))
        return places

    def _remove(self, index: int, digit: int) -> None:
        row = self.rows[index]
        sign = row.pop(digit)
        held = self.shifts[index][digit >> _SHIFT_BITS]
        held.discard(digit & (_DIFFERENCE_OFFSET - 1))
        if not held:
            del self.shifts[index][digit >> _SHIFT_BITS]
        counts = self.counts
        for other, other_sign in row.items():
            key = _pattern(digit, sign, other, other_sign) if digit < other else _pattern(other, other_sign, digit, sign)
            if key in counts:
                counts[key] -= 1

    def _insert(self, index: int, digit: int, sign: int) -> None:
        row, counts = self.rows[index], self.counts
        for other, other_sign in row.items():
            key = _pattern(digit, sign, other, other_sign) if digit < other else _pattern(other, other_sign, digit, sign)
            count = counts[key] = counts.get(key, 0) + 1
            if count > 1:
                heapq.heappush(self.heap, (-self._score(key, count), key))
        row[digit] = sign
        self.shifts[index].setdefault(digit >> _SHIFT_BITS, set()).add(digit & (_DIFFERENCE_OFFSET - 1))


def _pattern(digit: int, sign: int, other: int, other_sign: int) -> int:
    """``digit`` < ``other``. a << 36 | b << 10 | (difference + 128) << 1 | (equal signs)."""
    mask = _DIFFERENCE_OFFSET - 1
    difference = (other & mask) - (digit & mask) + _DIFFERENCE_OFFSET
    return (digit >> _SHIFT_BITS) << 36 | (other >> _SHIFT_BITS) << 10 | difference << 1 | (sign == other_sign)


def _unpacked(key: int) -> tuple[int, int, int, int]:
    return key >> 36, key >> 10 & (1 << 26) - 1, (key >> 1 & 0x1FF) - _DIFFERENCE_OFFSET, 1 if key & 1 else -1


def _sum(solver: _Solver, row: Row, constant: int) -> Term | None:
    """All terms of a row as one."""
    mask = _DIFFERENCE_OFFSET - 1
    terms = [Term(digit >> _SHIFT_BITS, digit & mask, sign) for digit, sign in row.items()]
    if constant:
        zeros = (constant & -constant).bit_length() - 1  # as a shift: below it a sum is wires
        terms.append(Term(solver.constant(constant >> zeros), zeros))
    if solver.strategy.negation_costs:
        halves = [_tree(solver, [term for term in terms if term.sign == sign]) for sign in (1, -1)]
        terms = [half for half in halves if half is not None]
    return _tree(solver, terms)


def _tree(solver: _Solver, terms: list[Term]) -> Term | None:
    """The sum of terms: always the two that are ready first, among those the narrowest."""
    heap = [(*_order(solver, term), term) for term in terms]
    heapq.heapify(heap)
    while len(heap) > 1:
        a, b = heapq.heappop(heap)[-1], heapq.heappop(heap)[-1]
        made = solver.add(a, b, final=not any(entry[-1].sign > 0 for entry in heap))
        heapq.heappush(heap, (*_order(solver, made), made))
    return heap[0][-1] if heap else None


def _order(solver: _Solver, term: Term) -> tuple[int, int, int, int, int]:
    """Latency, then where its top bit is, then what makes the order total."""
    return solver.late(term.value), term.shift + bits_of(*solver.between(term.value)), term.shift, term.value, term.sign


def adders(programs: Iterable[Program]) -> int:
    """Additions in all."""
    return sum(len(program.steps) for program in programs)
