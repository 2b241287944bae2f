"""From a parsed file to the canonical opset: repair what old exporters wrote, inline functions, convert, keep weights aside.

The C++ parts of onnx (checker, inliner, version converter) take a serialized model. So that a model of any size goes
through them, its large weights are taken out first (``detach``) and put back as they were (``attach``).
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir

from gatewright.errors import ModelError

from . import fused, newer
from .contrib import standardize
from .fused_steps import DOMAIN
from .legacy import before_conversion
from .limits import Limits, is_external
from .mapped import Folder

Result = TypeVar("Result")

OPSET = 21
IR_VERSION = 10
"""The first that knows opset 21's types (INT4); every tool in use reads it."""
KEPT_DOMAINS = ("", "ai.onnx.ml")
DEFINED = ("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", "CenterCropPad", "AffineGrid")
"""Operators that are replaced by their definition in ONNX."""
_SMALL = 1024
"""Elements up to which a weight stays inside: shapes, axes and the like, which conversion and shape inference look at."""


def upgrade(proto: onnx.ModelProto, folder: Folder | None, limits: Limits) -> tuple[ir.Model, tuple[str, ...]]:
    """The model at opset 21, functions inlined, checked, and notes for the user. ``folder``: where its external data lies.
    ``proto`` is consumed.

    Raises ModelError for what onnx's checker refuses, an unknown op, or a conversion that does not exist.
    """
    _repair_opsets(proto)
    _densify(proto, limits)
    standardize(proto)
    weights = detach(proto, folder)
    _check_ops(proto)
    notes = _plain_outputs(proto)
    _guarded(onnx.checker.check_model, proto, "it is not valid ONNX")
    if proto.functions:
        _require_made(proto.functions)
        proto = _guarded(lambda p: onnx.inliner.inline_local_functions(p, True), proto, "its functions cannot be inlined")
    version = next(o.version for o in proto.opset_import if o.domain == "")
    if version < OPSET:
        repair = _guarded(lambda p: before_conversion(p, version), proto, "its types contradict one another")
        failure = f"opset {version} cannot be converted to {OPSET}"
        proto = _guarded(lambda p: onnx.version_converter.convert_version(p, OPSET), proto, failure)
        repair(proto)
    elif version > OPSET:
        proto = _downgrade(proto, version)
    proto = _defined(proto)
    _guarded(onnx.checker.check_model, proto, f"it is not valid ONNX once converted to opset {OPSET}")
    return attach(_guarded(ir.from_proto, proto, "its graph cannot be read"), weights), notes


def detach(proto: onnx.ModelProto, folder: Folder | None) -> dict[str, ir.TensorProtocol]:
    """Take large and external weights out of ``proto``, leaving a graph input for each; external small ones are read in."""
    weights: dict[str, ir.TensorProtocol] = {}
    kept = []
    inputs = {i.name for i in proto.graph.input}
    for tensor in proto.graph.initializer:
        count = math.prod(tensor.dims)
        if is_external(tensor):
            outside = _folder(folder, tensor).tensor(tensor)
            if count > _SMALL:
                weights[tensor.name] = outside
            else:
                kept.append(ir.to_proto(outside))
        elif count > _SMALL:
            weights[tensor.name] = ir.from_proto(tensor)
        else:
            kept.append(tensor)
        if tensor.name in weights and tensor.name not in inputs:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for node in _nodes(proto):
        for attribute in node.attribute:
            for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
                if is_external(tensor):
                    tensor.CopyFrom(ir.to_proto(_folder(folder, tensor).tensor(tensor)))
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                for tensor in graph.initializer:
                    if is_external(tensor):
                        tensor.CopyFrom(ir.to_proto(_folder(folder, tensor).tensor(tensor)))
    return weights


