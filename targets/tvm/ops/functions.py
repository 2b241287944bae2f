"""Transcendental functions as polynomials, so that they vectorize: the C library's are one call per element.

float32 only; float16 goes through float32, float64 to the C library. Errors are against the correctly rounded result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx

from ..lazy import Expr, cast, clamp, constant, dtype_of, let


def _f32(value: float) -> Expr:
    return constant(value, "float32")


def _polynomial(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    """Horner's scheme, highest power first."""
    total = _f32(coefficients[0])
    for c in coefficients[1:]:
        total = total * x + _f32(c)
    return total


def _single(function: Callable[[Expr], Expr], library: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    """``function`` for float32, with its argument computed once; ``library`` for float64."""

    def typed(x: Expr) -> Expr:
        match dtype_of(x):
            case "float32":
                return let(x, function)
            case "float16":
                return cast(let(cast(x, "float32"), function), "float16")
            case _:
                return library(x)

    return typed


def widened(function: Callable[[Expr], Expr]) -> Callable[[Expr], Expr]:
    """``function``, of float16 in float32: the C library has none of it, and its squares soon are infinite."""

    def typed(x: Expr) -> Expr:
        return cast(function(cast(x, "float32")), "float16") if dtype_of(x) == "float16" else function(x)

    return typed


def _power_of_two(n: Expr) -> Expr:
    """2^n for int32 −126 ≤ n ≤ 127, by its bits."""
    return tirx.reinterpret("float32", (n + constant(127, "int32")) << constant(23, "int32"))


def _scaled(mantissa: Expr, n: Expr) -> Expr:
    """mantissa·2^n by two factors, since n = 128 is no exponent of a float32."""

    def product(i: Expr) -> Expr:
        return let(i >> constant(1, "int32"), lambda half: mantissa * _power_of_two(half) * _power_of_two(i - half))

    return let(cast(n, "int32"), product)


def _exp(x: Expr) -> Expr:
    def series(r: Expr) -> Expr:
        p = _polynomial(r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1))
        return p * r * r + r + _f32(1.0)

    def reduced(c: Expr) -> Expr:
        n = tirx.floor(c * _f32(1.44269504088896341) + _f32(0.5))
        # ln 2 in two parts, the first with few enough bits that n times it is exact.
        return let(n, lambda n: _scaled(let(c - n * _f32(0.693359375) - n * _f32(-2.12194440e-4), series), n))

    inside = let(clamp(x, _f32(-87.33654), _f32(88.72283)), reduced)
    return tirx.Select(x < _f32(-87.33654), _f32(0.0), tirx.Select(x > _f32(88.72283), _f32(float("inf")), inside))


exp = _single(_exp, tirx.exp)
"""e^x; float32: Cephes expf (netlib.org/cephes), within 2 ulp; 0 below −87.3, infinity above 88.7."""


_TANH_ABOVE = (
    -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05, 6.37261928875436e-04,
    4.89352455891786e-03,
)  # fmt: skip
_TANH_BELOW = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _tanh(x: Expr) -> Expr:
    def rational(c: Expr) -> Expr:
        return let(c * c, lambda s: c * _polynomial(s, _TANH_ABOVE) / _polynomial(s, _TANH_BELOW))

    inside = let(clamp(x, _f32(-7.90531110763549805), _f32(7.90531110763549805)), rational)
    return tirx.Select(tirx.abs(x) < _f32(4e-4), x, inside)


tanh = _single(_tanh, tirx.tanh)
"""float32: an odd rational function on |x| ≤ 7.9 (Eigen's ptanh_float), within 4 ulp; constant beyond."""


def sigmoid(x: Expr) -> Expr:
    """1/(1 + e^−x), in the form whose exponential cannot overflow."""
    one, zero = constant(1.0, dtype_of(x)), constant(0.0, dtype_of(x))
    return let(x, lambda x: let(exp(-tirx.abs(x)), lambda e: tirx.Select(x >= zero, one, e) / (one + e)))


def _expm1(x: Expr) -> Expr:
    series = _polynomial(x, (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0)) * x
    return tirx.Select(x > _f32(-0.25), series, exp(x) - _f32(1.0))


expm1 = _single(_expm1, lambda x: tirx.call_pure_extern("float64", "expm1", x))
"""e^x − 1 for x ≤ 0, what Elu and its kin need; float32: a series near 0, where the difference would cancel; within 1e-6 relative."""


def _cosh(x: Expr) -> Expr:
    # By the square of e^(|x|/2), which overflows only where the result does.
    return let(exp(tirx.abs(x) * _f32(0.5)), lambda h: (_f32(0.5) * h) * h + _f32(0.5) / (h * h))


