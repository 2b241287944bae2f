"""The arithmetic of the numeric contract: rounding half to even, and requantization in integers.

q = saturate(rne(acc·m·2^−k) + z). Everything is int64; the bounds that keep it from overflowing are stated per function
and were proven by ``recognise.py`` before any of this runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .integer import Multiplier

Array = NDArray[Any]

PRODUCT_LIMIT = 2**62
"""|acc·m| stays below this, so that neither the product nor the rounding carries out of 63 bits."""


def round_shift(value: Array, shift: Array | int) -> Array:
    """rne(value·2^−shift) for int64 values, |value| < 2^62, and any shift (a negative one multiplies)."""
    shift = np.asarray(shift, np.int64)
    # Past 62 places the quotient is below one half (or exactly one half, whose even neighbour is 0).
    right = np.clip(shift, 0, 62)
    floor = value >> right
    rest = value - (floor << right)
    half = np.where(right > 0, np.int64(1) << np.maximum(right - 1, 0), 1)
    rounded = floor + ((rest > half) | ((rest == half) & ((floor & 1) == 1)))
    rounded = np.where(shift > 62, 0, rounded)
    return np.where(shift < 0, value << np.clip(-shift, 0, 62), rounded)


def requantize(accumulator: Array, multiplier: Multiplier, zero_point: Array | int) -> Array:
    """rne(acc·m·2^−k) + z as int64, not yet clamped. |acc·m| < 2^62."""
    return round_shift(accumulator * multiplier.m, multiplier.k) + zero_point


def quantize(real: Array, scale: Array, zero_point: Array) -> Array:
    """rne(real/scale) + z in float64 → int64, not clamped: where a table entry or an activation's bound lies on a grid.

    Infinities go to the ends of int64's exact float range and are clamped by the caller like any large value.
    """
    with np.errstate(over="ignore"):
        steps = np.rint(np.asarray(real, np.float64) / scale.astype(np.float64))
    return np.clip(steps, -(2.0**52), 2.0**52).astype(np.int64) + zero_point


def exact_float(bound: int) -> type[np.float32] | type[np.float64] | type[np.int64]:
    """The fastest dtype in which sums of integers are exact in any order while every partial sum is at most ``bound``.

    BLAS knows no int64; a float with enough mantissa computes the same integers at full speed (IEEE 754: integers up to
    2^24 in float32, 2^53 in float64, and their sums and products, are exact).
    """
    return np.float32 if bound < 2**24 else np.float64 if bound < 2**53 else np.int64
