"""ONNX Runtime's fused float operators (domain com.microsoft), which its optimizer and model builders write, as standard ones.

What they compute is in the operators' schemas in onnxruntime's docs/ContribOperators.md; tests hold each to ONNX Runtime itself. A form
that is not known here is left as it is, and refused by name (``unknown``). contrib.py has the quantized operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from . import fused_attention, fused_grouped, fused_weights
from .edit import Editor, attribute, shape_of
from .fused_steps import Fused

Rule = Callable[[Fused], "tuple[ir.Value | None, ...] | None"]
"""The values that take the place of the node's outputs, None for one that nobody reads; None for a form that is not known."""

_CONV = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")
_NARROW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def rewrite(edit: Editor, node: ir.Node) -> bool:
    """Put standard operators in the place of a fused one. False where its form, or a shape that it needs, is not known (yet)."""
    rule = RULES.get(node.op_type)
    if rule is None or any(value is not None and (shape_of(value) is None or value.dtype is None) for value in node.inputs):
        return False
    new = Fused(edit, node)
    try:
        made = rule(new)
    except (IndexError, TypeError, ValueError, ZeroDivisionError):
        # Operands of fewer axes than they must have, no heads, weights that do not fill their blocks: no form of the operator.
        return False
    if made is None:
        return False
    outputs = [*made, *[None] * len(node.outputs)][: len(node.outputs)]
    first = outputs[0]
    if first is None or any(value is None and new.is_read(i) for i, value in enumerate(outputs)):
        return False
    return new.finish(*(first if value is None else value for value in outputs))


def unknown(node: ir.Node) -> str:
    """What is to be said of a node that was left."""
    shown = ", ".join("none" if v is None else f"{v.dtype}{list(shape_of(v) or ())}" for v in node.inputs)
    return f"this form of ONNX Runtime's own operator is not known here (inputs {shown})"


def _layer_norm(new: Fused, x: ir.Value, gamma: ir.Value | None, beta: ir.Value | None, epsilon: float = 1e-12) -> ir.Value:
    return new.op("LayerNormalization", x, gamma, beta, axis=-1, epsilon=attribute(new.node, "epsilon", epsilon))


def _root_mean_square(new: Fused, x: ir.Value, gamma: ir.Value | None) -> ir.Value:
    """x / sqrt(mean(x²) + ε) · γ, in float32."""
    dtype = new.need(0).dtype or ir.DataType.FLOAT
    is_narrow = dtype in _NARROW
    wide = new.cast(x, ir.DataType.FLOAT) if is_narrow else x
    epsilon = new.constant(attribute(new.node, "epsilon", 1e-12), np.float32 if is_narrow else dtype.numpy())
    mean = new.op("ReduceMean", new.op("Mul", wide, wide), new.constant([-1]), keepdims=1)
    found = new.op("Div", wide, new.op("Sqrt", new.op("Add", mean, epsilon)))
    return new.op("Mul", new.cast(found, dtype) if is_narrow else found, gamma)


def _skip(new: Fused, biases: int) -> ir.Value:
    """input + skip + bias; a skip of [S, H] or [1, S, H] is that of every sample."""
    total = new.op("Add", new.need(0), new.need(1))
    bias = new.input(biases)
    return total if bias is None else new.op("Add", total, bias)


def _skip_layer_normalization(new: Fused) -> tuple[ir.Value | None, ...]:
    total = _skip(new, 4)
    return _layer_norm(new, total, new.need(2), new.input(3)), None, None, total


def _skip_simplified_layer_normalization(new: Fused) -> tuple[ir.Value | None, ...]:
    total = _skip(new, 3)
    return _root_mean_square(new, total, new.need(2)), None, None, total


def _simplified_layer_normalization(new: Fused) -> tuple[ir.Value | None, ...] | None:
    x = new.need(0)
    if attribute(new.node, "axis", -1) % len(shape_of(x) or (0,)) != len(shape_of(x) or (0,)) - 1:
        return None
    return (_root_mean_square(new, x, new.need(1)),)


def _embed_layer_normalization(new: Fused) -> tuple[ir.Value | None, ...]:
    ids, words, positions, gamma, beta = (new.need(i) for i in (0, 2, 3, 5, 6))
    segments, kinds, mask, places = (new.input(i) for i in (1, 4, 7, 8))
    batch, length = shape_of(ids) or (0, 0)
    at = places if places is not None else new.constant(np.arange(length).reshape(1, -1))
    total = new.op("Add", new.op("Gather", words, ids, axis=0), new.op("Gather", positions, at, axis=0))
    if segments is not None and kinds is not None:
        total = new.op("Add", total, new.op("Gather", kinds, segments, axis=0))
    known = new.op("ReduceSum", mask, new.constant([1]), keepdims=0) if mask is not None else new.constant(np.zeros(batch), np.int32)
    return _layer_norm(new, total, gamma, beta), known, total


def _gelu(approximate: str) -> Rule:
    def apply(new: Fused) -> tuple[ir.Value]:
        x, bias = new.need(0), new.input(1)
        return (new.op("Gelu", x if bias is None else new.op("Add", x, bias), approximate=approximate),)

    return apply


def _quick_gelu(new: Fused) -> tuple[ir.Value]:
    x = new.need(0)
    inner = new.op("Mul", x, new.number(attribute(new.node, "alpha", 1.702), x))
    return (new.op("Mul", x, new.op("Sigmoid", inner)),)


def _fused_matmul(new: Fused) -> tuple[ir.Value] | None:
    node, alpha = new.node, float(attribute(new.node, "alpha", 1.0))
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        return None
    a, b = (new.turned(new.need(i)) if attribute(node, name, 0) else new.need(i) for i, name in enumerate(("transA", "transB")))
    y = new.op("MatMul", a, b)
    return (y if alpha == 1 else new.op("Mul", y, new.number(alpha, new.need(0))),)


