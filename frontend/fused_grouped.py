"""ONNX Runtime's GroupQueryAttention: groups of query heads share keys and values, which a cache holds of earlier steps.

present_key [B, K, T, D] is past_key with the new keys behind the ``seqlens_k + 1 − S`` that count of each sample; T is
total_sequence_length, which has to be known when the model is loaded (exporters compute it of shapes).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import onnx_ir as ir

from .edit import attribute, constant_of
from .fused_attention import rotated
from .fused_steps import Fused


def _grouped(new: Fused) -> tuple[ir.Value | None, ...] | None:
    node, total = new.node, constant_of(new.input(6))
    heads, groups = (int(attribute(node, name, 0)) for name in ("num_heads", "kv_num_heads"))
    unknown = (
        attribute(node, "smooth_softmax", 0) or attribute(node, "k_quant_type", 0) or any(new.input(i) is not None for i in (11, 12, 13))
    )
    if total is None or total.size != 1 or heads < 1 or groups < 1 or heads % groups or unknown:
        return None
    batch, length, width = new.shape(0)
    keys = int(total.reshape(()))
    if new.input(1) is None:
        # Queries, keys and values side by side.
        depth = width // (heads + 2 * groups)
        ends = np.cumsum([0, heads, groups, groups]) * depth
        q, k, v = (new.part(new.need(0), int(a), int(b)) for a, b in pairwise(ends))
    else:
        depth = width // heads
        q, k, v = (new.need(i) for i in range(3))
    q, k, v = (
        new.op("Transpose", new.reshape(x, batch, length, count, depth), perm=[0, 2, 1, 3])
        for x, count in ((q, heads), (k, groups), (v, groups))
    )
    before = new.shape(3)[2] if new.input(3) is not None else 0
    keys = max(keys, before)
    is_prompt = length == int(total.reshape(()))
    # How many keys of each sample came before: [B, 1].
    known = new.reshape(new.cast(new.need(5), ir.DataType.INT64), batch, 1)
    past = new.constant(np.zeros((batch, 1))) if is_prompt else new.op("Add", known, new.constant(1 - length))
    if attribute(node, "do_rotary", 0):
        tables = new.need(7), new.need(8)
        places = new.input(9) or new.op("Add", past, new.constant(np.arange(length).reshape(1, -1)))
        sizes, interleaved = (2 * new.shape(7)[1], depth), bool(attribute(node, "rotary_interleaved", 0))
        q, k = (rotated(new, x, places, *tables, sizes, interleaved) for x in (q, k))
    if before or keys != length:
        shape = (batch, groups, keys, depth)
        k, v = (_appended(new, x, new.input(i), past, (before, length), shape) for x, i in ((k, 3), (v, 4)))
    mixed = _mixed(new, (q, k, v), past, (batch, heads, groups, length, keys, depth))
    return mixed, k, v


def _appended(
    new: Fused, fresh: ir.Value, cache: ir.Value | None, past: ir.Value, lengths: tuple[int, int], shape: tuple[int, int, int, int]
) -> ir.Value:
    """[B, K, T, D]: what the cache holds of earlier rows, the new ones at their places, then zeros."""
    (before, length), (batch, _, keys, _) = lengths, shape
    place = new.op("Sub", new.constant(np.arange(keys).reshape(1, -1)), past)
    within = new.op("Min", new.op("Max", place, new.constant(0)), new.constant(length - 1))
    index = new.op("Expand", new.reshape(within, batch, 1, keys, 1), new.constant(shape))
    moved = new.op("GatherElements", fresh, index, axis=2)
    held = zeros = new.number(np.zeros((1, 1, 1, 1)), new.need(0))
    if cache is not None:
        wide = new.op("Pad", cache, new.constant([0, 0, 0, 0, 0, 0, keys - before, 0]), new.number(0, new.need(0)))
        is_past = new.reshape(new.op("Less", place, new.constant(0)), batch, 1, keys, 1)
        held = new.op("Where", is_past, wide if before < keys else cache, zeros)
    return new.op("Where", new.reshape(new.op("Equal", place, within), batch, 1, keys, 1), moved, held)


def _mixed(new: Fused, qkv: tuple[ir.Value, ir.Value, ir.Value], past: ir.Value, sizes: tuple[int, int, int, int, int, int]) -> ir.Value:
    node, like = new.node, new.need(0)
    batch, heads, groups, length, keys, depth = sizes
    share = heads // groups
    scale = float(attribute(node, "scale", 0.0)) or 1 / math.sqrt(depth)
    query = new.reshape(new.op("Mul", qkv[0], new.number(scale, like)), batch, groups, share * length, depth)
    scores = new.op("MatMul", query, new.op("Transpose", qkv[1], perm=[0, 1, 3, 2]))
    cap = float(attribute(node, "softcap", 0.0))
    if cap:
        scores = new.op("Mul", new.op("Tanh", new.op("Div", scores, new.number(cap, like))), new.number(cap, like))
    scores = new.reshape(scores, batch, groups, share, length, keys)
    bias = new.input(10)
    if bias is not None:
        # [B or 1, N or 1, S, T]
        shape = new.shape(10)
        scores = new.op("Add", scores, new.reshape(bias, shape[0], *((groups, share) if shape[1] == heads else (1, 1)), *shape[2:]))
    # A query sees the keys up to its own place, [B, S, T], and of those the last ones where there is a window.
    place = new.op("Add", new.reshape(past, batch, 1, 1), new.constant(np.arange(length).reshape(1, -1, 1)))
    behind = new.constant(np.arange(keys).reshape(1, 1, -1))
    seen = new.op("LessOrEqual", behind, place)
    window = int(attribute(node, "local_window_size", -1))
    if window > 0:
        seen = new.op("And", seen, new.op("GreaterOrEqual", behind, new.op("Sub", place, new.constant(window - 1))))
    low = float(np.finfo(np.float16 if like.dtype == ir.DataType.FLOAT16 else np.float32).min)
    seen = new.reshape(seen, batch, 1, 1, length, keys)
    scores = new.op("Where", seen, scores, new.number(low, like))
    shares = new.reshape(new.op("Softmax", scores, axis=-1), batch, groups, share * length, keys)
    mixed = new.reshape(new.op("MatMul", shares, qkv[2]), batch, heads, length, depth)
    return new.reshape(new.op("Transpose", mixed, perm=[0, 2, 1, 3]), batch, length, heads * depth)


RULES: dict[str, Callable[[Fused], tuple[ir.Value | None, ...] | None]] = {"GroupQueryAttention": _grouped}
