"""What ONNX's checker and its shape inference let pass, and engines divide by, index with, or walk round in circles for.

``require_sense`` is asked of a graph as it came, before its attributes are brought to one form, and once it is canonical.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from gatewright.errors import ModelError

from .edit import attribute, constant_of, input_of, label, shape_of

_WHOLE = frozenset(
    getattr(ir.DataType, name) for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "INT4", "UINT4")
)
_MODES = {"LEAF", *(f"BRANCH_{how}" for how in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ"))}


def require_sense(model: ir.Model) -> None:
    """Raises ModelError naming the first node whose attributes or constants no engine can work with, and why."""
    for graph in model.graphs():
        for node in graph:
            rule = _RULES.get((node.domain, node.op_type))
            problem = None if rule is None else rule(node)
            if problem is not None:
                raise ModelError(f"node {label(node)!r} ({node.op_type}): {problem}", hint="the file is damaged, export it again")


def divides_by_zero(node: ir.Node) -> bool:
    """Whether whole numbers are divided by a constant with a 0 in it, which ends the process in which ONNX Runtime does it."""
    divisor = input_of(node, 1)
    if node.op_type not in ("Div", "Mod") or node.domain != "" or divisor is None or divisor.dtype not in _WHOLE:
        return False
    array = constant_of(divisor)
    return array is not None and not np.all(np.asarray(array, np.float64))


def _division(node: ir.Node) -> str | None:
    return "whole numbers are divided by 0" if divides_by_zero(node) else None


def _sloped(node: ir.Node) -> str | None:
    x, slope = shape_of(input_of(node, 0)), shape_of(input_of(node, 1))
    if x is None or slope is None:
        return None
    along = x[len(x) - len(slope) :]
    fits = len(slope) <= len(x) and all(own in (1, there) for own, there in zip(slope, along, strict=True))
    return None if fits else f"its slope of shape {list(slope)} cannot be laid along its input of shape {list(x)}"


def _convolution(node: ir.Node) -> str | None:
    x, w = shape_of(input_of(node, 0)), shape_of(input_of(node, 1))
    group = attribute(node, "group", 1)
    if group < 1:
        return f"it has {group} groups"
    if x is None or w is None or len(x) < 2 or len(w) != len(x):
        return None
    transposed = node.op_type == "ConvTranspose"
    taken, made = (w[0], w[1] * group) if transposed else (w[1] * group, w[0])
    if x[1] != taken or (w[0] if transposed else made) % group:
        return f"its input has {x[1]} channels, its weight of shape {list(w)} takes {taken} in {group} groups"
    # A ConvInteger's third input is a zero point.
    bias = shape_of(input_of(node, 2)) if node.op_type != "ConvInteger" else None
    if bias is not None and bias != (made,):
        return f"its bias has shape {list(bias)}, it makes {made} channels"
    return None


def _scaled(node: ir.Node) -> str | None:
    scale, shape = constant_of(input_of(node, 1)), shape_of(input_of(node, 0))
    if scale is not None:
        numbers = np.asarray(scale, np.float64)
        if not np.all(np.isfinite(numbers)):
            return f"its scale is {numbers[~np.isfinite(numbers)].flat[0]}"
        if node.op_type == "QuantizeLinear" and not np.all(numbers > 0):
            return f"its scale is {numbers[~(numbers > 0)].flat[0]:g}, it divides by that"
    held = shape_of(input_of(node, 1))
    axis, block = attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if shape is None or not held or (held == (1,) and not block):
        return None
    if not -len(shape) <= axis < len(shape):
        return f"its axis is {axis}, its input has {len(shape)} axes"
    axis %= len(shape)
    if block < 0:
        return f"its blocks have {block} values"
    wanted = [-(-size // block) if i == axis else size for i, size in enumerate(shape)] if block else [shape[axis]]
    if list(held) != wanted:
        return f"its scale has shape {list(held)}, not {wanted}"
    return None


def _windowed(node: ir.Node) -> str | None:
    for name in ("kernel_shape", "strides", "dilations", "pads"):
        values = attribute(node, name, ())
        if any(abs(int(value)) > np.iinfo(np.int32).max for value in values):
            return f"its {name} are {list(values)}"
    return _convolution(node) if node.op_type.startswith("Conv") else None


def _on_axis(node: ir.Node) -> str | None:
    shape, axis = shape_of(input_of(node, 0)), attribute(node, "axis", None)
    if shape is not None and isinstance(axis, int) and not -max(len(shape), 1) <= axis < max(len(shape), 1):
        return f"its axis is {axis}, its input has {len(shape)} axes"
    return None


def _tree(node: ir.Node) -> str | None:
    """Every branch leads to nodes of its own tree, no way leads round in a circle, and what is read and added to is there."""
    lists: dict[str, Any] = {name: attribute(node, f"nodes_{name}", ()) for name in ("treeids", "nodeids", "featureids", "modes")}
    ways = [attribute(node, f"nodes_{way}nodeids", ()) for way in ("true", "false")]
    count = len(lists["treeids"])
    if not count or {*map(len, lists.values()), *map(len, ways)} != {count}:
        return "its lists of nodes differ in length"
    place = {key: i for i, key in enumerate(zip(lists["treeids"], lists["nodeids"], strict=True))}
    if len(place) != count:
        return "two of its nodes have one number"
    modes = [mode.decode() if isinstance(mode, bytes) else str(mode) for mode in lists["modes"]]
    if unknown := set(modes) - _MODES:
        return f"it compares by {sorted(unknown)[0]!r}"
    if "nodes_values" in node.attributes and len(attribute(node, "nodes_values")) != count:
        return "its lists of nodes differ in length"
    branch = np.array([mode != "LEAF" for mode in modes])
    pairs = [[place.get((tree, child), -1) for tree, child in zip(lists["treeids"], way, strict=True)] for way in ways]
    children = np.where(branch, np.array(pairs), -1)
    if (children[:, branch] < 0).any():
        return "a branch leads to a node that is not there"
    features = shape_of(input_of(node, 0))
    wrong = [f for f, is_branch in zip(lists["featureids"], branch, strict=True) if is_branch and not 0 <= f < (features or (1 << 31,))[-1]]
    if wrong:
        return f"it reads feature {wrong[0]} of {list(features or ())}"
    waiting = np.zeros(count, np.int64)
    np.add.at(waiting, children[:, branch].ravel(), 1)
    level, met = np.flatnonzero(waiting == 0), 0
    while len(level):
        met += len(level)
        below = children[:, level[branch[level]]].ravel()
        np.subtract.at(waiting, below, 1)
        level = np.unique(below[waiting[below] == 0])
    if met != count:
        return "its branches lead round in a circle"
    kind = "target" if node.op_type == "TreeEnsembleRegressor" else "class"
    outputs = len(attribute(node, "classlabels_int64s", ()) or attribute(node, "classlabels_strings", ()))
    outputs = attribute(node, "n_targets", 1) if kind == "target" else max(outputs, 1)
    ends = [attribute(node, f"{kind}_{name}", ()) for name in ("treeids", "nodeids", "ids")]
    if len({*map(len, ends)}) != 1 or any((t, n) not in place for t, n in zip(ends[0], ends[1], strict=True)):
        return f"its {kind}s belong to nodes that are not there"
    if any(not 0 <= column < outputs for column in ends[2]):
        return f"it adds to {kind} {next(c for c in ends[2] if not 0 <= c < outputs)} of {outputs}"
    return None


def _recurrent(node: ir.Node) -> str | None:
    size = attribute(node, "hidden_size", 1)
    return None if size > 0 else f"its hidden_size is {size}"


_RULES: dict[tuple[str, str], Callable[[ir.Node], str | None]] = {
    ("", "PRelu"): _sloped,
    **{("", op): _division for op in ("Div", "Mod")},
    **{("", op): _scaled for op in ("QuantizeLinear", "DequantizeLinear")},
    **{("", op): _windowed for op in ("Conv", "ConvInteger", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "GlobalLpPool")},
    **{("", op): _on_axis for op in ("Softmax", "LogSoftmax", "Hardmax", "LayerNormalization", "ArgMax", "ArgMin", "TopK", "Gather")},
    **{("", op): _recurrent for op in ("LSTM", "GRU", "RNN")},
    **{("ai.onnx.ml", op): _tree for op in ("TreeEnsembleRegressor", "TreeEnsembleClassifier")},
}
