"""Requantization on expressions: q = clamp(rne(acc·m·2^−k) + z), bit for bit what ``frontend/rounding.py`` defines.

In float64 where acc·m fits its 53 bits: the product is then exact, so ``round`` (half to even) is the only rounding and
it is the contract's. Else in int64, with a shift.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx

from gatewright.frontend.integer import Array, IntegerOp, Multiplier

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, constant, let
from ..steps import tvm_dtype

EXACT_FLOAT64 = 2**53


def magnitude(bounds: tuple[int, int]) -> int:
    return max(abs(bounds[0]), abs(bounds[1]))


def odd_part(m: Array) -> Array:
    """m without its factors of two: what a product with it adds to the significant bits."""
    m = np.maximum(m.astype(np.int64), 1)
    return m // (m & -m)


class Requantizer:
    """Multiplier and bounds of one operation, as parameters of a kernel. ``of(acc, *index)`` gives the stored integer."""

    def __init__(self, kernel: Kernel, op: IntegerOp, multiplier: Multiplier, bounds: tuple[int, int]) -> None:
        self.op = op
        self.dtype = tvm_dtype(op.grid.dtype)
        self.exact = magnitude(bounds) * int(np.max(odd_part(multiplier.m))) < EXACT_FLOAT64
        """True where float64 holds every product."""
        if self.exact:
            self.scale = kernel.parameter(multiplier.value)
        else:
            self.m, self.k = kernel.parameter(multiplier.m), kernel.parameter(multiplier.k)

    def of(self, acc: Expr, *index: Expr) -> Expr:
        """``acc`` is an integer in any type that holds it; ``index`` picks from a multiplier that is no scalar."""
        return saturate(self.rounded(acc, *index), self.op, self.dtype)

    def rounded(self, acc: Expr, *index: Expr) -> Expr:
        """rne(acc·M), in float64 or int64."""
        if self.exact:
            return tirx.round(cast(acc, "float64") * self._pick(self.scale, index))
        return round_shift(cast(acc, "int64") * self._pick(self.m, index), self._pick(self.k, index))

    @staticmethod
    def _pick(parameter: Lazy, index: tuple[Expr, ...]) -> Expr:
        return parameter.at(*index[: parameter.rank]) if math.prod(parameter.shape) > 1 else parameter.at(*(0,) * parameter.rank)


def saturate(rounded: Expr, op: IntegerOp, dtype: str) -> Expr:
    """clamp(rounded + z) to the operation's bounds, as ``dtype``; ``rounded`` is a whole number in float64 or int64."""
    kind = str(rounded.ty)
    q = rounded + constant(int(op.grid.zero_point), kind)
    return cast(tirx.Min(tirx.Max(q, constant(op.lo, kind)), constant(op.hi, kind)), dtype)


def round_shift(value: Expr, k: Expr) -> Expr:
    """rne(value·2^−k) for int64 values, |value| < 2^62, k ≥ 0."""
    one, zero, most = (constant(n, "int64") for n in (1, 0, 62))

    def rounded(v: Expr) -> Expr:
        right = tirx.Max(tirx.Min(k, most), one)
        # Half a step less one bit, and that bit where the quotient is odd: exactly half then goes to the even neighbour.
        odd = tirx.bitwise_and(v >> right, one)
        nearest = (v + ((one << (right - one)) - one) + odd) >> right
        # Past 62 places the quotient is below one half.
        return tirx.Select(k > most, zero, tirx.Select(tirx.EQ(k, zero), v, nearest))

    return let(value, rounded)
