"""Integer products on a unit that multiplies signed bytes: operands as int8 digits, sums in int32.

A matrix unit takes s8 × s8 → s32. So an operand q − z becomes Σ 256^i·d_i + c with signed bytes d_i: one digit for 8 bits and less
(unsigned ones moved down by 128), two for 16. The constant c adds c·Σw, known when the program is made. Everything is exact modulo
2^32, and the result is proven to fit, so the order and the size of partial sums do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from gatewright.frontend.integer import Array, Operand

from . import Value


@dataclass(frozen=True)
class Digits:
    """Σ 256^i·parts[i] + offset, each part int8."""

    parts: tuple[Value, ...]
    offset: int


def of_operand(q: Value, operand: Operand) -> Digits:
    """q − z. ``operand``: the bounds of q and its zero point."""
    z, lo, hi = int(operand.grid.zero_point), operand.lo, operand.hi
    if lo - z >= -128 and hi - z <= 127:
        return Digits((_moved(q, z),), 0)
    if hi - lo <= 255:
        centre = 0 if lo >= -128 and hi <= 127 else lo + 128 if lo < 0 or hi > 255 else 128
        return Digits((_moved(q, centre),), centre - z)
    centre = 0 if lo >= -(2**15) and hi < 2**15 else lo + 2**15
    assert hi - centre < 2**15, "an operand of a product has 16 bits at most"
    wide = q.astype(np.int32) - np.int32(centre)
    low = ((wide & 255) - 128).astype(np.int8)
    return Digits((low, (wide >> 8).astype(np.int8)), 128 + centre - z)


def _moved(q: Value, by: int) -> Value:
    return q.astype(np.int8) if by == 0 else (q.astype(np.int32) - np.int32(by)).astype(np.int8)


def of_weight(weight: Array) -> list[Array]:
    """Signed base-256 digits of constant integers, lowest first: one where they fit a byte."""
    rest, found = weight.astype(np.int64), list[Array]()
    while not found or np.any(rest):
        low = ((rest + 128) & 255) - 128
        found.append(low.astype(np.int8))
        rest = (rest - low) >> 8
    return found


def accumulate(parts: Sequence[Value], weights: Sequence[Value], multiply: Callable[[Value, Value], Value], wide: bool) -> Value:
    """Σ 256^(i+j)·multiply(parts[i], weights[j]) in int32, or in int64 where the sum needs it."""
    total: Value = None
    for i, part in enumerate(parts):
        for j, weight in enumerate(weights):
            term = multiply(part, weight)
            term = term.astype(np.int64) if wide else term
            term = term if i + j == 0 else term * np.asarray(256 ** (i + j)).astype(term.dtype)
            total = term if total is None else total + term
    return total


def constant_term(offset: int, sums: Array, bias: Array | None, wide: bool) -> Array:
    """offset·Σw + bias per channel, in the accumulator's type (modulo 2^32 in int32)."""
    total = offset * sums.astype(np.int64) + (0 if bias is None else bias.astype(np.int64))
    return total if wide else total.astype(np.uint64).astype(np.uint32).view(np.int32)


def summed(digits: Digits, axis: int, wide: bool) -> Value:
    """Σ (q − z − offset) along an axis, kept."""
    dtype = np.int64 if wide else np.int32
    return sum(
        jnp.sum(part, axis=axis, keepdims=True, dtype=dtype) * np.asarray(256**i).astype(dtype) for i, part in enumerate(digits.parts)
    )
