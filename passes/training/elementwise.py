"""Elementwise operators as torch computes them (formulas: ONNX operator specification, opset 21), and their gradients come along."""

from __future__ import annotations

import functools
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from .site import Function, Maker, Site

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875
"""Defaults of Selu in the ONNX specification."""

_T = ir.DataType
TYPES: dict[ir.DataType, torch.dtype] = {
    _T.BOOL: torch.bool, _T.INT8: torch.int8, _T.UINT8: torch.uint8, _T.INT16: torch.int16, _T.UINT16: torch.int32,
    _T.INT32: torch.int32, _T.UINT32: torch.int64, _T.INT64: torch.int64, _T.INT4: torch.int8, _T.UINT4: torch.uint8,
}  # fmt: skip
"""Integer types, the next wider one where torch computes in none of that name."""


def _plain(function: Function) -> Maker:
    return lambda site: function


def _fold(function: Function) -> Maker:
    return lambda site: lambda *inputs: functools.reduce(function, inputs)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _round(x: Tensor) -> Tensor:
    """Half to even; the gradient is that of a staircase, zero."""
    return torch.round(x)


def _clip(site: Site) -> Function:
    def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        return x if low is None and high is None else torch.clamp(x, low, high)

    return clip


def _cast(site: Site) -> Function:
    to = ir.DataType(site.get("to")) if site.node.op_type == "Cast" else site.node.outputs[0].dtype
    if to is None or not (to.is_floating_point() or to in TYPES):
        raise site.refused(f"there is no tensor of type {to} to train with")
    dtype = site.dtype if to.is_floating_point() else TYPES[to]
    return lambda x, *_: x.to(dtype)


def _gelu(site: Site) -> Function:
    approximate = site.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def _leaky(site: Site) -> Function:
    alpha = site.get("alpha", 0.01)
    return lambda x: torch.where(x >= 0, x, x * alpha)


def _thresholded(site: Site) -> Function:
    alpha = site.get("alpha", 1.0)
    return lambda x: torch.where(x > alpha, x, torch.zeros_like(x))


def _exponential(alpha: float, gain: float = 1.0, width: float = 1.0) -> Function:
    return lambda x: gain * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0) / width))


def _celu(site: Site) -> Function:
    alpha = site.get("alpha", 1.0)
    return _exponential(alpha, width=alpha)


def _hard_sigmoid(alpha: float, beta: float) -> Function:
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


def _shrink(site: Site) -> Function:
    bias, limit = site.get("bias", 0.0), site.get("lambd", 0.5)
    return lambda x: torch.where(x < -limit, x + bias, torch.where(x > limit, x - bias, torch.zeros_like(x)))


def _modulo(site: Site) -> Function:
    function: Function = torch.fmod if site.get("fmod", 0) else torch.remainder
    return function


def _power(a: Tensor, b: Tensor) -> Tensor:
    return torch.pow(a, b).to(a.dtype)


def _mean(*inputs: Tensor) -> Tensor:
    return functools.reduce(torch.add, inputs) / len(inputs)


def _hard_swish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


def _softplus(x: Tensor) -> Tensor:
    return torch.clamp(x, min=0) + torch.log1p(torch.exp(-torch.abs(x)))


def _prelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x >= 0, x, x * slope)


def _infinite(site: Site) -> Function:
    positive, negative = site.get("detect_positive", 1), site.get("detect_negative", 1)

    def infinite(x: Tensor) -> Tensor:
        signs = (x > 0) if not negative else (x < 0) if not positive else torch.ones_like(x, dtype=torch.bool)
        return torch.isinf(x) & signs

    return infinite


_UNARY: dict[str, Any] = {
    "Abs": torch.abs, "Acos": torch.acos, "Acosh": torch.acosh, "Asin": torch.asin, "Asinh": torch.asinh, "Atan": torch.atan,
    "Atanh": torch.atanh, "Ceil": torch.ceil, "Cos": torch.cos, "Cosh": torch.cosh, "Erf": torch.erf, "Exp": torch.exp,
    "Floor": torch.floor, "Log": torch.log, "Neg": torch.neg, "Not": torch.logical_not, "Reciprocal": torch.reciprocal,
    "Relu": torch.relu, "Round": _round, "Sigmoid": torch.sigmoid, "Sign": torch.sign, "Sin": torch.sin, "Sinh": torch.sinh,
    "Sqrt": torch.sqrt, "Tan": torch.tan, "Tanh": torch.tanh, "Softsign": functional.softsign, "IsNaN": torch.isnan,
    "Identity": lambda x: x, "Softplus": _softplus, "HardSwish": _hard_swish, "Mish": lambda x: x * torch.tanh(_softplus(x)),
}  # fmt: skip

_BINARY: dict[str, Any] = {
    "Div": _divide, "Pow": _power, "PRelu": _prelu, "Sub": torch.sub, "Equal": torch.eq, "Greater": torch.gt, "Less": torch.lt,
    "GreaterOrEqual": torch.ge, "LessOrEqual": torch.le, "And": torch.logical_and, "Or": torch.logical_or, "Xor": torch.logical_xor,
    "Where": torch.where, "Mean": _mean,
}  # fmt: skip

_VARIADIC: dict[str, Any] = {"Add": torch.add, "Sum": torch.add, "Mul": torch.mul, "Max": torch.maximum, "Min": torch.minimum}

MAKERS: dict[str, Maker] = {
    **{op: _plain(function) for op, function in (_UNARY | _BINARY).items()},
    **{op: _fold(function) for op, function in _VARIADIC.items()},
    "Clip": _clip, "Cast": _cast, "CastLike": _cast, "Gelu": _gelu, "LeakyRelu": _leaky, "ThresholdedRelu": _thresholded,
    "Elu": lambda site: _exponential(site.get("alpha", 1.0)), "Celu": _celu, "Shrink": _shrink, "Mod": _modulo, "IsInf": _infinite,
    "Selu": lambda site: _exponential(site.get("alpha", SELU_ALPHA), site.get("gamma", SELU_GAMMA)),
    "HardSigmoid": lambda site: _hard_sigmoid(site.get("alpha", 0.2), site.get("beta", 0.5)),
}  # fmt: skip
