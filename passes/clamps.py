"""Fusion of clamps, paddings and spelled-out activations: rewrites that keep every bit, and the activation patterns."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from gatewright.frontend.edit import Editor
from gatewright.frontend.queries import constant, integer, sole_producer

from . import rewrite
from .ranges import range_of
from .rewrite import Array


def max_min_to_clip(edit: Editor, node: ir.Node) -> bool:
    """Max or Min of a float and one number: Clip."""
    if node.op_type not in ("Max", "Min") or len(node.inputs) != 2 or not rewrite.is_float(node.outputs[0]):
        return False
    for x, bound in (tuple(node.inputs), tuple(reversed(node.inputs))):
        number = constant(bound)
        if x is None or number is None or number.size != 1 or constant(x) is not None or x.shape != node.outputs[0].shape:
            continue
        low, high = (float(number.reshape(())), math.inf) if node.op_type == "Max" else (-math.inf, float(number.reshape(())))
        _become_clip(edit, node, x, low, high)
        return True
    return False


def merge_clamps(edit: Editor, node: ir.Node) -> bool:
    """Relu and Clip in a row: one clamp with both's bounds.

    clip(clip(x, a, b), c, d) = clip(x, max(a, c), min(b, d)) only where the intervals meet; others are left alone.
    """
    inner = sole_producer(node.inputs[0]) if node.op_type in ("Relu", "Clip") else None
    if inner is None or inner.op_type not in ("Relu", "Clip") or inner.domain or not rewrite.is_float(node.outputs[0]):
        return False
    source, first, second = inner.inputs[0], rewrite.bounds_of(inner), rewrite.bounds_of(node)
    if source is None or first is None or second is None:
        return False
    low, high = max(first[0], second[0]), min(first[1], second[1])
    if not (first[0] <= first[1] and second[0] <= second[1] and low <= high):
        return False
    _become_clip(edit, node, source, low, high)
    edit.graph.remove(inner, safe=True)
    return True


def clamp_is_relu(edit: Editor, node: ir.Node) -> bool:
    """Clip(x, 0, ∞) is Relu; a Clip or Relu of values that are proven to lie inside is dropped."""
    if node.op_type not in ("Relu", "Clip") or not rewrite.is_float(node.outputs[0]) or node.inputs[0] is None:
        return False
    bounds = rewrite.bounds_of(node)
    if bounds is None:
        return False
    low, high = range_of(node.inputs[0])
    if bounds[0] <= low and high <= bounds[1] and rewrite.bypass(edit.graph, node):
        return True
    if node.op_type == "Clip" and bounds[0] == 0 and bounds[1] >= _largest(node):
        node.op_type = "Relu"
        node.resize_inputs(1)
        return True
    return False


def _largest(node: ir.Node) -> float:
    dtype = node.outputs[0].dtype
    return float(np.finfo(dtype.numpy()).max) if dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16) else math.inf


def _become_clip(edit: Editor, node: ir.Node, x: ir.Value, low: float, high: float) -> None:
    """``node`` clamps ``x`` to low … high from now on."""
    dtype = node.outputs[0].dtype
    assert dtype is not None
    if low == 0 and high == math.inf:
        node.op_type = "Relu"
        node.resize_inputs(1)
        node.replace_input_with(0, x)
        return
    node.op_type = "Clip"
    node.resize_inputs(3)
    node.replace_input_with(0, x)
    for index, (bound, word) in enumerate(((low, "min"), (high, "max")), start=1):
        absent = math.isinf(bound)
        value = None if absent else edit.constant(np.asarray(bound, dtype.numpy()), f"{node.name}_{word}")
        node.replace_input_with(index, value)
    if node.inputs[2] is None:
        node.resize_inputs(2 if node.inputs[1] is not None else 1)


def pad_into_window(edit: Editor, node: ir.Node) -> bool:
    """Constant padding of spatial axes goes into the Conv, MaxPool or AveragePool that alone reads it.

    Conv pads with 0. MaxPool pads with −∞: padding by 0 is the same where the values are proven ≥ 0. AveragePool has to count
    the padding, so it must not have a padding of its own that it does not count.
    """
    if node.op_type not in ("Conv", "MaxPool", "AveragePool"):
        return False
    pad = sole_producer(node.inputs[0])
    if pad is None or pad.op_type != "Pad" or pad.inputs[0] is None or (node.op_type != "Conv" and len(node.outputs) > 1):
        return False
    mode = pad.attributes.get("mode")
    amounts = constant(pad.inputs[1])
    fill = rewrite.scalar(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else 0.0
    if (mode is not None and mode.as_string() != "constant") or amounts is None or fill is None:
        return False
    x = pad.inputs[0]
    rank = len(rewrite.shape_of(x))
    begin, end = np.zeros(rank, np.int64), np.zeros(rank, np.int64)
    axes = constant(pad.inputs[3]) if len(pad.inputs) > 3 and pad.inputs[3] is not None else np.arange(rank)
    if axes is None:
        return False
    begin[axes], end[axes] = amounts[: len(axes)], amounts[len(axes) :]
    if (begin < 0).any() or (end < 0).any() or begin[:2].any() or end[:2].any():
        return False
    own = np.asarray(rewrite.ints(node, "pads", [0] * 2 * (rank - 2)))
    pads = own + np.concatenate([begin[2:], end[2:]])
    auto = node.attributes.get("auto_pad")
    if (auto is not None and auto.as_string() not in ("NOTSET", "VALID")) or not _same_fill(node, fill, own, pads, x):
        return False
    node.attributes["pads"] = ir.AttrInt64s("pads", [int(p) for p in pads])
    if node.op_type == "AveragePool":
        node.attributes["count_include_pad"] = ir.AttrInt64("count_include_pad", 1)
    node.replace_input_with(0, x)
    edit.graph.remove(pad, safe=True)
    return True


def _same_fill(node: ir.Node, fill: float, own: Array, pads: Array, x: ir.Value) -> bool:
    """Whether the window pads with the same value that Pad did."""
    if node.op_type == "Conv":
        return fill == 0
    kernel = rewrite.ints(node, "kernel_shape")
    # ONNX Runtime refuses a pooling window that may lie wholly in the padding; a rounded-up size would count cells that are no padding.
    if integer(node, "ceil_mode", 0) or any(p >= k for p, k in zip(pads, kernel * 2, strict=True)):
        return False
    if node.op_type == "AveragePool":
        return fill == 0 and (not own.any() or integer(node, "count_include_pad", 0) == 1)
    dilated = any(d != 1 for d in rewrite.ints(node, "dilations", (1,)))
    lowest = fill == -math.inf or fill <= -_largest(node)
    return lowest or (fill == 0 and not dilated and range_of(x)[0] >= 0)


def spelled_activation(edit: Editor, node: ir.Node) -> bool:
    """x·HardSigmoid(x; 1/6, 1/2) is HardSwish; x·0.5·(1 + erf(x/√2)) is Gelu, in any order of its factors."""
    if node.op_type != "Mul":
        return False
    return _hard_swish(edit.graph, node) or _gelu(edit.graph, node)


def _hard_swish(graph: ir.Graph, node: ir.Node) -> bool:
    for x, gate in (tuple(node.inputs), tuple(reversed(node.inputs))):
        inner = sole_producer(gate)
        if x is None or inner is None or inner.op_type != "HardSigmoid" or inner.inputs[0] is not x:
            continue
        alpha, beta = (inner.attributes.get(k) for k in ("alpha", "beta"))
        if alpha is None or np.float32(alpha.as_float()) != np.float32(1 / 6) or (beta is not None and beta.as_float() != 0.5):
            continue
        return _replace_tree(graph, node, "HardSwish", x, {}, [inner])
    return False


def _gelu(graph: ir.Graph, node: ir.Node) -> bool:
    """The factors of a product tree: x, 0.5 and 1 + erf(x/√2)."""
    factors: list[ir.Value] = []
    inner: list[ir.Node] = []

    def collect(value: ir.Value | None) -> None:
        producer = sole_producer(value)
        if producer is not None and producer.op_type == "Mul":
            inner.append(producer)
            for v in producer.inputs:
                collect(v)
        elif value is not None:
            factors.append(value)

    for v in node.inputs:
        collect(v)
    numbers = [v for v in factors if rewrite.scalar(v) is not None]
    others = [v for v in factors if rewrite.scalar(v) is None]
    if len(others) != 2 or not math.isclose(math.prod(rewrite.scalar(v) or 0.0 for v in numbers), 0.5, rel_tol=1e-6):
        return False
    for x, gate in (tuple(others), tuple(reversed(others))):
        chain = _one_plus_erf(gate, x)
        if chain is not None:
            return _replace_tree(graph, node, "Gelu", x, {"approximate": "none"}, [*inner, *chain])
    return False


def _one_plus_erf(gate: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    """The nodes of 1 + erf(x/√2), or None."""
    add = sole_producer(gate)
    if add is None or add.op_type != "Add":
        return None
    for one, value in (tuple(add.inputs), tuple(reversed(add.inputs))):
        erf = sole_producer(value)
        if rewrite.scalar(one) != 1.0 or erf is None or erf.op_type != "Erf":
            continue
        scale = sole_producer(erf.inputs[0])
        if scale is None or scale.op_type not in ("Mul", "Div") or x not in scale.inputs:
            continue
        other = rewrite.scalar(scale.inputs[1] if scale.inputs[0] is x else scale.inputs[0])
        wanted = math.sqrt(2) if scale.op_type == "Div" else math.sqrt(0.5)
        if other is not None and math.isclose(other, wanted, rel_tol=1e-5) and (scale.op_type == "Mul" or scale.inputs[0] is x):
            return [add, erf, scale]
    return None


def _replace_tree(graph: ir.Graph, node: ir.Node, op: str, x: ir.Value, attributes: dict[str, str], inner: list[ir.Node]) -> bool:
    """``node`` becomes ``op(x)``; the nodes that only it read go."""
    if x.shape != node.outputs[0].shape:
        return False
    node.op_type = op
    node.resize_inputs(1)
    node.replace_input_with(0, x)
    for key, value in attributes.items():
        node.attributes[key] = ir.AttrString(key, value)
    waiting = list(inner)
    for _ in range(len(inner)):
        for candidate in [n for n in waiting if not n.outputs[0].uses()]:
            graph.remove(candidate, safe=True)
            waiting.remove(candidate)
    return True
