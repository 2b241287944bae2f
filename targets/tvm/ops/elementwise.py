"""Elementwise operators on expressions, by the formulas of the ONNX operator specification (opset 21)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import tirx

from gatewright.frontend.queries import real

from ..kernel import Kernel
from ..lazy import Expr, Lazy, broadcast_index, cast, clamp, constant, dtype_of, elementwise, given, let
from ..steps import Step
from . import Lowering
from .functions import atanh, cosh, erf, exp, expm1, mish, sigmoid, sinh, softplus, tanh, widened
from .wholes import add, multiply, negative, quotient, remainder, subtract

Function = Callable[[ir.Node, list[Any]], Expr]
"""Of the node and its inputs' elements (None where an optional one is absent)."""


def like(value: float, x: Expr) -> Expr:
    """A constant of ``x``'s type."""
    return constant(value, dtype_of(x))


def is_float(x: Expr) -> bool:
    return dtype_of(x).startswith("float")


def is_signed(x: Expr) -> bool:
    return dtype_of(x).startswith("int")


def _unary(function: Callable[[Expr], Expr]) -> Function:
    return lambda node, v: function(v[0])


def _binary(function: Callable[[Expr, Expr], Expr]) -> Function:
    return lambda node, v: function(v[0], v[1])


def _fold(function: Callable[[Expr, Expr], Expr]) -> Function:
    return lambda node, v: reduce(function, v)


def _modulo(node: ir.Node, v: list[Any]) -> Expr:
    a, b = v
    if node.attributes.get_int("fmod", 0):
        if is_float(a):
            return let(a, lambda a: let(b, lambda b: a - b * tirx.trunc(a / b)))
        return remainder(tirx.Mod, a, b)
    return remainder(tirx.floormod, a, b)


def _equal(a: Expr, b: Expr) -> Expr:
    """Of booleans as integers: LLVM would compare them as floats."""
    return tirx.EQ(cast(a, "int8"), cast(b, "int8")) if dtype_of(a) == "bool" else tirx.EQ(a, b)


def _sign(x: Expr) -> Expr:
    zero, one = like(0, x), like(1, x)
    if not (is_float(x) or is_signed(x)):
        return tirx.Select(x > zero, one, zero)
    rest = tirx.Select(x < zero, like(-1, x), tirx.Select(tirx.isnan(x), x, zero) if is_float(x) else zero)
    return tirx.Select(x > zero, one, rest)


def absolute(x: Expr) -> Expr:
    if is_signed(x):
        return let(x, lambda x: tirx.Select(x < like(0, x), negative(x), x))
    return tirx.abs(x) if is_float(x) else x


def _hard_sigmoid(x: Expr, alpha: float, beta: float) -> Expr:
    return clamp(like(alpha, x) * x + like(beta, x), like(0, x), like(1, x))


def _gelu(node: ir.Node, x: Expr) -> Expr:
    half = like(0.5, x)
    if node.attributes.get_string("approximate", "none") == "tanh":
        inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
        return half * x * (like(1, x) + tanh(inner))
    return half * x * (like(1, x) + erf(x * like(math.sqrt(0.5), x)))


def _elu(x: Expr, alpha: float, scale: float = 1.0, width: float = 1.0) -> Expr:
    below = like(alpha, x) * expm1(tirx.Min(x, like(0, x)) / like(width, x))
    return like(scale, x) * tirx.Select(x <= like(0, x), below, x)


def _extreme(first: Callable[[Expr, Expr], Expr], whole: Callable[[Expr, Expr], Expr]) -> Callable[[Expr, Expr], Expr]:
    """Max or Min; not-a-number on either side is the result."""

    def apply(a: Expr, b: Expr) -> Expr:
        if not is_float(a):
            return whole(a, b)
        return let(a, lambda a: let(b, lambda b: tirx.Select(tirx.Or(first(a, b), tirx.isnan(a)), a, b)))

    return apply


def _clip(node: ir.Node, v: list[Any]) -> Expr:
    x = v[0]
    low, high = (v[i] if len(v) > i and v[i] is not None else None for i in (1, 2))
    return clamp(x, low if low is None else cast(low, dtype_of(x)), high if high is None else cast(high, dtype_of(x)))


