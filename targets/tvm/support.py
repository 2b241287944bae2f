"""Which operators the CPU target has kernels for, and by which rule it refuses the others. Needs no TVM, so ``check`` is quick.

``OPERATORS`` names for each float operator how it behaves in a fused kernel and which file lowers it (``ops/``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from gatewright.errors import UnsupportedOp
from gatewright.frontend.integer import FloatStep, IntegerOp, Plan
from gatewright.frontend.queries import constant, reduce_axes, shape_of
from gatewright.frontend.resampling import taps

Role = Literal["pointwise", "move", "anchor"]
"""pointwise  out[i] depends on each input's element that broadcasting pairs with i
move       out[i] is one element of an input, found by index arithmetic
anchor     has loops of its own (reductions); what follows pointwise is fused behind it"""

Rule = Callable[[ir.Node], str | None]
"""The reason why a node is refused, or None."""

DTYPES = frozenset({
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16,
    ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.UINT32, ir.DataType.INT64, ir.DataType.UINT64, ir.DataType.INT4, ir.DataType.UINT4,
})  # fmt: skip
"""Types that a tensor may have here; 4-bit ones lie in memory as 8-bit ones."""


@dataclass(frozen=True)
class Support:
    """How one operator is supported."""

    role: Role
    module: str
    """The file in ``ops/`` whose LOWERINGS has it."""
    rule: Rule = lambda node: None


def _constant_inputs(*positions: int) -> Rule:
    def rule(node: ir.Node) -> str | None:
        for position in positions:
            value = node.inputs[position] if position < len(node.inputs) else None
            if value is not None and constant(value) is None:
                return f"input {position} ({value.name!r}) has to be a constant"
        return None

    return rule


def _one_output(node: ir.Node) -> str | None:
    extra = [v.name for v in node.outputs[1:] if v.name and (v.consumers() or v.is_graph_output())]
    return f"its output {extra[0]!r} is used, and only the first output is supported" if extra else None


def _both(*rules: Rule) -> Rule:
    return lambda node: next((reason for rule in rules if (reason := rule(node)) is not None), None)


def _spatial(node: ir.Node) -> str | None:
    rank = len(shape_of(node.inputs[0])) if node.inputs[0] is not None else 0
    return None if 3 <= rank <= 5 else f"its input has {rank} axes; 3 to 5 are supported"


def _constant_weight(node: ir.Node) -> str | None:
    return None if _is_constant_or_folded(node.inputs[1]) else "its weight has to be a constant"


def _is_constant_or_folded(value: ir.Value | None) -> bool:
    """A constant, or computed from constants alone (a dequantized weight): ``steps.py`` folds those."""
    if value is None or constant(value) is not None:
        return True
    producer = value.producer()
    return producer is not None and not value.is_graph_input() and all(_is_constant_or_folded(v) for v in producer.inputs)


def _reduction(node: ir.Node) -> str | None:
    x = node.inputs[0]
    return None if x is not None and reduce_axes(node, len(shape_of(x))) is not None else "its axes have to be constants"


_MOST_NEIGHBOURS = 64
"""Of one value of a Resize: each is an expression of its own in the kernel."""


def _resize(node: ir.Node) -> str | None:
    if (refused := _constant_inputs(1, 2, 3)(node)) is not None or node.inputs[0] is None:
        return refused
    known = [None, *(None if value is None else constant(value) for value in node.inputs[1:])]
    axes = taps(node, shape_of(node.inputs[0]), shape_of(node.outputs[0]), known).values()
    count = math.prod(one.index.shape[1] for one in axes)
    return f"each of its values has {count} neighbours; {_MOST_NEIGHBOURS} are supported" if count > _MOST_NEIGHBOURS else None


def _pad(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "constant")
    return _constant_inputs(1, 2, 3)(node) if mode in ("constant", "reflect", "edge", "wrap") else f"mode {mode!r} is not supported"


def _blocked_scales(node: ir.Node) -> str | None:
    return "blocked scales are not supported" if node.attributes.get_int("block_size", 0) else None


_POINTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "BitShift", "Cast",
    "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual",
    "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish",
    "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh",
    "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip

OPERATORS: dict[str, Support] = {
    **{op: Support("pointwise", "elementwise") for op in _POINTWISE},
    "BatchNormalization": Support("pointwise", "elementwise", _one_output),
    "QuantizeLinear": Support("pointwise", "quantize", _blocked_scales),
    "DequantizeLinear": Support("pointwise", "quantize"),
    "Concat": Support("move", "movement"),
    "ConstantOfShape": Support("move", "movement", _constant_inputs(0)),
    "DepthToSpace": Support("move", "movement"),
    "Expand": Support("move", "movement"),
    "Flatten": Support("move", "movement"),
    "Gather": Support("move", "movement"),
    "GatherElements": Support("move", "movement"),
    "GatherND": Support("move", "movement"),
    "OneHot": Support("move", "movement"),
    "Pad": Support("move", "movement", _pad),
    "Reshape": Support("move", "movement"),
    "Resize": Support("move", "resize", _resize),
    "Slice": Support("move", "movement", _constant_inputs(1, 2, 3, 4)),
    "SpaceToDepth": Support("move", "movement"),
    "Split": Support("move", "movement"),
    "Squeeze": Support("move", "movement"),
    "Tile": Support("move", "movement", _constant_inputs(1)),
    "Transpose": Support("move", "movement"),
    "Trilu": Support("move", "movement"),
    "Unsqueeze": Support("move", "movement"),
    "ArgMax": Support("anchor", "reduction"),
    "ArgMin": Support("anchor", "reduction"),
    "AveragePool": Support("anchor", "pooling", _spatial),
    "Conv": Support("anchor", "convolution", _both(_spatial, _constant_weight)),
    "ConvTranspose": Support("anchor", "convolution", _both(_spatial, _constant_weight)),
    "CumSum": Support("anchor", "reduction", _constant_inputs(1)),
    "Gemm": Support("anchor", "matmul"),
    "GlobalAveragePool": Support("anchor", "reduction"),
    "GlobalMaxPool": Support("anchor", "reduction"),
    "GroupNormalization": Support("anchor", "normalization"),
    "InstanceNormalization": Support("anchor", "normalization"),
    "LayerNormalization": Support("anchor", "normalization", _one_output),
    "LRN": Support("anchor", "normalization"),
    "LogSoftmax": Support("anchor", "normalization"),
    "LpNormalization": Support("anchor", "normalization"),
    "MatMul": Support("anchor", "matmul"),
    "MaxPool": Support("anchor", "pooling", _both(_spatial, _one_output)),
    "MeanVarianceNormalization": Support("anchor", "normalization"),
    "Softmax": Support("anchor", "normalization"),
    **{
        f"Reduce{name}": Support("anchor", "reduction", _reduction)
        for name in ("Max", "Mean", "Min", "Prod", "Sum", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}

_INTEGER_ROLES: dict[str, Role] = {
    "conv": "anchor", "matmul": "anchor", "average": "anchor", "maximum": "anchor", "softmax": "anchor", "sum": "pointwise",
    "product": "pointwise", "table": "pointwise", "concat": "move", "requantize": "pointwise",
}  # fmt: skip


_UNFIT = {
    **dict.fromkeys(
        ("Compress", "NonMaxSuppression", "NonZero", "StringSplit", "Unique"),
        "how many values come out depends on the data, and every shape is fixed when it compiles",
    ),
    **dict.fromkeys(
        ("Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        "its values are random, and a kernel is a function of its inputs",
    ),
}
"""Operators that no kernel here can be of, and why."""


def role_of(step: IntegerOp | FloatStep) -> Role:
    """How the step behaves in a fused kernel."""
    if isinstance(step, FloatStep):
        return OPERATORS[step.node.op_type].role
    if step.kind == "requantize" and step.node is not None:
        return "move"
    return _INTEGER_ROLES[step.kind]


def problems(plan: Plan, target: str) -> tuple[UnsupportedOp, ...]:
    """Every step without a kernel, with the rule that refuses it."""
    found = []
    for step in plan.steps:
        node = step.node if isinstance(step, FloatStep) else step.node or step.nodes[-1]
        if node is not None and (reason := _refusal(step, node)) is not None:
            found.append(UnsupportedOp(node=node.name or "", op=node.op_type, target=target, rule=reason, hint="run it on ref or ort"))
    return tuple(found)


def _refusal(step: IntegerOp | FloatStep, node: ir.Node) -> str | None:
    if isinstance(step, IntegerOp):
        # A table's or a sum's inner nodes are any elementwise function; what has to have a kernel is the movement.
        return None if step.kind != "requantize" or step.node is None else _float_refusal(step.node)
    return _float_refusal(node)


def _float_refusal(node: ir.Node) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"operators of domain {node.domain!r} have no kernel"
    support = OPERATORS.get(node.op_type)
    if support is None:
        return _UNFIT.get(node.op_type, "there is no kernel for this operator")
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None and value.dtype not in DTYPES:
            return f"{value.name!r} is of type {value.dtype.name}, which is not supported"
        if value is not None and value.const_value is None and 0 in shape_of(value):
            return f"{value.name!r} is empty: shape {list(shape_of(value))}"
    return support.rule(node)
