"""Requantization in integers: rne(acc·m·2^−k) + z, clamped. No float takes part, so every machine gives the same bits.

A TPU has no 64-bit registers: XLA computes int64 in pairs of words. Factors of two common to m and 2^k are therefore taken out
when the program is made, and what then fits 32 bits (any power-of-two grid, as a rule) stays there.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from gatewright.frontend.integer import Array, IntegerOp, Multiplier

from . import Value

_WORD = 2**30
"""|acc·m| below this leaves room for the rounding in int32."""


def stored(dtype: ir.DataType | None) -> np.dtype[Any]:
    """How an integer tensor is held in the program: 4-bit values one to a byte."""
    assert dtype is not None
    narrow = {ir.DataType.INT4: np.int8, ir.DataType.UINT4: np.uint8}
    return np.dtype(narrow[dtype] if dtype in narrow else dtype.numpy())


def reduced(multiplier: Multiplier) -> tuple[Array, Array]:
    """The same m·2^−k with every m odd (or k 0): the smallest product."""
    m, k = np.array(multiplier.m), np.array(multiplier.k)
    while np.any(even := (m % 2 == 0) & (m != 0) & (k > 0)):
        m, k = np.where(even, m // 2, m), np.where(even, k - 1, k)
    return m, k


def round_shift(value: Value, shift: Array) -> Value:
    """rne(value·2^−shift) for |value| < 2^62 (2^30 in int32); a negative shift multiplies.

    Half the divisor less one, and one more where the quotient is odd, is added before the shift: below half nothing carries, above
    half one does, and a tie carries exactly where the quotient is odd.
    """
    word = 30 if value.dtype == np.int32 else 62
    right = np.clip(shift, 0, word).astype(value.dtype)
    half = np.where(right > 0, (np.int64(1) << np.maximum(right.astype(np.int64) - 1, 0)) - 1, 0).astype(value.dtype)
    odd = lax.shift_right_arithmetic(value, jnp.broadcast_to(right, value.shape)) & np.where(right > 0, 1, 0).astype(value.dtype)
    rounded = lax.shift_right_arithmetic(value + half + odd, jnp.broadcast_to(right, value.shape))
    if np.any(shift > word):
        # Below one half, or exactly one half, whose even neighbour is 0.
        rounded = jnp.where(shift > word, np.zeros((), value.dtype), rounded)
    if np.any(shift < 0):
        rounded = jnp.where(shift < 0, value << np.clip(-shift, 0, word).astype(value.dtype), rounded)
    return rounded


def requantize(accumulator: Value, bounds: tuple[int, int], multiplier: Multiplier, channels: tuple[int, ...] = ()) -> Value:
    """rne(acc·m·2^−k), neither clamped nor moved to its zero point. ``bounds``: of the accumulator; ``channels``: the shape of m."""
    m, k = reduced(multiplier)
    if channels and m.ndim:
        m, k = m.reshape(channels), k.reshape(channels)
    if np.all(m == 1) and np.all(k == 0):
        return accumulator
    largest = max(abs(bounds[0]), abs(bounds[1])) * int(m.max(initial=0))
    # Past 30 places, or upwards, the general way.
    word = np.int32 if largest < _WORD and int(k.max()) <= 30 and int(k.min()) >= 0 else np.int64
    product = accumulator.astype(word) if np.all(m == 1) else accumulator.astype(word) * m.astype(word)
    return round_shift(product, k)


def saturate(steps: Value, op: IntegerOp) -> Value:
    """Onto the result's zero point, clamped, in its storage type."""
    z = int(op.grid.zero_point)
    # Clamping before the zero point keeps the sum within the type.
    low, high = (np.asarray(bound - z).astype(steps.dtype) for bound in (op.lo, op.hi))
    clamped = jnp.clip(steps, low, high).astype(np.int32) + np.int32(z)
    return clamped.astype(stored(op.grid.dtype))
