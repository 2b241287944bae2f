"""About how much one node computes: what decides whether it is computed beforehand, or computed where it may not be needed."""

from __future__ import annotations

import math

import onnx_ir as ir

from .edit import attribute, shape_of

WHOLLY_READ = frozenset(
    {"LSTM", "GRU", "RNN", "DFT", "STFT", "Det", "TopK", "GridSample", "Resize", "Upsample", "Attention", "NonMaxSuppression"}
)
"""For each value of their outputs they may read all of their inputs."""
_SLOW_TYPES = 32
"""How many times as long a product takes that no library of linear algebra has code for."""


def operations_of(node: ir.Node) -> int:
    """About how many operations a node takes; one whose type no fast code exists for counts as many."""
    outputs = sum(math.prod(shape_of(v) or ()) for v in node.outputs)
    shapes = [shape_of(v) or () for v in node.inputs]
    depth = 1
    match node.op_type:
        case "MatMul" | "MatMulInteger" | "Gemm":
            depth = max(max(shapes[0], default=1), 1)
        case "Conv" | "ConvInteger" | "ConvTranspose" | "DeformConv":
            depth = math.prod(shapes[1][1:])
        case "MaxPool" | "AveragePool" | "LpPool" | "MaxRoiPool" | "RoiAlign" | "Col2Im":
            depth = math.prod(attribute(node, "kernel_shape", None) or (64,))
        case "Einsum":
            depth = math.prod(size for shape in shapes for size in shape)
        case op if op in WHOLLY_READ:
            depth = max((math.prod(shape) for shape in shapes[:3]), default=1)
    plain = depth == 1 or all(v is None or v.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE) for v in node.inputs)
    return max(outputs, 1) * max(depth, 1) * (1 if plain else _SLOW_TYPES)
