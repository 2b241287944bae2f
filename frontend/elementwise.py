"""Elementwise functions of the canonical operator set, once: for float tensors in the reference, in float64 for tables.

``FUNCTIONS`` maps an op type to a function of (node, inputs) that keeps the dtype of its first input. The formulas are
those of the ONNX operator specification, opset 21.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .queries import real

Array = NDArray[Any]
SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults of Selu in the ONNX specification."""

Function = Callable[[ir.Node, list[Any]], Array]


def evaluate(node: ir.Node, inputs: Sequence[Array | None]) -> Array:
    """The node's one output for these inputs (None where an optional one is absent)."""
    return FUNCTIONS[node.op_type](node, list(inputs))


def erf(x: Array) -> Array:
    """The error function, by the standard library's correctly rounded-to-an-ulp double (numpy has none)."""
    found = np.frompyfunc(math.erf, 1, 1)(x.astype(np.float64))
    return np.asarray(found, np.float64).astype(x.dtype)


def _sigmoid(x: Array) -> Array:
    # Two forms, so that exp never overflows.
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(x.dtype))


def _softplus(x: Array) -> Array:
    return np.asarray((np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))).astype(x.dtype))


def _gelu(node: ir.Node, x: Array) -> Array:
    approximate = node.attributes.get_string("approximate", "none")
    if approximate == "tanh":
        inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
        return np.asarray((0.5 * x * (1 + np.tanh(inner))).astype(x.dtype))
    return np.asarray((0.5 * x * (1 + erf(x / np.asarray(math.sqrt(2), x.dtype)))).astype(x.dtype))


def _hard_sigmoid(x: Array, alpha: float, beta: float) -> Array:
    return np.asarray(np.clip(np.asarray(alpha, x.dtype) * x + np.asarray(beta, x.dtype), 0, 1).astype(x.dtype))


def _clip(node: ir.Node, inputs: list[Any]) -> Array:
    x, low, high = inputs[0], inputs[1] if len(inputs) > 1 else None, inputs[2] if len(inputs) > 2 else None
    x = x if low is None else np.maximum(x, low.astype(x.dtype))
    return np.asarray(x if high is None else np.minimum(x, high.astype(x.dtype)))


def quotient(a: Array, b: Array) -> Array:
    """Of integers, towards zero, as ONNX has it (numpy's floors); by 0 it is 0, and the least integer by −1 stays what it is."""
    with np.errstate(divide="ignore", over="ignore"):
        floor, rest = np.floor_divide(a, b), np.remainder(a, b)
    return np.asarray(floor + ((rest != 0) & ((a < 0) != (b < 0))), a.dtype)


def _divide(node: ir.Node, inputs: list[Any]) -> Array:
    a, b = inputs
    return quotient(a, b) if np.issubdtype(a.dtype, np.integer) else np.asarray(np.divide(a, b))


def _modulo(node: ir.Node, inputs: list[Any]) -> Array:
    """The sign is the divisor's, or with fmod the dividend's; of integers by 0 it is 0."""
    a, b = inputs
    with np.errstate(divide="ignore" if a.dtype.kind in "iu" else "warn", over="ignore"):
        return np.asarray(np.fmod(a, b) if node.attributes.get_int("fmod", 0) else np.mod(a, b))


def _exponential_unit(x: Array, alpha: float, scale: float = 1.0, width: float = 1.0) -> Array:
    negative = alpha * np.expm1(np.minimum(x, 0) / width)
    return np.asarray((scale * np.where(x > 0, x, negative)).astype(x.dtype))


def _unary(function: Callable[[Array], Array]) -> Function:
    return lambda node, inputs: function(inputs[0]).astype(inputs[0].dtype)


def _fold(function: Callable[[Array, Array], Array]) -> Function:
    def variadic(node: ir.Node, inputs: list[Any]) -> Array:
        total: Array = inputs[0]
        for other in inputs[1:]:
            total = function(total, other)
        return total

    return variadic


FUNCTIONS: dict[str, Function] = {
    "Abs": _unary(np.abs), "Neg": _unary(np.negative), "Sqrt": _unary(np.sqrt), "Exp": _unary(np.exp), "Log": _unary(np.log),
    "Reciprocal": _unary(np.reciprocal), "Floor": _unary(np.floor), "Ceil": _unary(np.ceil), "Round": _unary(np.rint),
    "Sign": _unary(np.sign), "Sin": _unary(np.sin), "Cos": _unary(np.cos), "Tanh": _unary(np.tanh), "Erf": _unary(erf),
    "Sigmoid": _unary(_sigmoid), "Softplus": _unary(_softplus), "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Softsign": _unary(lambda x: x / (1 + np.abs(x))), "Mish": _unary(lambda x: x * np.tanh(_softplus(x))),
    "HardSwish": _unary(lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5)), "Gelu": lambda n, v: _gelu(n, v[0]),
    "HardSigmoid": lambda n, v: _hard_sigmoid(v[0], real(n, "alpha", 0.2), real(n, "beta", 0.5)),
    "LeakyRelu": lambda n, v: np.where(v[0] >= 0, v[0], v[0] * np.asarray(real(n, "alpha", 0.01), v[0].dtype)),
    "ThresholdedRelu": lambda n, v: np.where(v[0] > real(n, "alpha", 1.0), v[0], 0).astype(v[0].dtype),
    "Elu": lambda n, v: _exponential_unit(v[0], real(n, "alpha", 1.0)),
    "Celu": lambda n, v: _exponential_unit(v[0], real(n, "alpha", 1.0), width=real(n, "alpha", 1.0)),
    "Selu": lambda n, v: _exponential_unit(v[0], real(n, "alpha", SELU_ALPHA), real(n, "gamma", SELU_GAMMA)),
    "PRelu": lambda n, v: np.where(v[0] >= 0, v[0], v[0] * v[1]).astype(v[0].dtype),
    "Clip": _clip, "Add": _fold(np.add), "Sub": _fold(np.subtract), "Mul": _fold(np.multiply), "Sum": _fold(np.add), "Div": _divide,
    "Mod": _modulo,
    "Mean": lambda n, v: (_fold(np.add)(n, v) / np.asarray(len(v), v[0].dtype)).astype(v[0].dtype),
    "Max": _fold(np.maximum), "Min": _fold(np.minimum), "Pow": lambda n, v: np.power(v[0], v[1]).astype(v[0].dtype),
}  # fmt: skip
