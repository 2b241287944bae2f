"""What onnx's version converter turns into something else in silence, or refuses: repaired before and after it.

- Before opset 7 a smaller operand could be laid along an ``axis``: refused by the converter, expressed here.
- PRelu before opset 7 has a slope for each channel, which is axis 1; later one that is laid along the last axis.
- Hardmax before opset 13 works on the input as a matrix, cut at ``axis``; later along one axis. (Softmax is converted.)
- Softmax, LogSoftmax and Hardmax of what is empty come back to a shape with 0 in it, which Reshape takes for "copy".
- Upsample and Resize before opset 11 sample at index / scale; the converted Resize would take later defaults (half pixels).
- Clip and Pad before opset 11 have float attributes, which become float32 inputs whatever the type of the tensor.
- Pad before opset 11 may hold a ``value`` for a mode that fills in none, which is then left over.
- Scan of opset 8 has a batch axis, which later ones lack: refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx.shape_inference

from gatewright.errors import ModelError

_FLOAT_ATTRIBUTES = {"Clip": 1, "Pad": 2}
"""By operator: the first input that a float attribute has become."""
_ALIGNED = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


def before_conversion(proto: onnx.ModelProto, version: int) -> Callable[[onnx.ModelProto], None]:
    """Repair ``proto`` of opset ``version`` in place; the result is to be called on the converted model."""
    flattened = set[str]()
    if version < 13:
        flattened = _require_axis(proto)
        _flat_hardmax(proto.graph)
    if version < 7:
        _aligned_operands(proto)
        _slopes_of_channels(proto)
    resizes = {}
    wide = _clipped_types(proto) if version < 11 else {}
    if version < 11:
        _drop_idle_fill(proto)
        for graph, node in nodes(proto.graph):
            if node.op_type in ("Upsample", "Resize") and node.domain == "":
                resizes[node.output[0]] = _rounding(graph, proto.graph, node)
    if version < 9:
        for _, node in nodes(proto.graph):
            if node.op_type == "Scan" and node.domain == "":
                what = f"node {node.name!r}: Scan of opset 8 works on batches, as no later one does"
                raise ModelError(what, hint="export it with opset 9 or later")

    def after(converted: onnx.ModelProto) -> None:
        _type_bounds(converted, wide)
        for _, node in nodes(converted.graph):
            if node.op_type == "Reshape" and node.output[0] in flattened:
                # Back to the shape of before, in which a 0 is no "copy".
                node.attribute.append(onnx.helper.make_attribute("allowzero", 1))
            if node.op_type == "Resize" and node.output[0] in resizes:
                kept = [a for a in node.attribute if a.name not in ("coordinate_transformation_mode", "nearest_mode")]
                del node.attribute[:]
                node.attribute.extend(kept)
                node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
                node.attribute.append(onnx.helper.make_attribute("nearest_mode", resizes[node.output[0]]))

    return after


def nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto]]:
    """Every node, with the graph that holds it; those of subgraphs too."""
    for node in graph.node:
        yield graph, node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from nodes(inner)


def _clipped_types(proto: onnx.ModelProto) -> dict[str, int]:
    """By output: the type of every Clip and Pad that is not float32."""
    shaped = onnx.shape_inference.infer_shapes(proto)
    types = {v.name: v.type.tensor_type.elem_type for v in (*shaped.graph.value_info, *shaped.graph.input, *shaped.graph.output)}
    outputs = [node.output[0] for _, node in nodes(proto.graph) if node.op_type in _FLOAT_ATTRIBUTES and node.domain == ""]
    return {name: kind for name in outputs if (kind := types.get(name)) not in (None, onnx.TensorProto.FLOAT)}


def _type_bounds(converted: onnx.ModelProto, types: dict[str, int]) -> None:
    """What was made of the attributes of converted Clips and Pads in the type of the tensor: each has one reader."""
    for graph, node in list(nodes(converted.graph)):
        if node.op_type not in _FLOAT_ATTRIBUTES or node.output[0] not in types:
            continue
        makers = {other.output[0]: other for other in graph.node if other.op_type == "Constant"}
        dtype = onnx.helper.tensor_dtype_to_np_dtype(types[node.output[0]])
        for name in node.input[_FLOAT_ATTRIBUTES[node.op_type] :]:
            tensor = next((t for t in graph.initializer if t.name == name), None)
            if name in makers:
                tensor = makers[name].attribute[0].t
            if tensor is not None:
                held = onnx.numpy_helper.to_array(tensor).astype(np.float64)
                # "No bound" of float32 is none of a narrower type either.
                bound = np.clip(held, np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype)
                tensor.CopyFrom(onnx.numpy_helper.from_array(bound, name))


def _drop_idle_fill(proto: onnx.ModelProto) -> None:
    for _, node in nodes(proto.graph):
        mode = next((a.s for a in node.attribute if a.name == "mode"), b"constant")
        if node.op_type == "Pad" and node.domain == "" and mode != b"constant":
            kept = [a for a in node.attribute if a.name != "value"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _aligned_operands(proto: onnx.ModelProto) -> None:
    """Before opset 7 a smaller second operand was laid along ``axis``; with ones behind it numpy's rule does the same."""
    ranks = _ranks(proto)
    rewritten = []
    for node in proto.graph.node:
        axis = next((a.i for a in node.attribute if a.name == "axis"), None)
        if node.op_type in _ALIGNED and axis is not None and len(node.input) == 2:
            left, right = (ranks.get(name) for name in node.input)
            if left is None or right is None:
                what = f"node {node.name!r} ({node.op_type}) lays its second operand along axis {axis}"
                raise ModelError(f"{what}, but the operands' shapes are not known", hint="export it with opset 7 or later")
            behind = left - axis % left - right
            if behind > 0:
                name = f"{node.output[0]}_aligned"
                rewritten.append(onnx.helper.make_node("Unsqueeze", [node.input[1]], [name], axes=list(range(right, right + behind))))
                node.input[1] = name
            kept = [a for a in node.attribute if a.name != "axis"]
            del node.attribute[:]
            node.attribute.extend(kept)
        rewritten.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _slopes_of_channels(proto: onnx.ModelProto) -> None:
    """A slope of one axis, with ones behind it as far as the tensor has axes behind its channels."""
    ranks = _ranks(proto)
    rewritten = []
    for node in proto.graph.node:
        if node.op_type == "PRelu" and not node.domain:
            x, slope = (ranks.get(name) for name in node.input)
            if x is None or slope is None:
                what = f"node {node.name!r} (PRelu) has a slope for each channel, but the shapes of its inputs are not known"
                raise ModelError(what, hint="export it with opset 7 or later")
            if slope == 1 and x > 2:
                name = f"{node.output[0]}_slopes"
                rewritten.append(onnx.helper.make_node("Unsqueeze", [node.input[1]], [name], axes=list(range(1, x - 1))))
                node.input[1] = name
        rewritten.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)


