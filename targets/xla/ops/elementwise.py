"""Elementwise operators, by the formulas of the ONNX operator specification (opset 21)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from gatewright.frontend.queries import real

from . import Lowering, Value

Function = Callable[[ir.Node, list[Any]], Value]
"""Of the node and its inputs (None where an optional one is absent)."""


def like(value: float, x: Value) -> Value:
    """A constant of ``x``'s type."""
    return np.asarray(value).astype(x.dtype)


def is_float(x: Value) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.floating))


def _unary(function: Callable[[Value], Value]) -> Function:
    return lambda node, v: function(v[0])


def _binary(function: Callable[[Value, Value], Value]) -> Function:
    return lambda node, v: function(v[0], v[1])


def _fold(function: Callable[[Value, Value], Value]) -> Function:
    return lambda node, v: reduce(function, v)


def _divide(a: Value, b: Value) -> Value:
    if is_float(a):
        return jnp.divide(a, b)
    # Integer division truncates towards zero; by 0 it gives 0, as the reference's does.
    a, b = jnp.broadcast_arrays(a, b)
    return jnp.where(b == 0, jnp.zeros_like(a), lax.div(a, b))


def _modulo(node: ir.Node, v: list[Any]) -> Value:
    a, b = jnp.broadcast_arrays(*v)
    found = lax.rem(a, b) if node.attributes.get_int("fmod", 0) else jnp.mod(a, b)
    return found if is_float(a) else jnp.where(b == 0, jnp.zeros_like(a), found)


def _hard_sigmoid(x: Value, alpha: float, beta: float) -> Value:
    return jnp.clip(like(alpha, x) * x + like(beta, x), like(0, x), like(1, x))


def _gelu(node: ir.Node, x: Value) -> Value:
    half, one = like(0.5, x), like(1, x)
    if node.attributes.get_string("approximate", "none") == "tanh":
        inner = like(math.sqrt(2 / math.pi), x) * (x + like(0.044715, x) * x * x * x)
        return half * x * (one + jnp.tanh(inner))
    return half * x * (one + lax.erf(x * like(math.sqrt(0.5), x)))


def _unit(x: Value, alpha: float, scale: float = 1.0, width: float = 1.0) -> Value:
    below = like(alpha, x) * jnp.expm1(jnp.minimum(x, like(0, x)) / like(width, x))
    return like(scale, x) * jnp.where(x > 0, x, below)


def _clip(node: ir.Node, v: list[Any]) -> Value:
    x = v[0]
    low, high = (v[i] if len(v) > i else None for i in (1, 2))
    x = x if low is None else jnp.maximum(x, jnp.asarray(low, x.dtype))
    return x if high is None else jnp.minimum(x, jnp.asarray(high, x.dtype))


def _power(node: ir.Node, v: list[Any]) -> Value:
    base, exponent = v
    if isinstance(exponent, np.ndarray) and exponent.size == 1:
        known = float(exponent.reshape(-1)[0])
        if known in (1.0, 2.0, 3.0):
            product = reduce(lambda p, q: p * q, [base] * int(known))
            return jnp.broadcast_to(product, jnp.broadcast_shapes(base.shape, exponent.shape))
        if known == 0.5 and is_float(base):
            return jnp.broadcast_to(jnp.sqrt(base), jnp.broadcast_shapes(base.shape, exponent.shape))
    if is_float(base):
        return jnp.power(base, exponent.astype(base.dtype))
    if is_float(exponent):
        return jnp.power(base.astype(jnp.float64), exponent.astype(jnp.float64)).astype(base.dtype)
    return jnp.power(base, exponent.astype(base.dtype))


def cast(x: Value, dtype: np.dtype[Any]) -> Value:
    """ONNX's Cast between standard types: to bool by "is not zero", to integers towards zero."""
    if dtype == np.bool_:
        return x != 0
    return jnp.asarray(x).astype(dtype)


def _is_infinite(node: ir.Node, v: list[Any]) -> Value:
    x = v[0]
    found = jnp.zeros(x.shape, bool)
    if node.attributes.get_int("detect_positive", 1):
        found = found | (x == jnp.inf)
    return found | (x == -jnp.inf) if node.attributes.get_int("detect_negative", 1) else found


def _shift(node: ir.Node, v: list[Any]) -> Value:
    a, b = jnp.broadcast_arrays(*v)
    return lax.shift_left(a, b) if node.attributes.get_string("direction", "LEFT") == "LEFT" else lax.shift_right_logical(a, b)


def _shrink(node: ir.Node, v: list[Any]) -> Value:
    x = v[0]
    edge, bias = real(node, "lambd", 0.5), like(real(node, "bias", 0.0), x)
    return jnp.where(x < -edge, x + bias, jnp.where(x > edge, x - bias, like(0, x)))


def _leaky(x: Value, slope: Value) -> Value:
    return jnp.where(x >= 0, x, x * slope)