def attach(model: ir.Model, weights: dict[str, ir.TensorProtocol]) -> ir.Model:
    """The inverse of ``detach``; and no initializer is a graph input any more (what older files call a default is a constant)."""
    graph = model.graph
    for value in list(graph.inputs):
        name = value.name or ""
        if name in weights:
            value.const_value = weights[name]
            value.shape, value.type = ir.Shape(weights[name].shape.numpy()), ir.TensorType(weights[name].dtype)
        if name in weights or name in graph.initializers:
            graph.inputs.remove(value)
            graph.register_initializer(value)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            value.shape, value.type = ir.Shape(tensor.shape.numpy()), ir.TensorType(tensor.dtype)
    return model


def without_weights(model: ir.Model) -> onnx.ModelProto:
    """A protobuf of the model in which large weights are graph inputs: for the checker and for shape inference."""
    proto_graph = model.graph
    large = [v for v in proto_graph.initializers.values() if v.const_value is not None and v.const_value.size > _SMALL]
    kept = {v.name: v.const_value for v in large}
    for value in large:
        proto_graph.initializers.pop(value.name or "")
        value.const_value = None
        proto_graph.inputs.append(value)
    try:
        return ir.to_proto(model)
    finally:
        for value in large:
            proto_graph.inputs.remove(value)
            value.const_value = kept[value.name]
            proto_graph.register_initializer(value)


def _repair_opsets(proto: onnx.ModelProto) -> None:
    """One import for each domain, "" under that name; files of IR version 1 and 2 may name none and mean opset 1."""
    versions = _versions(proto.opset_import, "the model")
    for function in proto.functions:
        own = _versions(function.opset_import, f"function {function.name!r}")
        del function.opset_import[:]
        function.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in own.items())
    for node in _nodes(proto):
        if node.domain == "ai.onnx":
            node.domain = ""
        # On which of several devices another program would put it.
        node.ClearField("device_configurations")
    proto.ClearField("configuration")
    if "" not in versions:
        versions[""] = 1 if proto.ir_version < 3 else OPSET
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= versions[""] <= newest:
        raise ModelError(f"the model's opset is {versions['']}; 1 to {newest} are known", hint="export it again with opset 21")
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    if proto.ir_version > onnx.IR_VERSION:
        known = f"{onnx.IR_VERSION} is the last one known"
        raise ModelError(f"the model's IR version is {proto.ir_version}, {known}", hint="export it with opset 21")
    # Before version 4 an initializer had to be a graph input too, which not every exporter knew.
    proto.ir_version = IR_VERSION


def _versions(imports: Iterable[onnx.OperatorSetIdProto], who: str) -> dict[str, int]:
    versions: dict[str, int] = {}
    for entry in imports:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"{who} imports two versions of domain {domain or 'ai.onnx'}: {versions[domain]} and {entry.version}")
    return versions


def _require_made(functions: Iterable[onnx.FunctionProto]) -> None:
    """Raises ModelError where a function reads, or is said to give, what nothing in it makes: onnx's converter ends the process there."""
    for function in functions:
        known = {"", *function.input}
        for node in function.node:
            missing = [name for name in node.input if name not in known]
            if missing:
                what = (
                    f"node {node.name!r} ({node.op_type}) of function {function.name!r} reads {missing[0]!r}, which is not made before it"
                )
                raise ModelError(what, hint="the file is damaged, export it again")
            known.update(node.output)
        missing = [name for name in function.output if name not in known]
        if missing:
            raise ModelError(
                f"function {function.name!r} does not make its output {missing[0]!r}", hint="the file is damaged, export it again"
            )


