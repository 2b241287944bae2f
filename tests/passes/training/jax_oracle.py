"""Losses of small graphs in JAX, written from the papers' formulas, whose gradients judge those of the executor. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx_ir as ir

from gatewright.frontend.edit import attribute
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant
from gatewright.passes.training.fakequant import BINARY_REACH, Grids

jax.config.update("jax_platforms", "cpu")
HIGHEST = jax.lax.Precision.HIGHEST
BOUNDS = {ir.DataType.INT4: (-8, 7), ir.DataType.UINT4: (0, 15), ir.DataType.INT8: (-128, 127), ir.DataType.UINT8: (0, 255)}


def summed(gradient: Any, shape: tuple[int, ...]) -> Any:
    """The gradient of what was broadcast to ``gradient``'s shape."""
    lead = gradient.ndim - len(shape)
    axes = (*range(lead), *(i + lead for i, d in enumerate(shape) if d == 1 and gradient.shape[i + lead] > 1))
    return gradient.sum(axes).reshape(shape)


def fake_quantized(x: Any, s: Any, z: Any, lo: int, hi: int) -> Any:
    """s·(clip(round(x/s) + z, lo, hi) − z), with the gradients of LSQ (Esser et al. 2020, equations 2 and 3) for x and s."""

    @jax.custom_vjp
    def quantized(x: Any, s: Any) -> Any:
        return s * (jnp.clip(jnp.round(x / s) + z, lo, hi) - z)

    def forwards(x: Any, s: Any) -> Any:
        return quantized(x, s), (x, s)

    def backwards(kept: Any, g: Any) -> Any:
        x, s = kept
        q = jnp.round(x / s) + z
        inside = (q >= lo) & (q <= hi)
        of_s = jnp.where(inside, jnp.round(x / s) - x / s, jnp.clip(q, lo, hi) - z)
        return jnp.where(inside, g, 0.0), summed(g * of_s, s.shape)

    quantized.defvjp(forwards, backwards)
    return quantized(x, s)


def binarized(w: Any, s: Any) -> Any:
    """s·sign(w); w learns as the hard tanh of w/(reach·s) says (Courbariaux et al. 2015; Hubara et al. 2016, equation 4)."""

    @jax.custom_vjp
    def quantized(w: Any, s: Any) -> Any:
        return s * jnp.where(w >= 0, 1.0, -1.0)

    def forwards(w: Any, s: Any) -> Any:
        return quantized(w, s), (w, s)

    def backwards(kept: Any, g: Any) -> Any:
        w, s = kept
        reach = s * BINARY_REACH
        return jnp.where(jnp.abs(w) <= reach, g * s / reach, 0.0), summed(g * jnp.where(w >= 0, 1.0, -1.0), s.shape)

    quantized.defvjp(forwards, backwards)
    return quantized(w, s)


def scaled_gradient(x: Any, factor: float) -> Any:
    """x; its gradient times ``factor``."""
    return factor * x + jax.lax.stop_gradient((1 - factor) * x)