def _power(node: ir.Node, v: list[Any]) -> Expr:
    base, exponent = v
    known = float(exponent.value) if isinstance(exponent, tirx.FloatImm | tirx.IntImm) else None
    if known in (1.0, 2.0, 3.0):
        return let(base, lambda b: reduce(multiply, [b] * int(known)))
    if known == 0.5 and is_float(base):
        return tirx.sqrt(base)
    if is_float(base):
        return tirx.pow(base, cast(exponent, dtype_of(base)))
    return cast(tirx.pow(cast(base, "float64"), cast(exponent, "float64")), dtype_of(base))


def _cast(x: Expr, dtype: str) -> Expr:
    if dtype == "bool":
        return x != like(0, x) if dtype_of(x) != "bool" else x
    if dtype_of(x) == "bool":
        return tirx.Select(x, constant(1, dtype), constant(0, dtype))
    return cast(x, dtype)


def _is_infinite(node: ir.Node, x: Expr) -> Expr:
    infinity = like(math.inf, x)
    found = []
    if node.attributes.get_int("detect_positive", 1):
        found.append(tirx.EQ(x, infinity))
    if node.attributes.get_int("detect_negative", 1):
        found.append(tirx.EQ(x, like(-math.inf, x)))
    return reduce(tirx.Or, found) if found else constant(False, "bool")


def _shift(node: ir.Node, v: list[Any]) -> Expr:
    """Of unsigned integers; C leaves undefined what is shifted by all of its bits or more."""

    def shifted(x: Expr, by: Expr) -> Expr:
        last = like(int(dtype_of(x).removeprefix("uint")) - 1, by)
        within = tirx.Min(by, last)
        found = x << within if node.attributes.get_string("direction", "LEFT") == "LEFT" else x >> within
        return tirx.Select(by > last, like(0, x), found)

    return let(v[0], lambda x: let(v[1], lambda by: shifted(x, by)))


def _shrink(node: ir.Node, x: Expr) -> Expr:
    edge, bias = like(real(node, "lambd", 0.5), x), like(real(node, "bias", 0.0), x)
    return tirx.Select(x < -edge, x + bias, tirx.Select(x > edge, x - bias, like(0, x)))


def _mean(node: ir.Node, v: list[Any]) -> Expr:
    return reduce(lambda a, b: a + b, v) / like(len(v), v[0])


def _leaky(x: Expr, slope: Expr) -> Expr:
    return tirx.Select(x >= like(0, x), x, x * slope)


def _threshold(x: Expr, alpha: float) -> Expr:
    return tirx.Select(x > like(alpha, x), x, like(0, x))


def _selu(node: ir.Node, x: Expr) -> Expr:
    return _elu(x, real(node, "alpha", 1.67326319217681884765625), real(node, "gamma", 1.05070102214813232421875))


def _celu(x: Expr, alpha: float) -> Expr:
    return _elu(x, alpha, width=alpha)


def _once(function: Callable[[ir.Node, Expr], Expr]) -> Function:
    """A function that uses its argument more than once."""
    return lambda node, v: let(v[0], lambda x: function(node, x))


