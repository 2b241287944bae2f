"""The integer operations of a plan, bit for bit as ``frontend/reference.py`` defines them.

Sums of products of bytes run on dot-product instructions (``int8.py``). Others run in the cheapest type in which every partial
sum is exact: float32 below 2^24 (one fused multiply-add a product, as fast as float code), int32 below 2^31, float64 below
2^53, else int64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from tvm import tirx

from gatewright.frontend.integer import Array, IntegerOp, Operand
from gatewright.frontend.queries import constant as constant_array
from gatewright.frontend.queries import integer as int_attribute
from gatewright.frontend.windows import Window

from ..kernel import Kernel, Products
from ..lazy import Expr, Lazy, broadcast_index, cast, constant
from ..steps import Step, tvm_dtype
from . import convolution, int8, int8_winograd, lowering_of, matmul, movement, pooling
from .int8_dot import lookup
from .normalization import integer_softmax
from .rounding import EXACT_FLOAT64, Requantizer, magnitude, nearest, round_shift, saturate

Lowering = Callable[[Kernel, Step, IntegerOp, Sequence[Lazy]], Lazy]


def lower(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    """The lowering of one integer operation."""
    op = step.source
    assert isinstance(op, IntegerOp)
    return LOWERINGS[op.kind](kernel, step, op, [x for x in inputs if x is not None])


def accumulator_dtype(bound: int) -> str:
    """The cheapest type in which integer sums are exact in any order while every partial sum is at most ``bound``."""
    for dtype, limit in (("float32", 2**24), ("int32", 2**31), ("float64", 2**53)):
        if bound < limit:
            return dtype
    return "int64"


def centred(x: Lazy, operand: Operand, dtype: str) -> Lazy:
    """q − z as ``dtype``: the operand in units of its scale."""
    zero = int(operand.grid.zero_point)

    def at(*index: Expr) -> Expr:
        q = x.at(*index)
        if not zero:
            return cast(q, dtype)
        # The difference of two 8- or 16-bit integers fits int32; of an int32 it may not.
        between = "int64" if x.dtype == "int32" else "int32"
        return cast(cast(q, between) - constant(zero, between), dtype)

    return Lazy(x.shape, dtype, at, value=None if x.value is None else (x.value.astype(np.int64) - zero).astype(dtype))


def _magnitude(op: IntegerOp) -> int:
    """The largest magnitude that a partial sum can reach: Σ|w|·max|x| + |bias|, over any order and any subset."""
    x = max(magnitude((o.lo - int(o.grid.zero_point), o.hi - int(o.grid.zero_point))) for o in op.operands[:1])
    if op.weight is None:
        other = op.operands[1]
        y = magnitude((other.lo - int(other.grid.zero_point), other.hi - int(other.grid.zero_point)))
        return op.operands[0].shape[-1] * x * y
    channel = tuple(range(1, op.weight.ndim)) if op.kind == "conv" else tuple(range(op.weight.ndim - 1))
    total = np.abs(op.weight).sum(axis=channel) * x
    return int(np.max(total + (np.abs(op.bias) if op.bias is not None else 0), initial=0))


def _conv(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    assert op.node is not None
    assert op.weight is not None
    if int8.fits(op, inputs[0], _magnitude(op)):
        if kernel.products is not None:
            return _by_products(kernel, op, inputs[0], kernel.products)
        result = int8_winograd.convolve(kernel, op, inputs[0], _bias(op), lambda bias: _finish(kernel, op, bias))
        if result is not None:
            return result
    dtype = accumulator_dtype(_magnitude(op))
    x = centred(inputs[0], op.operands[0], dtype)
    acc = convolution.convolve(kernel, op.node, x, op.weight.astype(dtype))
    return _linear(kernel, op, acc, dtype, channel_axis=1)


def _bias(op: IntegerOp) -> Array:
    """int64 [output channels]."""
    assert op.weight is not None
    channels = op.weight.shape[0] if op.kind == "conv" else op.weight.shape[-1]
    return np.broadcast_to(np.zeros(1, np.int64) if op.bias is None else op.bias, (channels,))


def _finish(kernel: Kernel, op: IntegerOp, bias: Array) -> tuple[int8.Finish, str]:
    """What ends an int32 sum modulo 2^32: the bias and what corrects the sum, then requantization."""
    bound = _magnitude(op)
    requantizer = Requantizer(kernel, op, op.multipliers[0], (-bound, bound))
    added = kernel.buffer(bias.astype(np.int32)) if bias.any() else None

    def end(acc: Expr, channel: Expr) -> Expr:
        return requantizer.of(acc if added is None else acc + added.at(channel if len(bias) > 1 else 0), channel)

    return end, requantizer.dtype


def _matmul(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    if int8.fits(op, inputs[0], _magnitude(op)):
        if kernel.products is not None:
            return _by_products(kernel, op, inputs[0], kernel.products)
        result = int8.multiply(kernel, op, inputs[0], _bias(op), lambda bias: _finish(kernel, op, bias))
        if result is not None:
            return result
    dtype = accumulator_dtype(_magnitude(op))
    x = centred(inputs[0], op.operands[0], dtype)
    if op.weight is not None:
        acc = matmul.by_constant(kernel, x, op.weight, dtype)
    else:
        acc = matmul.of_two(kernel, x, centred(inputs[1], op.operands[1], dtype))
    return _linear(kernel, op, acc, dtype, channel_axis=acc.rank - 1)


def _by_products(kernel: Kernel, op: IntegerOp, x: Lazy, products: Products) -> Lazy:
    """Sums of bytes in int32, modulo 2^32: both operands as int8, x less 128 where it is unsigned; the bias makes up for that and for z."""
    assert op.node is not None
    assert op.weight is not None
    shift, zero = 128 if x.dtype == "uint8" else 0, int(op.operands[0].grid.zero_point)
    signed = x
    if shift:
        signed = Lazy(x.shape, "int8", lambda *i: cast(cast(x.at(*i), "int32") - constant(shift, "int32"), "int8"))
    weight = op.weight.astype(np.int8)
    if op.kind == "conv":
        window = Window.of(op.node, weight.shape[2:])
        acc = products.correlate(kernel, signed, weight, window, int_attribute(op.node, "group", 1), zero - shift)
        sums = op.weight.reshape(op.weight.shape[0], -1).sum(axis=1)
    else:
        acc = products.multiply(kernel, signed, kernel.buffer(weight))
        sums = op.weight.sum(axis=0)
    end, dtype = _finish(kernel, op, _bias(op) + (shift - zero) * sums)
    channel = 1 if op.kind == "conv" else acc.rank - 1
    return Lazy(op.shape, dtype, lambda *i: end(acc.at(*i), i[channel]))


def _linear(kernel: Kernel, op: IntegerOp, acc: Lazy, dtype: str, channel_axis: int) -> Lazy:
    """Bias and requantization behind a sum of products."""
    bound = _magnitude(op)
    requantizer = Requantizer(kernel, op, op.multipliers[0], (-bound, bound))
    bias = None if op.bias is None or not op.bias.any() else kernel.parameter(op.bias.astype(dtype))

    def at(*index: Expr) -> Expr:
        channel = index[channel_axis]
        total = acc.at(*index)
        if bias is not None:
            total = total + (bias.at(channel) if len(op.bias) > 1 else bias.at(0))  # type: ignore[arg-type]
        return requantizer.of(total, channel)

    return Lazy(op.shape, requantizer.dtype, at)


def _sum(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    k = max(int(m.k) for m in op.multipliers)
    factors = [sign * (int(m.m) << (k - int(m.k))) for sign, m in zip(op.signs, op.multipliers, strict=True)]
    # In units of 2^-k every partial sum is a whole number; their common factor of two costs no bits.
    common = min(f & -f for f in map(abs, factors) if f) if any(factors) else 1
    reach = sum(abs(f) * magnitude(_centred_bounds(o)) for f, o in zip(factors, op.operands, strict=True))
    dtype = tvm_dtype(op.grid.dtype)
    exact = reach // common < EXACT_FLOAT64
    fused = exact and reach * 2.0**-k < 2**30

    def at(*index: Expr) -> Expr:
        total = None
        for factor, operand, x in zip(factors, op.operands, inputs, strict=True):
            kind = "float64" if exact else "int64"
            value = centred(x, operand, kind).at(*broadcast_index(index, x.shape))
            term = value * constant(float(factor) * 2.0**-k if exact else factor, kind)
            total = term if total is None else total + term
        rounded = nearest(total) if fused else tirx.round(total) if exact else round_shift(total, constant(k, "int64"))
        return saturate(rounded, op, dtype)

    return Lazy(op.shape, dtype, at)


def _centred_bounds(operand: Operand) -> tuple[int, int]:
    zero = int(operand.grid.zero_point)
    return operand.lo - zero, operand.hi - zero


def _product(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    requantizer = Requantizer(kernel, op, op.multipliers[0], op.accumulator)
    dtype = accumulator_dtype(magnitude(op.accumulator))
    a, b = (centred(x, o, dtype) for x, o in zip(inputs, op.operands, strict=True))

    def at(*index: Expr) -> Expr:
        return requantizer.of(a.at(*broadcast_index(index, a.shape)) * b.at(*broadcast_index(index, b.shape)))

    return Lazy(op.shape, requantizer.dtype, at)


def _rescaled(kernel: Kernel, op: IntegerOp, position: int, x: Lazy) -> Lazy:
    """One operand on the result's grid."""
    operand, multiplier = op.operands[min(position, len(op.operands) - 1)], op.multipliers[position]
    bounds = _centred_bounds(operand)
    same = operand.grid.same_as(op.grid)
    requantizer = Requantizer(kernel, op, multiplier, bounds)
    if same:
        # Multiplying by 1 and rounding changes nothing: only the clamp is left, and not even that where the bounds lie inside.
        inside = operand.lo >= op.lo and operand.hi <= op.hi
        wide = "int32" if x.dtype != "int32" else "int64"

        def at(*index: Expr) -> Expr:
            q = x.at(*index)
            if not inside:
                q = tirx.Min(tirx.Max(cast(q, wide), constant(op.lo, wide)), constant(op.hi, wide))
            return cast(q, requantizer.dtype)

        return Lazy(x.shape, requantizer.dtype, at)
    value = centred(x, operand, accumulator_dtype(magnitude(bounds)))
    return Lazy(x.shape, requantizer.dtype, lambda *index: requantizer.of(value.at(*index)))


