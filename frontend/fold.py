"""Constant folding: what can be computed before any input is known is computed once.

One exception makes quantized models what they are: a DequantizeLinear of a constant stays (QDQ stays QDQ), so that integer
weights stay integers. Everything that reads its result stays too.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from . import branches
from .edit import Array, Editor, attribute, constant_of, input_of, is_constant, shape_of
from .limits import Limits
from .upgrade import IR_VERSION, OPSET

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"})
_SESSION_BYTES = 512 << 20
"""Constants above this are not copied into a protobuf for ONNX Runtime; numpy evaluates their nodes one by one."""


def fold(edit: Editor, limits: Limits) -> bool:
    """Fold once, in place: shapes become constants, an If of known condition its branch, constant nodes values. True if anything did."""
    modified = _empty_constants(edit)
    for node in list(edit.graph):
        if node.domain == "" and node.op_type in ("Shape", "Size"):
            modified |= _fold_shape(edit, node)
        elif node.domain == "" and node.op_type == "If":
            modified |= _inline_if(edit, node)
    return _fold_constants(edit, limits) or modified


def _empty_constants(edit: Editor) -> bool:
    """A tensor without elements is known whatever made it: its readers read a constant."""
    modified = False
    for value in [*edit.graph.inputs, *(out for node in edit.graph for out in node.outputs)]:
        shape = shape_of(value)
        if shape is None or 0 not in shape or value.dtype is None or value.dtype == ir.DataType.STRING or not value.uses():
            continue
        if any(user.domain == "" and user.op_type == "Identity" and user.outputs[0].is_graph_output() for user, _ in value.uses()):
            continue
        constant = edit.constant(np.zeros(shape, value.dtype.numpy()), f"{value.name}_empty")
        for user, position in list(value.uses()):
            # As an output of the graph it stays what it is.
            user.replace_input_with(position, constant)
        modified = True
    return modified


def lift_constants(edit: Editor) -> bool:
    """Constant nodes of all graphs become initializers of theirs. True if there were any."""
    modified = False
    for graph in list(edit.model.graphs()):
        for node in list(graph):
            if node.op_type != "Constant" or node.domain != "":
                continue
            tensor = _constant_tensor(node)
            old = node.outputs[0]
            if tensor is None:
                continue
            name = old.name or "constant"
            value = ir.Value(name=edit.fresh(f"{name}_value") if old.is_graph_output() else name, const_value=tensor)
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
            graph.register_initializer(value)
            if old.is_graph_output():
                # Every output has a node.
                edit.replace(node, [edit.node("Identity", [value], name=node.name or "")])
            else:
                old.name = edit.fresh(f"{name}_old")
                ir.convenience.replace_all_uses_with(old, value)
                graph.remove(node, safe=True)
            modified = True
    return modified


def _constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for key, value in node.attributes.items():
        if key == "value":
            return value.as_tensor()
        if key in kinds:
            return ir.tensor(np.asarray(value.value, kinds[key]), name=node.outputs[0].name)
        if key == "value_string":
            return ir.StringTensor(np.array(value.as_string().encode(), dtype=object), shape=ir.Shape([]), name=node.outputs[0].name)
        if key == "value_strings":
            return ir.StringTensor([s.encode() for s in value.as_strings()], shape=ir.Shape([len(value.value)]), name=node.outputs[0].name)
    return None


def _fold_shape(edit: Editor, node: ir.Node) -> bool:
    shape = shape_of(input_of(node, 0))
    if shape is None:
        return False
    part = shape[attribute(node, "start", 0) : attribute(node, "end", len(shape))] if node.op_type == "Shape" else math.prod(shape)
    return _settle(edit, node, [np.asarray(part, np.int64)])


def _settle(edit: Editor, node: ir.Node, results: list[Array]) -> bool:
    """Replace a node by constants. A graph's output keeps a node: the Identity of the constant."""
    graph = node.graph
    assert graph is not None
    for old, array in zip(node.outputs, results, strict=False):
        if not old.uses() and not old.is_graph_output():
            continue
        constant = edit.constant(array, f"{old.name}_value")
        if old.is_graph_output():
            kept = edit.node("Identity", [constant])
            graph.insert_before(node, kept)
            edit.substitute(old, kept.outputs[0])
        else:
            ir.convenience.replace_all_uses_with(old, constant)
    graph.remove(node, safe=True)
    return True