FUNCTIONS: dict[str, Function] = {
    "Abs": _unary(absolute), "Acos": _unary(widened(tirx.acos)), "Acosh": _unary(widened(tirx.acosh)), "Asin": _unary(widened(tirx.asin)),
    "Asinh": _unary(widened(tirx.asinh)), "Atan": _unary(widened(tirx.atan)), "Atanh": _unary(atanh),
    "BitwiseNot": _unary(tirx.bitwise_not),
    "Ceil": _unary(tirx.ceil),
    "Cos": _unary(tirx.cos), "Cosh": _unary(cosh), "Erf": _unary(erf), "Exp": _unary(exp), "Floor": _unary(tirx.floor),
    "Identity": _unary(lambda x: x), "IsInf": _once(_is_infinite), "IsNaN": _unary(tirx.isnan), "Log": _unary(tirx.log),
    "Neg": _unary(negative), "Not": _unary(tirx.Not), "Reciprocal": _unary(lambda x: like(1, x) / x),
    "Relu": _unary(lambda x: clamp(x, like(0, x), None)),
    "Round": _unary(tirx.round), "Sigmoid": _unary(sigmoid), "Sin": _unary(tirx.sin), "Sinh": _unary(sinh),
    "Softplus": _unary(softplus), "Sqrt": _unary(tirx.sqrt), "Tan": _unary(widened(tirx.tan)), "Tanh": _unary(tanh),
    "Sign": _once(lambda n, x: _sign(x)), "Softsign": _once(lambda n, x: x / (like(1, x) + tirx.abs(x))),
    "Mish": _once(lambda n, x: mish(x)), "Gelu": _once(_gelu), "Selu": _once(_selu),
    "HardSwish": _once(lambda n, x: x * _hard_sigmoid(x, 1 / 6, 0.5)),
    "HardSigmoid": lambda n, v: _hard_sigmoid(v[0], real(n, "alpha", 0.2), real(n, "beta", 0.5)),
    "LeakyRelu": _once(lambda n, x: _leaky(x, like(real(n, "alpha", 0.01), x))),
    "PRelu": lambda n, v: let(v[0], lambda x: _leaky(x, v[1])),
    "ThresholdedRelu": _once(lambda n, x: _threshold(x, real(n, "alpha", 1.0))),
    "Elu": _once(lambda n, x: _elu(x, real(n, "alpha", 1.0))), "Celu": _once(lambda n, x: _celu(x, real(n, "alpha", 1.0))),
    "Clip": _clip, "Pow": _power, "Mod": _modulo, "Mean": _mean, "BitShift": _shift, "Shrink": _once(_shrink),
    "Where": lambda n, v: tirx.Select(v[0], v[1], v[2]),
    "Add": _binary(add), "Sub": _binary(subtract), "Mul": _binary(multiply), "Div": _binary(quotient),
    "Sum": _fold(lambda a, b: a + b), "Max": _fold(_extreme(tirx.GT, tirx.Max)), "Min": _fold(_extreme(tirx.LT, tirx.Min)),
    "And": _binary(tirx.And), "Or": _binary(tirx.Or), "Xor": _binary(lambda a, b: tirx.Not(_equal(a, b))),
    "BitwiseAnd": _binary(tirx.bitwise_and), "BitwiseOr": _binary(tirx.bitwise_or), "BitwiseXor": _binary(tirx.bitwise_xor),
    "Equal": _binary(_equal), "Greater": _binary(tirx.GT), "GreaterOrEqual": _binary(tirx.GE), "Less": _binary(tirx.LT),
    "LessOrEqual": _binary(tirx.LE),
}  # fmt: skip
"""By operator."""


def _function(op: str) -> Lowering:
    def lower(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
        node, shape = step.node, step.output.shape
        function = FUNCTIONS[op]

        def at(*index: Expr) -> Expr:
            elements = [None if x is None else x.at(*broadcast_index(index, x.shape)) for x in inputs]
            return cast(function(node, elements), step.output.dtype)

        return Lazy(shape, step.output.dtype, at)

    return lower


def _cast_node(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x = given(inputs[0])
    return elementwise(lambda e: _cast(e, step.output.dtype), [x], x.shape, step.output.dtype)


def _batch_normalization(kernel: Kernel, step: Step, inputs: Sequence[Lazy | None]) -> Lazy:
    x, *parameters = map(given, inputs)
    node = step.node
    epsilon = real(node, "epsilon", 1e-5)
    values = [p.value for p in parameters]
    if all(v is not None for v in values):
        scale, bias, mean, variance = (np.asarray(v, np.float64) for v in values)
        factor = scale / np.sqrt(variance + epsilon)
        by, plus = (kernel.parameter(a.astype(x.dtype)) for a in (factor, bias - mean * factor))
        return Lazy(x.shape, x.dtype, lambda *i: x.at(*i) * by.at(i[1]) + plus.at(i[1]))

    def at(*index: Expr) -> Expr:
        s, b, m, v = (p.at(index[1]) for p in parameters)
        return (x.at(*index) - m) / tirx.sqrt(v + like(epsilon, v)) * s + b

    return Lazy(x.shape, x.dtype, at)


LOWERINGS: dict[str, Lowering] = {
    **{op: _function(op) for op in FUNCTIONS}, "Cast": _cast_node, "CastLike": _cast_node, "BatchNormalization": _batch_normalization,
}  # fmt: skip
