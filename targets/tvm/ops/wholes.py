"""Arithmetic of whole numbers, total as the reference's is: what overflows wraps around, and a quotient by 0 is 0.

C leaves the overflow of signed integers undefined, LLVM makes use of that (a sum that is then widened is added wide and does not
wrap), and TVM's simplifier takes it that not even unsigned ones overflow (0 − x would be 0). So a sum is taken in twice the bits,
which LLVM makes single ones again; those of 64 bits are taken as unsigned behind a ``reinterpret``, of which TVM infers no bounds.
A processor's division by 0, and of the least integer by −1, ends the process, and a divisor may come from a hostile file's
arithmetic or from a user's data.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from tvm import tirx

from ..lazy import MASK, Expr, Lazy, cast, constant, dtype_of, let

Binary = Callable[[Any, Any], Expr]


def _wrapping(function: Binary) -> Binary:
    """``function`` of floats, and of integers modulo 2 to the power of their bits."""

    def apply(a: Expr, b: Expr) -> Expr:
        dtype = dtype_of(a)
        if dtype == "int64":
            return _bits(function(_unsigned(a), _unsigned(b)), dtype)
        if dtype.startswith("float") or dtype == "uint64":
            return function(a, b)
        wide = "int32" if dtype.endswith("int8") else "int64"
        return cast(function(cast(a, wide), cast(b, wide)), dtype)

    return apply


def _bits(x: Expr, dtype: str) -> Expr:
    """Those of 64-bit x as the other type of 64 bits."""
    held = tirx.reinterpret(dtype, tirx.bitwise_xor(x, constant(MASK, dtype_of(x))))
    return tirx.bitwise_xor(held, constant(MASK, dtype))


def _unsigned(x: Expr) -> Expr:
    return constant(int(x.value) % 2**64, "uint64") if isinstance(x, tirx.IntImm) else _bits(x, "uint64")


add, multiply = _wrapping(operator.add), _wrapping(operator.mul)


def subtract(a: Expr, b: Expr) -> Expr:
    if dtype_of(a) == "int64":
        return add(a, negative(b))
    return _wrapping(operator.sub)(a, b)


def negative(x: Expr) -> Expr:
    dtype = dtype_of(x)
    if dtype == "int64":
        return add(tirx.bitwise_not(x), constant(1, dtype))
    return -x if dtype.startswith("float") else subtract(constant(0, dtype), x)


def quotient(a: Expr, b: Expr) -> Expr:
    """a / b; of integers towards zero, as ONNX has it and as C has it."""
    if dtype_of(a).startswith("float") or _is_harmless(b):
        return tirx.Div(a, b)

    def divided(b: Expr) -> Expr:
        # A product, since TVM takes a choice's condition as known within its branches, and computes both.
        dtype = dtype_of(b)
        zero, one = constant(0, dtype), constant(1, dtype)
        sign = one if dtype.startswith("uint") else tirx.Select(tirx.EQ(b, constant(-1, dtype)), constant(-1, dtype), one)
        return multiply(tirx.Div(a, _harmless(b)), tirx.Select(tirx.EQ(b, zero), zero, sign))

    return let(b, divided)


def remainder(function: Binary, a: Expr, b: Expr) -> Expr:
    """``function`` (tirx.Mod, tirx.floormod) of integers; what is left of a division by 1 is 0, as by −1 and, here, by 0."""
    return function(a, b) if _is_harmless(b) else let(b, lambda b: function(a, _harmless(b)))


def _is_harmless(divisor: Expr) -> bool:
    return isinstance(divisor, tirx.IntImm) and int(divisor.value) not in (0, -1)


def _harmless(divisor: Expr) -> Expr:
    """1 in the place of 0 and −1."""
    dtype = dtype_of(divisor)
    trap = tirx.EQ(divisor, constant(0, dtype))
    if dtype.startswith("int"):
        trap = tirx.Or(trap, tirx.EQ(divisor, constant(-1, dtype)))
    return tirx.Select(trap, constant(1, dtype), divisor)


def unsigned(x: Lazy) -> Lazy:
    """The same bits, of which a sum's overflow is defined; floats and narrow integers stay."""
    match x.dtype:
        case "int32":
            return Lazy(x.shape, "uint32", lambda *i: cast(x.at(*i), "uint32"))
        case "int64":
            return Lazy(x.shape, "uint64", lambda *i: _unsigned(x.at(*i)))
        case _:
            return x


def signed(x: Lazy, dtype: str) -> Lazy:
    """What ``unsigned`` made of ``dtype``, as it was."""
    if x.dtype == dtype:
        return x
    return Lazy(x.shape, dtype, lambda *i: cast(x.at(*i), dtype) if dtype == "int32" else _bits(x.at(*i), dtype))
