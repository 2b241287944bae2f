"""Interval analysis: proven bounds of accumulators and results, from the bounds of the operands and the weights' own values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .integer import Array, Grid, Multiplier, Operand
from .rounding import requantize


@dataclass(frozen=True)
class Bounds:
    """Of an accumulator before requantization: ``partial`` over every partial sum in any order, ``low`` and ``high`` of the whole sum
    (int64, per output channel or one)."""

    partial: tuple[int, int]
    low: Array
    high: Array

    def requantized(self, multiplier: Multiplier, zero_point: Array) -> tuple[int, int]:
        """Bounds of the result. Requantization is monotone, so the ends stay the ends."""
        return int(np.min(requantize(self.low, multiplier, zero_point))), int(np.max(requantize(self.high, multiplier, zero_point)))


def centred(operand: Operand) -> tuple[int, int]:
    """Bounds of q − z."""
    zero = int(operand.grid.zero_point)
    return operand.lo - zero, operand.hi - zero


def one(low: int, high: int) -> Bounds:
    """Bounds of a value that is no sum."""
    return Bounds((low, high), np.asarray(low, np.int64), np.asarray(high, np.int64))


def repeated(operand: Operand, times: int) -> Bounds:
    """A sum of ``times`` values of one operand."""
    low, high = centred(operand)
    return Bounds((min(0, low) * times, max(0, high) * times), np.asarray(low * times, np.int64), np.asarray(high * times, np.int64))


def product(a: Operand, b: Operand, times: int = 1) -> Bounds:
    """A sum of ``times`` products of the two."""
    corners = [x * y for x in centred(a) for y in centred(b)]
    low, high = min(corners), max(corners)
    return Bounds((min(0, low) * times, max(0, high) * times), np.asarray(low * times, np.int64), np.asarray(high * times, np.int64))


def weighted(x: Operand, weight: Array, bias: Array, out_axis: int, padded: bool) -> Bounds:
    """A weighted sum plus bias. Padding adds the value zero to what x may be."""
    low, high = centred(x)
    if padded:
        low, high = min(low, 0), max(high, 0)
    rows = np.moveaxis(weight, out_axis, 0).reshape(weight.shape[out_axis], -1)
    # |w|·|x| < 2^32 and a row has fewer than 2^30 of them, so int64 holds every sum.
    least, most = np.minimum(rows * low, rows * high), np.maximum(rows * low, rows * high)
    partial_low = np.minimum(least, 0).sum(axis=1) + np.minimum(bias, 0)
    partial_high = np.maximum(most, 0).sum(axis=1) + np.maximum(bias, 0)
    return Bounds((int(partial_low.min()), int(partial_high.max())), least.sum(axis=1) + bias, most.sum(axis=1) + bias)


def ratio(source: Grid, target: Grid) -> Multiplier:
    """M = float32(s_x/s_y)."""
    return Multiplier.of((source.scale.astype(np.float64) / target.scale.astype(np.float64)).astype(np.float32))


def product_ratio(a: Grid, b: Grid, target: Grid) -> Multiplier:
    """M = float32(s_a·s_b/s_y), in float64 until the end."""
    return Multiplier.of((a.scale.astype(np.float64) * b.scale.astype(np.float64) / target.scale.astype(np.float64)).astype(np.float32))
