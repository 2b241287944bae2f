"""Is axis 0 of every input and output the samples', so that a batch is many independent runs? And the model for another batch.

``batch_reason`` is conservative: it says yes only where every node is known to treat the samples one by one, and names the
first node that is not. ``with_batch`` then needs to change nothing but the inputs' shapes: canonical graphs carry no
batch size in constants (Reshape copies it: 0).
"""

from __future__ import annotations

import onnx_ir as ir

from gatewright.errors import ModelError

from . import elementwise
from .model import Model, Step
from .queries import constant, integer, reduce_axes, shape_of

_SAME_RANK = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
                        "InstanceNormalization", "LRN", "DepthToSpace", "SpaceToDepth", "Cast", "Identity", "IsNaN", "IsInf", "Not",
                        "QuantizeLinear", "DequantizeLinear", "Dropout", "LpPool", "GlobalLpPool"})  # fmt: skip
"""Samples are axis 0 of the first input by definition, or values are treated one by one; further inputs are parameters."""
_ALONG_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "LayerNormalization": -1, "ArgMax": 0, "ArgMin": 0, "CumSum": 0,
               "LpNormalization": -1, "GroupNormalization": 1, "TopK": -1, "Split": 0, "Concat": 0, "Gather": 0}  # fmt: skip
"""Ops that mix values along an axis, with the attribute's default: samples stay apart where that is not axis 0."""
_BROADCAST = frozenset(elementwise.FUNCTIONS) | {"Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or",
                                                 "Xor", "Mean", "Mod"}  # fmt: skip
_REDUCTIONS = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare",
                         "ReduceLogSum", "ReduceLogSumExp"})  # fmt: skip
_ML_BY_ROW = frozenset({"TreeEnsembleClassifier", "TreeEnsembleRegressor", "SVMClassifier", "SVMRegressor", "LinearClassifier",
                        "LinearRegressor", "Scaler", "Normalizer", "Imputer", "Binarizer",
                        "LabelEncoder", "OneHotEncoder", "TreeEnsemble"})  # fmt: skip


def batch_reason(model: Model) -> str | None:
    """None where every input and output has the samples on axis 0 and no node mixes them; else why not, naming the node."""
    graph = model.graph
    sizes = {shape_of(value)[:1] for value in graph.inputs if not value.is_initializer()}
    if not sizes or () in sizes or len(sizes) != 1:
        return "its inputs do not share a leading axis"
    batched: set[ir.Value] = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if not any(value in batched for value in inputs):
            continue
        reason = _mixes(node, batched)
        if reason is not None:
            return f"node {node.name!r} ({node.op_type}) {reason}"
        batched.update(value for value in node.outputs)
    for value in graph.outputs:
        if value not in batched:
            return f"output {value.name!r} does not depend on the samples"
    return None


def with_batch(model: Model, samples: int) -> Model:
    """The same model for ``samples`` samples at a time. Raises ModelError where ``batch_reason`` gives one."""
    reason = batch_reason(model)
    if reason is not None:
        raise ModelError(f"model {model.name!r} has no batch axis: {reason}")
    if samples < 1:
        raise ModelError(f"a batch has at least one sample, not {samples}")
    current = shape_of(model.graph.inputs[0])[0]
    if samples == current:
        return model
    edited = model.copy_ir()
    batched: set[ir.Value] = set(edited.graph.inputs)
    for node in edited.graph:
        if any(value in batched for value in node.inputs):
            batched.update(node.outputs)
    for value in batched:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([samples, *value.shape.numpy()[1:]])
    return model.with_ir(edited, Step("batch", str(samples)))