def _fused_conv(new: Fused) -> tuple[ir.Value] | None:
    kept = {name: new.node.attributes[name].value for name in _CONV if name in new.node.attributes}
    y = new.op("Conv", new.need(0), new.need(1), new.input(2), **kept)
    other = new.input(3)
    return _activated(new, y if other is None else new.op("Add", y, other), list(attribute(new.node, "activation_params", ())))


def _fused_gemm(new: Fused) -> tuple[ir.Value] | None:
    kept = {name: new.node.attributes[name].value for name in ("alpha", "beta", "transA", "transB") if name in new.node.attributes}
    params = [attribute(new.node, f"activation_{name}", None) for name in ("alpha", "beta")]
    return _activated(new, new.op("Gemm", new.need(0), new.need(1), new.input(2), **kept), [p for p in params if p is not None])


def _activated(new: Fused, y: ir.Value, params: list[float]) -> tuple[ir.Value] | None:
    found: Any = attribute(new.node, "activation", "")
    name = found.decode() if isinstance(found, bytes) else str(found)
    if name in ("", "Relu", "Sigmoid", "Tanh"):
        return (new.op(name, y) if name else y,)
    if name == "Clip" and len(params) == 2:
        return (new.op("Clip", y, *(new.number(p, new.need(0)) for p in params)),)
    known = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(name)
    return None if known is None or len(params) != len(known) else (new.op(name, y, **dict(zip(known, params, strict=True))),)


def _bias_add(new: Fused) -> tuple[ir.Value]:
    """X [N, S, C] + bias [C] + skip [N, S, C]."""
    return (new.op("Add", new.op("Add", new.need(0), new.need(1)), new.need(2)),)


def _group_norm(new: Fused) -> tuple[ir.Value] | None:
    """Of [N, H, W, C] with its channels last, in groups of them; activation 1 is SiLU."""
    node, x = new.node, new.need(0)
    shape = shape_of(x) or ()
    if len(shape) != 4 or not attribute(node, "channels_last", 1):
        return None
    groups = int(attribute(node, "groups", 1))
    y = new.op("Transpose", x, perm=[0, 3, 1, 2])
    y = new.op("GroupNormalization", y, new.need(1), new.need(2), num_groups=groups, epsilon=attribute(node, "epsilon", 1e-5))
    y = new.op("Transpose", y, perm=[0, 2, 3, 1])
    return (new.op("Mul", y, new.op("Sigmoid", y)) if attribute(node, "activation", 0) else y,)


def _bias_split_gelu(new: Fused) -> tuple[ir.Value]:
    """(X + bias) in two halves of the last axis: the first times the Gelu of the second."""
    x = new.op("Add", new.need(0), new.need(1))
    half = (shape_of(new.need(0)) or (0,))[-1] // 2
    left, right = (new.op("Slice", x, new.constant([a]), new.constant([b]), new.constant([-1])) for a, b in ((0, half), (half, 2 * half)))
    return (new.op("Mul", left, new.op("Gelu", right, approximate="none")),)


def _rotary_embedding(new: Fused) -> tuple[ir.Value] | None:
    """Of [B, S, N·D] or [B, N, S, D]: pairs of the first ``rotary_embedding_dim`` of each head turned by the angle of their place."""
    node, x, places, cosines, sines = new.node, new.need(0), new.need(1), new.need(2), new.need(3)
    shape, width = shape_of(x) or (), 2 * (shape_of(cosines) or (0, 0))[1]
    if attribute(node, "is_packed_batching", 0) or float(attribute(node, "scale", 1.0)) != 1 or len(shape) not in (3, 4):
        return None
    heads = int(attribute(node, "num_heads", 0))
    if len(shape) == 3:
        heads = heads or (shape[2] // width if not attribute(node, "rotary_embedding_dim", 0) else 0)
        if not heads or shape[2] % heads:
            return None
        length, size = shape[1], shape[2] // heads
        x = new.op("Transpose", new.reshape(x, shape[0], length, heads, size), perm=[0, 2, 1, 3])
    else:
        length, size = shape[2], shape[3]
    if math.prod(shape_of(places) or (1,)) == 1 and length * shape[0] > 1 and len(shape_of(places) or ()) < 2:
        # One number is the place of the first.
        places = new.op("Add", new.reshape(places, 1, 1), new.constant(np.arange(length).reshape(1, -1)))
    turned = fused_attention.rotated(new, x, places, cosines, sines, (width, size), bool(attribute(node, "interleaved", 0)))
    if len(shape) == 4:
        return (turned,)
    return (new.reshape(new.op("Transpose", turned, perm=[0, 2, 1, 3]), *shape),)


RULES: dict[str, Rule] = {
    "SkipLayerNormalization": _skip_layer_normalization, "SkipSimplifiedLayerNormalization": _skip_simplified_layer_normalization,
    "SimplifiedLayerNormalization": _simplified_layer_normalization, "EmbedLayerNormalization": _embed_layer_normalization,
    "Gelu": _gelu("none"), "BiasGelu": _gelu("none"), "FastGelu": _gelu("tanh"), "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul, "FusedConv": _fused_conv, "FusedGemm": _fused_gemm, "RotaryEmbedding": _rotary_embedding,
    "BiasAdd": _bias_add, "GroupNorm": _group_norm, "BiasSplitGelu": _bias_split_gelu,
    **fused_attention.RULES, **fused_grouped.RULES, **fused_weights.RULES,
}  # fmt: skip
