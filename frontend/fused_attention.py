"""ONNX Runtime's attention operators as products, masks and a Softmax: Attention, MultiHeadAttention, and the rotation of heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from .edit import attribute, shape_of
from .fused_steps import Fused

MOST_SCORES = 1 << 26
"""Of a head, of which a constant says what is behind each query."""


def rotated(
    new: Fused, x: ir.Value, places: ir.Value, cosines: ir.Value, sines: ir.Value, sizes: tuple[int, int], interleaved: bool
) -> ir.Value:
    """x [B, N, S, D] with the first ``sizes[0]`` of its ``sizes[1]`` channels turned in pairs, by the tables' rows at ``places`` [B, S]."""
    width, size = sizes
    # [B, S, width/2] → [B, 1, S, width/2], for all heads.
    cos, sin = (new.op("Unsqueeze", new.op("Gather", table, places, axis=0), new.constant([1])) for table in (cosines, sines))
    if interleaved:
        first, second = new.part(x, 0, width, step=2), new.part(x, 1, width, step=2)
    else:
        first, second = new.part(x, 0, width // 2), new.part(x, width // 2, width)
    one = new.op("Sub", new.op("Mul", first, cos), new.op("Mul", second, sin))
    two = new.op("Add", new.op("Mul", first, sin), new.op("Mul", second, cos))
    if interleaved:
        # Pairs side by side again.
        wide = [new.op("Unsqueeze", half, new.constant([-1])) for half in (one, two)]
        turned = new.reshape(new.joined(wide, -1), *_leading(new, x), width)
    else:
        turned = new.joined([one, two], -1)
    return turned if width == size else new.joined([turned, new.part(x, width, size)], -1)


def _leading(new: Fused, x: ir.Value) -> tuple[int, ...]:
    """[B, N, S] of heads that were made here, whose shape nobody has inferred: 0 copies."""
    known = shape_of(x)
    return known[:3] if known is not None else (0, 0, 0)


def _attention(new: Fused) -> tuple[ir.Value | None, ...] | None:
    """input [B, S, I] · weights [I, Q+K+V] + bias, cut into queries, keys and values of ``num_heads``."""
    node, (batch, length, _) = new.node, new.shape(0)
    heads = int(attribute(node, "num_heads", 0))
    total = new.shape(1)[1]
    widths = list(attribute(node, "qkv_hidden_sizes", ())) or [total // 3] * 3
    past = new.input(4)
    if heads < 1 or sum(widths) != total or widths[0] != widths[1] or attribute(node, "do_rotary", 0) or new.input(6) is not None:
        return None
    if past is not None and attribute(node, "past_present_share_buffer", 0):
        return None
    projected = new.op("MatMul", new.need(0), new.need(1))
    bias = new.input(2)
    projected = projected if bias is None else new.op("Add", projected, bias)
    ends = np.cumsum([0, *widths])
    parts = [new.part(projected, int(a), int(b)) for a, b in pairwise(ends)]
    q, k, v = (_heads(new, part, batch, length, heads, width) for part, width in zip(parts, widths, strict=True))
    keys = length
    if past is not None:
        before = [new.reshape(new.op("Gather", past, new.constant(i), axis=0), *new.shape(4)[1:]) for i in (0, 1)]
        k, v = (new.joined([old, fresh], 2) for old, fresh in zip(before, (k, v), strict=True))
        keys += new.shape(4)[3]
    mask = _mask(new, 3, (batch, length, keys))
    if mask is None:
        return None
    present = None
    if len(node.outputs) > 1 and new.is_read(1):
        present = new.joined([new.op("Unsqueeze", each, new.constant([0])) for each in (k, v)], 0)
    return _attended(new, (q, k, v), (batch, heads, length, keys), widths[2] // heads, widths[0] // heads, [*mask, new.input(5)]), present


def _multi_head_attention(new: Fused) -> tuple[ir.Value | None, ...] | None:
    """query [B, S, Q], key [B, T, Q] and value [B, T, V], with ``past`` keys and values [B, N, P, D] before them."""
    heads = int(attribute(new.node, "num_heads", 0))
    if heads < 1 or len(new.shape(0)) != 3 or new.input(1) is None or new.input(2) is None or any(new.input(i) is not None for i in (8, 9)):
        return None
    (batch, length, width), key, value = new.shape(0), new.shape(1), new.shape(2)
    bias = new.input(3)
    q, k, v = (new.need(i) for i in range(3))
    if bias is not None:
        if len(key) != 3 or len(value) != 3:
            return None
        ends = np.cumsum([0, width, width, value[2]])
        q, k, v = (new.op("Add", x, new.part(bias, int(a), int(b), 0)) for x, (a, b) in zip((q, k, v), pairwise(ends), strict=True))
    keys = key[1] if len(key) == 3 else key[2]
    out = value[2] // heads if len(value) == 3 else value[3]
    q = _heads(new, q, batch, length, heads, width)
    k = _heads(new, k, batch, keys, heads, width) if len(key) == 3 else k
    v = _heads(new, v, batch, keys, heads, out * heads) if len(value) == 3 else v
    if new.input(6) is not None and new.input(7) is not None:
        k, v = new.joined([new.need(6), k], 2), new.joined([new.need(7), v], 2)
        keys += new.shape(6)[2]
    mask = _mask(new, 4, (batch, length, keys))
    if mask is None:
        return None
    return _attended(new, (q, k, v), (batch, heads, length, keys), out, width // heads, [*mask, new.input(5)]), k, v


def _heads(new: Fused, x: ir.Value, batch: int, length: int, heads: int, width: int) -> ir.Value:
    """[B, S, N·D] → [B, N, S, D]."""
    return new.op("Transpose", new.reshape(x, batch, length, heads, width // heads), perm=[0, 2, 1, 3])


def _attended(
    new: Fused,
    qkv: tuple[ir.Value, ir.Value, ir.Value],
    sizes: tuple[int, int, int, int],
    out: int,
    depth: int,
    added: list[ir.Value | None],
) -> ir.Value:
    """softmax(q · kᵀ · scale + …) · v, heads side by side again: [B, S, N·D]."""
    batch, heads, length, _ = sizes
    scale = float(attribute(new.node, "scale", 0.0)) or 1 / math.sqrt(depth)
    query = new.op("Mul", qkv[0], new.number(scale, new.need(0)))
    scores = new.op("MatMul", query, new.op("Transpose", qkv[1], perm=[0, 1, 3, 2]))
    for term in added:
        scores = scores if term is None else new.op("Add", scores, term)
    mixed = new.op("MatMul", new.op("Softmax", scores, axis=-1), qkv[2])
    return new.reshape(new.op("Transpose", mixed, perm=[0, 2, 1, 3]), batch, length, heads * out)


def _mask(new: Fused, position: int, sizes: tuple[int, int, int]) -> list[ir.Value] | None:
    """What is added to the scores: for keys that are padding ([B] lengths, [B, T] or [B, S, T]), and for those behind a query."""
    batch, length, keys = sizes
    low, like = float(attribute(new.node, "mask_filter_value", -10000.0)), new.need(0)
    terms: list[ir.Value] = []
    if attribute(new.node, "unidirectional", 0):
        if length * keys > MOST_SCORES:
            return None
        behind = np.triu(np.ones((length, keys), bool), keys - length + 1)
        terms.append(new.number(np.where(behind, np.finfo(like.dtype.numpy()).min if like.dtype else low, 0), like))
    given, shape = new.input(position), new.shape(position)
    if given is None:
        return terms
    if shape == (batch,) and batch != keys:
        kept = new.op("Less", new.constant(np.arange(keys).reshape(1, -1), np.int32), new.reshape(given, batch, 1))
        shape = (batch, keys)
    elif shape in ((batch, keys), (batch, length, keys)):
        kept = new.cast(given, ir.DataType.BOOL)
    else:
        return None
    term = new.op("Where", kept, new.number(0, like), new.number(low, like))
    terms.append(new.reshape(term, batch, 1, *((1, keys) if len(shape) == 2 else (length, keys))))
    return terms


RULES: dict[str, Callable[[Fused], tuple[ir.Value | None, ...] | None]] = {
    "Attention": _attention, "MultiHeadAttention": _multi_head_attention,
}  # fmt: skip