def _mixes(node: ir.Node, batched: set[ir.Value]) -> str | None:
    """None where the outputs of ``node`` have the samples on axis 0 and each depends on its own sample only."""
    first, op = node.inputs[0], node.op_type
    output = node.outputs[0]
    if any(isinstance(a, ir.Attr) and a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return "has a subgraph"
    if node.domain == "ai.onnx.ml" and op in _ML_BY_ROW:
        return None
    if node.domain != "":
        return "is of a domain whose operators are not known here"
    others = [value for value in node.inputs[1:] if value is not None]
    if op in _BROADCAST:
        return _broadcast(node, batched)
    if op in ("MatMul", "Gemm"):
        return _product(node, batched)
    if op == "Concat":
        if not all(value in batched for value in node.inputs):
            return "joins samples with values that are none"
    elif first not in batched or any(value in batched for value in others):
        return "takes the samples as a parameter"
    rank = len(shape_of(first)) if first is not None else 0
    if op in _SAME_RANK:
        return None
    if op in _ALONG_AXIS:
        axis = integer(node, "axis", _ALONG_AXIS[op])
        if op == "CumSum":
            found = constant(node.inputs[1])
            axis = 0 if found is None else int(found.reshape(-1)[0])
        return "works along axis 0, the samples'" if axis % rank == 0 else None
    if op in _REDUCTIONS:
        axes = reduce_axes(node, rank)
        return "reduces over axis 0, the samples'" if axes is None or 0 in axes else None
    if op == "Transpose":
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else list(reversed(range(rank)))
        return None if perm[0] == 0 else "moves axis 0, the samples'"
    if op == "Reshape":
        target = constant(node.inputs[1])
        keeps = target is not None and target.size > 0 and int(target[0]) == 0 and not integer(node, "allowzero", 0)
        return None if keeps else "does not keep axis 0, the samples'"
    return _by_axes(node, rank, shape_of(output))


def _by_axes(node: ir.Node, rank: int, output: tuple[int, ...]) -> str | None:
    op = node.op_type
    if op == "Slice":
        axes = constant(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] is not None else None
        starts = constant(node.inputs[1])
        if starts is None:
            return "has computed bounds"
        touched = range(len(starts)) if axes is None else [int(a) % rank for a in axes]
        return "slices axis 0, the samples'" if 0 in touched else None
    if op == "Pad":
        pads = constant(node.inputs[1])
        if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
            return "pads axes that are not known to leave the samples alone"
        return "pads axis 0, the samples'" if pads[0] or pads[len(pads) // 2] else None
    if op in ("Resize", "Upsample"):
        factors = next((f for v in node.inputs[2:] if (f := constant(v)) is not None and f.size == rank), None)
        if factors is None or "axes" in node.attributes:
            return "resizes axes that are not known to leave the samples alone"
        whole = float(factors[0]) in (1.0, float(output[0])) if output else False
        # A size of 1 or a factor of 1; a written size of the old batch would not survive another one.
        return None if whole and factors.dtype.kind == "f" and float(factors[0]) == 1.0 else "resizes axis 0, the samples'"
    if op == "Tile":
        repeats = constant(node.inputs[1])
        return None if repeats is not None and int(repeats[0]) == 1 else "repeats axis 0, the samples'"
    if op == "Expand":
        target = constant(node.inputs[1])
        fits = target is not None and (target.size < rank or (target.size == rank and int(target[0]) == 1))
        return None if fits else "expands axis 0, the samples'"
    return "is not known to treat the samples one by one"


def _broadcast(node: ir.Node, batched: set[ir.Value]) -> str | None:
    """Elementwise with broadcasting: samples line up where every batched operand has the result's rank, and others 1 on axis 0."""
    rank = len(shape_of(node.outputs[0]))
    for value in node.inputs:
        if value is None:
            continue
        shape = shape_of(value)
        if value in batched:
            if len(shape) != rank:
                return "broadcasts the samples' axis onto another one"
        elif len(shape) == rank and shape[0] != 1:
            return "combines the samples with a constant that has its own value for each"
    return None


def _product(node: ir.Node, batched: set[ir.Value]) -> str | None:
    left, right = node.inputs[0], node.inputs[1]
    assert left is not None and right is not None  # noqa: PT018 (the checker guarantees both)
    if node.op_type == "Gemm":
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        ok = left in batched and right not in batched and not integer(node, "transA", 0)
        if bias is not None and (bias in batched or (len(shape_of(bias)) == 2 and shape_of(bias)[0] != 1)):
            ok = False
        return None if ok else "multiplies the samples with one another"
    ranks = len(shape_of(left)), len(shape_of(right))
    if left in batched and right in batched:
        return None if ranks[0] == ranks[1] >= 3 else "multiplies the samples with one another"
    if left in batched:
        fits = ranks[0] >= 2 and (ranks[1] <= 2 or ranks[1] < ranks[0] or (ranks[1] == ranks[0] and shape_of(right)[0] == 1))
        return None if fits else "multiplies the samples with one another"
    fits = ranks[1] >= 3 and (ranks[0] < ranks[1] or (ranks[0] == ranks[1] and shape_of(left)[0] == 1))
    return None if fits else "multiplies the samples with one another"
