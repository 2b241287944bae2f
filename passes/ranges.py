"""Bounds of float values that the operators alone prove, whatever the inputs and weights: a Relu is never negative."""

from __future__ import annotations

import math

import onnx_ir as ir

from gatewright.frontend.queries import constant
from gatewright.frontend.recognise import MOVEMENT

from . import rewrite

Range = tuple[float, float]

EVERYTHING: Range = (-math.inf, math.inf)
DEPTH = 64
"""So many operators are looked back at; what lies further away may be anything."""

_FIXED: dict[str, Range] = {
    "Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Softsign": (-1.0, 1.0),
    "Erf": (-1.0, 1.0), "Exp": (0.0, math.inf), "Softplus": (0.0, math.inf), "Abs": (0.0, math.inf), "Sqrt": (0.0, math.inf),
}  # fmt: skip
_KEEPING = MOVEMENT | {"Split", "MaxPool", "GlobalMaxPool", "GlobalAveragePool", "ReduceMax", "ReduceMean"}
"""Results lie between the operand's bounds."""


def range_of(value: ir.Value | None) -> Range:
    """Bounds of ``value``; infinite where nothing is known."""
    return _range(value, DEPTH, {})


def _range(value: ir.Value | None, depth: int, known: dict[ir.Value, Range]) -> Range:
    if value is None or depth == 0:
        return EVERYTHING
    if value not in known:
        array = rewrite.real_constant(value)
        node = value.producer()
        if array is not None:
            known[value] = (float(array.min()), float(array.max())) if array.size and array.dtype.kind == "f" else EVERYTHING
        elif node is None or node.domain:
            known[value] = EVERYTHING
        else:
            known[value] = _result(node, depth - 1, known)
    return known[value]


def _result(node: ir.Node, depth: int, known: dict[ir.Value, Range]) -> Range:
    if node.op_type in _FIXED:
        return _FIXED[node.op_type]
    if node.op_type == "DequantizeLinear":
        return _dequantized(node)
    if node.op_type in _KEEPING:
        return _range(node.inputs[0], depth, known)
    if node.op_type in ("Relu", "Clip"):
        bounds, (low, high) = rewrite.bounds_of(node), _range(node.inputs[0], depth, known)
        if bounds is None or bounds[0] > bounds[1]:
            return EVERYTHING
        return min(max(low, bounds[0]), bounds[1]), min(max(high, bounds[0]), bounds[1])
    if node.op_type == "AveragePool":
        low, high = _range(node.inputs[0], depth, known)
        # Padding counts as zero.
        return min(low, 0.0), max(high, 0.0)
    if node.op_type in ("Concat", "Add", "Sum", "Mul"):
        ends = [_range(v, depth, known) for v in node.inputs]
        if node.op_type == "Concat":
            return min(low for low, _ in ends), max(high for _, high in ends)
        if node.op_type == "Mul":
            return (0.0, math.inf) if all(low >= 0 for low, _ in ends) else EVERYTHING
        return sum(low for low, _ in ends), sum(high for _, high in ends)
    return EVERYTHING


def _dequantized(node: ir.Node) -> Range:
    source, zero = node.inputs[0], constant(node.inputs[2]) if len(node.inputs) > 2 else None
    unsigned = source is not None and source.dtype in (ir.DataType.UINT4, ir.DataType.UINT8, ir.DataType.UINT16)
    return (0.0, math.inf) if unsigned and zero is not None and not zero.any() else EVERYTHING
