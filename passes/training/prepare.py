"""Graphs made ready for training: weights in the form in which they are trained."""

from __future__ import annotations

from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model

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
        array = rewrite.real_constant(node.outputs[0])
        if array is None or node.outputs[0].is_graph_output():
            continue
        rewrite.redirect(node.outputs[0], edit.constant(array, f"{node.outputs[0].name}_float"))
        edited.graph.remove(node, safe=True)
        count += 1
    rewrite.remove_dead(edited.graph)
    return (model.with_ir(edited), count) if count else (model, 0)