def _softplus(x: Value) -> Value:
    return jnp.maximum(x, like(0, x)) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _sigmoid(x: Value) -> Value:
    # Two forms, so that exp never overflows.
    e = jnp.exp(-jnp.abs(x))
    return jnp.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _swish(node: ir.Node, v: list[Any]) -> Value:
    return v[0] * _sigmoid(like(real(node, "alpha", 1.0), v[0]) * v[0])


def _selu(node: ir.Node, v: list[Any]) -> Value:
    return _unit(v[0], real(node, "alpha", 1.67326319217681884765625), real(node, "gamma", 1.05070102214813232421875))


FUNCTIONS: dict[str, Function] = {
    "Abs": _unary(jnp.abs), "Acos": _unary(jnp.arccos), "Acosh": _unary(jnp.arccosh), "Asin": _unary(jnp.arcsin),
    "Asinh": _unary(jnp.arcsinh), "Atan": _unary(jnp.arctan), "Atanh": _unary(jnp.arctanh), "BitwiseNot": _unary(jnp.bitwise_not),
    "Ceil": _unary(jnp.ceil), "Cos": _unary(jnp.cos), "Cosh": _unary(jnp.cosh), "Erf": _unary(lax.erf), "Exp": _unary(jnp.exp),
    "Floor": _unary(jnp.floor), "Identity": _unary(lambda x: x), "IsInf": _is_infinite, "IsNaN": _unary(jnp.isnan),
    "Log": _unary(jnp.log), "Neg": _unary(jnp.negative), "Not": _unary(jnp.logical_not),
    "Reciprocal": _unary(lambda x: like(1, x) / x), "Relu": _unary(lambda x: jnp.maximum(x, like(0, x))), "Round": _unary(jnp.rint),
    "Sigmoid": _unary(_sigmoid), "Sin": _unary(jnp.sin), "Sinh": _unary(jnp.sinh), "Softplus": _unary(_softplus),
    "Sqrt": _unary(jnp.sqrt), "Tan": _unary(jnp.tan), "Tanh": _unary(jnp.tanh), "Sign": _unary(jnp.sign),
    "Softsign": _unary(lambda x: x / (1 + jnp.abs(x))), "Mish": _unary(lambda x: x * jnp.tanh(_softplus(x))),
    "Gelu": lambda n, v: _gelu(n, v[0]), "Selu": _selu, "Swish": _swish,
    "HardSwish": _unary(lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5)),
    "HardSigmoid": lambda n, v: _hard_sigmoid(v[0], real(n, "alpha", 0.2), real(n, "beta", 0.5)),
    "LeakyRelu": lambda n, v: _leaky(v[0], like(real(n, "alpha", 0.01), v[0])), "PRelu": _binary(_leaky),
    "ThresholdedRelu": lambda n, v: jnp.where(v[0] > like(real(n, "alpha", 1.0), v[0]), v[0], like(0, v[0])),
    "Elu": lambda n, v: _unit(v[0], real(n, "alpha", 1.0)),
    "Celu": lambda n, v: _unit(v[0], real(n, "alpha", 1.0), width=real(n, "alpha", 1.0)),
    "Clip": _clip, "Pow": _power, "Mod": _modulo, "BitShift": _shift, "Shrink": _shrink,
    "Mean": lambda n, v: reduce(jnp.add, v) / like(len(v), v[0]), "Where": lambda n, v: jnp.where(v[0], v[1], v[2]),
    "Add": _binary(jnp.add), "Sub": _binary(jnp.subtract), "Mul": _binary(jnp.multiply), "Div": _binary(_divide),
    "Sum": _fold(jnp.add), "Max": _fold(jnp.maximum), "Min": _fold(jnp.minimum),
    "And": _binary(jnp.logical_and), "Or": _binary(jnp.logical_or), "Xor": _binary(jnp.logical_xor),
    "BitwiseAnd": _binary(jnp.bitwise_and), "BitwiseOr": _binary(jnp.bitwise_or), "BitwiseXor": _binary(jnp.bitwise_xor),
    "Equal": _binary(jnp.equal), "Greater": _binary(jnp.greater), "GreaterOrEqual": _binary(jnp.greater_equal),
    "Less": _binary(jnp.less), "LessOrEqual": _binary(jnp.less_equal),
}  # fmt: skip


def _function(function: Function) -> Lowering:
    return lambda scope, node, inputs: function(node, inputs)


def _cast(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    dtype = node.outputs[0].dtype
    assert dtype is not None
    return cast(inputs[0], np.dtype(dtype.numpy()))


def _batch_normalization(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale, bias, mean, variance = inputs
    along = (1, -1, *[1] * (x.ndim - 2))
    factor = scale / jnp.sqrt(variance + like(real(node, "epsilon", 1e-5), variance))
    return x * factor.reshape(along) + (bias - mean * factor).reshape(along)


LOWERINGS: dict[str, Lowering] = {
    **{op: _function(function) for op, function in FUNCTIONS.items()}, "Cast": _cast, "CastLike": _cast,
    "BatchNormalization": _batch_normalization,
}  # fmt: skip
