"""The rewrites that leave each operator in one form. Each is exact, takes one node, and says whether it changed anything.

``RULES`` maps an op of the default domain to its rules, in order. What the forms are: see ``canonicalize.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from . import lowered, unroll
from .edit import (
    Editor,
    attribute,
    constant_of,
    derived,
    drop_attribute,
    input_of,
    is_constant,
    set_attribute,
    set_input,
    shape_of,
)
from .pooling import settle_ceil

Rule = Callable[[Editor, ir.Node], bool]

CONVS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")
POOLS = ("MaxPool", "AveragePool", "LpPool")
REDUCTIONS = (
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare",
)  # fmt: skip
AXIS = {
    "Concat": None, "Gather": 0, "GatherElements": 0, "Split": 0, "Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "ArgMax": 0, "ArgMin": 0,
    "TopK": -1, "ScatterElements": 0, "LayerNormalization": -1, "Compress": None,
}  # fmt: skip
"""Ops with one ``axis`` attribute, and its default in opset 21 (None: none)."""


def forward(edit: Editor, node: ir.Node, value: ir.Value | None) -> bool:
    """Drop a node that gives ``value`` unchanged. Of a graph's output the maker takes the name over, or the node stays as Identity."""
    old = node.outputs[0]
    if value is None:
        return False
    graph = node.graph
    assert graph is not None
    if old.is_graph_output():
        producer = value.producer()
        if producer is None or producer.graph is not graph or value.is_graph_output():
            if node.op_type == "Identity":
                return False
            edit.replace(node, [edit.node("Identity", [value], name=node.name or "")])
            return True
        # Renaming the value keeps the output's name; the graph's output list then points at it.
        name = old.name
        ir.convenience.replace_all_uses_with(old, value, replace_graph_outputs=True)
        old.name = edit.fresh(f"{name}_old")
        value.name = name
    else:
        ir.convenience.replace_all_uses_with(old, value)
    graph.remove(node, safe=True)
    return True


def identity(edit: Editor, node: ir.Node) -> bool:
    return forward(edit, node, input_of(node, 0))


def dropout(edit: Editor, node: ir.Node) -> bool:
    """Inference mode gives its input; the mask, if anybody reads it, is all true."""
    training = input_of(node, 2)
    if training is not None and (mode := constant_of(training)) is not None and bool(mode.reshape(-1)[0]):
        return False
    if training is not None and not is_constant(training):
        return False
    if len(node.outputs) == 1:
        return forward(edit, node, node.inputs[0])
    shape = shape_of(node.inputs[0])
    if shape is None:
        return False
    mask = edit.constant(np.ones(shape, np.bool_), f"{node.outputs[1].name}_value")
    same = [edit.node("Identity", [value]) for value in (node.inputs[0], mask)]
    edit.replace(node, same, [identity.outputs[0] for identity in same])
    return True


def cast(edit: Editor, node: ir.Node) -> bool:
    x = node.inputs[0]
    return x is not None and x.dtype is not None and int(x.dtype) == attribute(node, "to") and forward(edit, node, x)


def cast_like(edit: Editor, node: ir.Node) -> bool:
    """Only the type of the second operand matters."""
    like = node.inputs[1]
    if like is None or like.dtype is None:
        return False
    node.op_type = "Cast"
    node.resize_inputs(1)
    set_attribute(node, "to", int(like.dtype))
    return True


def concat(edit: Editor, node: ir.Node) -> bool:
    """Without operands that are empty."""
    axis, shapes = attribute(node, "axis"), [shape_of(value) for value in node.inputs]
    full = [value for value, shape in zip(node.inputs, shapes, strict=True) if shape is None or shape[axis]]
    if not 0 < len(full) < len(node.inputs):
        return False
    edit.replace(node, [edit.node("Concat", full, {"axis": axis}, name=node.name or "")])
    return True


def single(edit: Editor, node: ir.Node) -> bool:
    """Concat, Sum, Max, Min or Mean of one operand."""
    return len(node.inputs) == 1 and forward(edit, node, node.inputs[0])


def transpose(edit: Editor, node: ir.Node) -> bool:
    shape = shape_of(node.inputs[0])
    if shape is None:
        return False
    perm = tuple(attribute(node, "perm", tuple(reversed(range(len(shape))))))
    if perm == tuple(range(len(shape))):
        return forward(edit, node, node.inputs[0])
    return set_attribute(node, "perm", list(perm))


