"""Weights of few bits: which products are computed from the integers as they are stored, a scale for every so many of a column.

A DequantizeLinear of a constant is folded when the model is compiled, as all constants are; this file remembers what the result came
from, through the Reshape and Transpose that may follow it. A product of few rows reads each weight once, so its time is that of
reading memory, and 4 bits are an eighth of float32's: it unpacks the integers in registers (``ops/matmul.py``). A product of many
rows reads the same weight again and again from the caches, and multiplies the float32 weights. Needs no TVM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from gatewright.frontend import float_ops
from gatewright.frontend.edit import Array
from gatewright.frontend.queries import integer

FEW_ROWS = 4
"""From as many rows on a weight is read often enough that unpacking it each time costs more than reading float32."""
LEAST_BYTES = 1 << 18
"""Of the float32 weight: a smaller one stays in a core's own cache, where reading it costs nothing."""
LEAST_GROUP = 16
"""Weights under one scale: with fewer, the scales themselves are what is read."""


@dataclass(frozen=True)
class Origin:
    """What a folded constant was dequantized from: integers q − z, and a float32 scale for each, in the constant's shape."""

    dense: Array
    integers: Array
    """int8."""
    scales: Array

    @classmethod
    def of(cls, node: ir.Node, inputs: Sequence[Array | None], dense: Array) -> Origin | None:
        """Of a DequantizeLinear of a constant that gave ``dense``; None where 8 bits do not hold the integers."""
        stored, scale, zero = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
        if stored is None or scale is None or stored.dtype not in (np.int8, np.uint8) or scale.dtype != np.float32:
            return None
        q = stored.astype(np.int16) - (0 if zero is None else _spread(node, zero, stored.shape).astype(np.int16))
        if q.min(initial=0) < -128 or q.max(initial=0) > 127:
            return None
        return cls(dense, q.astype(np.int8), _spread(node, scale, stored.shape))

    def moved(self, node: ir.Node, inputs: Sequence[Array | None], opset: int, dense: Array) -> Origin:
        """Behind a Reshape or Transpose of the constant, which gave ``dense``."""
        integers, scales = (float_ops.evaluate(node, [array, *inputs[1:]], opset)[0] for array in (self.integers, self.scales))
        return Origin(dense, integers, scales)


@dataclass(frozen=True)
class FewBits:
    """A constant matrix [K, N] as int8 ``integers`` of ``bits`` bits and float32 ``scales`` [K / group, N]."""

    integers: Array
    scales: Array
    bits: Literal[4, 8]

    @property
    def group(self) -> int:
        return int(self.integers.shape[0] // self.scales.shape[0])

    @classmethod
    def of(cls, origin: Origin) -> FewBits | None:
        """None for what is no matrix, or changes its scale too often along a column."""
        if origin.integers.ndim != 2 or origin.integers.shape[0] < 2:
            return None
        changes = np.flatnonzero((origin.scales[1:] != origin.scales[:-1]).any(axis=1)) + 1
        group = math.gcd(origin.integers.shape[0], *changes.tolist())
        if group < LEAST_GROUP or group % 2:
            return None
        low, high = int(origin.integers.min()), int(origin.integers.max())
        return cls(origin.integers, np.ascontiguousarray(origin.scales[::group]), 4 if low >= -8 and high <= 7 else 8)


def stays(rows: int, shape: tuple[int, ...]) -> bool:
    """Whether a product of so many rows with a weight of this shape is computed from the stored integers."""
    return rows < FEW_ROWS and 4 * math.prod(shape) >= LEAST_BYTES


def note(kept: int, opened: int) -> tuple[str, ...]:
    """What became of the products with such weights: ``kept`` read them as stored, ``opened`` do not."""
    if not kept + opened:
        return ()
    why = f"{FEW_ROWS} rows or more, small, or scales that change too often"
    told = f"{kept + opened} products have dequantized weights and float activations: {kept} read the integers as stored"
    return (f"{told}, {opened} ({why}) read float32 weights, made of them when the model was compiled",)


def _spread(node: ir.Node, array: Array, shape: tuple[int, ...]) -> Array:
    """A scale or zero point of the node in the shape of what it belongs to."""
    if array.size == 1:
        return np.broadcast_to(array.reshape(()), shape)
    axis = integer(node, "axis", 1) % len(shape)
    if block := integer(node, "block_size", 0):
        return np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)
    return np.broadcast_to(array.reshape([-1 if i == axis else 1 for i in range(len(shape))]), shape)
