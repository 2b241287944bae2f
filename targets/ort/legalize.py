"""What ONNX Runtime's CPU kernels lack, said in ops that they have."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from gatewright.frontend.model import Model, Step
from gatewright.frontend.queries import constant

_NO_CLIP = (ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.INT4, ir.DataType.UINT4)


def for_onnxruntime(model: Model) -> Model:
    """``model`` with integer Clips of types that have no kernel done in int32: exact, since casts of integers within range are.

    Also without divisions by −1: of the least integer, one ends the process. Idempotent.
    """
    clips = [n for n in model.graph if n.op_type == "Clip" and n.inputs[0] is not None and n.inputs[0].dtype in _NO_CLIP]
    pools = [n for n in model.graph if n.op_type == "AveragePool" and "dilations" in n.attributes]
    divisions = [n for n in model.graph if _may_trap(n)]
    if not clips and not pools and not divisions:
        return model
    edited = model.copy_ir()
    for node in list(edited.graph):
        if node.op_type == "AveragePool" and set(node.attributes.get_ints("dilations", ())) == {1}:
            # Its fused QLinearAveragePool rejects the attribute even at its default.
            del node.attributes["dilations"]
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "Clip" and source is not None and source.dtype in _NO_CLIP:
            _through_int32(edited.graph, node, source)
        if _may_trap(node):
            _by_other_than_minus_one(edited.graph, node)
    said = "integer Clips are done in int32; dilations of 1 are left out; integers are divided by 1 and negated instead of by −1"
    return model.with_ir(edited, Step("legalize", "ort", (said,)))


def _may_trap(node: ir.Node) -> bool:
    """Whether it divides integers of the processor's own sizes by what may be −1."""
    if node.domain != "" or node.op_type not in ("Div", "Mod") or node.outputs[0].dtype not in (ir.DataType.INT32, ir.DataType.INT64):
        return False
    divisor = node.inputs[1]
    known = constant(divisor)
    return bool((known == -1).any()) if known is not None else not _is_replaced(divisor)


def _is_replaced(divisor: ir.Value | None) -> bool:
    """Whether it is what ``_by_other_than_minus_one`` makes: Where(b = −1, 1, b)."""
    choice = divisor.producer() if divisor is not None else None
    if choice is None or choice.domain != "" or choice.op_type != "Where":
        return False
    test = choice.inputs[0].producer() if choice.inputs[0] is not None else None
    if test is None or test.domain != "" or test.op_type != "Equal" or test.inputs[0] is not choice.inputs[2]:
        return False
    one, minus_one = constant(choice.inputs[1]), constant(test.inputs[1])
    return one is not None and minus_one is not None and bool((one == 1).all()) and bool((minus_one == -1).all())


def _by_other_than_minus_one(graph: ir.Graph, node: ir.Node) -> None:
    output, divisor = node.outputs[0], node.inputs[1]
    assert divisor is not None
    dtype = output.dtype
    assert dtype is not None
    made: list[ir.Node] = []

    def number(value: int) -> ir.Value:
        name = f"{output.name}_{'minus_one' if value < 0 else 'one'}"
        if name not in graph.initializers:
            graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.asarray(value, dtype.numpy()), name=name)))
        return graph.initializers[name]

    def add(op: str, inputs: list[ir.Value | None], kind: ir.DataType, shape: ir.Shape | None, **attributes: int) -> ir.Value:
        new = ir.node(op, inputs, attributes, name=f"{node.name}_{len(made)}")
        new.outputs[0].name, new.outputs[0].dtype, new.outputs[0].shape = f"{output.name}_{op.lower()}_{len(made)}", kind, shape
        made.append(new)
        return new.outputs[0]

    is_it = add("Equal", [divisor, number(-1)], ir.DataType.BOOL, divisor.shape)
    harmless = add("Where", [is_it, number(1), divisor], dtype, divisor.shape)
    if node.op_type == "Div":
        found = add("Div", [node.inputs[0], harmless], dtype, output.shape)
        found = add("Mul", [found, add("Where", [is_it, number(-1), number(1)], dtype, divisor.shape)], dtype, output.shape)
    else:
        found = add("Mod", [node.inputs[0], harmless], dtype, output.shape, fmod=node.attributes.get_int("fmod", 0) or 0)
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [output], [found])


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
