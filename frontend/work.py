"""How much work a model is: multiply-accumulates, other operations and bytes, per layer; what ``hw/cost.py`` takes.

One entry per operation of the integer view (``integer.plan``): a quantized convolution with its QuantizeLinear is one layer.
Figures are of one run, all samples of the model's batch together.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from gatewright.hw.cost import LayerCost
from gatewright.hw.device import Dtype

from .integer import FloatStep, IntegerOp, plan
from .model import Model
from .queries import constant, integer, shape_of

_DTYPES: dict[ir.DataType, Dtype] = {
    ir.DataType.DOUBLE: "float64", ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16", ir.DataType.BFLOAT16: "bfloat16",
    ir.DataType.INT64: "int32", ir.DataType.UINT64: "int32", ir.DataType.INT32: "int32", ir.DataType.UINT32: "int32",
    ir.DataType.INT16: "int16", ir.DataType.UINT16: "int16", ir.DataType.INT8: "int8", ir.DataType.UINT8: "int8",
    ir.DataType.BOOL: "int8", ir.DataType.INT4: "int4", ir.DataType.UINT4: "int4",
}  # fmt: skip

_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Size", "Constant"}
"""Ops that move nothing: their output is their input under another shape."""
_MOVES = {
    "Transpose", "Concat", "Split", "Slice", "Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Pad", "Expand",
    "Tile", "DepthToSpace", "SpaceToDepth", "Cast", "ConstantOfShape", "Where", "Compress", "ReverseSequence", "OneHot",
}  # fmt: skip
"""Ops that only move bytes."""
_WINDOWED = {"AveragePool", "MaxPool", "LpPool"}


def layer_costs(model: Model) -> tuple[LayerCost, ...]:
    """The work of every layer, in execution order; layers that only rename or reshape are left out."""
    found: list[LayerCost] = []
    for step in plan(model).steps:
        cost = _integer(step) if isinstance(step, IntegerOp) else _float(step) if isinstance(step, FloatStep) else None
        if cost is not None:
            found.append(cost)
    return tuple(found)


def macs(model: Model) -> int:
    """Multiply-accumulates of one run."""
    return sum(layer.macs for layer in layer_costs(model))


def weight_bytes(model: Model) -> int:
    """Of all initializers as they are stored: two 4-bit values in a byte."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def peak_memory_bytes(model: Model) -> int:
    """All weights, and the most activation bytes alive at once when steps run in order, each value freed after its last reader.

    A lower bound of what an engine needs: no scratch space, no alignment, views share their input's bytes, and weights that
    are dequantized in the graph are used as they are stored.
    """
    steps = [flow for step in plan(model).steps if (flow := _flow(step)) is not None]
    last = {name: index for index, (reads, _) in enumerate(steps) for name in reads}
    last |= {value.name or "": len(steps) for value in model.graph.outputs}
    live = {value.name or "": value_bytes(value) for value in model.graph.inputs if value.name in last and constant(value) is None}
    peak = sum(live.values())
    for index, (_, writes) in enumerate(steps):
        live |= writes
        peak = max(peak, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, -1) > index}
    return weight_bytes(model) + peak


def _flow(step: IntegerOp | FloatStep) -> tuple[list[str], dict[str, int]] | None:
    """Names of the values that a step reads, and bytes of those it writes; None for one that only dequantizes weights."""
    if isinstance(step, IntegerOp):
        size = math.ceil(math.prod(step.shape) * step.grid.dtype.bitwidth / 8)
        return [o.name for o in step.operands if o.constant is None], {step.output: size}
    reads = [value.name or "" for value in step.node.inputs if value is not None and constant(value) is None]
    if not reads:
        return None
    view = step.node.op_type in _VIEWS
    return reads, {value.name: 0 if view else value_bytes(value) for value in step.node.outputs if value.name}


