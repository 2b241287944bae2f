"""softmax(Q·Kᵀ·s + mask)·V in the steps of a program, as one kernel that keeps the scores on the chip (``attention_kernel.py``).

Recognized are two products with, between them and in this order, factors and quotients of one constant, one mask that is added (or a
constant one that puts a number at most ``HIDDEN`` in the place of what it hides), and a softmax over the last axis, all of float32,
none of them read by anybody else. What only moves Q, K, V (Reshape, Transpose, Slice, Split) and what moves the result becomes the
strides at which the kernel reads and writes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Array, FloatStep
from gatewright.frontend.queries import integer

from ..reshapes import RESHAPES, is_float
from ..steps import Program, Step, Value, needed
from .strided import Strided, permutation, row_major, seen

HIDDEN = -1e30
"""A mask's value from which a position is not seen: float32 cannot tell it from the sum of it and any score below 1e22, and the
exponential of its distance to any score that is seen is zero."""
_LARGEST = 1 << 31
"""Elements that the kernel's indices can count."""


@dataclass(frozen=True)
class Attention:
    """[*lead, rows, depth] · [*lead, keys, depth]ᵀ → softmax → · [*lead, keys, width]. The operands' axes are the leads, then two."""

    node: str
    """The softmax's name."""
    q: Strided
    k: Strided
    """[*lead, depth, keys], as the product reads it."""
    v: Strided
    mask: Strided | None
    constant: Array | None
    """The mask, where it is known."""
    scale: float
    result: Strided
    """[*lead, rows, width], where it lies in what is stored."""

    @property
    def lead(self) -> tuple[int, ...]:
        return self.q.shape[:-2]

    @property
    def entries(self) -> int:
        return math.prod(self.lead)

    @property
    def rows(self) -> int:
        return self.q.shape[-2]

    @property
    def depth(self) -> int:
        return self.q.shape[-1]

    @property
    def keys(self) -> int:
        return self.v.shape[-2]

    @property
    def width(self) -> int:
        return self.v.shape[-1]

    @cached_property
    def band(self) -> tuple[int, int] | None:
        """(behind, ahead): row i sees keys from i − behind to i + ahead at the most. None: as far as is known, all."""
        if self.constant is None or self.mask is None:
            return None
        shape = np.broadcast_shapes(self.constant.shape, (self.rows, self.keys))
        each: Array = np.broadcast_to(self.constant, shape).reshape(-1, self.rows, self.keys) > HIDDEN
        visible: Array = np.any(each, axis=0)
        if not np.any(each, axis=2).all():
            # A row that sees nothing is the mean of all, or not a number.
            return None
        row = np.arange(self.rows)
        first, last = visible.argmax(axis=1), self.keys - 1 - visible[:, ::-1].argmax(axis=1)
        return max(0, int((row - first).max())), max(0, int((last - row).max()))


@dataclass(frozen=True)
class Found:
    """An attention and the steps that it stands for."""

    attention: Attention
    output: Value
    last: Step
    inputs: tuple[str, ...]


def attentions(program: Program) -> list[Found]:
    """In the order of the program."""
    search = _Search(program)
    return [found for step in program.steps if is_float(step, "Softmax") and (found := search.around(step)) is not None]


def fused(program: Program, chosen: Sequence[Found]) -> Program:
    """The program with one step, of operator Attention, for each of ``chosen``."""
    by_last = {found.last.output.name: found for found in chosen}
    steps = [_step(by_last[step.output.name]) if step.output.name in by_last else step for step in program.steps]
    return replace(program, steps=tuple(needed(steps, program.outputs)))


def _step(found: Found) -> Step:
    node = ir.Node("", "Attention", inputs=[], num_outputs=1, name=found.attention.node)
    return Step(FloatStep(node), 0, found.inputs, found.output, "anchor")


@dataclass(frozen=True)
class _Scores:
    """A product, the factor behind it, and what is added to that."""

    product: Step
    scale: float = 1.0
    mask: str | None = None
    constant: Array | None = None
    """The mask, where it is known."""


