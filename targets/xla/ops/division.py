"""IEEE divisions in integers, bit for bit.

A TPU has no float64, and softmax's definition (``reference.softmax``) divides in it; and XLA replaces x/s by x·(1/s), which rounds
twice, where the definition of a quantizer rounds once. A quotient is found one binary digit at a time, and rounded half to even by
the remainder.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gatewright.frontend.integer import Array

from . import Value

_MANTISSA = 53
_SINGLE = 24


def _bit_length(x: Value) -> Value:
    return np.int64(64) - lax.clz(x)


def _quotient(numerator: Value, denominator: Value, digits: int = _MANTISSA) -> Value:
    """numerator/denominator to so many binary digits, for denominator ≤ numerator < 2·denominator: 2^(digits − 1) … 2^digits inclusive.

    The numerator's type has to hold 4·denominator.
    """
    kind = denominator.dtype

    def digit(_: Any, state: tuple[Value, Value]) -> tuple[Value, Value]:
        found, rest = state
        one = (rest >= denominator).astype(kind)
        return found * 2 + one, (rest - one * denominator) * 2

    zero = jnp.zeros(jnp.broadcast_shapes(numerator.shape, denominator.shape), kind)
    found, rest = jax.lax.fori_loop(0, digits, digit, (zero, jnp.broadcast_to(numerator, zero.shape)))
    return found + ((rest > denominator) | ((rest == denominator) & (found & 1 == 1))).astype(kind)


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


def steps_of(x: Value, scale: Array) -> Value:
    """rne(float32(x/scale)) as int32 for float32 x and constant positive float32 scales; past ±2^24 it is ±2^24, not-a-number is 0.

    ``scale`` broadcasts with x. Numbers below the smallest normal one count as 0.
    """
    bits = lax.bitcast_convert_type(x, np.int32)
    exponent = (bits >> 23) & 255
    mantissa = (bits & 0x7FFFFF) | 0x800000
    # scale = denominator·2^(power − 24), x = mantissa·2^(exponent − 150).
    fraction, power = np.frexp(scale.astype(np.float64))
    denominator = jnp.asarray(np.ldexp(fraction, _SINGLE).astype(np.int32))
    less = (mantissa < denominator).astype(np.int32)
    found = _quotient(mantissa << less, denominator, _SINGLE)
    shift = less + np.asarray(power + 126 + _SINGLE - 1, np.int32) - exponent
    right = jnp.clip(shift, 0, 30)
    half = jnp.where(right > 0, (np.int32(1) << jnp.maximum(right - 1, 0)) - 1, 0)
    odd = jnp.where(right > 0, (found >> right) & 1, 0)
    steps = jnp.where(shift < 0, np.int32(2**24), (found + half + odd) >> right)
    steps = jnp.where((exponent == 0) | (jnp.isnan(x)), 0, jnp.where(exponent == 255, np.int32(2**24), steps))
    return jnp.where(bits < 0, -steps, steps).astype(np.int32)
