"""``check_canonical``: is a graph in the form that ``canonicalize.py`` describes? Passes are verified with it after every step."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from gatewright.errors import ModelError

from .edit import attribute, constant_of, input_of, is_constant, label, shape_of
from .rewrite import AXIS, CONVS, POOLS, REDUCTIONS
from .shapes import fresh
from .upgrade import KEPT_DOMAINS, OPSET, without_weights


def check_canonical(model: ir.Model) -> None:
    """Raises ModelError naming the first rule that ``model`` breaks, and where."""
    _check_model(model)
    seen: set[ir.Value] = set()
    names: set[str] = set()
    for known in (*model.graph.inputs, *model.graph.initializers.values()):
        _check_value(known, "the graph", names)
        seen.add(known)
    node_names: set[str] = set()
    for node in model.graph:
        where = f"node {label(node)!r} ({node.op_type})"
        if not node.name or node.name in node_names:
            raise ModelError(f"{where}: its name is {'empty' if not node.name else 'taken by another node'}")
        node_names.add(node.name)
        for read in node.inputs:
            if read is not None and read not in seen:
                raise ModelError(f"{where} reads {read.name!r} before anything makes it")
        for value in node.outputs:
            if value.name:
                _check_value(value, where, names)
            seen.add(value)
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            raise ModelError(f"{where} is dead: nobody reads what it makes")
        _check_node(node, where)
    for output in model.graph.outputs:
        if output.producer() is None or output not in seen:
            raise ModelError(f"output {output.name!r} is made by no node")
    _check_recorded(model)


def _check_model(model: ir.Model) -> None:
    imports = model.graph.opset_imports
    if imports.get("") != OPSET:
        raise ModelError(f"the graph is of opset {imports.get('')}, not {OPSET}")
    odd = [domain for domain in imports if domain not in KEPT_DOMAINS]
    if odd or model.functions:
        raise ModelError(f"the graph {f'imports domain {odd[0]!r}' if odd else 'has functions'}")
    for value in model.graph.inputs:
        if value.is_initializer():
            raise ModelError(f"input {value.name!r} is an initializer")


def _check_value(value: ir.Value, where: str, names: set[str]) -> None:
    if not value.name or value.name in names:
        raise ModelError(f"{where}: the name {value.name!r} of a value is {'empty' if not value.name else 'taken by another value'}")
    names.add(value.name)
    if value.dtype is None or shape_of(value) is None:
        raise ModelError(f"{where}: value {value.name!r} has no static shape or no type ({value.dtype}, {value.shape})")


def _check_node(node: ir.Node, where: str) -> None:
    if node.domain not in KEPT_DOMAINS:
        raise ModelError(f"{where} is of domain {node.domain!r}")
    if node.domain:
        return
    op = node.op_type
    first = node.inputs[0] if node.inputs else None
    if op in ("Constant", "Flatten", "Squeeze", "Unsqueeze", "QLinearConv", "QLinearMatMul") and not _unsettled(node):
        raise ModelError(f"{where} has another canonical form")
    if op == "Identity" and not (node.outputs[0].is_graph_output() and first is not None and _stays(first)):
        raise ModelError(f"{where} does nothing")
    if op == "Dropout" and len(node.inputs) < 3:
        raise ModelError(f"{where} does nothing at inference")
    if op == "Reshape":
        _check_reshape(node, where)
    if op in CONVS or op in POOLS:
        wanted = ["strides", "dilations", "pads", "kernel_shape", *(["group"] if op in CONVS else [])]
        missing = [key for key in wanted if key not in node.attributes]
        if missing or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
            raise ModelError(f"{where} {f'lacks {missing[0]}' if missing else 'has auto_pad'}")
    if op == "Gemm":
        odd = [key for key, value in (("alpha", 1.0), ("beta", 1.0), ("transA", 0), ("transB", 0)) if attribute(node, key, value) != value]
        if odd and first is not None and first.dtype is not None and first.dtype.is_floating_point():
            raise ModelError(f"{where} has {odd[0]} = {attribute(node, odd[0])}")
    if op in REDUCTIONS and "keepdims" not in node.attributes:
        raise ModelError(f"{where} lacks keepdims")
    if op in AXIS and op != "Compress" and shape_of(first) and attribute(node, "axis", -1) < 0:
        raise ModelError(f"{where}: its axis is {attribute(node, 'axis', 'missing')}, not explicit and positive")
    if op in ("QuantizeLinear", "DequantizeLinear"):
        _check_linear(node, where)


def _stays(value: ir.Value) -> bool:
    """True for what cannot take an output's name over: an input, a constant, another output."""
    return value.producer() is None or value.is_graph_output()


def _unsettled(node: ir.Node) -> bool:
    """QLinear operators whose scales are computed, or lie along several axes, have no QDQ form."""
    return node.op_type.startswith("QLinear")


def _check_reshape(node: ir.Node, where: str) -> None:
    target, before, after = constant_of(input_of(node, 1)), shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if target is None or before is None or after is None:
        raise ModelError(f"{where}: its target is not a constant")
    if attribute(node, "allowzero", 0):
        return
    meant = tuple(before[i] if d == 0 and i < len(before) else int(d) for i, d in enumerate(target.tolist()))
    if meant != after:
        raise ModelError(f"{where}: its target {target.tolist()} is not its output's shape {list(after)}")
    if before and after and before[0] == after[0] and target[0] != 0:
        raise ModelError(f"{where}: axis 0 keeps its size, the target should start with 0, not {target[0]}")


def _check_linear(node: ir.Node, where: str) -> None:
    if "axis" not in node.attributes or attribute(node, "axis") < 0:
        raise ModelError(f"{where}: its axis is {attribute(node, 'axis', 'missing')}, not explicit and positive")
    scale = constant_of(input_of(node, 1))
    if scale is None:
        return
    zero = input_of(node, 2)
    if scale.size == 1 and scale.ndim and not attribute(node, "block_size", 0):
        raise ModelError(f"{where}: one scale for the tensor has shape {list(scale.shape)}, not []")
    if zero is None or not is_constant(zero) or shape_of(zero) != scale.shape:
        held = "missing" if zero is None else f"of shape {shape_of(zero)}, not a constant of the scale's shape {scale.shape}"
        raise ModelError(f"{where}: its zero point is {held}")


def _check_recorded(model: ir.Model) -> None:
    """onnx's own checker, and the recorded shapes against those inferred from the inputs alone."""
    try:
        onnx.checker.check_model(without_weights(model))
    except Exception as error:
        raise ModelError(f"the graph is not valid ONNX: {' '.join(str(error).split())[:400]}") from None
    inferred = fresh(model)
    for node in model.graph:
        for value in node.outputs:
            shape = inferred.get(value.name or "")
            if shape is not None and shape != shape_of(value):
                raise ModelError(f"node {label(node)!r} ({node.op_type}): {value.name!r} is recorded as {shape_of(value)}, it is {shape}")