def _cosh_of_exponentials(x: Expr) -> Expr:
    half = constant(0.5, dtype_of(x))
    return let(x, lambda x: half * tirx.exp(x) + half * tirx.exp(-x))


cosh = _single(_cosh, _cosh_of_exponentials)
"""(e^x + e^−x) / 2; LLVM has no cosh of its own. float32: within 6 ulp."""


def _sinh(x: Expr) -> Expr:
    series = let(x * x, lambda s: x + x * s * _polynomial(s, (1 / 362880, 1 / 5040, 1 / 120, 1 / 6)))
    far = let(exp(tirx.abs(x) * _f32(0.5)), lambda h: (_f32(0.5) * h) * h - _f32(0.5) / (h * h))
    signed = let(far, lambda f: tirx.Select(x < _f32(0.0), -f, f))
    return tirx.Select(tirx.abs(x) < _f32(1.0), series, signed)


def _sinh_of_exponentials(x: Expr) -> Expr:
    half, one = constant(0.5, dtype_of(x)), constant(1.0, dtype_of(x))
    terms = [constant(1 / math.factorial(n), dtype_of(x)) for n in range(19, 2, -2)]

    def near(x: Expr, s: Expr) -> Expr:
        total = terms[0]
        for term in terms[1:]:
            total = total * s + term
        return x + x * s * total

    def typed(x: Expr) -> Expr:
        far = half * tirx.exp(x) - half * tirx.exp(-x)
        return tirx.Select(tirx.abs(x) < one, let(x * x, lambda s: near(x, s)), far)

    return let(x, typed)


sinh = _single(_sinh, _sinh_of_exponentials)
"""(e^x − e^−x) / 2, a series near 0, where the difference would cancel; float32: within 6 ulp."""


def _atanh(x: Expr) -> Expr:
    half, one = _f32(0.5), _f32(1.0)
    series = let(x * x, lambda s: x + x * s * _polynomial(s, tuple(1 / n for n in range(15, 2, -2))))
    return tirx.Select(tirx.abs(x) < _f32(0.3), series, half * tirx.log((one + x) / (one - x)))


atanh = _single(_atanh, lambda x: tirx.call_pure_extern("float64", "atanh", x))
"""log((1 + x)/(1 − x))/2, a series near 0, where the quotient loses x's digits (TVM's own has no such); float32: within 6 ulp."""


def _log1p(y: Expr) -> Expr:
    series = _polynomial(y, (1 / 5, -1 / 4, 1 / 3, -1 / 2, 1.0)) * y
    return tirx.Select(y < _f32(0.05), series, tirx.log(_f32(1.0) + y))


log1p = _single(_log1p, lambda y: tirx.call_pure_extern("float64", "log1p", y))
"""log(1 + y) for 0 ≤ y ≤ 1; a series near 0, where the sum loses y's digits; within 1e-6 relative."""


def softplus(x: Expr) -> Expr:
    """log(1 + e^x)."""
    return let(x, lambda x: tirx.Max(x, constant(0.0, dtype_of(x))) + log1p(exp(-tirx.abs(x))))


@widened
def mish(x: Expr) -> Expr:
    """x·tanh(log(1 + e^x)) without the logarithm: with u = 1 + e^x it is (u² − 1)/(u² + 1), u² − 1 = e^x·(e^x + 2); x above 20."""
    two, far = constant(2.0, dtype_of(x)), constant(20.0, dtype_of(x))

    def ratio(n: Expr) -> Expr:
        return n / (n + two)

    def share(power: Expr) -> Expr:
        return let(power * (power + two), ratio)

    return let(x, lambda x: x * let(exp(tirx.Min(x, far)), share))


_ERF_NEAR = (
    7.853861353153693e-5, -8.010193625184903e-4, 5.188327685732524e-3, -2.685381193529856e-2, 1.128358514861418e-1, -3.761262582423300e-1,
    1.128379165726710,
)  # fmt: skip
_ERF_FAR = (0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368, -1.26551223)


def _erf(x: Expr) -> Expr:
    near = x * let(x * x, lambda s: _polynomial(s, _ERF_NEAR))
    z = tirx.abs(x)

    def tail(t: Expr) -> Expr:
        return _f32(1.0) - t * exp(-z * z + _polynomial(t, _ERF_FAR))

    far = let(let(_f32(1.0) / (_f32(1.0) + _f32(0.5) * z), tail), lambda e: tirx.Select(x < _f32(0.0), -e, e))
    return tirx.Select(z < _f32(1.0), near, far)


erf = _single(_erf, tirx.erf)
"""float32: Cephes erff where |x| < 1, Numerical Recipes' erfc beyond (relative error 1.2e-7 of 1 − erf)."""
