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

from gatewright.errors import ModelError

from . import branches
from .edit import Array, Editor, attribute, constant_of, input_of, is_constant, label, shape_of
from .effort import WHOLLY_READ, operations_of
from .limits import Limits
from .sanity import divides_by_zero
from .upgrade import IR_VERSION, OPSET

RANDOM = frozenset({"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"})
_MISTAKEN = frozenset({"AveragePool", "Conv", "ConvTranspose", "Hardmax", "LRN", "LpNormalization", "MaxPool", "Mean", "RNN"})
"""What onnx's evaluator gets wrong in some form (auto_pad, groups, the sign of what p = 1 sums, the channels' axis, a maximum's place,
samples of a sequence): not left to it."""
_KEPT = RANDOM | {"DequantizeLinear", "Constant", "RegexFullMatch"}
"""Not folded; matching a regular expression may take longer than anybody has."""
_VECTORIZED = frozenset(
    {
        "Cast", "CastLike", "Reshape", "Transpose", "Concat", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity",
        "Expand", "Tile", "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Sqrt", "Pow", "Exp", "Log", "Where", "Equal", "Less", "Greater",
        "Clip", "Range",
        "ConstantOfShape", "QuantizeLinear", "DequantizeLinear", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "Mod", "Not",
        "And", "Or", "Floor", "Ceil", "Round", "Min", "Max", "Pad", "BitwiseAnd", "BitShift",
    }
)  # fmt: skip
"""Of which onnx's evaluator makes one call of numpy; others may be loops in Python, and are left to it only while small."""
_NOT_OF_NOTHING = WHOLLY_READ | {
    "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "MaxPool", "AveragePool", "LpPool", "RoiAlign", "MaxRoiPool",
}  # fmt: skip
"""ONNX Runtime divides by sizes of what these read; where there is a 0 among them, that ends the process."""
_LOOPED_ELEMENTS = 1 << 16
_SESSION_BYTES = 512 << 20
"""Constants above this are not copied into a protobuf for ONNX Runtime; numpy evaluates their nodes one by one."""


def fold(edit: Editor, limits: Limits) -> bool:
    """Fold once, in place: shapes become constants, an If of known condition its branch, constant nodes values. True if anything did."""
    modified = _empty_constants(edit)
    for node in list(edit.graph):
        if node.domain == "" and node.op_type in ("Shape", "Size"):
            modified |= _fold_shape(edit, node)
        elif node.domain == "" and node.op_type in ("MatMul", "Gemm"):
            modified |= _fold_empty_sums(edit, node)
        elif node.domain == "" and node.op_type == "If":
            modified |= _inline_if(edit, node, limits)
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


def _fold_empty_sums(edit: Editor, node: ir.Node) -> bool:
    """A product of no columns and no rows is zeros, and what Gemm adds. (ONNX Runtime hands out memory as it finds it, or forgets beta.)"""
    left, shape, dtype = shape_of(input_of(node, 0)), shape_of(node.outputs[0]), node.outputs[0].dtype
    summed = 0 if attribute(node, "transA", 0) else -1
    if node.graph is not edit.graph or not left or left[summed] != 0 or shape is None or dtype is None:
        return False
    added = input_of(node, 2) if node.op_type == "Gemm" else None
    if added is None:
        return _settle(edit, node, [np.zeros(shape, dtype.numpy())])
    scaled = edit.node("Mul", [added, edit.constant(np.asarray(attribute(node, "beta", 1.0), dtype.numpy()), "beta")])
    edit.replace(node, [scaled, edit.node("Expand", [scaled.outputs[0], edit.constant(np.asarray(shape, np.int64), "shape")])])
    return True


def _inline_if(edit: Editor, node: ir.Node, limits: Limits) -> bool:
    """The branch that a constant condition takes, in the place of the If; of an unknown one both, where they are cheap (branches.py)."""
    condition = constant_of(input_of(node, 0))
    if node.graph is not edit.graph or (condition is not None and condition.size != 1):
        return False
    if condition is None:
        return branches.merged(edit, node, limits)
    taken = "then_branch" if bool(condition.reshape(())) else "else_branch"
    nodes, outputs = branches.inlined(edit, node, taken)
    # An output may be a value of the outer graph, a constant, or the same value twice: an Identity gives each its own node.
    ends = [edit.node("Identity", [value]) for value in outputs]
    branches.forget(node)
    edit.replace(node, [*nodes, *ends], [end.outputs[0] for end in ends])
    return True