def _concat(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    assert op.node is not None
    parts = [_rescaled(kernel, op, i, x) for i, x in enumerate(inputs)]
    return movement.joined(parts, int_attribute(op.node, "axis", 0) % len(op.shape), op.shape)


def _requantize(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    x = inputs[0]
    if op.node is not None:
        constants: list[Lazy | None] = []
        for value in op.node.inputs[1:]:
            found = constant_array(value)
            constants.append(None if found is None else kernel.parameter(found))
        x = lowering_of(op.node.op_type)(kernel, step, [x, *constants])
    return _rescaled(kernel, op, 0, x)


def _average(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    assert op.node is not None
    dtype = accumulator_dtype(magnitude(op.accumulator))
    total = pooling.window_sum(kernel, op.node, centred(inputs[0], op.operands[0], dtype), op.shape)
    multiplier = op.multipliers[0]
    requantizer = Requantizer(kernel, op, multiplier, op.accumulator)
    shape = multiplier.m.shape

    def at(*index: Expr) -> Expr:
        return requantizer.of(total.at(*index), *(broadcast_index(index, shape) if multiplier.m.size > 1 else ()))

    return Lazy(op.shape, requantizer.dtype, at)


def _maximum(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    assert op.node is not None
    return _rescaled(kernel, op, 0, pooling.window_max(kernel, op.node, inputs[0], op.shape))


def _table(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    assert op.table is not None
    dtype, low = tvm_dtype(op.grid.dtype), op.operands[0].grid.lo
    x = inputs[0]
    if x.dtype in ("int8", "uint8") and dtype in ("int8", "uint8"):
        # By the bits of the index, all 256: values that never come may be anything.
        every = np.zeros(256, dtype)
        every[np.arange(low, low + len(op.table)) % 256] = op.table
        bytes_ = kernel.buffer(every)
        return Lazy(
            op.shape, dtype, lambda *i: lookup(kernel.machine, bytes_, cast(x.at(*broadcast_index(i, x.shape)), "uint8"))
        )  # fmt: skip
    table = kernel.buffer(op.table.astype(dtype))

    def at(*index: Expr) -> Expr:
        return table.at(cast(x.at(*broadcast_index(index, x.shape)), "int32") - constant(low, "int32"))

    return Lazy(op.shape, dtype, at)


def _softmax(kernel: Kernel, step: Step, op: IntegerOp, inputs: Sequence[Lazy]) -> Lazy:
    assert op.node is not None
    return integer_softmax(kernel, op, inputs[0], int_attribute(op.node, "axis", -1) % len(op.shape))


LOWERINGS: dict[str, Lowering] = {
    "conv": _conv, "matmul": _matmul, "sum": _sum, "product": _product, "concat": _concat, "average": _average, "maximum": _maximum,
    "requantize": _requantize, "table": _table, "softmax": _softmax,
}  # fmt: skip
