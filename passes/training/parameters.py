"""Which initializers of a graph training may change, and which are merely constants.

A weight is a float initializer that a layer reads as one (``WEIGHTS``), or one with which an elementwise node adds or multiplies
per channel or per position. A single number there (the 0.5 of a GELU, an epsilon, 1/√d), a mask (only two values over two
or more axes, or entries of 10,000 and more) and whatever says where, how far or how wide are constants.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from gatewright.errors import UsageError, nearest
from gatewright.frontend.queries import constant

WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1), "Einsum": (0, 1, 2), "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2), "GroupNormalization": (1, 2), "LayerNormalization": (1, 2), "PRelu": (1,), "Gather": (0,),
    "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3),
    "Concat": (0, 1, 2, 3), "Expand": (0,), "Tile": (0,), "Reshape": (0,), "Transpose": (0,), "Slice": (0,), "Unsqueeze": (0,),
}  # fmt: skip
"""Op type to the inputs that are weights where they are float initializers (of movements: weights on their way to a layer)."""

_ELEMENTWISE = ("Add", "Sub", "Mul", "Div")
_MASK = 1e4
"""An additive mask holds numbers this far from zero: no trained weight does."""


def trainable(graph: ir.Graph, freeze: Iterable[str] = ()) -> list[ir.Value]:
    """The weights, in the graph's order. ``freeze``: names or patterns of initializers to leave alone.

    Raises UsageError for a pattern that matches none.
    """
    found = [v for v in graph.initializers.values() if _is_weight(v)]
    names = [v.name or "" for v in found]
    for pattern in freeze:
        if not any(name == pattern or fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"freeze={pattern} names no weight of the model", hint=nearest(pattern, names[:200], "weights"))
    return [v for v in found if not any(v.name == p or fnmatch.fnmatchcase(v.name or "", p) for p in freeze)]


def _is_weight(value: ir.Value) -> bool:
    if value.dtype is None or constant(value) is None or value.is_graph_output():
        return False
    if not value.dtype.is_floating_point():
        # A quantized weight: what its DequantizeLinear gives is trained in its place.
        return bool(value.uses()) and all(node.op_type == "DequantizeLinear" and index == 0 for node, index in value.uses())
    return bool(value.uses()) and all(_reads_weight(node, index, value) for node, index in value.uses())


def _reads_weight(node: ir.Node, index: int, value: ir.Value) -> bool:
    if node.domain:
        return False
    if index in WEIGHTS.get(node.op_type, ()):
        return True
    if node.op_type not in _ELEMENTWISE:
        return False
    array = constant(value)
    assert array is not None
    if array.size <= 1 or not np.all(np.abs(array.astype(np.float64)) < _MASK):
        return False
    several_axes = sum(d > 1 for d in array.shape) > 1
    return not (several_axes and np.unique(array.reshape(-1)[:65536]).size <= 2)
