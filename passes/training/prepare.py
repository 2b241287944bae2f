"""Graphs made ready for training: weights in the form in which they are trained."""

from __future__ import annotations

import onnx_ir as ir

from gatewright.frontend import float_ops
from gatewright.frontend.canonicalize import canonicalize
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import constant
from gatewright.frontend.recognise import MOVEMENT

from .. import rewrite


def unpacked(model: Model) -> tuple[Model, int]:
    """A float model whose file stores weights as integers (DequantizeLinear of a constant), with float weights; how many there were.

    A quantized model, whose activations are rounded too, is left as it is: its weights are trained on their grids.
    """
    if rewrite.is_quantized(model.graph):
        return model, 0
    edited = model.copy_ir()
    edit = Editor(edited)
    count = 0
    for node in rewrite.nodes_of(edited.graph, "DequantizeLinear"):
        given = [constant(value) for value in node.inputs]
        if given[0] is None or given[1] is None or node.outputs[0].is_graph_output():
            continue
        # Whatever its scales are: one, per channel or in blocks.
        array = float_ops.dequantize_linear(node, given)
        rewrite.redirect(node.outputs[0], edit.constant(array, f"{node.outputs[0].name}_float"))
        edited.graph.remove(node, safe=True)
        count += 1
    if not count:
        return model, 0
    rewrite.remove_dead(edited.graph)
    # What weights in rows were reshaped and transposed by is folded into them.
    canonicalize(edited)
    return model.with_ir(edited), count


_CARRIES = MOVEMENT | {"MaxPool", "GlobalMaxPool", "ReduceMax", "Concat", "Relu", "Clip", "Split"}
"""Operators whose two sides profit from one grid: between equal ones they move integers and compute nothing."""


def separate_scales(model: Model) -> Model:
    """Every weight and every activation has a scale of its own, so that each can be learned.

    A file may share one initializer among all that happen to lie on the same grid. Values that are moved or compared from one
    quantization to the next (a pooling, a concatenation) and shared it go on sharing.
    """
    edited = model.copy_ir()
    edit = Editor(edited)
    carried: dict[ir.Value, ir.Node] = {}
    """Quantized tensors, and float values that are still one moved: the node that has their grid."""
    parent: dict[ir.Node, ir.Node] = {}

    def root(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in edited.graph:
        sources = [carried[v] for v in node.inputs if v is not None and v in carried]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            parent[node] = node
            sources.append(node)
        elif node.op_type not in _CARRIES:
            continue
        for other in sources[1:]:
            parent[root(other)] = root(sources[0])
        # What comes out of a constant's DequantizeLinear is a weight, which shares with nobody.
        if sources and constant(node.inputs[0]) is None:
            carried.update(dict.fromkeys(node.outputs, sources[0]))
    own: dict[tuple[ir.Value, ir.Node], ir.Value] = {}
    for node in parent:
        scale = node.inputs[1]
        array = constant(scale)
        if scale is not None and array is not None:
            key = (scale, root(node))
            if key not in own:
                first = all(held is not scale for held, _ in own)
                own[key] = scale if first else edit.constant(array, f"{scale.name}_own")
            node.replace_input_with(1, own[key])
    return model.with_ir(edited)
