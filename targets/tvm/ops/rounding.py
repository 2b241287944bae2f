"""Requantization on expressions: q = clamp(rne(acc·m·2^−k) + z), bit for bit what ``frontend/rounding.py`` defines.

Four ways, the first that is proven exact is taken:
1. One fused multiply-add in float32: acc·M + 1.5·2^23 is rounded once, to a whole number (there, float32 has no others), half to
   even (1.5·2^23 is even). Its low bits are the result. acc has to be below 2^24, or is clamped first where that changes nothing
   because the result saturates anyway; M is a float32 by definition; |acc·M| < 2^22.
2. The same in float64 with 1.5·2^52: any 32-bit acc.
3. Without such an instruction, in float64 where acc·m fits its 53 bits: the product is then exact, so ``round`` is the only rounding.
4. In int64, with a shift.
"""

from __future__ import annotations

import math

import numpy as np
from tvm import tirx

from gatewright.frontend.integer import Array, IntegerOp, Multiplier

from ..kernel import Kernel
from ..lazy import Expr, Lazy, cast, constant, dtype_of, let
from ..steps import tvm_dtype
from .int8_dot import fma, register_operators

EXACT_FLOAT64 = 2**53
EXACT_FLOAT32 = 2**24
MAGIC32, MAGIC64 = 1.5 * 2.0**23, 1.5 * 2.0**52
"""What added to a small float leaves its nearest whole number in the low bits."""
MAGIC32_BITS = 0x4B400000


def magnitude(bounds: tuple[int, int]) -> int:
    return max(abs(bounds[0]), abs(bounds[1]))


def odd_part(m: Array) -> Array:
    """m without its factors of two: what a product with it adds to the significant bits."""
    m = np.maximum(m.astype(np.int64), 1)
    return m // (m & -m)


class Requantizer:
    """Multiplier and bounds of one operation, as parameters of a kernel. ``of(acc, *index)`` gives the stored integer.

    ``bounds``: of acc.
    """

    def __init__(self, kernel: Kernel, op: IntegerOp, multiplier: Multiplier, bounds: tuple[int, int]) -> None:
        self.op = op
        self.dtype = tvm_dtype(op.grid.dtype)
        reach = magnitude(bounds)
        exact = reach * int(np.max(odd_part(multiplier.m))) < EXACT_FLOAT64
        self.limit = clamp_for_float32(op, multiplier, reach) if kernel.machine.fuses else None
        """Where not None: float32 serves, for acc clamped to ± this (0: not clamped)."""
        whole = reach < 2**31 and reach * float(np.max(multiplier.value)) < 2**30
        self.form = (
            "fused32" if self.limit is not None else "fused64" if kernel.machine.fuses and whole else "float64" if exact else "int64"
        )
        if self.form == "int64":
            self.m, self.k = kernel.parameter(multiplier.m), kernel.parameter(multiplier.k)
        else:
            self.scale = kernel.parameter(multiplier.value.astype(np.float32 if self.form == "fused32" else np.float64))
        if self.form.startswith("fused"):
            register_operators()

    def of(self, acc: Expr, *index: Expr) -> Expr:
        """``acc`` is an integer in any type that holds it; ``index`` picks from a multiplier that is no scalar."""
        return saturate(self.rounded(acc, *index), self.op, self.dtype)

    def rounded(self, acc: Expr, *index: Expr) -> Expr:
        """rne(acc·M), in int32, float64 or int64."""
        if self.form == "fused32":
            if self.limit:
                bound = constant(self.limit, dtype_of(acc))
                acc = tirx.Min(tirx.Max(acc, constant(-self.limit, dtype_of(acc))), bound)
            total = fma(cast(acc, "float32"), self._pick(self.scale, index), constant(MAGIC32, "float32"))
            return tirx.reinterpret("int32", total) - constant(MAGIC32_BITS, "int32")
        if self.form == "fused64":
            return whole_part(fma(cast(acc, "float64"), self._pick(self.scale, index), constant(MAGIC64, "float64")))
        if self.form == "float64":
            return tirx.round(cast(acc, "float64") * self._pick(self.scale, index))
        return round_shift(cast(acc, "int64") * self._pick(self.m, index), self._pick(self.k, index))

    @staticmethod
    def _pick(parameter: Lazy, index: tuple[Expr, ...]) -> Expr:
        return parameter.at(*index[: parameter.rank]) if math.prod(parameter.shape) > 1 else parameter.at(*(0,) * parameter.rank)


def nearest(value: Expr) -> Expr:
    """rne of a float64 below 2^30, as int32."""
    return whole_part(value + constant(MAGIC64, "float64"))


def whole_part(total: Expr) -> Expr:
    """The int32 that was rounded by adding MAGIC64."""
    return cast(tirx.reinterpret("int64", total), "int32")


def clamp_for_float32(op: IntegerOp, multiplier: Multiplier, reach: int) -> int | None:
    """How far acc may go in float32: 0 where it needs no clamp, None where no clamp is without effect.

    A clamp to ±A changes nothing if acc = ±A saturates already: A·M > |bound − z| for both bounds, or M = 0.
    """
    scale = multiplier.value
    largest = float(np.max(scale, initial=0))
    if reach < EXACT_FLOAT32 and reach * largest < 2**22 - 1:
        return 0
    zero = int(op.grid.zero_point)
    span = max(abs(op.lo - zero), abs(op.hi - zero)) + 1
    for power in range(24, 7, -1):
        limit = 1 << power
        if limit * largest < 2**22 - 1 and bool(np.all((scale * limit > span) | (scale == 0))):
            return limit
    return None


def saturate(rounded: Expr, op: IntegerOp, dtype: str) -> Expr:
    """clamp(rounded + z) to the operation's bounds, as ``dtype``; ``rounded`` is a whole number in int32, float64 or int64."""
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
