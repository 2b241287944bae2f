"""If, made into what every target runs: the branch that is taken, or both and a choice between their results.

Both are computed where the condition is known only when the model runs, and neither branch can fail, has an effect or costs much:
then ``Where`` takes each result from the one that the condition names. What the other one makes of values that it was never meant for,
a NaN or an infinity, goes nowhere: Where picks, it does not multiply. The model's history says what is computed in vain. Any other If
stays, with its graphs.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir

from gatewright.errors import GatewrightError

from .edit import Editor, constant_of, input_of, is_constant, label, shape_of, values
from .effort import operations_of
from .extract import captured_by
from .limits import Limits
from .upgrade import IR_VERSION, OPSET

MOST_NODES = 256
"""Of both branches together."""
MOST_ELEMENTS = 1 << 20
"""Of all that both branches read and write: beyond, what is not needed had better not be computed."""
MOST_OPERATIONS = 1 << 24
"""Of both branches together, multiply-accumulates and others: about a millisecond."""
_TOTAL = frozenset({
    "Abs", "Acos", "Acosh", "Add", "And", "ArgMax", "ArgMin", "Asin", "Asinh", "Atan", "Atanh", "AveragePool", "BatchNormalization",
    "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Concat", "Constant",
    "ConstantOfShape", "Cos", "Cosh", "CumSum", "DepthToSpace", "DequantizeLinear", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten",
    "Floor", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "InstanceNormalization", "IsInf", "IsNaN", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax",
    "MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "Reciprocal",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "Relu", "Reshape", "Round", "Selu", "Shape", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Size", "Slice",
    "Softmax", "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Swish", "Tan", "Tanh",
    "ThresholdedRelu", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
})  # fmt: skip
"""Operators that give something for every input: no index can be out of range, no integer divisor zero."""
_OF_FIXED_SHAPES = frozenset(
    {"Conv", "ConvTranspose", "Einsum", "GridSample", "GroupNormalization", "LRN", "LpNormalization", "LpPool", "Resize"}
)
"""These too, once inference has found their shapes to agree."""
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_FLOAT_ONLY = frozenset({"Div", "Mod"})
_BY_INDEX = frozenset({"Gather", "GatherElements", "GatherND"})
_BRANCHES = ("then_branch", "else_branch")


def merged(edit: Editor, node: ir.Node, limits: Limits) -> bool:
    """Both branches in the place of the If, and a Where for each output. False where they are not fit for that."""
    condition, shapes = node.inputs[0], [shape_of(value) for value in node.outputs]
    if condition is None or any(shape is None for shape in shapes) or not _are_small(node):
        return False
    if any(value.dtype is None or value.dtype == ir.DataType.STRING for value in node.outputs):
        return False
    # Asked again in every round of canonicalization: only for something new is it looked into again.
    around = tuple((shape_of(v), is_constant(v)) for taken in _BRANCHES for v in captured_by(node.attributes[taken].as_graph()))
    if edit.unfit.get(node) == around:
        return False
    edit.unfit[node] = around
    costs = [_cost(node, taken, limits) for taken in _BRANCHES]
    if any(cost is None for cost in costs) or sum(cost or 0 for cost in costs) > MOST_OPERATIONS:
        return False
    nodes: list[ir.Node] = []
    results = []
    for taken in _BRANCHES:
        own, outputs = inlined(edit, node, taken)
        nodes += own
        results.append(outputs)
    if shape_of(condition) != ():
        nodes.append(edit.node("Reshape", [condition, edit.constant(np.zeros(0, np.int64), f"{node.name}_number")]))
        condition = nodes[-1].outputs[0]
    chosen = [edit.node("Where", [condition, *pair], name=node.name or "") for pair in zip(*results, strict=True)]
    needed, total = max(cost or 0 for cost in costs), sum(cost or 0 for cost in costs)
    edit.notes.append(
        f"both branches of {label(node)!r} (If) are computed and one is taken: {total:,} operations instead of {needed:,} at most"
    )
    forget(node)
    edit.replace(node, [*nodes, *chosen], [one.outputs[0] for one in chosen])
    return True


def _are_small(node: ir.Node) -> bool:
    """As far as is known before the branches are looked into. One that holds graphs is not: each level would be looked into once for
    every round of those around it."""
    inner = [one for taken in _BRANCHES for one in node.attributes[taken].as_graph()]
    if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for one in inner for attribute in one.attributes.values()):
        return False
    touched = {value for one in inner for value in (*one.inputs, *one.outputs) if value is not None}
    return len(inner) <= MOST_NODES and sum(math.prod(shape_of(value) or ()) for value in touched) <= MOST_ELEMENTS


def _cost(node: ir.Node, taken: str, limits: Limits) -> int | None:
    """Operations of one branch in canonical form, with the values around it as inputs. None where its shapes are not known yet, are not
    those of the If, contradict one another, or where it can fail."""
    # Imported here because canonicalization itself is what asks.
    from .canonicalize import canonicalize

    model = _alone(node.attributes[taken].as_graph())
    if model is None:
        return None
    try:
        canonicalize(model, limits)
    except GatewrightError:
        return None
    same = all(
        shape_of(own) == shape_of(wanted) and own.dtype == wanted.dtype
        for own, wanted in zip(model.graph.outputs, node.outputs, strict=True)
    )
    return sum(map(operations_of, model.graph)) if same and all(map(_cannot_fail, model.graph)) else None


def _alone(graph: ir.Graph) -> ir.Model | None:
    """A copy of a branch as a model of its own. None where the shape of what it reads is not known, or its weights lie in another file."""
    held = [value for own in (graph, *graph.subgraphs()) for value in own.initializers.values()]
    if any(isinstance(value.const_value, ir.ExternalTensor) for value in held):
        return None
    proto = ir.to_proto(graph)
    for value in dict.fromkeys(captured_by(graph)):
        constant = constant_of(value)
        if constant is not None:
            proto.initializer.append(onnx.numpy_helper.from_array(constant, value.name))
        elif shape_of(value) is None or value.dtype is None:
            return None
        else:
            proto.input.append(onnx.helper.make_tensor_value_info(value.name or "", value.dtype.value, shape_of(value)))
    return ir.from_proto(onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION))


def _cannot_fail(node: ir.Node) -> bool:
    """Of a node in canonical form: every shape is known, and they agree."""
    if node.domain != "":
        return False
    if node.op_type in _FLOAT_ONLY:
        return node.inputs[0] is not None and node.inputs[0].dtype is not None and node.inputs[0].dtype.is_floating_point()
    if node.op_type in _RECURRENT:
        return input_of(node, 4) is None
    if node.op_type in _TOTAL or node.op_type in _OF_FIXED_SHAPES:
        return True
    return node.op_type in _BY_INDEX and is_constant(input_of(node, 1))


def inlined(edit: Editor, node: ir.Node, taken: str) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes of one branch, taken out of its graph, and its results; its constants are the main graph's from now on."""
    branch = node.attributes[taken].as_graph()
    for value in values(branch):
        value.name = edit.fresh(f"{value.name}_inlined") if value.name else None
    for inner in branch:
        inner.name = edit.fresh(f"{node.name}_{inner.name or inner.op_type}")
    for value in list(branch.initializers.values()):
        branch.initializers.pop(value.name or "")
        edit.graph.register_initializer(value)
    outputs = list(branch.outputs)
    branch.outputs.clear()
    nodes = list(branch)
    branch.remove(nodes)
    return nodes, outputs


def forget(node: ir.Node) -> None:
    """Let go of what the graphs left in ``node`` read: a node that is taken out would otherwise hold on to it."""
    for taken in _BRANCHES:
        graph = node.attributes[taken].as_graph()
        graph.outputs.clear()
        for inner in graph:
            for position in range(len(inner.inputs)):
                inner.replace_input_with(position, None)