class _Search:
    def __init__(self, program: Program) -> None:
        self.constants = program.constants
        self.values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
        self.makers = {step.output.name: step for step in program.steps}
        self.outputs = {v.name for v in program.outputs}
        self.readers: dict[str, list[Step]] = defaultdict(list)
        for step in program.steps:
            for name in step.inputs:
                if name is not None:
                    self.readers[name].append(step)

    def around(self, softmax: Step) -> Found | None:
        """The attention of a softmax."""
        scores, second = softmax.output, self._only_reader(softmax.output.name)
        rank = len(scores.shape)
        plain = isinstance(softmax.source, FloatStep) and softmax.source.exponentials is None and scores.dtype == "float32"
        if not plain or rank < 2 or integer(softmax.node, "axis", -1) % rank != rank - 1:
            return None
        if second is None or not is_float(second, "MatMul") or second.inputs[0] != scores.name or second.inputs[1] == scores.name:
            return None
        before = self._scores(str(softmax.inputs[0]), scores.shape)
        if before is None:
            return None
        if not math.isfinite(before.scale):
            return None
        lead = scores.shape[:-2]
        q, k, v = (self._operand(name, lead) for name in (*before.product.inputs, second.inputs[1]))
        added = None if before.mask is None else self._mask(before, scores.shape)
        if q is None or k is None or v is None or (before.mask is not None and added is None):
            return None
        if second.output.shape != (*lead, scores.shape[-2], v.shape[-1]):
            return None
        last, result = self._result(second)
        inputs = [one.name for one in (q, k, v, *((added,) if added is not None and before.constant is None else ()))]
        attention = Attention(softmax.node.name or "", q, k, v, added, before.constant, before.scale, result)
        sizes = [math.prod(self.values[name].shape) for name in (*inputs, last.output.name)]
        return Found(attention, last.output, last, tuple(dict.fromkeys(inputs))) if max(sizes) < _LARGEST else None

    def _scores(self, name: str, shape: tuple[int, ...]) -> _Scores | None:
        """What the value ``name`` is made of, if that is scores."""
        step = self.makers.get(name)
        if step is None or self._only_reader(name) is None or step.output.shape != shape:
            return None
        if is_float(step, "MatMul"):
            return _Scores(step)
        if is_float(step, "Where"):
            return self._hidden(step, shape)
        pairs = [step.inputs] if is_float(step, "Div") else [step.inputs, step.inputs[::-1]]
        for scores, other in pairs if is_float(step, "Add", "Mul", "Div") else ():
            found = self._scores(str(scores), shape)
            if found is None or found.mask is not None or other is None or other == scores:
                continue
            known = self.constants.get(other)
            if is_float(step, "Add"):
                return replace(found, mask=other, constant=known)
            if known is not None and known.size == 1:
                value = float(known.reshape(-1)[0])
                if is_float(step, "Div") and not value:
                    return None
                return replace(found, scale=found.scale * value if is_float(step, "Mul") else found.scale / value)
        return None

    def _hidden(self, step: Step, shape: tuple[int, ...]) -> _Scores | None:
        """A Where with a constant condition, and one number for what is not seen: float32 cannot tell that from a sum with it."""
        seen_keys, scores, other = (str(name) for name in step.inputs)
        found, number = self._scores(scores, shape), self.constants.get(other)
        if found is None or found.mask is not None or seen_keys not in self.constants or number is None or number.size != 1:
            return None
        if not float(number.reshape(-1)[0]) <= HIDDEN:
            return None
        mask = np.where(self.constants[seen_keys], np.float32(0), number.reshape(-1)[0].astype(np.float32))
        return replace(found, mask=f"{step.output.name}\0mask", constant=mask)

    def _operand(self, name: str | None, lead: tuple[int, ...]) -> Strided | None:
        if name is None or name not in self.values or self.values[name].dtype != "float32" or len(self.values[name].shape) < 2:
            return None
        found = seen(name, self.makers, self.values, self.constants)
        return None if found is None else found.repeated((*lead, *found.shape[-2:]))

    def _mask(self, scores: _Scores, shape: tuple[int, ...]) -> Strided | None:
        name, array = str(scores.mask), scores.constant
        if array is not None:
            return Strided(name, array.shape, row_major(array.shape)).repeated(shape) if array.dtype == np.float32 else None
        found = seen(name, self.makers, self.values, self.constants) if self.values[name].dtype == "float32" else None
        return None if found is None else found.repeated(shape)

    def _only_reader(self, name: str) -> Step | None:
        readers = self.readers[name]
        return readers[0] if len(readers) == 1 and name not in self.outputs else None

    def _result(self, product: Step) -> tuple[Step, Strided]:
        """The last of the steps that only move the product, and where the product's elements lie in its result."""
        moves: list[Step] = []
        last = product
        while (reader := self._only_reader(last.output.name)) is not None and is_float(reader, "Transpose", *RESHAPES):
            moves.append(reader)
            last = reader
        for count in range(len(moves), 0, -1):
            place: Strided | None = Strided.of(moves[count - 1].output)
            for move in reversed(moves[:count]):
                place = None if place is None else self._back(move, place)
            if place is not None:
                return moves[count - 1], place
        return product, Strided.of(product.output)

    def _back(self, move: Step, place: Strided) -> Strided | None:
        """Where the input of ``move`` lies, by where its result does."""
        if is_float(move, "Transpose"):
            return place.transposed(np.argsort(permutation(move)).tolist())
        return place.reshaped(self.values[str(move.inputs[0])].shape)
