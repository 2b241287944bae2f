"""If, made into what every target runs: the branch that is taken, or both and a choice between their results.

Both are computed where the condition is known only when the model runs, and neither branch can fail, has an effect or costs much:
then ``Where`` takes each result from the one that the condition names. Any other If stays, with its graphs.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .edit import Editor, input_of, is_constant, shape_of, values

MOST_NODES = 64
"""Of both branches together."""
MOST_ELEMENTS = 1 << 20
"""Of all that both branches read and write, as far as shapes are known: beyond, what is not needed had better not be computed."""
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
_FLOAT_ONLY = frozenset({"Div", "Mod"})
_BY_INDEX = frozenset({"Gather", "GatherElements", "GatherND"})
_BRANCHES = ("then_branch", "else_branch")


def merged(edit: Editor, node: ir.Node) -> bool:
    """Both branches in the place of the If, and a Where for each output. False where they are not fit for that."""
    condition, shapes = node.inputs[0], [shape_of(value) for value in node.outputs]
    if condition is None or any(shape is None for shape in shapes) or not _are_fit(node):
        return False
    if any(value.dtype is None or value.dtype == ir.DataType.STRING for value in node.outputs):
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
    forget(node)
    edit.replace(node, [*nodes, *chosen], [one.outputs[0] for one in chosen])
    return True


def _are_fit(node: ir.Node) -> bool:
    graphs = [node.attributes[taken].as_graph() for taken in _BRANCHES]
    inner = [one for graph in graphs for one in graph]
    touched = [value for one in inner for value in (*one.inputs, *one.outputs) if value is not None]
    elements = sum(math.prod(shape_of(value) or ()) for value in touched)
    return len(inner) <= MOST_NODES and elements <= MOST_ELEMENTS and all(map(_cannot_fail, inner))


def _cannot_fail(node: ir.Node) -> bool:
    if node.domain != "":
        return False
    if node.op_type in _FLOAT_ONLY:
        return node.inputs[0] is not None and node.inputs[0].dtype is not None and node.inputs[0].dtype.is_floating_point()
    return node.op_type in _TOTAL or (node.op_type in _BY_INDEX and is_constant(input_of(node, 1)))


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