def _integer(op: IntegerOp) -> LayerCost | None:
    if (
        op.kind == "requantize"
        and op.node is not None
        and op.node.op_type in _VIEWS
        and all(m.is_shift and not np.any(m.k) for m in op.multipliers)
    ):
        return None
    outputs = math.prod(op.shape)
    count = 0
    if op.kind in ("conv", "matmul"):
        count = outputs * _depth(op)
    read = sum(math.prod(o.shape) for o in op.operands if o.constant is None)
    ops = {
        "sum": outputs * len(op.operands),
        "product": 2 * outputs,
        "average": read + outputs,
        "maximum": read + outputs,
        "softmax": 3 * outputs,
    }
    stored = 0.0
    bits = max([op.grid.bits, *(o.grid.bits for o in op.operands)])
    if op.weight is not None and op.weight_grid is not None:
        stored += op.weight.size * op.weight_grid.dtype.bitwidth / 8
        bits = max([op.weight_grid.bits, *(o.grid.bits for o in op.operands)])
    stored += 4 * op.bias.size if op.bias is not None else 0
    stored += op.table.size * op.grid.dtype.bitwidth / 8 if op.table is not None else 0
    stored += sum(o.constant.size * o.grid.dtype.bitwidth / 8 for o in op.operands if o.constant is not None)
    moved = outputs * op.grid.dtype.bitwidth / 8 + sum(
        math.prod(o.shape) * o.grid.dtype.bitwidth / 8 for o in op.operands if o.constant is None
    )
    dtype: Dtype = "int4" if bits <= 4 else "int8" if bits <= 8 else "int16"
    return LayerCost(op.name, op.op, count, ops.get(op.kind, outputs), math.ceil(stored), math.ceil(moved), dtype)


def _depth(op: IntegerOp) -> int:
    """Products per output value."""
    if op.weight is None:
        return op.operands[0].shape[-1]
    return math.prod(op.weight.shape[1:]) if op.kind == "conv" else op.weight.shape[0]


def _float(step: FloatStep) -> LayerCost | None:
    node = step.node
    if node.op_type in _VIEWS or not node.outputs:
        return None
    read = [value for value in node.inputs if value is not None]
    varying = [value for value in read if constant(value) is None]
    moved = sum(map(value_bytes, varying)) + sum(value_bytes(value) for value in node.outputs if value.name)
    stored = sum(value_bytes(value) for value in read if constant(value) is not None)
    outputs = sum(math.prod(shape_of(value)) for value in node.outputs if value.name)
    count = _macs(node)
    ops = (
        0
        if node.op_type in _MOVES
        else _pooled(node)
        if node.op_type in _WINDOWED
        else max(outputs, sum(math.prod(shape_of(v)) for v in varying))
    )
    if count:
        ops = outputs if len(read) > 2 and node.op_type in ("Conv", "Gemm", "ConvTranspose") else 0
    kinds = [_DTYPES.get(v.dtype, "float32") for v in (*varying, *node.outputs) if v.dtype is not None]
    return LayerCost(node.name or node.op_type, node.op_type, count, ops, stored, moved, kinds[0] if kinds else "float32")


def _macs(node: ir.Node) -> int:
    shapes = [shape_of(value) if value is not None else () for value in node.inputs]
    output = math.prod(shape_of(node.outputs[0]))
    match node.op_type:
        case "Conv" | "ConvInteger":
            return output * math.prod(shapes[1][1:])
        case "ConvTranspose":  # every input value meets every weight of its group
            return math.prod(shapes[0]) * math.prod(shapes[1][1:])
        case "MatMul" | "MatMulInteger":
            return output * shapes[0][-1]
        case "Gemm":
            return output * (shapes[0][0] if integer(node, "transA", 0) else shapes[0][1])
        case "LSTM" | "GRU" | "RNN":  # X [seq, batch, in], W [directions, gates·hidden, in], R [directions, gates·hidden, hidden]
            steps = shapes[0][0] * shapes[0][1]
            return steps * (math.prod(shapes[1]) + math.prod(shapes[2]))
    return 0


def _pooled(node: ir.Node) -> int:
    kernel = node.attributes.get_ints("kernel_shape", ())
    return math.prod(shape_of(node.outputs[0])) * math.prod(kernel or ())


def value_bytes(value: ir.Value) -> int:
    """As it is stored: two 4-bit values in a byte."""
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    return math.ceil(math.prod(shape_of(value)) * value.dtype.bitwidth / 8)


def nonzero_share(model: Model) -> float:
    """The share of weights (of Conv, ConvTranspose, Gemm, MatMul) that are not zero; 1.0 for a model without any."""
    nonzero = total = 0
    for step in plan(model).steps:
        if isinstance(step, IntegerOp):
            weights = [] if step.weight is None else [step.weight]
        else:
            weighty = step.node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
            weights = [array for value in step.node.inputs[:2] if weighty and (array := constant(value)) is not None]
        nonzero += sum(int(np.count_nonzero(array)) for array in weights)
        total += sum(array.size for array in weights)
    return nonzero / total if total else 1.0
