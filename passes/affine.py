"""Fusion of affine maps y = a·x + b with constant a, b: batch normalization, and Mul, Add, Sub, Div by a constant.

Each is read as one ``Affine``; it goes into the Conv, ConvTranspose, Gemm or MatMul before it where a and b are one value
per output channel, else two in a row become one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from gatewright.frontend.edit import Editor
from gatewright.frontend.queries import constant, integer, sole_producer

from . import rewrite
from .rewrite import Array

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Affine:
    """y = scale·x + shift, elementwise; float64 arrays that broadcast to ``x``'s shape, with its rank."""

    x: ir.Value
    scale: Array
    shift: Array

    def along(self, axis: int) -> tuple[Array, Array] | None:
        """Scale and shift as vectors along ``axis``, if they vary along no other."""
        size = rewrite.shape_of(self.x)[axis]
        for array in (self.scale, self.shift):
            if any(d != 1 for i, d in enumerate(array.shape) if i != axis):
                return None
        return tuple(np.broadcast_to(a.reshape(-1), (size,)) for a in (self.scale, self.shift))  # type: ignore[return-value]


def affine(node: ir.Node) -> Affine | None:
    """``node`` as an affine map of its one computed input; None if it is something else."""
    if node.domain or not node.outputs or not rewrite.is_float(node.outputs[0]):
        return None
    if node.op_type == "BatchNormalization":
        return _batch_norm(node)
    if node.op_type not in ("Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    for position in (0, 1):
        x, c = node.inputs[position], constant(node.inputs[1 - position])
        if c is None or x is None or constant(x) is not None or x.shape is None or x.shape != node.outputs[0].shape:
            continue
        rank = len(rewrite.shape_of(x))
        value = c.astype(np.float64).reshape((1,) * (rank - c.ndim) + c.shape) if c.ndim <= rank else None
        if value is None:
            return None
        one, zero = np.ones((1,) * rank), np.zeros((1,) * rank)
        match node.op_type, position:
            case "Mul", _:
                return Affine(x, value, zero)
            case "Add", _:
                return Affine(x, one, value)
            case "Sub", 0:
                return Affine(x, one, -value)
            case "Sub", 1:
                return Affine(x, -one, value)
            case "Div", 0:
                return Affine(x, 1 / value, zero) if np.all(value != 0) else None
        return None
    return None


def _batch_norm(node: ir.Node) -> Affine | None:
    x = node.inputs[0]
    parameters = [constant(v) for v in node.inputs[1:5]]
    used = [v for v in node.outputs if v.name and (v.uses() or v.is_graph_output())]
    if x is None or any(p is None for p in parameters) or integer(node, "training_mode", 0) or used != [node.outputs[0]]:
        return None
    rank = len(rewrite.shape_of(x))
    if rank < 2:
        return None
    gamma, beta, mean, variance = (p.astype(np.float64).reshape(1, -1, *[1] * (rank - 2)) for p in parameters if p is not None)
    found = node.attributes.get("epsilon")
    scale = gamma / np.sqrt(variance + (found.as_float() if found is not None else 1e-5))
    return Affine(x, scale, beta - mean * scale)


def fold_into_layer(edit: Editor, node: ir.Node) -> bool:
    """Conv, ConvTranspose, Gemm or MatMul by a constant, then an affine map of its output channels: one layer.

    W'[…, m] = scale[m]·W[…, m], b'[m] = scale[m]·b[m] + shift[m]. A weight that is stored quantized (DequantizeLinear of an
    initializer) is left as it is: it takes a bias, but no factor.
    """
    found = affine(node)
    layer = sole_producer(found.x) if found is not None else None
    if found is None or layer is None or layer.op_type not in LAYERS or layer.domain:
        return False
    rank = len(rewrite.shape_of(found.x))
    if layer.op_type == "MatMul" and (rank != 2 or not _of_matrices(layer)):
        return _scale_matmul(edit, node, layer, found, rank - 1)
    vectors = found.along(rank - 1 if layer.op_type in ("Gemm", "MatMul") else 1)
    if vectors is None or not _plain_layer(layer):
        return False
    scale, shift = vectors
    bias = _bias(layer, len(scale))
    if bias is None:
        return False
    if np.any(scale != 1) and not _scale_weight(edit, layer, scale):
        return False
    _set_bias(edit, layer, bias * scale + shift)
    rewrite.give_output(edit.graph, layer, node)
    return True


def _of_matrices(layer: ir.Node) -> bool:
    """A MatMul that a Gemm could be: of a vector, or of stacked matrices, the result may have two axes too."""
    return all(value is not None and len(rewrite.shape_of(value)) == 2 for value in layer.inputs)


def _plain_layer(layer: ir.Node) -> bool:
    if layer.op_type == "Gemm":
        factors = (layer.attributes.get(k) for k in ("alpha", "beta"))
        return not integer(layer, "transA", 0) and all(f is None or f.as_float() == 1 for f in factors)
    return rewrite.real_constant(layer.inputs[1]) is not None


def _bias(layer: ir.Node, channels: int) -> Array | None:
    """The layer's bias as float64 per output channel (zeros where it has none); None where it is computed or has another form."""
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    if value is None:
        return np.zeros(channels)
    array = constant(value)
    if array is None or array.size not in (1, channels) or (array.ndim and array.shape[-1] not in (1, channels)):
        return None
    return np.broadcast_to(array.reshape(-1), (channels,)).astype(np.float64)


def _output_axis(layer: ir.Node, rank: int) -> int:
    """The weight's axis of output channels (ConvTranspose's, within a group)."""
    if layer.op_type == "Gemm":
        return 0 if integer(layer, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": rank - 1}[layer.op_type]


def _scale_weight(edit: Editor, layer: ir.Node, scale: Array) -> bool:
    weight = layer.inputs[1]
    array = constant(weight)
    if weight is None or array is None:
        return False
    if layer.op_type == "ConvTranspose":
        # [C, M/group, …]: input channel c belongs to group c·group/C, whose outputs are consecutive.
        group = integer(layer, "group", 1)
        per_input = np.repeat(scale.reshape(group, -1), array.shape[0] // group, axis=0)
        factor = per_input.reshape(array.shape[0], array.shape[1], *[1] * (array.ndim - 2))
    else:
        axis = _output_axis(layer, array.ndim)
        factor = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    rewrite.replace_constant(edit, layer, 1, (array.astype(np.float64) * factor).astype(array.dtype))
    return True


def _set_bias(edit: Editor, layer: ir.Node, bias: Array) -> None:
    dtype = layer.outputs[0].dtype
    assert dtype is not None
    array = bias.astype(dtype.numpy())
    if len(layer.inputs) > 2 and layer.inputs[2] is not None:
        rewrite.replace_constant(edit, layer, 2, array)
        return
    if not np.any(array) and layer.op_type != "MatMul":
        return
    if layer.op_type == "MatMul":
        if not np.any(array):
            return
        layer.op_type = "Gemm"
    layer.resize_inputs(3)
    layer.replace_input_with(2, edit.constant(array, f"{layer.name}_bias"))


def _scale_matmul(edit: Editor, node: ir.Node, layer: ir.Node, found: Affine, axis: int) -> bool:
    """MatMul of more or fewer than two axes has no bias input: only a factor per column goes in."""
    weight = constant(layer.inputs[1])
    if weight is None or weight.ndim != 2:
        return False
    vectors = found.along(axis)
    if vectors is None or np.any(vectors[1]) or np.all(vectors[0] == 1):
        return False
    if not _scale_weight(edit, layer, vectors[0]):
        return False
    rewrite.give_output(edit.graph, layer, node)
    return True


def collapse_chain(edit: Editor, node: ir.Node) -> bool:
    """Two or more affine maps in a row, or one batch normalization, become at most one Mul and one Add.

    Applied at the last map of a chain. One that is already Mul, Add, or Mul then Add is left.
    """
    last = affine(node)
    if last is None or _continues(node):
        return False
    chain = [node]
    scale, shift, x = last.scale, last.shift, last.x
    while (before := sole_producer(x)) is not None and (inner := affine(before)) is not None:
        shift = scale * inner.shift + shift
        scale = scale * inner.scale
        x = inner.x
        chain.insert(0, before)
    ops = [n.op_type for n in chain]
    if ops in (["Mul"], ["Add"], ["Mul", "Add"]):
        return False
    dtype = node.outputs[0].dtype
    shape = rewrite.shape_of(node.outputs[0])
    assert dtype is not None
    parts = [(op, _trimmed(a)) for op, a, neutral in (("Mul", scale, 1), ("Add", shift, 0)) if np.any(a != neutral)]
    if not parts:
        # The maps undo one another. One that multiplies by 1 keeps the output's name; fold drops it where it can.
        parts = [("Mul", np.ones(()))]
    value = x
    for index, (op, array) in enumerate(parts):
        c = edit.constant(array.astype(dtype.numpy()), f"{node.name}_{'factor' if op == 'Mul' else 'offset'}")
        final = index == len(parts) - 1
        name = node.name or op
        made = rewrite.typed_node(edit, op, [value, c], f"{node.outputs[0].name}_{op.lower()}", name=name, shape=shape, dtype=dtype)
        edit.graph.insert_before(node, made)
        value = made.outputs[0]
        if final:
            rewrite.give_output(edit.graph, made, node)
            made.name = name
    for old in reversed(chain[:-1]):
        edit.graph.remove(old, safe=True)
    return True


def _continues(node: ir.Node) -> bool:
    reader = rewrite.sole_reader(node.outputs[0])
    following = affine(reader) if reader is not None else None
    return following is not None and following.x is node.outputs[0]


def _trimmed(array: Array) -> Array:
    """Without leading axes of one: a constant reads as short as it can."""
    while array.ndim and array.shape[0] == 1:
        array = array[0]
    return array


def matmul_add_to_gemm(edit: Editor, node: ir.Node) -> bool:
    """Add of a stored-quantized or plain constant behind a two-axis MatMul by a constant: Gemm. (fold_into_layer does plain weights.)"""
    if node.op_type != "MatMul" or not _of_matrices(node) or rewrite.real_constant(node.inputs[1]) is None:
        return False
    reader = rewrite.sole_reader(node.outputs[0])
    if reader is None or reader.op_type != "Add":
        return False
    other = reader.inputs[1] if reader.inputs[0] is node.outputs[0] else reader.inputs[0]
    bias = constant(other)
    columns = rewrite.shape_of(node.outputs[0])[-1]
    if bias is None or bias.size not in (1, columns) or reader.outputs[0].shape != node.outputs[0].shape:
        return False
    if bias.ndim and bias.shape[-1] != bias.size:
        return False
    _set_bias(edit, node, np.broadcast_to(bias.reshape(-1), (columns,)).astype(np.float64))
    rewrite.give_output(edit.graph, node, reader)
    return True
