"""What ONNX Runtime's CPU kernels lack, said in ops that they have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gatewright.frontend.model import Model, Step

_NO_CLIP = (ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4)


def for_onnxruntime(model: Model) -> Model:
    """``model`` with integer Clips of types that have no kernel done in int32: exact, since casts of integers within range are."""
    clips = [n for n in model.graph if n.op_type == "Clip" and n.inputs[0] is not None and n.inputs[0].dtype in _NO_CLIP]
    pools = [n for n in model.graph if n.op_type == "AveragePool" and "dilations" in n.attributes]
    if not clips and not pools:
        return model
    edited = model.copy_ir()
    for node in list(edited.graph):
        if node.op_type == "AveragePool" and set(node.attributes.get_ints("dilations", ())) == {1}:
            # Its fused QLinearAveragePool rejects the attribute even at its default.
            del node.attributes["dilations"]
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Clip" and source is not None and source.dtype in _NO_CLIP:
            _through_int32(edited.graph, node, source)
    return model.with_ir(edited, Step("legalize", "ort", ("integer Clips are done in int32; dilations of 1 are left out",)))


def _through_int32(graph: ir.Graph, node: ir.Node, source: ir.Value) -> None:
    output = node.outputs[0]
    assert source.dtype is not None
    wide = ir.node("Cast", [source], {"to": ir.DataType.INT32}, name=f"{node.name}_widen")
    wide.outputs[0].name, wide.outputs[0].dtype, wide.outputs[0].shape = f"{output.name}_wide", ir.DataType.INT32, source.shape
    bounds: list[ir.Value | None] = []
    for bound in node.inputs[1:]:
        if bound is None or bound.const_value is None:
            bounds.append(bound)
            continue
        name = f"{bound.name}_int32_{output.name}"
        if name not in graph.initializers:  # the two may be the same
            graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(bound.const_value.numpy().astype(np.int32), name=name)))
        bounds.append(graph.initializers[name])
    clip = ir.node("Clip", [wide.outputs[0], *bounds], name=f"{node.name}_int32")
    clip.outputs[0].name, clip.outputs[0].dtype, clip.outputs[0].shape = f"{output.name}_clipped", ir.DataType.INT32, source.shape
    narrow = ir.node("Cast", [clip.outputs[0]], {"to": source.dtype}, name=f"{node.name}_narrow")
    narrow.outputs[0].dtype, narrow.outputs[0].shape = source.dtype, source.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [wide, clip, narrow], [output], [narrow.outputs[0]])