def _densify(proto: onnx.ModelProto, limits: Limits) -> None:
    """Sparse weights become dense ones; their sizes have been checked."""
    for graph in (proto.graph, *(g for node in _nodes(proto) for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs))):
        graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
        del graph.sparse_initializer[:]
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                dims = list(attribute.sparse_tensor.dims)
                if node.op_type != "Constant" or min(dims, default=0) < 0 or math.prod(dims) > limits.folded_bytes:
                    raise ModelError(f"node {node.name!r} ({node.op_type}) holds a sparse tensor of shape {dims}")
                attribute.CopyFrom(onnx.helper.make_attribute("value", _dense(attribute.sparse_tensor)))


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    values, indices, dims = onnx.numpy_helper.to_array(sparse.values), onnx.numpy_helper.to_array(sparse.indices), tuple(sparse.dims)
    flat = indices if indices.ndim == 1 else indices @ np.array([math.prod(dims[i + 1 :]) for i in range(len(dims))], np.int64)
    if flat.shape != values.shape or (indices.ndim == 2 and not np.all((indices >= 0) & (indices < np.array(dims)))):
        raise ModelError(f"sparse tensor {sparse.values.name!r}: its indices do not fit its shape {list(dims)}")
    if flat.size and not (flat.min() >= 0 and flat.max() < math.prod(dims)):
        raise ModelError(f"sparse tensor {sparse.values.name!r}: its indices do not fit its shape {list(dims)}")
    dense = np.zeros(math.prod(dims), values.dtype)
    dense[flat] = values
    return onnx.numpy_helper.from_array(dense.reshape(dims), sparse.values.name)


def _plain_outputs(proto: onnx.ModelProto) -> tuple[str, ...]:
    """scikit-learn's exporter wraps probabilities in a list of maps (ZipMap); the output becomes the tensor inside."""
    notes = []
    outputs = {output.name: output for output in proto.graph.output}
    for node in proto.graph.node:
        if node.op_type == "ZipMap" and node.domain == "ai.onnx.ml" and node.output[0] in outputs:
            name = node.output[0]
            node.CopyFrom(onnx.helper.make_node("Identity", list(node.input), [name], name=node.name))
            outputs[name].CopyFrom(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]))
            notes.append(f"output {name!r}: a list of maps became the tensor of probabilities, classes in the model's order")
    return tuple(notes)


def _check_ops(proto: onnx.ModelProto) -> None:
    """Raises ModelError naming the first node whose op is not ONNX's, at its opset, nor a function of the model."""
    own = {(f.domain, f.name) for f in proto.functions}
    imports = {entry.domain: entry.version for entry in proto.opset_import}
    for node in _nodes(proto):
        if (node.domain, node.op_type) in own:
            continue
        if node.domain == DOMAIN and node.op_type in fused.RULES and node.domain in imports:
            continue
        where = f"node {node.name or (node.output[0] if node.output else '')!r}: op {node.op_type!r} of domain {node.domain or 'ai.onnx'!r}"
        if node.domain not in KEPT_DOMAINS:
            raise ModelError(f"{where} is not an op of ONNX", hint="export the model with standard ONNX operators only")
        version = imports.get(node.domain)
        if version is None:
            raise ModelError(f"{where}: the model does not import that domain", hint="the file is damaged, export it again")
        if not onnx.defs.has(node.op_type, version, node.domain):
            raise ModelError(f"{where} is not known at opset {version}", hint=_op_hint(node))


def _op_hint(node: onnx.NodeProto) -> str | None:
    """The opset that brought an op, or ops of a similar name."""
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == node.domain}
    if node.op_type in known:
        return f"it is known from opset {onnx.defs.get_schema(node.op_type, node.domain).since_version} on"
    close = difflib.get_close_matches(node.op_type, known, n=3)
    return f"did you mean {' or '.join(close)}?" if close else None