class Oracle:
    """``model`` as a function of its weights, by the names of the executor's parameters; learned scales as octaves."""

    def __init__(self, model: Model, grids: Grids | None = None, pow2: bool = False, training: bool = False) -> None:
        self.model, self.grids, self.pow2, self.training = model, grids or Grids.of(model.graph), pow2, training
        self.constants = {}
        for name, value in model.graph.initializers.items():
            array = np.asarray(constant(value))
            wide = array.astype(np.int32) if array.dtype.kind in "iu" or "int" in array.dtype.name else array.astype(np.float32)
            self.constants[name] = wide

    def __call__(self, parameters: Mapping[str, Any], feeds: Mapping[str, Any], wanted: str) -> Any:
        values: dict[str, Any] = {**self.constants, **feeds, **parameters}
        for name, factor in self.grids.scales.items():
            if name in parameters:
                t = scaled_gradient(parameters[name], factor)
                octaves = t + jax.lax.stop_gradient(jnp.round(t) - t) if self.pow2 else t
                soft = jnp.exp2(t)
                values[name] = self.constants[name] * (soft + jax.lax.stop_gradient(jnp.exp2(octaves) - soft))
        quantized: dict[str, tuple[Any, int, int]] = {}
        for node in self.model.graph:
            names = [v.name if v is not None else None for v in node.inputs]
            given = [values.get(n or "") for n in names]
            out = node.outputs[0].name or ""
            if node.op_type == "QuantizeLinear":
                dtype = node.outputs[0].dtype
                assert dtype is not None
                quantized[out] = (given[0], *BOUNDS[dtype])
            elif node.op_type == "Clip" and names[0] in quantized:
                x, _, _ = quantized[names[0] or ""]
                quantized[out] = (x, int(given[1]), int(given[2]))
            elif node.op_type == "DequantizeLinear":
                values[out] = self._dequantized(node, names, given, quantized, values)
            else:
                values[out] = getattr(self, f"_{node.op_type.lower()}")(node, *given)
        return values[wanted]

    def _dequantized(self, node: ir.Node, names: list[Any], given: list[Any], quantized: Any, values: dict[str, Any]) -> Any:
        x, s, z = given
        if names[0] in self.grids.biases:
            grid = self.grids.biases[names[0]]
            unit = jax.lax.stop_gradient(values[grid.units[0]] * values[grid.units[1]])
            return fake_quantized(x, unit, 0, -(2**31), 2**31 - 1)
        if names[0] in self.grids.weights:
            weight = self.grids.weights[names[0]]
            along = tuple(-1 if i == weight.axis else 1 for i in range(x.ndim)) if s.ndim else ()
            zero = jnp.asarray(weight.zero.reshape(along if weight.zero.size > 1 else ()))
            return binarized(x, s.reshape(along)) if weight.binary else fake_quantized(x, s.reshape(along), zero, weight.lo, weight.hi)
        real, lo, hi = quantized[names[0]]
        return fake_quantized(real, s, z, lo, hi)

    def _gemm(self, node: ir.Node, a: Any, b: Any, c: Any = 0.0) -> Any:
        return jnp.matmul(a, b, precision=HIGHEST) + c

    def _matmul(self, node: ir.Node, a: Any, b: Any) -> Any:
        return jnp.matmul(a, b, precision=HIGHEST)

    def _conv(self, node: ir.Node, x: Any, w: Any, b: Any = None) -> Any:
        p = attribute(node, "pads", [0, 0, 0, 0])
        pads = [(p[0], p[2]), (p[1], p[3])]
        y = jax.lax.conv_general_dilated(x, w, attribute(node, "strides", [1, 1]), pads, precision=HIGHEST)
        return y if b is None else y + b.reshape(1, -1, 1, 1)

    def _batchnormalization(self, node: ir.Node, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
        if self.training:
            mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3))
        across = (1, -1, 1, 1)
        root = jnp.sqrt(variance + attribute(node, "epsilon", 1e-5))
        return (x - mean.reshape(across)) / root.reshape(across) * scale.reshape(across) + bias.reshape(across)

    def _layernormalization(self, node: ir.Node, x: Any, scale: Any, bias: Any) -> Any:
        return (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + attribute(node, "epsilon", 1e-5)) * scale + bias

    def _reshape(self, node: ir.Node, x: Any, shape: Any) -> Any:
        return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(shape)])

    def _transpose(self, node: ir.Node, x: Any) -> Any:
        return jnp.transpose(x, attribute(node, "perm"))

    def _softmax(self, node: ir.Node, x: Any) -> Any:
        return jax.nn.softmax(x, attribute(node, "axis", -1))

    def _gather(self, node: ir.Node, x: Any, index: Any) -> Any:
        return jnp.take(x, index, axis=attribute(node, "axis", 0))

    def _gelu(self, node: ir.Node, x: Any) -> Any:
        return jax.nn.gelu(x, approximate=False)

    def _globalmaxpool(self, node: ir.Node, x: Any) -> Any:
        return x.max((2, 3), keepdims=True)

    def _relu(self, node: ir.Node, x: Any) -> Any:
        return jax.nn.relu(x)

    def _add(self, node: ir.Node, a: Any, b: Any) -> Any:
        return a + b

    def _div(self, node: ir.Node, a: Any, b: Any) -> Any:
        return a / b

    def _identity(self, node: ir.Node, x: Any) -> Any:
        return x


def cross_entropy(z: Any, y: Any) -> Any:
    """The mean over samples and positions."""
    return -jnp.take_along_axis(jax.nn.log_softmax(z, -1), y[..., None], -1).mean()


def distillation(z: Any, teachers: list[Any], y: Any, temperature: float, alpha: float) -> Any:
    """α·T²·KL(mean of softmax(z_t/T) ‖ softmax(z/T)) + (1 − α)·CE (Hinton et al. 2015)."""
    p = sum(jax.nn.softmax(t / temperature, -1) for t in teachers) / len(teachers)
    divergence = (p * (jnp.log(p) - jax.nn.log_softmax(z / temperature, -1))).sum(-1).mean()
    return alpha * temperature**2 * divergence + (1 - alpha) * cross_entropy(z, y)


def gradients(loss: Callable[[dict[str, Any]], Any], at: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    value, found = jax.value_and_grad(loss)({name: jnp.asarray(array) for name, array in at.items()})
    return float(value), {name: np.asarray(g) for name, g in found.items()}