def _fold_constants(edit: Editor, limits: Limits) -> bool:
    """Every node whose inputs are constants, transitively, evaluated together; divisions of whole numbers alone, by numpy.

    For some of these the processor has no answer, and the process in which ONNX Runtime does them ends.
    """
    divided = [node for node in edit.graph if _is_division(node) and _foldable(node, set(), limits)]
    if divided:
        return max([_settle_division(edit, node) for node in divided])
    chosen: list[ir.Node] = []
    known: set[ir.Value] = set()
    operations = 0
    for node in edit.graph:
        if _is_division(node) or not _foldable(node, known, limits):
            continue
        if operations + (more := operations_of(node)) <= limits.folded_operations:
            chosen.append(node)
            known.update(node.outputs)
            operations += more
    chosen = _needed(chosen)
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
    if node.domain not in ("", "ai.onnx.ml") or node.op_type in _KEPT:
        return False
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        return False
    if not all(v is None or v in known or is_constant(v) for v in node.inputs):
        return False
    if node.op_type == "Identity" and node.outputs[0].is_graph_output():
        return False
    if node.op_type in _NOT_OF_NOTHING and any(0 in (shape_of(v) or ()) for v in node.inputs if v is not None):
        return False
    for value in node.outputs:
        shape = shape_of(value)
        if shape is None or value.dtype is None or not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            return False
        if math.prod(shape) * max(value.dtype.bitwidth, 8) // 8 > limits.folded_bytes:
            return False
    return True


def _is_division(node: ir.Node) -> bool:
    dtype = node.outputs[0].dtype
    return node.domain == "" and node.op_type in ("Div", "Mod") and dtype is not None and np.dtype(dtype.numpy()).kind in "iu"


def _settle_division(edit: Editor, node: ir.Node) -> bool:
    if divides_by_zero(node):
        where = f"node {label(node)!r} ({node.op_type})"
        raise ModelError(f"{where}: whole numbers are divided by 0", hint="the file is damaged, export it again")
    with np.errstate(over="ignore"):
        found = _run_alone(node, {})
    return len(found) == 1 and _settle(edit, node, list(found.values()))


def _needed(chosen: list[ir.Node]) -> list[ir.Node]:
    """Without those whose results nobody reads: they are taken out as dead, not computed."""
    inside, needed = set(chosen), dict[ir.Node, None]()
    for node in reversed(chosen):
        uses = [use.node for v in node.outputs for use in v.uses()]
        if any(v.is_graph_output() for v in node.outputs) or any(user not in inside or user in needed for user in uses):
            needed[node] = None
    return list(needed)[::-1]


def _evaluate(nodes: list[ir.Node], wanted: list[ir.Value]) -> dict[str, Array]:
    """Values by name. One run of ONNX Runtime where it takes them all; else node by node, leaving out what nobody can evaluate."""
    constants = {v for n in nodes for v in n.inputs if v is not None and is_constant(v)}
    # Between two nodes ONNX Runtime would keep a float16 in float32, unrounded.
    is_rounded = any(v.dtype == ir.DataType.FLOAT16 and v.uses() for n in nodes for v in n.outputs)
    if not is_rounded and sum(v.const_value.nbytes for v in constants if v.const_value is not None) <= _SESSION_BYTES:
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
    elements = sum(math.prod(shape_of(v) or ()) for v in (*node.inputs, *node.outputs))
    if node.op_type in _MISTAKEN or (node.op_type not in _VECTORIZED and max(elements, operations_of(node)) > _LOOPED_ELEMENTS):
        return {}
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
    arrays = {v.name or "": np.asarray(r) for v, r in zip(node.outputs, results, strict=False) if v.name}
    if any(shape_of(v) not in (None, arrays[v.name].shape) for v in node.outputs if v.name in arrays):
        return {}  # a GlobalMaxPool of five axes, say, that keeps one too many
    # A sum of 32-bit integers comes in 64 bits; its overflow wraps around.
    kept = {v.name or "": v.dtype.numpy() for v in node.outputs if v.dtype is not None}
    return {name: array.astype(kept[name]) if array.dtype.kind == "i" and name in kept else array for name, array in arrays.items()}


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
