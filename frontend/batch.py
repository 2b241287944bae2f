"""Does a model treat axis 0 of its inputs as independent samples? If so, many samples run at once, in any number.

``batch_reason`` follows the samples' axis through the graph, one rule for each operator. It is sound, not complete: an
operator without a rule, or whose rule does not see independence, counts as mixing samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from gatewright.errors import ModelError

from .edit import attribute, constant_of, input_of, label, shape_of
from .limits import Limits
from .model import Model
from .rewrite import REDUCTIONS
from .shapes import forget, infer

Axis = int | None
"""Position of the samples' axis in a value; None where the value is the same for every sample."""
Rule = Callable[[ir.Node, Sequence[Axis]], "list[Axis] | str"]
"""From a node and the axes of its inputs to the axes of its outputs, or in words why samples mix. Some input has the axis."""


def batch_reason(model: Model) -> str | None:
    """None if axis 0 of every output is the samples', each computed from the same sample of the inputs alone; else why not, and where."""
    axes: dict[ir.Value, Axis] = dict.fromkeys(model.graph.initializers.values())
    sizes = set()
    for value in model.graph.inputs:
        shape = shape_of(value)
        if not shape:
            return f"input {value.name!r} is a single number, not one per sample"
        axes[value] = 0
        sizes.add(shape[0])
    if len(sizes) != 1:
        return "the inputs differ in their axis 0: " + ", ".join(map(str, model.inputs)) if sizes else "the model has no inputs"
    for node in model.graph:
        given = [None if value is None else axes.get(value) for value in node.inputs]
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            return f"node {label(node)!r} ({node.op_type}) holds a graph of its own"
        if all(axis is None for axis in given):
            axes.update(dict.fromkeys(node.outputs))
            continue
        found = _RULES.get((node.domain, node.op_type), _unknown)(node, given)
        if isinstance(found, str):
            return f"node {label(node)!r} ({node.op_type}) {found}"
        axes.update(zip(node.outputs, found[: len(node.outputs)], strict=True))
    for value in model.graph.outputs:
        if axes.get(value) != 0:
            where = "is the same for all samples" if axes.get(value) is None else f"has the samples on axis {axes[value]}"
            return f"output {value.name!r} {where}"
    return None


def with_batch(model: Model, n: int) -> Model:
    """The same model for ``n`` samples at a time. Raises ModelError where samples are not independent."""
    reason = batch_reason(model)
    if reason is not None:
        raise ModelError(f"the model cannot take {n} samples at a time: {reason}")
    edited = model.copy_ir()
    for value in edited.graph.inputs:
        value.shape = ir.Shape([n, *(shape_of(value) or ())[1:]])
    forget(edited)
    infer(edited, Limits())
    for value in (out for node in edited.graph for out in node.outputs if out.name):
        if shape_of(value) is None:
            raise ModelError(f"the model cannot take {n} samples at a time: the shape of {value.name!r} cannot be inferred for them")
    return model.with_ir(edited)


