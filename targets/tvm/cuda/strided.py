"""A tensor as a stretch of memory with a stride for each axis, and what Reshape, Transpose, Slice and Split make of it without a copy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gatewright.frontend.integer import Array
from gatewright.frontend.queries import integer, shape_of

from ..reshapes import RESHAPES, is_float
from ..steps import Step, Value


@dataclass(frozen=True)
class Strided:
    """Element i of value ``name`` lies at ``offset`` + Σ i·strides, in elements of the value as it is stored, row-major."""

    name: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0

    @classmethod
    def of(cls, value: Value) -> Strided:
        return cls(value.name, value.shape, row_major(value.shape))

    def transposed(self, perm: Sequence[int]) -> Strided:
        return replace(self, shape=tuple(self.shape[p] for p in perm), strides=tuple(self.strides[p] for p in perm))

    def cut(self, axis: int, start: int, length: int, step: int = 1) -> Strided:
        shape, strides = list(self.shape), list(self.strides)
        shape[axis], strides[axis] = length, strides[axis] * step
        return replace(self, shape=tuple(shape), strides=tuple(strides), offset=self.offset + start * self.strides[axis])

    def repeated(self, shape: Sequence[int]) -> Strided | None:
        """Broadcast to ``shape``; None where that does not go."""
        missing = len(shape) - len(self.shape)
        own = (1,) * missing + self.shape
        if missing < 0 or any(n not in (1, m) for n, m in zip(own, shape, strict=True)):
            return None
        strides = [0 if n == 1 else s for n, s in zip(own, (0,) * missing + self.strides, strict=True)]
        return replace(self, shape=tuple(shape), strides=tuple(strides))

    def reshaped(self, shape: Sequence[int]) -> Strided | None:
        """The same elements in the same order; None where no strides say that."""
        # Axes that follow one another in memory are one; the new shape has to split those, and no more.
        runs: list[list[int]] = []
        for extent, stride in zip(self.shape, self.strides, strict=True):
            if extent == 1:
                continue
            if runs and runs[-1][1] == extent * stride:
                runs[-1] = [runs[-1][0] * extent, stride]
            else:
                runs.append([extent, stride])
        strides = []
        for extent in reversed(shape):
            if extent == 1:
                strides.append(0)
                continue
            if not runs or runs[-1][0] % extent:
                return None
            length, stride = runs.pop()
            strides.append(stride)
            if length > extent:
                runs.append([length // extent, stride * extent])
        return replace(self, shape=tuple(shape), strides=tuple(reversed(strides)))


def row_major(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def seen(name: str, makers: Mapping[str, Step], values: Mapping[str, Value], constants: Mapping[str, Array]) -> Strided | None:
    """Value ``name`` as a part of the first value behind it that is not only moved; None for a constant."""
    if name not in values:
        return None
    step = makers.get(name)
    source = None if step is None or step.inputs[0] is None else seen(step.inputs[0], makers, values, constants)
    found = None if step is None or source is None else _moved(step, source, constants)
    return found or Strided.of(values[name])


def _moved(step: Step, source: Strided, constants: Mapping[str, Array]) -> Strided | None:
    """What ``step`` makes of its input; None where it does more than move, or needs a copy."""
    if is_float(step, *RESHAPES):
        return source.reshaped(step.output.shape)
    if is_float(step, "Transpose"):
        return source.transposed(permutation(step))
    if is_float(step, "Split"):
        axis = integer(step.node, "axis", 0) % len(source.shape)
        start = sum(shape_of(v)[axis] for v in step.node.outputs[: step.index])
        return source.cut(axis, start, step.output.shape[axis])
    return _sliced(step, source, constants) if is_float(step, "Slice") else None


def _sliced(step: Step, source: Strided, constants: Mapping[str, Array]) -> Strided | None:
    given = [None if name is None else constants.get(name) for name in step.inputs[1:]]
    if any(array is None for array in given):
        return None
    starts, _, *rest = (array.tolist() for array in given if array is not None)
    axes = rest[0] if rest else list(range(len(starts)))
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    for start, axis, stride in zip(starts, axes, steps, strict=True):
        extent = source.shape[axis]
        if stride < 1:
            return None
        begin = min(max(start + extent if start < 0 else start, 0), extent)
        source = source.cut(axis, begin, step.output.shape[axis], stride)
    return source


def permutation(step: Step) -> tuple[int, ...]:
    """Of a Transpose."""
    attribute = step.node.attributes.get("perm")
    return tuple(reversed(range(len(step.output.shape)))) if attribute is None else tuple(attribute.as_ints())
