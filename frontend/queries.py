"""Small questions about a graph that everybody asks: is this value a constant, who alone reads it, which axes are reduced."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array = NDArray[Any]

INTEGER_BOUNDS = {
    ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15), ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(2**15), 2**15 - 1), ir.DataType.UINT16: (0, 2**16 - 1), ir.DataType.INT32: (-(2**31), 2**31 - 1),
}  # fmt: skip
"""Bounds of the types that QuantizeLinear and DequantizeLinear may use here."""


def constant(value: ir.Value | None) -> Array | None:
    """The array of an initializer that is no graph input; None for anything computed."""
    if value is None or value.const_value is None or not value.is_initializer() or value.is_graph_input():
        return None
    return np.asarray(value.const_value.numpy())


def sole_producer(value: ir.Value | None) -> ir.Node | None:
    """The producer of a value that one node reads and nobody else; None otherwise."""
    if value is None or value.is_graph_output() or len(value.consumers()) != 1:
        return None
    return value.producer()


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value of a canonical graph."""
    return () if value.shape is None else tuple(int(d) for d in value.shape.numpy())


def integer(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute or its default."""
    found = node.attributes.get(name)
    return default if found is None else int(found.as_int())


def real(node: ir.Node, name: str, default: float) -> float:
    """A float attribute or its default, both as the float32 that ONNX has them in."""
    found = node.attributes.get(name)
    return float(np.float32(default)) if found is None else float(found.as_float())


def clip_bounds(node: ir.Node) -> tuple[float | None, float | None]:
    """Min and max of a Clip, infinite where absent; None for one that is computed."""
    ends: list[float | None] = [-math.inf, math.inf]
    for index, value in enumerate(node.inputs[1:3]):
        if value is not None:
            found = constant(value)
            ends[index] = None if found is None else float(found.reshape(-1)[0])
    return ends[0], ends[1]


def narrowed(bounds: tuple[int, int], node: ir.Node) -> tuple[int, int]:
    """``bounds`` of an integer tensor behind an integer Clip; unchanged by a Clip whose bounds are computed."""
    low, high = clip_bounds(node)
    lo = bounds[0] if low is None or low == -math.inf else max(bounds[0], int(low))
    hi = bounds[1] if high is None or high == math.inf else min(bounds[1], int(high))
    return lo, hi


def reduce_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """The axes of a Reduce node (opset 18: an input), made positive; all where none are given; None where they are computed."""
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is None:
        return () if integer(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    found = constant(axes)
    return None if found is None else tuple(sorted(int(a) % rank for a in found.reshape(-1)))
