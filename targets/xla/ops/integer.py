"""The integer operations of ``frontend/integer.py``, each exactly as ``frontend/reference.py`` computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from gatewright.frontend.integer import Array, Exponentials, IntegerOp, Kind
from gatewright.frontend.queries import integer, reduce_axes
from gatewright.frontend.windows import Window

from .. import names
from . import Value, dots, lowerings
from .convolution import convolve
from .division import as_float32, divided, ratio, rounded
from .pooling import max_pool, windowed
from .rounding import requantize, round_shift, saturate

_INT32 = (-(2**31), 2**31 - 1)


def _centred(op: IntegerOp, q: Value, which: int = 0) -> Value:
    """q − z in int32."""
    z = int(op.operands[which].grid.zero_point)
    wide = q.astype(np.int32)
    return wide - np.int32(z) if z else wide


def _bounds(op: IntegerOp, which: int = 0) -> tuple[int, int]:
    operand = op.operands[which]
    z = int(operand.grid.zero_point)
    return operand.lo - z, operand.hi - z


def _is_wide(op: IntegerOp) -> bool:
    return op.accumulator[0] < _INT32[0] or op.accumulator[1] > _INT32[1]


def _weights(scope: Any, op: IntegerOp, weight: Array) -> list[Value]:
    found = dots.of_weight(weight)
    return [scope.weight(names.digit(op.name, i), array) for i, array in enumerate(found)]


def _conv(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    assert op.node is not None
    assert op.weight is not None
    window, groups, wide = Window.of(op.node, op.weight.shape[2:]), integer(op.node, "group", 1), _is_wide(op)
    x, operand = q[0], op.operands[0]
    z = int(operand.grid.zero_point)
    simple = operand.lo - z >= -128 and operand.hi - z <= 127
    if not simple and window.padded:
        # Outside the picture is q = z: the digits of z, not 0.
        spatial = [(b, e, 0) for b, e in zip(window.begin, window.end, strict=True)]
        x = lax.pad(x, np.asarray(z).astype(x.dtype), [(0, 0, 0), (0, 0, 0), *spatial])
        none = (0,) * len(window.kernel)
        window = Window(window.kernel, window.strides, window.dilations, none, none)
    digits = dots.of_operand(x, operand)
    acc = dots.accumulate(
        digits.parts, _weights(scope, op, op.weight), lambda a, b: convolve(a, b, window, groups, preferred_element_type=np.int32), wide
    )
    channels = (1, -1, *[1] * (acc.ndim - 2))
    sums = op.weight.sum(axis=tuple(range(1, op.weight.ndim)))
    acc = acc + dots.constant_term(digits.offset, sums, op.bias, wide).reshape(channels)
    return saturate(requantize(acc, op.accumulator, op.multipliers[0], channels), op)


def _matmul(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    wide, a = _is_wide(op), dots.of_operand(q[0], op.operands[0])

    def multiply(left: Value, right: Value) -> Value:
        return jnp.matmul(left, right, preferred_element_type=np.int32)

    if op.weight is not None:
        acc = dots.accumulate(a.parts, _weights(scope, op, op.weight), multiply, wide)
        acc = acc + dots.constant_term(a.offset, op.weight.sum(axis=-2), op.bias, wide)
        return saturate(requantize(acc, op.accumulator, op.multipliers[0]), op)
    b = dots.of_operand(q[1], op.operands[1])
    acc = dots.accumulate(a.parts, b.parts, multiply, wide)
    dtype = np.int64 if wide else np.int32
    if b.offset:
        acc = acc + np.asarray(b.offset).astype(dtype) * dots.summed(a, -1, wide)
    if a.offset:
        acc = acc + np.asarray(a.offset).astype(dtype) * dots.summed(b, -2, wide)
    if a.offset and b.offset:
        acc = acc + np.asarray(a.offset * b.offset * op.operands[0].shape[-1]).astype(dtype)
    if op.bias is not None:
        acc = acc + op.bias.astype(dtype)
    return saturate(requantize(acc, op.accumulator, op.multipliers[0]), op)


def _sum(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    """Σ ±(q_i − z_i)·m_i·2^(k − k_i), one rounding; factors of two common to all are taken out, so that most sums fit 32 bits."""
    k = max(int(m.k) for m in op.multipliers)
    factors = [s * (int(m.m) << (k - int(m.k))) for s, m in zip(op.signs, op.multipliers, strict=True)]
    while k > 0 and all(f % 2 == 0 for f in factors) and any(factors):
        factors, k = [f // 2 for f in factors], k - 1
    reach = sum(abs(f) * max(map(abs, _bounds(op, i))) for i, f in enumerate(factors))
    word = np.int32 if reach < 2**30 and 0 <= k <= 30 else np.int64
    total: Value = None
    for i, factor in enumerate(factors):
        term = _centred(op, q[i], i).astype(word) * np.asarray(factor).astype(word)
        total = term if total is None else total + term
    return saturate(round_shift(total, np.asarray(k)), op)


def _product(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    word = np.int64 if _is_wide(op) else np.int32
    return saturate(
        requantize(_centred(op, q[0], 0).astype(word) * _centred(op, q[1], 1).astype(word), op.accumulator, op.multipliers[0]), op
    )


def _concat(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    assert op.node is not None
    parts = [
        saturate(requantize(_centred(op, x, i), _bounds(op, i), m), op) for i, (x, m) in enumerate(zip(q, op.multipliers, strict=True))
    ]
    return jnp.concatenate(parts, axis=integer(op.node, "axis", 0))


def _average(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    assert op.node is not None
    node, x = op.node, _centred(op, q[0])
    x = x.astype(np.int64) if _is_wide(op) else x
    if node.op_type == "GlobalAveragePool":
        total = jnp.sum(x, axis=tuple(range(2, x.ndim)), keepdims=True, dtype=x.dtype)
    elif node.op_type == "ReduceMean":
        axes = reduce_axes(node, x.ndim)
        total = jnp.sum(x, axis=axes, keepdims=integer(node, "keepdims", 1) == 1, dtype=x.dtype)
    else:
        total = windowed(x, Window.of(node), np.zeros((), x.dtype), lax.add)
    return saturate(requantize(total, op.accumulator, op.multipliers[0]), op)


def _maximum(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    """On the stored integers: the zero point does not change which is largest."""
    assert op.node is not None
    node, x = op.node, q[0]
    if node.op_type == "GlobalMaxPool":
        x = jnp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)
    elif node.op_type == "ReduceMax":
        x = jnp.max(x, axis=reduce_axes(node, x.ndim), keepdims=integer(node, "keepdims", 1) == 1)
    else:
        x = max_pool(node, x)
    return saturate(requantize(_centred(op, x), _bounds(op), op.multipliers[0]), op)


def _requantize(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    x = _centred(op, q[0])
    if op.node is not None:
        others = [None if v is None or v.const_value is None else v.const_value.numpy() for v in op.node.inputs[1:]]
        x = lowerings()[op.node.op_type](scope, op.node, [x, *others])
        x = x[0] if isinstance(x, tuple) else x
    lo, hi = _bounds(op)
    return saturate(requantize(x, (min(lo, 0), max(hi, 0)), op.multipliers[0]), op)


def _table(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    assert op.table is not None
    # Clamped here already: the table then has the result's own type.
    table = scope.weight(names.made_for(op.name, "table"), np.clip(op.table, op.lo, op.hi).astype(np.int32))
    found = jnp.take(table, q[0].astype(np.int32) - np.int32(op.operands[0].grid.lo), mode="clip")
    return saturate(found - np.int32(op.grid.zero_point), op)


def _shares(scope: Any, name: str, table: Array, q: Value, axis: int) -> tuple[Value, Value]:
    """float64(e/Σe) with e = table[max(q) − q]: see ``reference.probabilities``. Mantissa and exponent."""
    wide = q.astype(np.int32)
    distance = jnp.max(wide, axis=axis, keepdims=True) - wide
    e = jnp.take(scope.weight(names.made_for(name, "exponentials"), table.astype(np.int64)), distance, mode="clip")
    return ratio(e, jnp.sum(e, axis=axis, keepdims=True, dtype=np.int64))


def _softmax(scope: Any, op: IntegerOp, q: list[Value]) -> Value:
    assert op.node is not None
    assert op.table is not None
    share = _shares(scope, op.name, op.table, q[0], integer(op.node, "axis", -1))
    steps = rounded(*divided(*share, np.float32(op.grid.scale)))
    return saturate(steps, op)


def probabilities(scope: Any, name: str, given: Exponentials, q: Value, axis: int) -> Value:
    """Softmax of an integer tensor as float32."""
    return as_float32(*_shares(scope, name, given.table, q, axis))


KINDS: dict[Kind, Callable[[Any, IntegerOp, list[Value]], Value]] = {
    "conv": _conv, "matmul": _matmul, "sum": _sum, "product": _product, "concat": _concat, "average": _average, "maximum": _maximum,
    "requantize": _requantize, "table": _table, "softmax": _softmax,
}  # fmt: skip