def expand(edit: Editor, node: ir.Node) -> bool:
    """To the same shape it is nothing. Else the target says 1 where the size does not change, so that it holds for any batch."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None:
        return False
    if before == after:
        return forward(edit, node, node.inputs[0])
    aligned = (1,) * (len(after) - len(before)) + before
    wanted = np.array([1 if a == b else b for a, b in zip(aligned, after, strict=True)], np.int64)
    return _constant_input(edit, node, 1, wanted, "shape")


def reshape(edit: Editor, node: ir.Node) -> bool:
    """Reshape, Flatten, Squeeze and Unsqueeze become Reshape to a constant; its first entry is 0 (copy) where axis 0 keeps its size."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None:
        return False
    if before == after:
        return forward(edit, node, node.inputs[0])
    source, modified = (node.inputs[0].producer() if node.inputs[0] is not None else None), False
    if source is not None and source.op_type == "Reshape" and source.domain == "" and source.graph is node.graph:
        # Only the last of several shapes matters.
        node.replace_input_with(0, source.inputs[0])
        before, modified = shape_of(node.inputs[0]) or before, True
    if node.op_type != "Reshape":
        node.op_type, modified = "Reshape", True
        node.attributes.clear()
    target = list(after)
    if 0 in after:
        modified |= set_attribute(node, "allowzero", 1)
    else:
        modified |= drop_attribute(node, "allowzero")
        if before and after and before[0] == after[0]:
            target[0] = 0
    return _constant_input(edit, node, 1, np.array(target, np.int64), "shape") or modified


def convolution(edit: Editor, node: ir.Node) -> bool:
    """strides, dilations, pads, group and kernel_shape always there; no auto_pad."""
    weight = input_of(node, 3 if node.op_type == "QLinearConv" else 1)
    x, w, y = shape_of(node.inputs[0]), shape_of(weight), shape_of(node.outputs[0])
    if x is None or w is None or y is None or len(x) < 3:
        return False
    kernel, spatial = w[2:], len(x) - 2
    modified = set_attribute(node, "kernel_shape", list(attribute(node, "kernel_shape", kernel)))
    modified |= set_attribute(node, "group", attribute(node, "group", 1))
    strides, dilations = _strides(node, spatial)
    modified |= set_attribute(node, "strides", strides) | set_attribute(node, "dilations", dilations)
    if node.op_type != "ConvTranspose":
        return _pads(node, x[2:], kernel, strides, dilations) or modified
    extra = list(attribute(node, "output_padding", [0] * spatial))
    auto = attribute(node, "auto_pad", "NOTSET")
    wanted = attribute(node, "output_shape")
    if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
        sizes = list(wanted)[-spatial:] if wanted is not None else [i * s for i, s in zip(x[2:], strides, strict=True)]
        total = [
            s * (i - 1) + e + (k - 1) * d + 1 - o for i, o, k, s, d, e in zip(x[2:], sizes, kernel, strides, dilations, extra, strict=True)
        ]
        # More than the input gives: the rest is output padding.
        extra = [e + max(-t, 0) for e, t in zip(extra, total, strict=True)]
        if any(extra):
            set_attribute(node, "output_padding", extra)
        total = [max(t, 0) for t in total]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        # ONNX: SAME_UPPER puts the odd one at the end, anything else at the beginning.
        modified |= set_attribute(node, "pads", small + large if auto == "SAME_UPPER" else large + small)
    elif "pads" not in node.attributes or auto == "VALID":
        modified |= set_attribute(node, "pads", [0] * (2 * spatial))
    return modified | drop_attribute(node, "output_shape") | drop_attribute(node, "auto_pad")


def pooling(edit: Editor, node: ir.Node) -> bool:
    """kernel_shape, strides, dilations and pads always there; no auto_pad, and ceil_mode only where padding cannot say it."""
    x, y = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if x is None or y is None or len(x) < 3:
        return False
    kernel = tuple(attribute(node, "kernel_shape"))
    strides, dilations = _strides(node, len(x) - 2)
    modified = set_attribute(node, "strides", strides) | set_attribute(node, "dilations", dilations)
    modified |= _pads(node, x[2:], kernel, strides, dilations)
    return settle_ceil(node) or modified


