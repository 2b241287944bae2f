"""Which operators the TPU target lowers, and by which rule it refuses the others. Needs no JAX, so ``check`` is quick."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from gatewright.errors import UnsupportedOp
from gatewright.frontend.integer import FloatStep, IntegerOp, Plan
from gatewright.frontend.queries import INTEGER_BOUNDS, constant, reduce_axes, shape_of

Rule = Callable[[ir.Node], str | None]
"""The reason why a node is refused, or None."""

DTYPES = frozenset({
    ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.BOOL, ir.DataType.INT8,
    ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT32, ir.DataType.UINT32, ir.DataType.INT64,
    ir.DataType.UINT64, ir.DataType.INT4, ir.DataType.UINT4,
})  # fmt: skip
"""Types that a tensor may have here; 4-bit ones are computed with one to a byte."""


def _constants(*positions: int) -> Rule:
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


def _any(node: ir.Node) -> str | None:
    return None


def _spatial(node: ir.Node) -> str | None:
    rank = len(shape_of(node.inputs[0])) if node.inputs[0] is not None else 0
    return None if 3 <= rank <= 5 else f"its input has {rank} axes; 3 to 5 are supported"


def _reduction(node: ir.Node) -> str | None:
    x = node.inputs[0]
    return None if x is not None and reduce_axes(node, len(shape_of(x))) is not None else "its axes have to be constants"


def _resize(node: ir.Node) -> str | None:
    transform = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if transform not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"):
        return f"coordinate_transformation_mode {transform!r} is not supported"
    if node.attributes.get_int("antialias", 0):
        return "antialias is not supported"
    return _constants(1, 2, 3)(node)


def _quantize(node: ir.Node) -> str | None:
    dtype = node.outputs[0].dtype
    return None if dtype in INTEGER_BOUNDS else f"it quantizes to {dtype.name if dtype else 'an unknown type'}"


_POINTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor",
    "BitShift", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu",
    "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log",
    "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink",
    "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where",
    "Xor",
)  # fmt: skip

OPERATORS: dict[str, Rule] = {
    **dict.fromkeys(_POINTWISE, _any),
    **dict.fromkeys((
        "ArgMax", "ArgMin", "Concat", "DepthToSpace", "Einsum", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
        "Gemm", "GlobalAveragePool", "GlobalMaxPool", "GroupNormalization", "Hardmax", "InstanceNormalization", "LRN",
        "LayerNormalization", "LogSoftmax", "LpNormalization", "MatMul", "MatMulInteger", "MeanVarianceNormalization",
        "RMSNormalization", "Reshape", "ReverseSequence", "ScatterElements", "ScatterND", "Shape", "Size", "Softmax", "SpaceToDepth",
        "Split", "Squeeze", "Transpose", "Unsqueeze", "DequantizeLinear",
    ), _any),
    **{f"Reduce{name}": _reduction for name in ("Max", "Mean", "Min", "Prod", "Sum", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")},
    "AveragePool": _spatial,
    "BatchNormalization": _one_output,
    "Conv": _spatial,
    "ConvTranspose": _spatial,
    "CumSum": _constants(1),
    "LpPool": _spatial,
    "MaxPool": _both(_spatial, _one_output),
    "OneHot": _constants(1),
    "Pad": _constants(1, 2, 3),
    "QuantizeLinear": _quantize,
    "Resize": _resize,
    "Slice": _constants(1, 2, 3, 4),
    "Tile": _constants(1),
    "TopK": _constants(1),
    "Trilu": _constants(1),
}  # fmt: skip
"""By operator the rule that may refuse a node of it."""


def problems(plan: Plan, target: str) -> tuple[UnsupportedOp, ...]:
    """Every step that cannot be lowered, with the rule that refuses it."""
    found = []
    for step in plan.steps:
        node = step.node if isinstance(step, FloatStep) else step.node or step.nodes[-1]
        if node is not None and (reason := _refusal(step, node)) is not None:
            hint = "let another engine run it: fallback=auto; or run the model on ref or ort"
            found.append(UnsupportedOp(node=node.name or "", op=node.op_type, target=target, rule=reason, hint=hint))
    return tuple(found)


def _refusal(step: IntegerOp | FloatStep, node: ir.Node) -> str | None:
    if isinstance(step, IntegerOp):
        # What has to have a lowering of its own is the movement that a requantization may bring along.
        return None if step.kind != "requantize" or step.node is None else _float_refusal(step.node)
    return None if step.exponentials is not None else _float_refusal(node)


def _float_refusal(node: ir.Node) -> str | None:
    if node.domain not in ("", "ai.onnx"):
        return f"operators of domain {node.domain!r} have no lowering to XLA"
    rule = OPERATORS.get(node.op_type)
    if rule is None:
        return "there is no lowering to XLA for this operator"
    if node.attributes.get_int("training_mode", 0):
        return "training mode is not supported"
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype is not None and value.dtype not in DTYPES:
            return f"{value.name!r} is of type {value.dtype.name}, which is not supported"
    return rule(node)