def _defined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Operators that ONNX itself defines by others, and that no engine gains anything from knowing, in those others."""
    if not any(node.domain == "" and node.op_type in DEFINED for node in _nodes(proto)):
        return proto
    _inputs_for_all(proto)
    proto = _guarded(onnx.shape_inference.infer_shapes, proto, "its types cannot be inferred")
    return _expanded(proto, DEFINED, f"one of {', '.join(DEFINED)} cannot be expanded")


def _inputs_for_all(proto: onnx.ModelProto) -> None:
    """The inliner asks for the type of everything, and finds those of inputs; ``attach`` takes initializers off them again."""
    inputs = {i.name for i in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in inputs:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def _expanded(proto: onnx.ModelProto, operators: Sequence[str], failure: str) -> onnx.ModelProto:
    """Nodes of ``operators`` of the default domain replaced by what ONNX defines them as."""
    # The inliner asks for the type of an input that is left out, too; whatever it is told, the definition knows that there is none.
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("", onnx.TensorProto.FLOAT, None))
    keys = [("", op) for op in operators]
    call = functools.partial(onnx.inliner.inline_selected_functions, function_ids=keys, inline_schema_functions=True)
    proto = _guarded(call, proto, failure)
    kept = [value for value in proto.graph.value_info if value.name]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    return proto


def _downgrade(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    """To opset 21 from a later one. Later versions of old ops add types, not meanings; new ops are expanded by their ONNX definition."""
    proto = _guarded(lambda p: newer.defined(p, list(_nodes(p))), proto, "an operator newer than its opset cannot be written out")
    _inputs_for_all(proto)
    for _ in range(4):
        new = {(n.domain, n.op_type) for n in _nodes(proto) if n.domain == "" and not onnx.defs.has(n.op_type, OPSET)}
        if not new:
            break
        # An op whose definition uses other new ops takes another round.
        for node in (n for n in _nodes(proto) if n.domain == "" and ("", n.op_type) in new):
            # A definition may refer to an attribute that is left at its default; the inliner leaves such a reference empty.
            given, schema = {a.name for a in node.attribute}, onnx.defs.get_schema(node.op_type, version)
            node.attribute.extend(a.default_value for k, a in schema.attributes.items() if k not in given and a.default_value.type)
        proto = _guarded(onnx.shape_inference.infer_shapes, proto, "its types cannot be inferred")
        names = sorted(op for _, op in new)
        proto = _expanded(proto, names, f"the operators {', '.join(names)} of opset {version} have no definition in opset {OPSET}")
    for node in _nodes(proto):
        if node.domain:
            continue
        where = f"node {node.name!r} ({node.op_type})"
        if not onnx.defs.has(node.op_type, OPSET):
            raise ModelError(f"{where} of opset {version} does not exist in opset {OPSET}", hint="export the model with opset 21")
        schema = onnx.defs.get_schema(node.op_type, OPSET)
        unknown = [a.name for a in node.attribute if a.name not in schema.attributes]
        if unknown or len(node.input) > schema.max_input:
            what = f"attribute {unknown[0]!r}" if unknown else f"input {len(node.input)}"
            raise ModelError(f"{where}: its {what} came after opset {OPSET}", hint="export the model with opset 21")
    for entry in proto.opset_import:
        if entry.domain == "":
            entry.version = OPSET
    return proto


def _guarded(call: Callable[[onnx.ModelProto], Result], proto: onnx.ModelProto, what: str) -> Result:
    """onnx's C++ raises a dozen unrelated types; each becomes a ModelError with its first lines."""
    try:
        return call(proto)
    except (ModelError, MemoryError):
        raise
    except Exception as error:
        if "bad_alloc" in str(error):
            raise MemoryError from error
        while isinstance(error, ir.serde.SerdeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip() and "==> Context" not in line)
        context = next((line.partition("==> Context:")[2].strip() for line in str(error).splitlines() if "==> Context" in line), "")
        raise ModelError(f"the model is refused, {what}: {text[:400]}{f' [{context[:200]}]' if context else ''}") from None


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions too."""

    def walk(nodes: object) -> Iterator[onnx.NodeProto]:
        for node in nodes:  # type: ignore[attr-defined]
            yield node
            for attribute in node.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    yield from walk(graph.node)

    yield from walk(proto.graph.node)
    for function in proto.functions:
        yield from walk(function.node)


def _folder(folder: Folder | None, tensor: onnx.TensorProto) -> Folder:
    if folder is None:
        raise ModelError(f"tensor {tensor.name!r} lies in external data, but the model came without a folder", hint="load it by its path")
    return folder
