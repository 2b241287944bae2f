"""Which weights become zero: the least important ones, alone, in blocks, or n of every m. Shapes stay.

A mask is True where a weight goes. Which weights are least important is ``importance.py``'s to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.queries import constant

from .importance import input_axis, output_axis
from .rewrite import Array
from .shrink import storage


@dataclass(frozen=True)
class Cells:
    """One layer's weights in the pieces that go together, in order: single weights, or blocks along the output channels."""

    shape: tuple[int, ...]
    axis: int
    block: int

    @property
    def count(self) -> tuple[int, ...]:
        moved = [size for i, size in enumerate(self.shape) if i != self.axis]
        return (*moved, -(-self.shape[self.axis] // self.block))

    def means(self, score: Array) -> Array:
        """The mean of a score over each cell; the last block of a row may be short."""
        return self._sums(score) / self._sums(np.ones(self.shape))

    def _sums(self, score: Array) -> Array:
        moved = np.moveaxis(score, self.axis, -1)
        missing = self.count[-1] * self.block - moved.shape[-1]
        padded = np.concatenate([moved, np.zeros((*moved.shape[:-1], missing))], axis=-1)
        return np.asarray(padded.reshape(*self.count, self.block).sum(axis=-1))

    def spread(self, mask: Array) -> Array:
        """A mask of cells as one of weights."""
        wide = np.repeat(mask, self.block, axis=-1)[..., : self.shape[self.axis]]
        return np.moveaxis(wide, -1, self.axis)


def smallest(values: Array, fraction: float, costs: Array | None = None) -> Array:
    """A mask of the smallest values that together cost no more than ``fraction`` of all; without costs the ⌊fraction·n⌋ smallest.

    Ties go in order, so that the count is exact.
    """
    order = np.argsort(values.reshape(-1), kind="stable")
    if costs is None:
        count = int(np.floor(fraction * values.size + 1e-9))
    else:
        spent = np.cumsum(costs.reshape(-1)[order])
        count = int(np.searchsorted(spent, fraction * spent[-1] * (1 + 1e-12), side="right")) if values.size else 0
    mask = np.zeros(values.size, np.bool_)
    mask[order[:count]] = True
    return mask.reshape(values.shape)


def of_pattern(score: Array, node: ir.Node, n: int, m: int) -> Array | str:
    """The mask that leaves ``n`` of every ``m`` consecutive weights along the input channels, or why there is none."""
    axis = input_axis(node)
    if score.shape[axis] % m:
        return f"its {score.shape[axis]} inputs are no multiple of {m}"
    groups = np.moveaxis(score, axis, -1)
    groups = groups.reshape(*groups.shape[:-1], -1, m)
    order = np.argsort(groups, axis=-1, kind="stable")
    mask = np.zeros(groups.shape, np.bool_)
    np.put_along_axis(mask, order[..., : m - n], True, axis=-1)
    moved = [size for i, size in enumerate(score.shape) if i != axis]
    return np.moveaxis(mask.reshape(*moved, score.shape[axis]), -1, axis)


def has_pattern(weight: Array, node: ir.Node, n: int, m: int) -> bool:
    """Whether no ``m`` consecutive weights along a layer's input channels hold more than ``n`` that are not zero."""
    axis = input_axis(node)
    if weight.shape[axis] % m:
        return False
    groups = np.moveaxis(weight, axis, -1).reshape(-1, m)
    return bool((np.count_nonzero(groups, axis=1) <= n).all())


def over_all(scores: Sequence[Array], fraction: float, costs: Sequence[Array] | None = None) -> list[Array]:
    """Masks of the smallest of all layers together."""
    flat = smallest(np.concatenate([s.reshape(-1) for s in scores]), fraction, None if costs is None else np.concatenate(
        [c.reshape(-1) for c in costs]
    ))  # fmt: skip
    ends = np.cumsum([s.size for s in scores])[:-1]
    return [part.reshape(s.shape) for part, s in zip(np.split(flat, ends), scores, strict=True)]


def zero(node: ir.Node, mask: Array) -> tuple[str, int, int]:
    """Zero the masked weights of a layer; its weight's name, how many are zero now, and of how many.

    Raises PassError where none would be left.
    """
    value = node.inputs[1]
    assert value is not None
    source, nothing = storage(value)
    stored = np.array(constant(source))
    stored[mask] = nothing
    zeros = int(np.count_nonzero(stored == nothing))
    if mask.any() and zeros == stored.size:
        raise PassError(f"nothing would be left of {node.name!r}: all its {stored.size} weights go", hint="lower amount, or exclude= it")
    source.const_value = ir.Tensor(stored, dtype=source.dtype, name=source.name)
    return source.name or "", zeros, stored.size


def block_axis(node: ir.Node) -> int:
    """Blocks lie along the output channels, which a vector unit computes side by side."""
    return output_axis(node)
