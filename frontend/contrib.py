"""ONNX Runtime's own quantized operators (domain com.microsoft), which its quantizer writes, as standard ones around QDQ.

Each names its operands as (values, scale, zero point); it means: dequantize, the plain operator, quantize. The sources are the
operators' schemas in onnxruntime's docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from gatewright.errors import ModelError

from .fused_steps import DOMAIN


@dataclass(frozen=True)
class _Form:
    """How a quantized operator lays out its inputs: triples from input ``first`` on, scale and zero point of the result at ``result``."""

    op: str
    operands: int
    """Number of triples; 0 for any number."""
    result: int
    first: int = 0
    attributes: tuple[str, ...] = ()


_HINT = "quantize the model in ONNX Runtime's QDQ format"
_POOL = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
_FORMS = {
    "QLinearAdd": _Form("Add", 2, 6),
    "QLinearMul": _Form("Mul", 2, 6),
    "QLinearSigmoid": _Form("Sigmoid", 1, 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", 1, 3, attributes=("alpha",)),
    "QLinearSoftmax": _Form("Softmax", 1, 3, attributes=("axis",)),
    "QLinearAveragePool": _Form("AveragePool", 1, 3, attributes=_POOL),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", 1, 3),
    "QLinearConcat": _Form("Concat", 0, 0, 2, ("axis",)),
}
HANDLED = frozenset({*_FORMS, "QGemm", "QuantizeLinear", "DequantizeLinear"})


def standardize(proto: onnx.ModelProto) -> None:
    """Rewrite the main graph's quantized com.microsoft operators in place. Raises ModelError for a form without a standard equal."""
    for node in proto.graph.node:
        if node.op_type == "SimplifiedLayerNormalization" and node.domain == "":
            # Its optimizer writes this one as if it were ONNX's.
            node.domain = DOMAIN
            if DOMAIN not in {entry.domain for entry in proto.opset_import}:
                proto.opset_import.add(domain=DOMAIN, version=1)
    if not any(node.domain == DOMAIN and node.op_type in HANDLED for node in proto.graph.node):
        return
    rewritten: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.domain != DOMAIN or node.op_type not in HANDLED:
            rewritten.append(node)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            # From before ONNX had the 4- and 16-bit types; the default axis is ONNX's.
            names = {"inputs": list(node.input), "outputs": list(node.output), "name": node.name}
            rewritten.append(onnx.helper.make_node(node.op_type, **names, **_attributes(node, ("axis",))))
        elif node.op_type == "QGemm":
            rewritten += _gemm(proto, node)
        else:
            rewritten += _around(node, _FORMS[node.op_type])
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _around(node: onnx.NodeProto, form: _Form) -> list[onnx.NodeProto]:
    if next((a.i for a in node.attribute if a.name == "channels_last"), 0):
        raise ModelError(f"node {node.name!r} ({node.op_type}) has its channels last", hint=_HINT)
    y = node.output[0]
    count = form.operands or (len(node.input) - form.first) // 3
    nodes, operands = [], []
    for i in range(count):
        triple = list(node.input[form.first + 3 * i : form.first + 3 * i + 3])
        nodes.append(onnx.helper.make_node("DequantizeLinear", triple, [f"{y}_operand{i}"]))
        operands.append(f"{y}_operand{i}")
    nodes.append(onnx.helper.make_node(form.op, operands, [f"{y}_float"], name=node.name, **_attributes(node, form.attributes)))
    nodes.append(onnx.helper.make_node("QuantizeLinear", [f"{y}_float", *node.input[form.result : form.result + 2]], [y]))
    return nodes


def _gemm(proto: onnx.ModelProto, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A, a_scale, a_zero, B, b_scale, b_zero, [C int32 on alpha·a_scale·b_scale], [y_scale, y_zero]; float without the last two."""
    inputs, y = [*node.input, *[""] * 9][:9], node.output[0]
    transposed = next((a.i for a in node.attribute if a.name == "transB"), 0)
    alpha = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
    scales = [t for t in proto.graph.initializer if t.name in (inputs[1], inputs[4])]
    held = {t.name: onnx.numpy_helper.to_array(t).astype(np.float64) for t in scales}
    if len(held) < len({inputs[1], inputs[4]}):
        raise ModelError(f"node {node.name!r} (QGemm) has scales that are computed", hint=_HINT)
    a_scale, b_scale = held[inputs[1]], held[inputs[4]]
    # Only a weight quantized per channel needs an axis, which DequantizeLinear has from opset 13 on.
    along: dict[str, Any] = {"axis": 0 if transposed else 1} if b_scale.size > 1 else {}
    nodes = [
        onnx.helper.make_node("DequantizeLinear", inputs[0:3], [f"{y}_a"]),
        onnx.helper.make_node("DequantizeLinear", inputs[3:6], [f"{y}_b"], **along),
    ]
    operands = [f"{y}_a", f"{y}_b"]
    if inputs[6]:
        scale = np.asarray(alpha * a_scale * b_scale).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(scale, f"{y}_bias_scale"))
        along = {"axis": 0} if scale.size > 1 else {}
        nodes.append(onnx.helper.make_node("DequantizeLinear", [inputs[6], f"{y}_bias_scale"], [f"{y}_c"], **along))
        operands.append(f"{y}_c")
    result = f"{y}_float" if inputs[7] else y
    nodes.append(onnx.helper.make_node("Gemm", operands, [result], name=node.name, **_attributes(node, ("alpha", "transA", "transB"))))
    if inputs[7]:
        nodes.append(onnx.helper.make_node("QuantizeLinear", [result, *inputs[7:9]], [y]))
    return nodes


def _attributes(node: onnx.NodeProto, names: tuple[str, ...]) -> dict[str, Any]:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute if a.name in names}