def _unknown(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    return "is not known to keep samples apart"


def _rank(value: ir.Value | None) -> int:
    return len(shape_of(value) or ())


def _size(value: ir.Value | None, axis: int) -> int:
    shape = shape_of(value) or ()
    return shape[axis] if -len(shape) <= axis < len(shape) else 1


def _first(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    """Only the first input has the samples, on axis 0, and the operator works on each alone: convolution, pooling, trees."""
    if axes[0] != 0 or any(axis is not None for axis in axes[1:]):
        return "takes something else than its data from the samples" if axes[0] == 0 else "does not have the samples on its axis 0"
    return [0] * len(node.outputs)


def _elementwise(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    """Broadcasting aligns axes from the right: all samples' axes must meet, and meet nothing but ones elsewhere."""
    from_right = {axis - _rank(value) for value, axis in zip(node.inputs, axes, strict=True) if axis is not None}
    if len(from_right) != 1:
        return "combines samples on different axes"
    position = from_right.pop()
    for value, axis in zip(node.inputs, axes, strict=True):
        if axis is None and value is not None and _size(value, position) != 1:
            return f"combines each sample with its own part of {value.name!r}"
    return [position + _rank(node.outputs[0])] * len(node.outputs)


def _along(attribute_name: str, default: int) -> Rule:
    """Works along one axis, which must not be the samples'."""

    def rule(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
        axis = attribute(node, attribute_name, default) % max(_rank(node.inputs[0]), 1)
        if axes[0] is None or any(a is not None for a in axes[1:]):
            return "takes something else than its data from the samples"
        if axis == axes[0]:
            return "works across samples"
        keeps = attribute(node, "keepdims", 1) or node.op_type not in ("ArgMax", "ArgMin")
        return [axes[0] if keeps else axes[0] - (axis < axes[0])] * len(node.outputs)

    return rule


def _rows(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    """ai.onnx.ml works on rows; a vector would be one row, its elements not samples."""
    return _first(node, axes) if _rank(node.inputs[0]) > 1 else "takes all its data as one sample"


def _batch_normalization(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    return "is in training mode" if attribute(node, "training_mode", 0) else _first(node, axes)


def _layer_normalization(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    rank = _rank(node.inputs[0])
    axis = attribute(node, "axis", -1) % rank
    if axes[0] is None or any(a is not None for a in axes[1:]) or axes[0] >= axis:
        return "works across samples"
    if any(_size(value, axes[0] - rank) != 1 for value in node.inputs[1:]):
        return "scales each sample by its own factor"
    return [axes[0]] * len(node.outputs)


def _linear(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    """QuantizeLinear, DequantizeLinear: the scale and zero point are constants, not along the samples."""
    if axes[0] is None or any(a is not None for a in axes[1:]):
        return "has a scale that depends on the data"
    if _rank(node.inputs[1]) and (attribute(node, "axis", 1) == axes[0] or attribute(node, "block_size", 0)):
        return "has one scale for each sample"
    return [axes[0]]


def _matmul(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    a, b = node.inputs[0], node.inputs[1]
    left, right, rank = axes[0], axes[1], max(_rank(a), _rank(b))
    if any(axis is not None for axis in axes[2:]):
        return "has a zero point that depends on the data"
    if min(_rank(a), _rank(b)) < 2:
        # A vector is contracted whole; a constant one on the right leaves the samples where they are.
        return [left] if left is not None and right is None and left < _rank(a) - 1 else "multiplies across samples"
    if left is not None and left == _rank(a) - 1:
        return "multiplies across samples"
    if right is not None and right == _rank(b) - 2:
        return "multiplies across samples"
    found = set()
    for value, axis, own, other in ((a, left, -2, b), (b, right, -1, a)):
        if axis is None:
            continue
        position = axis - _rank(value)
        found.add(position)
        meets = axes[1] if value is a else axes[0]
        if position not in (own,) and meets is None and _size(other, position) != 1:
            return "multiplies each sample by its own matrix"
    if len(found) != 1:
        return "combines samples on different axes"
    # Two of them can only meet in the leading axes: rows of one and columns of the other lie on different ones.
    return [found.pop() + rank]


def _gemm(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    if axes[0] != (1 if attribute(node, "transA", 0) else 0) or axes[1] is not None:
        return "multiplies across samples"
    c = input_of(node, 2)
    if len(axes) > 2 and axes[2] is not None:
        return [0] if axes[2] == 0 and _rank(c) == 2 else "adds samples on different axes"
    return "adds to each sample its own bias" if _rank(c) == 2 and _size(c, 0) != 1 else [0]


def _reshape(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    target = constant_of(input_of(node, 1))
    copies = target is not None and target.size > 0 and target[0] == 0 and not attribute(node, "allowzero", 0)
    return [0] if axes[0] == 0 and copies else "reshapes across samples"


def _transpose(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    return [list(attribute(node, "perm")).index(axes[0])]


def _expand(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    target = constant_of(input_of(node, 1))
    if axes[0] is None or target is None:
        return "takes its shape from the samples"
    position = axes[0] - _rank(node.inputs[0])
    if -position <= len(target) and target[position] != 1:
        return "repeats samples"
    return [position + _rank(node.outputs[0])]


def _tile(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    repeats = constant_of(input_of(node, 1))
    return [axes[0]] if axes[0] is not None and repeats is not None and repeats[axes[0]] == 1 else "repeats samples"


def _slice(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    touched = constant_of(input_of(node, 3))
    if axes[0] is None or touched is None or any(axis is not None for axis in axes[1:]) or axes[0] in touched % _rank(node.inputs[0]):
        return "cuts along the samples"
    return [axes[0]]


def _pad(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    pads, rank = constant_of(input_of(node, 1)), _rank(node.inputs[0])
    if axes[0] is None or any(axis is not None for axis in axes[1:]) or pads is None or len(pads) != 2 * rank:
        return "takes its padding from the samples"
    return "pads along the samples" if pads[axes[0]] or pads[axes[0] + rank] else [axes[0]]


def _concat(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    if len(set(axes)) != 1:
        return "joins samples with something that is not one per sample"
    return "joins along the samples" if attribute(node, "axis") % _rank(node.inputs[0]) == axes[0] else [axes[0]]


def _split(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    if axes[0] is None or attribute(node, "axis", 0) % _rank(node.inputs[0]) == axes[0]:
        return "cuts along the samples"
    return [axes[0]] * len(node.outputs)


def _reduce(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    reduced, rank = constant_of(input_of(node, 1)), _rank(node.inputs[0])
    if axes[0] is None or reduced is None or reduced.size == 0:
        return "reduces across samples"
    listed = {int(axis) % rank for axis in reduced}
    if axes[0] in listed:
        return "reduces across samples"
    return [axes[0] if attribute(node, "keepdims", 1) else axes[0] - sum(axis < axes[0] for axis in listed)]


def _gather(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    data, index = axes[0], axes[1]
    axis = attribute(node, "axis", 0) % max(_rank(node.inputs[0]), 1)
    if data is not None and index is None and data != axis:
        return [data if data < axis else data - 1 + _rank(node.inputs[1])]
    if data is None and index is not None:
        return [axis + index]
    return "gathers across samples"


def _gather_elements(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    same = len(set(axes)) == 1
    return [axes[0]] if same and attribute(node, "axis", 0) % _rank(node.inputs[0]) != axes[0] else "gathers across samples"


def _gather_nd(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    if attribute(node, "batch_dims", 0) >= 1 and axes[0] == 0 and axes[1] == 0:
        return [0]
    if axes[0] is None and axes[1] == 0 and _rank(node.inputs[1]) > 1 and not attribute(node, "batch_dims", 0):
        return [0]
    return "gathers across samples"


def _one_hot(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    if axes[0] is None or any(axis is not None for axis in axes[1:]):
        return "takes its depth from the samples"
    axis = attribute(node, "axis", -1) % _rank(node.outputs[0])
    return [axes[0] + (axis <= axes[0])]


def _resize(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    if axes[0] is None or any(axis is not None for axis in axes[1:]):
        return "takes its size from the samples"
    rank = _rank(node.inputs[0])
    listed = [axis % rank for axis in attribute(node, "axes", tuple(range(rank)))]
    scales = constant_of(input_of(node, 2))
    untouched = axes[0] not in listed or (scales is not None and scales.size and scales[listed.index(axes[0])] == 1)
    return [axes[0]] if untouched else "resizes along the samples"


def _recurrent(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    """X, W, R, B, sequence_lens, initial_h, initial_c, P; the states have a samples' axis of their own."""
    layout = attribute(node, "layout", 0)
    wanted: list[Axis] = [1 - layout, None, None, None, 0, 1 - layout, 1 - layout, None]
    for value, axis, expected in zip(node.inputs, axes, wanted, strict=False):
        if value is not None and axis != expected:
            return f"takes {value.name!r} " + ("the same for all samples" if axis is None else f"with the samples on axis {axis}")
    return [0, 0, 0] if layout else [2, 1, 1]


def _einsum(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    terms, arrow, result = attribute(node, "equation").replace(" ", "").partition("->")
    operands = terms.split(",")
    if not arrow or "." in terms or len(operands) != len(axes):
        return "is not known to keep samples apart"
    letters = {term[axis] for term, axis in zip(operands, axes, strict=True) if axis is not None}
    if len(letters) != 1:
        return "combines samples on different axes"
    letter = letters.pop()
    shared = any(letter in term for term, axis in zip(operands, axes, strict=True) if axis is None)
    repeated = any(term.count(letter) > 1 for term in operands)
    return "sums or combines across samples" if shared or repeated or letter not in result else [result.index(letter)]


def _cumulative(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    axis = constant_of(input_of(node, 1))
    works = axes[0] is not None and axis is not None and int(axis.reshape(-1)[0]) % _rank(node.inputs[0]) != axes[0]
    return [axes[0]] if works else "works across samples"


def _triangle(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    return [axes[0]] if axes[0] is not None and axes[0] < _rank(node.inputs[0]) - 2 else "cuts across samples"


def _grid_sample(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    return [0] if list(axes) == [0, 0] else "does not have the samples on axis 0 of both inputs"


def _max_pool(node: ir.Node, axes: Sequence[Axis]) -> list[Axis] | str:
    counted = len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output())
    return "counts places over all samples together" if counted else _first(node, axes)


_ELEMENTWISE = """
    Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Cos Cosh Div Elu
    Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min
    Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh
    ThresholdedRelu Where Xor
"""
_FIRST = """
    AveragePool Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization
    InstanceNormalization LRN LpPool SpaceToDepth STFT
"""
_ROWS = """
    Binarizer Imputer LabelEncoder LinearClassifier LinearRegressor Normalizer OneHotEncoder Scaler SVMClassifier SVMRegressor
    TreeEnsembleClassifier TreeEnsembleRegressor
"""

_RULES: dict[tuple[str, str], Rule] = {
    **{("", op): _elementwise for op in _ELEMENTWISE.split()},
    **{("", op): _first for op in _FIRST.split()},
    **{("", op): _reduce for op in REDUCTIONS},
    **{("", op): _along("axis", -1) for op in ("Softmax", "LogSoftmax", "Hardmax", "TopK", "LpNormalization")},
    **{("", op): _along("axis", 0) for op in ("ArgMax", "ArgMin")},
    **{("", op): _linear for op in ("QuantizeLinear", "DequantizeLinear")},
    **{("", op): _matmul for op in ("MatMul", "MatMulInteger")},
    **{("", op): _recurrent for op in ("LSTM", "GRU", "RNN")},
    ("", "BatchNormalization"): _batch_normalization,
    ("", "Concat"): _concat,
    ("", "CumSum"): _cumulative,
    ("", "Einsum"): _einsum,
    ("", "Expand"): _expand,
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "GatherND"): _gather_nd,
    ("", "Gemm"): _gemm,
    ("", "GridSample"): _grid_sample,
    ("", "LayerNormalization"): _layer_normalization,
    ("", "MaxPool"): _max_pool,
    ("", "OneHot"): _one_hot,
    ("", "Pad"): _pad,
    ("", "Reshape"): _reshape,
    ("", "Resize"): _resize,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Tile"): _tile,
    ("", "Transpose"): _transpose,
    ("", "Trilu"): _triangle,
    **{("ai.onnx.ml", op): _rows for op in _ROWS.split()},
}