def _ranks(proto: onnx.ModelProto) -> dict[str, int]:
    """By name, as far as they are known."""
    shaped = onnx.shape_inference.infer_shapes(proto)
    infos = (*shaped.graph.value_info, *shaped.graph.input, *shaped.graph.output)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in infos if v.type.tensor_type.HasField("shape")}
    return ranks | {t.name: len(t.dims) for t in proto.graph.initializer}


def _require_axis(proto: onnx.ModelProto) -> set[str]:
    """The outputs of what works on a matrix, which the input is cut into at ``axis``: 1 if nothing is said, which a vector has not."""
    ranks, outputs = _ranks(proto), set[str]()
    for _, node in nodes(proto.graph):
        if node.op_type not in ("Softmax", "LogSoftmax", "Hardmax") or node.domain:
            continue
        rank, axis = ranks.get(node.input[0]), next((a.i for a in node.attribute if a.name == "axis"), 1)
        if rank and not -rank <= axis < rank:
            what = f"node {node.name or node.output[0]!r} ({node.op_type}): its input of rank {rank} has no axis {axis}"
            raise ModelError(what, hint="give it the axis, or export the model with opset 13 or later")
        outputs.add(node.output[0])
    return outputs


def _flat_hardmax(graph: onnx.GraphProto) -> None:
    """Hardmax as Flatten, Hardmax of the rows, and back to the shape of before."""
    for inner in {id(g): g for g, _ in nodes(graph)}.values():
        rewritten = []
        for node in inner.node:
            if node.op_type != "Hardmax" or node.domain:
                rewritten.append(node)
                continue
            x, y = node.input[0], node.output[0]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            rewritten += [
                onnx.helper.make_node("Shape", [x], [f"{y}_shape"]),
                onnx.helper.make_node("Flatten", [x], [f"{y}_rows"], axis=axis),
                onnx.helper.make_node("Hardmax", [f"{y}_rows"], [f"{y}_flat"], name=node.name, axis=1),
                onnx.helper.make_node("Reshape", [f"{y}_flat", f"{y}_shape"], [y]),
            ]
        if len(rewritten) != len(inner.node):
            copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in rewritten]
            del inner.node[:]
            inner.node.extend(copies)


def _rounding(graph: onnx.GraphProto, outer: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """nearest_mode of opset 11 for what ONNX Runtime does at opset 10: down to the index where it enlarges, up where it shrinks."""
    scales = next((list(a.floats) for a in node.attribute if a.name == "scales"), None)
    if scales is None and len(node.input) > 1:
        held = {t.name: t for g in (outer, graph) for t in g.initializer}
        lifted = [n for g in (outer, graph) for n in g.node if n.op_type == "Constant"]
        held |= {n.output[0]: a.t for n in lifted for a in n.attribute if a.name == "value"}
        tensor = held.get(node.input[1])
        scales = None if tensor is None else np.asarray(onnx.numpy_helper.to_array(tensor)).reshape(-1).tolist()
    if scales is None:
        return "floor"
    if any(s < 1 for s in scales) and any(s > 1 for s in scales):
        what = f"node {node.name!r} ({node.op_type}) enlarges one axis and shrinks another"
        raise ModelError(f"{what}, which opset 21 cannot say as opset 10 did", hint="export it with opset 11 or later")
    return "ceil" if any(s < 1 for s in scales) else "floor"