def gemm(edit: Editor, node: ir.Node) -> bool:
    """alpha = beta = 1, transA = transB = 0: constants are transposed and scaled now, for others a node does it."""
    modified = False
    for index, key in ((0, "transA"), (1, "transB")):
        value = node.inputs[index]
        if value is None or not attribute(node, key, 0):
            modified |= drop_attribute(node, key)
            continue
        if is_constant(value):
            rows, columns = shape_of(value) or (0, 0)
            turned = edit.constant(derived(value, np.transpose, (columns, rows)), f"{value.name}_transposed")
        else:
            # A transposed DequantizeLinear of a constant is settled on the integers by qdq.py.
            mover = edit.node("Transpose", [value], {"perm": [1, 0]}, outputs=[f"{value.name}_transposed"])
            _insert_before(edit, node, mover)
            turned = mover.outputs[0]
            shape = shape_of(value)
            turned.shape, turned.type = (ir.Shape(list(reversed(shape))) if shape else None), value.type
        node.replace_input_with(index, turned)
        drop_attribute(node, key)
        modified = True
    for index, key in ((1, "alpha"), (2, "beta")):
        factor = attribute(node, key, 1.0)
        value = input_of(node, index)
        if factor == 1.0 or value is None:
            modified |= drop_attribute(node, key)
            continue
        array = constant_of(value)
        if array is not None and array.dtype.kind == "f":
            node.replace_input_with(index, edit.constant((array * array.dtype.type(factor)).astype(array.dtype), f"{value.name}_scaled"))
        elif value.dtype is not None and value.dtype.is_floating_point():
            constant = edit.constant(np.asarray(factor, value.dtype.numpy()), f"{node.name}_{key}")
            scaled = edit.node("Mul", [value, constant], outputs=[f"{value.name}_scaled"])
            _insert_before(edit, node, scaled)
            scaled.outputs[0].shape, scaled.outputs[0].type = value.shape, value.type
            node.replace_input_with(index, scaled.outputs[0])
        else:
            continue
        drop_attribute(node, key)
        modified = True
    return modified


def pad(edit: Editor, node: ir.Node) -> bool:
    """pads for all axes, no axes input; without any padding it is nothing."""
    x, pads = shape_of(node.inputs[0]), constant_of(input_of(node, 1))
    if x is None or pads is None:
        return False
    if not pads.any():
        return forward(edit, node, node.inputs[0])
    axes = constant_of(input_of(node, 3))
    if axes is None:
        return False
    whole = np.zeros(2 * len(x), np.int64)
    for axis, begin, end in zip(axes.tolist(), pads[: len(axes)], pads[len(axes) :], strict=True):
        whole[axis % len(x)], whole[axis % len(x) + len(x)] = begin, end
    _constant_input(edit, node, 1, whole, "pads")
    node.resize_inputs(3 if node.inputs[2] is not None else 2)
    return True


def slices(edit: Editor, node: ir.Node) -> bool:
    """axes (not negative) and steps always there; a slice of everything is nothing."""
    x, y = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    starts, ends = constant_of(input_of(node, 1)), constant_of(input_of(node, 2))
    if x is None or y is None or starts is None or ends is None:
        return False
    axes, steps = (constant_of(input_of(node, i)) if input_of(node, i) is not None else None for i in (3, 4))
    if any(input_of(node, i) is not None and not is_constant(input_of(node, i)) for i in (3, 4)):
        return False
    if x == y and (steps is None or (steps > 0).all()):
        return forward(edit, node, node.inputs[0])
    axis_list = np.arange(len(starts)) if axes is None else axes % len(x)
    step_list = np.ones(len(starts), np.int64) if steps is None else steps
    modified = _constant_input(edit, node, 3, axis_list.astype(np.int64), "axes")
    for index, given in ((1, starts), (2, ends)):
        # All of one type: an older file may have int32.
        modified |= _constant_input(edit, node, index, given.astype(np.int64), "bounds")
    return _constant_input(edit, node, 4, step_list.astype(np.int64), "steps") or modified


def split(edit: Editor, node: ir.Node) -> bool:
    """The sizes always as a constant input, never as num_outputs; without parts that are empty and that nobody reads."""
    shapes = [shape_of(out) for out in node.outputs]
    axis = attribute(node, "axis", 0)
    if any(shape is None for shape in shapes):
        return False
    kept = [out for out, shape in zip(node.outputs, shapes, strict=True) if out.uses() or out.is_graph_output() or 0 not in (shape or ())]
    if 0 < len(kept) < len(node.outputs):
        sizes = edit.constant(np.array([(shape_of(out) or ())[axis] for out in kept], np.int64), f"{node.name}_sizes")
        part = edit.node("Split", [node.inputs[0], sizes], {"axis": axis}, outputs=[""] * len(kept), name=node.name or "")
        if len(kept) == 1:
            part = edit.node("Identity", [node.inputs[0]], name=node.name or "")
        assert node.graph is not None
        node.graph.insert_before(node, part)
        for old, new in zip(kept, part.outputs, strict=True):
            edit.substitute(old, new)
        edit.remove(node)
        return True
    modified = _constant_input(edit, node, 1, np.array([shape[axis] for shape in shapes if shape is not None], np.int64), "sizes")
    return drop_attribute(node, "num_outputs") or modified


