"""QuantizeLinear and DequantizeLinear at the float edges, exactly as ONNX and ``frontend/float_ops.py`` define them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from tvm import tirx

from gatewright.frontend.queries import INTEGER_BOUNDS, integer

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, constant, given, let, quotient, simplify
from ..steps import Step
from . import Lowering


def _along(step: Step, scale: Lazy, index: Sequence[Expr]) -> tuple[Expr, ...]:
    """The index into a scale or zero point: none per tensor, else the one of the node's axis; with blocks, whole but for that axis."""
    if math.prod(scale.shape) == 1:
        return (0,) * scale.rank
    axis = integer(step.node, "axis", 1) % len(index)
    if block := integer(step.node, "block_size", 0):
        return (*index[:axis], simplify(quotient(index[axis], block)), *index[axis + 1 :])
    return (index[axis],)


def _visible(kernel: Kernel, x: Lazy | None) -> Lazy:
    """A constant in memory, so that no compiler turns a division by it into a multiplication."""
    found = given(x)
    return found if found.value is None else kernel.buffer(found.value)


def _quantize(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, divisor = given(inputs[0]), _visible(kernel, inputs[1])
    zero = inputs[2] if len(inputs) > 2 else None
    lo, hi = INTEGER_BOUNDS[step.node.outputs[0].dtype or ir.DataType.INT8]

    def at(*index: Expr) -> Expr:
        quotient = x.at(*index) / cast(divisor.at(*_along(step, divisor, index)), x.dtype)

        def rounded(q: Expr) -> Expr:
            offset = constant(0, "float64") if zero is None else cast(zero.at(*_along(step, zero, index)), "float64")
            # float64 holds the rounded float32 and its sum with the zero point; not-a-number becomes the zero point.
            steps = cast(tirx.round(q), "float64")
            bounded = tirx.Min(tirx.Max(steps + offset, constant(lo, "float64")), constant(hi, "float64"))
            return cast(tirx.Select(tirx.isnan(q), offset, bounded), step.output.dtype)

        return let(quotient, rounded)

    return Lazy(x.shape, step.output.dtype, at)


def _dequantize(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, scale = given(inputs[0]), given(inputs[1])
    zero = inputs[2] if len(inputs) > 2 else None
    has_zero = zero is not None and not (zero.value is not None and not np.any(zero.value))

    def at(*index: Expr) -> Expr:
        q = cast(x.at(*index), "int64" if x.dtype == "int32" else "int32")
        if has_zero and zero is not None:
            q = q - cast(zero.at(*_along(step, zero, index)), str(q.ty))
        return cast(q, scale.dtype) * scale.at(*_along(step, scale, index))

    return Lazy(x.shape, step.output.dtype, at)


LOWERINGS: dict[str, Lowering] = {"QuantizeLinear": _quantize, "DequantizeLinear": _dequantize}
