"""What ONNX Runtime's CPU kernels compute wrongly: refused by name, so that it is wrong nowhere in silence.

Found with ONNX's own node tests (bench/node_suite.py) on ONNX Runtime 1.31.1.
"""

from __future__ import annotations

import onnx_ir as ir

from gatewright.errors import UnsupportedOp
from gatewright.frontend.queries import constant, shape_of


def defects(graph: ir.Graph) -> tuple[UnsupportedOp, ...]:
    """Every node of the main graph that a defect concerns."""
    found = []
    for node in graph:
        if node.domain == "" and (rule := _rule(node)) is not None:
            found.append(UnsupportedOp(node=node.name or "", op=node.op_type, target="ort", rule=rule, hint="run it on ref"))
    return tuple(found)


def _rule(node: ir.Node) -> str | None:
    match node.op_type:
        case "MaxUnpool" if len(node.inputs) > 2:
            return "its kernel takes indices for places in output_shape, which are places in the pooled input"
        case "ConvInteger" if any(node.attributes.get_ints("pads", ())) and len(node.inputs) > 2:
            return "its kernel fails on padding with a zero point"
        case "Conv" | "ConvTranspose" | "MaxPool" | "AveragePool" if 0 in shape_of(node.outputs[0]):
            return "its kernel fails where there is nothing to give, which it only says when it runs"
        case "ScatterElements" | "ScatterND" if "reduction" in node.attributes and _is(node, ir.DataType.FLOAT16):
            return "its kernel reduces no float16, which it only says when it runs"
        case "LSTM" | "GRU" | "RNN" if 0 in shape_of(node.outputs[0]):
            return "its kernel ends the process where there is nothing to give"
        case "LSTM" | "GRU" | "RNN" if _is(node, ir.DataType.DOUBLE):
            return "its kernel takes no double, which it only says when it runs"
        case "Resize" if node.attributes.get_string("mode", "nearest") == "cubic" and _resized_axes(node) != [2, 3]:
            return "its kernel interpolates cubically between the rows and columns of an image alone, which it only says when it runs"
        case "Resize":
            scaled = len(node.inputs) > 2 and node.inputs[2] is not None
            aligned = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
            if scaled and aligned:
                scales = constant(node.inputs[2])
                if scales is None or any(float(s) % 1 for s in scales):
                    return "its kernel aligns corners of the rounded size, ONNX those of the scaled one"
    return None


def _is(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.inputs[0] is not None and node.inputs[0].dtype == dtype


def _resized_axes(node: ir.Node) -> list[int]:
    before, after = (shape_of(value) if value is not None else () for value in (node.inputs[0], node.outputs[0]))
    return [2, 3] if len(before) == 4 and before[:2] == after[:2] else []