def reduction(edit: Editor, node: ir.Node) -> bool:
    """axes as a constant input, not negative; keepdims always there."""
    x = shape_of(node.inputs[0])
    modified = set_attribute(node, "keepdims", attribute(node, "keepdims", 1))
    given = input_of(node, 1)
    axes = constant_of(given)
    if x is None or (given is not None and axes is None):
        return modified
    if axes is None or axes.size == 0:
        if attribute(node, "noop_with_empty_axes", 0) or not x:
            return modified
        axes = np.arange(len(x))
    modified |= drop_attribute(node, "noop_with_empty_axes")
    return _constant_input(edit, node, 1, np.sort(axes % len(x)).astype(np.int64), "axes") or modified


def resize(edit: Editor, node: ir.Node) -> bool:
    """Sizes are given for the axes that change, not for the samples."""
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    sizes, region = constant_of(input_of(node, 3)), constant_of(input_of(node, 1))
    if before is None or after is None or sizes is None or (region is not None and region.size) or "axes" in node.attributes:
        return False
    if attribute(node, "keep_aspect_ratio_policy", "stretch") != "stretch" or before == after:
        return False
    changed = [axis for axis in range(len(before)) if before[axis] != after[axis]]
    if len(changed) == len(before):
        return False
    set_attribute(node, "axes", changed)
    return _constant_input(edit, node, 3, np.array([after[axis] for axis in changed], np.int64), "sizes")


def recurrent(edit: Editor, node: ir.Node) -> bool:
    """LSTM, GRU, RNN: an initial state of zeros is what they start from anyway, and leaving it out keeps the batch free."""
    modified = False
    for index in (5, 6):
        state = constant_of(input_of(node, index))
        if state is not None and not state.any():
            node.replace_input_with(index, None)
            modified = True
    return modified


def feature_extractor(edit: Editor, node: ir.Node) -> bool:
    """ai.onnx.ml's ArrayFeatureExtractor is a Gather on the last axis, of indices as one row."""
    x, index, after = shape_of(node.inputs[0]), shape_of(input_of(node, 1)), shape_of(node.outputs[0])
    if not x or index is None or after is None:
        return False
    new: list[ir.Node] = []

    def shaped(value: ir.Value | None, to: tuple[int, ...]) -> ir.Value | None:
        if shape_of(value) == to:
            return value
        target = edit.constant(np.array(to, np.int64), f"{node.name}_shape")
        new.append(edit.node("Reshape", [value, target], outputs=[f"{node.outputs[0].name}_shaped"]))
        made = new[-1].outputs[0]
        made.shape, made.type = ir.Shape(list(to)), value.type if value is not None else None
        return made

    # A constant row (a table of labels) is a vector, so that each index, one per sample, gives one entry.
    table = len(x) == 1 or (math.prod(x) == x[-1] and is_constant(node.inputs[0]))
    data = shaped(node.inputs[0], x[-1:]) if table else node.inputs[0]
    flat = shaped(node.inputs[1], (math.prod(index),))
    axis = 0 if table else len(x) - 1
    new.append(edit.node("Gather", [data, flat], {"axis": axis}, name=node.name or "", outputs=[f"{node.outputs[0].name}_gathered"]))
    if table:
        gathered = new[-1].outputs[0]
        gathered.shape, gathered.type = ir.Shape([math.prod(index)]), node.outputs[0].type
        new.append(edit.node("Reshape", [gathered, edit.constant(np.array(after, np.int64), f"{node.name}_shape")]))
    edit.replace(node, new)
    return True


def layer_normalization(edit: Editor, node: ir.Node) -> bool:
    """Of its three outputs the first; mean and 1/√(variance + ε), where anybody reads them, are computed beside it."""
    extra = [value for value in node.outputs[1:] if value.name and (value.uses() or value.is_graph_output())]
    x, shape = node.inputs[0], shape_of(node.inputs[0])
    if x is None or shape is None or x.dtype != ir.DataType.FLOAT:
        return False
    if not extra:
        if len(node.outputs) > 1:
            node.resize_outputs(1)
            return True
        return False
    first = attribute(node, "axis", -1) % len(shape)
    axes = edit.constant(np.arange(first, len(shape)), f"{node.name}_axes")
    mean = edit.node("ReduceMean", [x, axes], {"keepdims": 1}, outputs=[f"{node.outputs[0].name}_mean"])
    apart = edit.node("Sub", [x, mean.outputs[0]])
    square = edit.node("Mul", [apart.outputs[0], apart.outputs[0]])
    variance = edit.node("ReduceMean", [square.outputs[0], axes], {"keepdims": 1})
    least = edit.constant(np.asarray(attribute(node, "epsilon", 1e-5), np.float32), f"{node.name}_epsilon")
    above = edit.node("Add", [variance.outputs[0], least])
    root = edit.node("Sqrt", above.outputs)
    inverse = edit.node("Reciprocal", root.outputs, outputs=[f"{node.outputs[0].name}_inverse"])
    kept = edit.node("LayerNormalization", list(node.inputs), outputs=["normalized"], name=node.name or "")
    for key, held in node.attributes.items():
        kept.attributes[key] = held
    means = [mean.outputs[0], inverse.outputs[0]][: len(node.outputs) - 1]
    edit.replace(node, [mean, apart, square, variance, above, root, inverse, kept], [kept.outputs[0], *means])
    return True


