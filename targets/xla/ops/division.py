"""IEEE float64 divisions in integers, bit for bit: a TPU has no float64, and softmax's definition (``reference.softmax``) divides in it.

A quotient is found one binary digit at a time, 53 of them, and rounded half to even by the remainder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import Value

_MANTISSA = 53


def _bit_length(x: Value) -> Value:
    return np.int64(64) - lax.clz(x)


def _quotient(numerator: Value, denominator: Value) -> Value:
    """The 53-bit mantissa of numerator/denominator for denominator ≤ numerator < 2·denominator < 2^54: 2^52 … 2^53 inclusive."""

    def digit(_: Any, state: tuple[Value, Value]) -> tuple[Value, Value]:
        found, rest = state
        one = (rest >= denominator).astype(np.int64)
        return found * 2 + one, (rest - one * denominator) * 2

    zero = jnp.zeros(jnp.broadcast_shapes(numerator.shape, denominator.shape), np.int64)
    found, rest = jax.lax.fori_loop(0, _MANTISSA, digit, (zero, jnp.broadcast_to(numerator, zero.shape)))
    return found + ((rest > denominator) | ((rest == denominator) & (found & 1 == 1))).astype(np.int64)


def ratio(e: Value, total: Value) -> tuple[Value, Value]:
    """float64(e/total) as mantissa·2^−exponent for integers 0 < e ≤ total < 2^53; (0, whatever) for e = 0."""
    shift = _bit_length(total) - _bit_length(jnp.maximum(e, 1))
    shift = shift + ((e << shift) < total).astype(np.int64)
    mantissa = _quotient(jnp.where(e == 0, total, e << shift), total)
    return jnp.where(e == 0, 0, mantissa), shift + (_MANTISSA - 1)


def divided(mantissa: Value, exponent: Value, scale: np.float32) -> tuple[Value, Value]:
    """float64(mantissa·2^−exponent / scale), in the same form."""
    fraction, power = np.frexp(np.float64(scale))
    # scale = denominator·2^(power − 53), a 53-bit integer.
    denominator = jnp.asarray(int(np.ldexp(fraction, _MANTISSA)), np.int64)
    # Rounding up may have made 2^53, which is even.
    above = mantissa >= np.int64(2**_MANTISSA)
    mantissa, exponent = jnp.where(above, mantissa >> 1, mantissa), jnp.where(above, exponent - 1, exponent)
    less = (mantissa < denominator).astype(np.int64)
    found = _quotient(jnp.where(mantissa == 0, denominator, mantissa << less), denominator)
    # mantissa/denominator = found·2^−(52 + less); the scale's own power is taken out.
    return jnp.where(mantissa == 0, 0, found), exponent + less + (_MANTISSA - 1) + (int(power) - _MANTISSA)


def rounded(mantissa: Value, exponent: Value) -> Value:
    """rne(mantissa·2^−exponent) for mantissas to 2^53; an exponent below 0 counts as 0 (the caller clamps what is so large)."""
    shift = jnp.clip(exponent, 0, 62)
    half = jnp.where(shift > 0, (np.int64(1) << jnp.maximum(shift - 1, 0)) - 1, 0)
    odd = jnp.where(shift > 0, (mantissa >> shift) & 1, 0)
    return (mantissa + half + odd) >> shift


def as_float32(mantissa: Value, exponent: Value) -> Value:
    """float32(mantissa·2^−exponent), rounded half to even; for results at or above the smallest normal number, or 0."""
    spare = _MANTISSA - 24
    short = rounded(mantissa, jnp.full_like(exponent, spare))
    power = lax.bitcast_convert_type(((127 - (exponent - spare)) << 23).astype(np.int32), np.float32)
    # A 24-bit integer times a power of two: both exact, and so is the product.
    return short.astype(np.float32) * power
