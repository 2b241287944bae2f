"""Softmax, layer, instance and group normalization, local response: two passes, since the squares of a one-pass variance cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import onnx_ir as ir
from jax import lax

from gatewright.frontend.queries import integer, real

from . import Lowering, Value
from .elementwise import like


def _softmax(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, axis = inputs[0], integer(node, "axis", -1)
    e = jnp.exp(x - jnp.max(x, axis=axis, keepdims=True))
    return e / jnp.sum(e, axis=axis, keepdims=True)


def _log_softmax(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, axis = inputs[0], integer(node, "axis", -1)
    shifted = x - jnp.max(x, axis=axis, keepdims=True)
    return shifted - jnp.log(jnp.sum(jnp.exp(shifted), axis=axis, keepdims=True))


def _hardmax(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, axis = inputs[0], integer(node, "axis", -1) % inputs[0].ndim
    along = np.arange(x.shape[axis]).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return (jnp.argmax(x, axis=axis, keepdims=True) == along).astype(x.dtype)


def _moments(x: Value, axes: Sequence[int], epsilon: float) -> tuple[Value, Value, Value]:
    """Mean, 1/√(variance + ε) and x − mean over ``axes``, which stay."""
    mean = jnp.mean(x, axis=tuple(axes), keepdims=True)
    centred = x - mean
    variance = jnp.mean(centred * centred, axis=tuple(axes), keepdims=True)
    return mean, 1 / jnp.sqrt(variance + like(epsilon, x)), centred


def _layer_normalization(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale = inputs[0], inputs[1]
    bias = inputs[2] if len(inputs) > 2 else None
    axes = range(integer(node, "axis", -1) % x.ndim, x.ndim)
    # stash_type 1: the statistics are float32's whatever the data's type.
    wide = x.astype(jnp.float32) if integer(node, "stash_type", 1) == 1 and x.dtype != jnp.float64 else x
    mean, inverse, centred = _moments(wide, axes, real(node, "epsilon", 1e-5))
    y = (centred * inverse).astype(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_normalization(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale = inputs
    axes = tuple(range(integer(node, "axis", -1) % x.ndim, x.ndim))
    wide = x.astype(jnp.float32) if x.dtype != jnp.float64 else x
    power = jnp.mean(wide * wide, axis=axes, keepdims=True)
    return (wide / jnp.sqrt(power + like(real(node, "epsilon", 1e-5), wide))).astype(x.dtype) * scale


def _instance_normalization(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale, bias = inputs
    _, inverse, centred = _moments(x, range(2, x.ndim), real(node, "epsilon", 1e-5))
    along = (1, -1, *[1] * (x.ndim - 2))
    return centred * inverse * scale.reshape(along) + bias.reshape(along)


def _group_normalization(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    x, scale, bias = inputs
    groups = integer(node, "num_groups", 1)
    rows = x.reshape(x.shape[0], groups, -1)
    _, inverse, centred = _moments(rows, (2,), real(node, "epsilon", 1e-5))
    along = (1, -1, *[1] * (x.ndim - 2))
    return (centred * inverse).reshape(x.shape) * scale.reshape(along) + bias.reshape(along)


def _mean_variance(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    """(x − mean) / (deviation + 1e-9), as ONNX's function body has it."""
    x = inputs[0]
    axes = tuple(int(a) % x.ndim for a in node.attributes.get_ints("axes", (0, 2, 3)) or ())
    centred = x - jnp.mean(x, axis=axes, keepdims=True)
    return centred / (jnp.sqrt(jnp.mean(centred * centred, axis=axes, keepdims=True)) + like(1e-9, x))


def _unit_norm(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    """x over its L1 or L2 norm along an axis; a norm of 0 leaves zeros."""
    x, axis = inputs[0], integer(node, "axis", -1)
    if integer(node, "p", 2) == 1:
        norm = jnp.sum(jnp.abs(x), axis=axis, keepdims=True)
    else:
        norm = jnp.sqrt(jnp.sum(x * x, axis=axis, keepdims=True))
    return x / jnp.where(norm == 0, like(1, x), norm)


def _local_response(scope: Any, node: ir.Node, inputs: list[Any]) -> Value:
    """x / (bias + alpha/size·Σ x²)^beta, the sum over ``size`` neighbouring channels."""
    x, size = inputs[0], integer(node, "size", 1)
    alpha, beta, bias = (real(node, name, default) for name, default in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    pads = [(0, 0), ((size - 1) // 2, size // 2), *[(0, 0)] * (x.ndim - 2)]
    window = (1, size, *[1] * (x.ndim - 2))
    total = lax.reduce_window(x * x, np.zeros((), x.dtype), lax.add, window, (1,) * x.ndim, pads)
    return x / (like(bias, x) + like(alpha / size, x) * total) ** like(beta, x)


LOWERINGS: dict[str, Lowering] = {
    "Softmax": _softmax, "LogSoftmax": _log_softmax, "Hardmax": _hardmax, "LayerNormalization": _layer_normalization,
    "RMSNormalization": _rms_normalization, "InstanceNormalization": _instance_normalization, "GroupNormalization": _group_normalization,
    "MeanVarianceNormalization": _mean_variance, "LpNormalization": _unit_norm, "LRN": _local_response,
}  # fmt: skip