def range_of_scalars(edit: Editor, node: ir.Node) -> bool:
    """Constants of one element are scalars, as the specification wants them."""
    modified = False
    for index, value in enumerate(node.inputs):
        held = constant_of(value)
        if held is not None and held.shape == (1,):
            node.replace_input_with(index, edit.constant(held.reshape(()), f"{node.name}_scalar"))
            modified = True
    return modified


def axis_attribute(edit: Editor, node: ir.Node) -> bool:
    """The axis explicit and not negative."""
    rank_of = node.inputs[0] if node.op_type != "Concat" else node.outputs[0]
    shape = shape_of(rank_of)
    axis = attribute(node, "axis", AXIS[node.op_type])
    if shape is None or axis is None or not shape:
        return False
    return set_attribute(node, "axis", axis % len(shape))


def _constant_input(edit: Editor, node: ir.Node, index: int, wanted: np.ndarray, what: str) -> bool:
    held = constant_of(input_of(node, index))
    if held is not None and held.dtype == wanted.dtype and np.array_equal(held, wanted):
        return False
    set_input(node, index, edit.constant(wanted, f"{node.outputs[0].name}_{what}"))
    return True


def _insert_before(edit: Editor, node: ir.Node, new: ir.Node) -> None:
    assert node.graph is not None
    node.graph.insert_before(node, new)


def _strides(node: ir.Node, spatial: int) -> tuple[list[int], list[int]]:
    return list(attribute(node, "strides", [1] * spatial)), list(attribute(node, "dilations", [1] * spatial))


def _pads(node: ir.Node, sizes: tuple[int, ...], kernel: tuple[int, ...], strides: list[int], dilations: list[int]) -> bool:
    """auto_pad as explicit pads. SAME: ceil(in / stride) outputs, an odd element of padding at the end (UPPER) or beginning (LOWER)."""
    auto = attribute(node, "auto_pad", "NOTSET")
    pads = list(attribute(node, "pads", [0] * (2 * len(sizes))))
    if auto == "VALID":
        pads = [0] * (2 * len(sizes))
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        total = [
            max(0, (math.ceil(i / s) - 1) * s + (k - 1) * d + 1 - i) for i, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)
        ]
        small, large = [t // 2 for t in total], [t - t // 2 for t in total]
        pads = small + large if auto == "SAME_UPPER" else large + small
    return set_attribute(node, "pads", pads) | drop_attribute(node, "auto_pad")


RULES: dict[str, tuple[Rule, ...]] = {
    "Identity": (identity,),
    "Dropout": (dropout, lowered.drops_nothing),
    "Cast": (cast,),
    "CastLike": (cast_like,),
    "Transpose": (transpose,),
    "Expand": (expand,),
    "Gemm": (gemm,),
    "Pad": (pad,),
    "Slice": (slices,),
    "Split": (axis_attribute, split),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), (reshape,)),
    **dict.fromkeys(("Sum", "Max", "Min", "Mean"), (single,)),
    **dict.fromkeys(CONVS, (convolution,)),
    **dict.fromkeys(POOLS, (pooling,)),
    **dict.fromkeys(REDUCTIONS, (reduction,)),
    **{op: (axis_attribute,) for op in AXIS if op not in ("Concat", "Split", "Compress")},
    **lowered.RULES,
    "LpPool": (pooling, lowered.lp_pool),
    "Range": (range_of_scalars,),
    "Scan": (unroll.scan,),
    "Loop": (unroll.loop,),
    "LayerNormalization": (axis_attribute, layer_normalization),
    "Concat": (single, concat, axis_attribute),
    "Resize": (resize,),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (recurrent,)),
}
ML_RULES: dict[str, tuple[Rule, ...]] = {"ArrayFeatureExtractor": (feature_extractor,)}
"""The same for ops of ai.onnx.ml."""
