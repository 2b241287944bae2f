"""What ONNX Runtime's CPU kernels compute wrongly: refused by name, so that it is wrong nowhere in silence.

Found with ONNX's own node tests (bench/node_suite.py) on ONNX Runtime 1.31.1.
"""

from __future__ import annotations

import onnx_ir as ir

from gatewright.errors import UnsupportedOp
from gatewright.frontend.queries import constant


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
        case "Resize":
            scaled = len(node.inputs) > 2 and node.inputs[2] is not None
            aligned = node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "align_corners"
            if scaled and aligned and node.attributes.get_string("mode", "nearest") != "nearest":
                scales = constant(node.inputs[2])
                if scales is None or any(float(s) % 1 for s in scales):
                    return "its kernel aligns corners of the rounded size, ONNX those of the scaled one"
    return None
