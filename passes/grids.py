"""From a range of real values to a grid of integers: scale, zero point, storage type and bounds.

q = clamp(rne(x / s) + z, lo, hi). Three kinds of grid: affine (any s and z), symmetric (z = 0), pow2 (z = 0, s = 2^k: exactly a
fixed-point number). Activations that are never negative use an unsigned type with z = 0 on symmetric and pow2 grids.
Weights are signed with z = 0 on every kind, affine too: a weight's zero point would cost a second sum over the inputs for
every output, and trained weights are nearly symmetric (Nagel et al. 2021, A White Paper on Neural Network Quantization, §2.3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from gatewright.frontend.integer import Grid

from .calibrate import Observed
from .rewrite import Array

GridKind = Literal["affine", "symmetric", "pow2"]

SMALLEST_SCALE = 2.0**-60
"""Scales stay above this, so that a product of two is a normal float32 (≥ 2^-126)."""
LARGEST_SCALE = 2.0**60

_T = ir.DataType
_SIGNED = {4: _T.INT4, 8: _T.INT8, 16: _T.INT16}
_UNSIGNED = {4: _T.UINT4, 8: _T.UINT8, 16: _T.UINT16}


def storage(bits: int, signed: bool) -> tuple[ir.DataType, bool]:
    """The ONNX type that stores ``bits`` bits, and whether it is wider than that: 4, 8 and 16 fit, others take the next of 8 and 16."""
    width = bits if bits in _SIGNED else 8 if bits < 8 else 16
    return (_SIGNED if signed else _UNSIGNED)[width], width != bits


def activation_grid(kind: GridKind, bits: int, seen: Observed, non_negative: bool, clip: tuple[float, float]) -> Grid:
    """The grid of an activation whose values to be kept lie in ``clip`` (within what was seen).

    ``non_negative``: the values are never below zero.
    """
    low, high = min(clip[0], 0.0), max(clip[1], 0.0)
    if kind == "affine":
        dtype, _ = storage(bits, signed=False)
        steps = 2**bits - 1
        scale = _bounded((high - low) / steps)
        zero = int(np.clip(np.rint(-low / float(scale)), 0, steps))
        return Grid(dtype, scale, np.asarray(zero, np.int64), 0, steps)
    dtype, _ = storage(bits, signed=not non_negative)
    lo, hi = (0, 2**bits - 1) if non_negative else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    largest = high if non_negative else max(-low, high)
    if kind == "symmetric":
        scale = _bounded(largest / hi)
    else:
        covering = covering_exponent(max(largest, 0.0), hi)
        scale = np.asarray(2.0 ** _best_exponent(seen, covering, lo, hi, largest=max(-seen.low, seen.high)), np.float32)
    return Grid(dtype, scale, np.zeros((), np.int64), lo, hi)


def covering_exponent(largest: float, hi: int) -> int:
    """The smallest k with which ``largest`` still rounds to hi or below: largest/2^k ≤ hi + 1/2. 0 for a tensor of zeros."""
    if largest <= 0:
        return 0
    k = math.ceil(math.log2(largest / (hi + 0.5)))
    return int(np.clip(k, -60, 60))


def _best_exponent(seen: Observed, covering: int, lo: int, hi: int, largest: float) -> int:
    """Of the exponents from the clipped range's to the full range's, the one with the least squared error over what was seen.

    Without a histogram (min-max) both are the same, and the range is covered.
    """
    full = covering_exponent(largest, hi)
    if seen.histogram is None or full == covering:
        return covering
    values, counts = seen.histogram.centres()
    errors = {}
    for k in range(min(covering, full) - 1, max(covering, full) + 1):
        s = 2.0**k
        rounded = np.clip(np.rint(values / s), lo, hi) * s
        errors[k] = float(np.dot(counts, (rounded - values) ** 2))
    return min(errors, key=lambda k: (errors[k], k))


@dataclass(frozen=True)
class QuantizedConstant:
    """Integers of a constant, and what they stand for."""

    values: Array
    """int64, in the constant's shape."""
    grid: Grid


def quantize_weight(
    weight: Array, kind: GridKind, bits: int, axis: int | None, floor: Array | float = 0.0, least_error: bool = False
) -> QuantizedConstant:
    """A constant on a signed grid with z = 0, bounds ±(2^(b−1) − 1); ``axis``: one scale per index along it (per channel).

    ``floor``: the least scale allowed (of each channel): a bias on the accumulator's scale has to fit into 32 bits.
    ``least_error``: clip the largest weights where that lowers the squared error. On pow2, where covering the largest may cost
    a bit, this is always so.
    """
    dtype, _ = storage(bits, signed=True)
    hi = 2 ** (bits - 1) - 1
    axis = None if axis is None or weight.shape[axis] == 1 else axis
    real = weight.astype(np.float64)
    moved = real.reshape(1, -1) if axis is None else np.moveaxis(real, axis, 0)
    rows = moved.reshape(len(moved), -1)
    least = np.max(floor, initial=0.0) if axis is None else np.asarray(floor, np.float64)
    scale = _scales(rows, kind, hi, np.broadcast_to(least, len(rows)), least_error)
    q = np.clip(np.rint(rows / scale.astype(np.float64)[:, None]), -hi, hi).astype(np.int64)
    if axis is None:
        return QuantizedConstant(q.reshape(real.shape), Grid(dtype, scale.reshape(()), np.zeros((), np.int64), -hi, hi))
    values = np.ascontiguousarray(np.moveaxis(q.reshape(moved.shape), 0, axis))
    return QuantizedConstant(values, Grid(dtype, scale, np.zeros(scale.shape, np.int64), -hi, hi, axis))


def _scales(rows: Array, kind: GridKind, hi: int, floor: Array, least_error: bool) -> Array:
    """One float32 scale per row: the one that covers the row, or a smaller one with less squared error."""
    largest = np.abs(rows).max(axis=1, initial=0.0)
    # A row of zeros only carries a bias: a scale 2^10 above the floor gives that 20 bits.
    covering = np.where(largest > 0, largest / hi, np.where(floor > 0, floor * 2.0**10, 1.0))
    if kind == "pow2":
        exponents = [covering_exponent(x, hi) if x > 0 else math.ceil(math.log2(c)) for x, c in zip(largest, covering, strict=True)]
        covering = np.exp2(np.asarray(exponents, np.float64))
        floor = np.where(floor > 0, np.exp2(np.ceil(np.log2(np.maximum(floor, SMALLEST_SCALE)))), 0.0)
    factors = (1.0, 0.5, 0.25) if kind == "pow2" else tuple(np.linspace(1.0, 0.4, 13)) if least_error else (1.0,)
    best, least = covering, np.full(len(rows), math.inf)
    for factor in factors:
        scale = np.clip(np.maximum(covering * factor, floor), SMALLEST_SCALE, LARGEST_SCALE).astype(np.float32).astype(np.float64)
        step = scale[:, None]
        error = ((np.clip(np.rint(rows / step), -hi, hi) * step - rows) ** 2).sum(axis=1)
        best, least = np.where(error < least, scale, best), np.minimum(error, least)
    return best.astype(np.float32)


def _bounded(scale: float) -> Array:
    """A float32 scale, never zero, denormal or infinite; 1 for a tensor that is always zero."""
    return np.asarray(np.clip(scale, SMALLEST_SCALE, LARGEST_SCALE) if scale > 0 else 1.0, np.float32)
