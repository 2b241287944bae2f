"""Operators that hold integers of their own, in int32 arithmetic and floats as ONNX defines them: MatMulInteger, ConvInteger,
DynamicQuantizeLinear. Exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from .edit import Editor, attribute, input_of, shape_of
from .steps import Steps


def _centred(new: Steps, value: ir.Value | None, zero: ir.Value | None, *along: int) -> ir.Value:
    """value − zero point in int32; ``along`` reshapes a zero point of several."""
    wide = new.cast(value, ir.DataType.INT32)
    if zero is None:
        return wide
    offset = new.cast(zero, ir.DataType.INT32)
    shape = shape_of(zero) or ()
    return new.op("Sub", wide, new.reshape(offset, *along) if len(shape) == 1 and shape[0] > 1 and along else offset)


def matmul_integer(edit: Editor, node: ir.Node) -> bool:
    """A zero point of several is of a's rows or b's columns."""
    a, b = node.inputs[0], node.inputs[1]
    rows, columns = (len(shape_of(input_of(node, i)) or ()) for i in (2, 3))
    if rows > 1 or columns > 1:
        return False
    new = Steps(edit, node)
    left, right = _centred(new, a, input_of(node, 2), -1, 1), _centred(new, b, input_of(node, 3))
    return new.finish(new.op("MatMul", left, right))


_EXACT_FLOAT32 = 1 << 24
"""Whole numbers up to this, and sums of them that stay below it, are float32's own; of float64's the same goes to 2^53."""


def conv_integer(edit: Editor, node: ir.Node) -> bool:
    """Inputs less their zero points, convolved in floats that hold every sum exactly: the padding is zeros after that."""
    x, w, zero = node.inputs[0], node.inputs[1], input_of(node, 3)
    shape = shape_of(w)
    if x is None or w is None or shape is None or len(shape_of(zero) or ()) > 1 or "pads" not in node.attributes:
        return False
    new = Steps(edit, node)
    # At most 255 either way, as uint8 less uint8.
    float_type = ir.DataType.FLOAT if math.prod(shape[1:]) * 255 * 255 < _EXACT_FLOAT32 else ir.DataType.DOUBLE
    operands = _centred(new, x, input_of(node, 2)), _centred(new, w, zero, -1, *[1] * (len(shape) - 1))
    kept = {key: attribute(node, key) for key in ("dilations", "group", "kernel_shape", "pads", "strides") if key in node.attributes}
    sums = new.op("Conv", *(new.cast(value, float_type) for value in operands), **kept)
    return new.finish(new.cast(sums, ir.DataType.INT32))


def dynamic_quantize_linear(edit: Editor, node: ir.Node) -> bool:
    """scale = (max − min)/255 over a range that holds zero; zero point = rint(−min/scale); then QuantizeLinear to uint8."""
    x = node.inputs[0]
    if x is None:
        return False
    new = Steps(edit, node)
    zero = new.constant(0, np.float32)
    low = new.op("Min", new.op("ReduceMin", x, keepdims=0), zero)
    high = new.op("Max", new.op("ReduceMax", x, keepdims=0), zero)
    span = new.op("Sub", high, low)
    # Of zeros alone every scale is right; ONNX Runtime's is 1.
    span = new.op("Where", new.op("Equal", span, zero), new.constant(255, np.float32), span)
    scale = new.op("Div", span, new.constant(255, np.float32))
    point = new.op("Round", new.op("Clip", new.op("Div", new.op("Sub", zero, low), scale), zero, new.constant(255, np.float32)))
    steps = new.op("Add", new.op("Round", new.op("Div", x, scale)), point)
    q = new.op("Clip", steps, zero, new.constant(255, np.float32))
    return new.finish(new.cast(q, ir.DataType.UINT8), scale, new.cast(point, ir.DataType.UINT8))


RULES: dict[str, Callable[[Editor, ir.Node], bool]] = {
    "MatMulInteger": matmul_integer, "ConvInteger": conv_integer, "DynamicQuantizeLinear": dynamic_quantize_linear,
}  # fmt: skip