def _inline_if(edit: Editor, node: ir.Node) -> bool:
    """The branch that a constant condition takes, in the place of the If; of an unknown one both, where they are cheap (branches.py)."""
    condition = constant_of(input_of(node, 0))
    if node.graph is not edit.graph or (condition is not None and condition.size != 1):
        return False
    if condition is None:
        return branches.merged(edit, node)
    taken = "then_branch" if bool(condition.reshape(())) else "else_branch"
    nodes, outputs = branches.inlined(edit, node, taken)
    # An output may be a value of the outer graph, a constant, or the same value twice: an Identity gives each its own node.
    ends = [edit.node("Identity", [value]) for value in outputs]
    branches.forget(node)
    edit.replace(node, [*nodes, *ends], [end.outputs[0] for end in ends])
    return True


def _fold_constants(edit: Editor, limits: Limits) -> bool:
    """Every node whose inputs are constants, transitively, evaluated together."""
    chosen: list[ir.Node] = []
    known: set[ir.Value] = set()
    for node in edit.graph:
        if _foldable(node, known, limits):
            chosen.append(node)
            known.update(node.outputs)
    if not chosen:
        return False
    inside = set(chosen)
    wanted = [v for n in chosen for v in n.outputs if v.is_graph_output() or any(use.node not in inside for use in v.uses())]
    results = _evaluate(chosen, wanted)
    modified = False
    for node in reversed(chosen):
        mine = [results.get(v.name or "") for v in node.outputs]
        if all(array is not None or not (v.uses() or v.is_graph_output()) for v, array in zip(node.outputs, mine, strict=True)):
            _settle(edit, node, [np.zeros(0) if array is None else array for array in mine])
            modified = True
    return modified


def _foldable(node: ir.Node, known: set[ir.Value], limits: Limits) -> bool:
    if node.domain not in ("", "ai.onnx.ml") or node.op_type in RANDOM or node.op_type in ("DequantizeLinear", "Constant"):
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    if not all(v is None or v in known or is_constant(v) for v in node.inputs):
        return False
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return False
    for value in node.outputs:
        shape = shape_of(value)
        if shape is None or value.dtype is None or not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            return False
        if math.prod(shape) * max(value.dtype.bitwidth, 8) // 8 > limits.folded_bytes:
            return False
    return True


def _evaluate(nodes: list[ir.Node], wanted: list[ir.Value]) -> dict[str, Array]:
    """Values by name. One run of ONNX Runtime where it takes them all; else node by node, leaving out what nobody can evaluate."""
    constants = {v for n in nodes for v in n.inputs if v is not None and is_constant(v)}
    if sum(v.const_value.nbytes for v in constants if v.const_value is not None) <= _SESSION_BYTES:
        found = _run_together(nodes, constants, wanted)
        if found is not None:
            return found
    found = {}
    for node in nodes:
        found.update(_run_alone(node, found))
    return found


def _run_together(nodes: list[ir.Node], constants: set[ir.Value], wanted: list[ir.Value]) -> dict[str, Array] | None:
    from .ortrun import OrtSession

    model = _proto([ir.to_proto(n) for n in nodes], [_tensor(v) for v in sorted(constants, key=lambda v: v.name or "")], wanted)
    try:
        return dict(OrtSession(model.SerializeToString(), optimize=False, threads=1).run({}))
    except Exception:
        # ONNX Runtime lacks kernels for some types; numpy may have them.
        return None


def _run_alone(node: ir.Node, found: dict[str, Array]) -> dict[str, Array]:
    from onnx.reference import ReferenceEvaluator

    inputs: dict[str, NDArray[np.generic]] = {}
    for value in node.inputs:
        if value is None:
            continue
        array = constant_of(value) if is_constant(value) else found.get(value.name or "")
        if array is None:
            return {}
        inputs[value.name or ""] = array
    infos = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for name, a in inputs.items()]
    model = _proto([ir.to_proto(node)], [], list(node.outputs), infos)
    try:
        results = ReferenceEvaluator(model).run(None, inputs)
    except Exception:
        # A node that cannot be evaluated here stays in the graph, where a target may still run it.
        return {}
    return {v.name or "": np.asarray(r) for v, r in zip(node.outputs, results, strict=False) if v.name}


def _proto(
    nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], outputs: list[ir.Value], inputs: list[onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    infos = [onnx.helper.make_empty_tensor_value_info(v.name or "") if v.dtype is None else ir.to_proto(v) for v in outputs]
    graph = onnx.helper.make_graph(nodes, "constants", inputs or [], infos, constants)
    imports = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("ai.onnx.ml", 1)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def _tensor(value: ir.Value) -> onnx.TensorProto:
    assert value.const_value is not None
    proto = ir.to_proto(value.const_value)
    proto.name = value.name or ""
    return proto
