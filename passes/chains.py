"""Layers that follow one another with nothing in between that would notice a rescaled channel.

f(s·x) = s·f(x) for s > 0 holds for Relu, LeakyRelu, PRelu, Abs, pooling, zero padding of spatial axes, and a Reshape that keeps
channels whole: a channel may leave the first layer divided by s if the second one's weights for it are multiplied by s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError
from gatewright.frontend.edit import Editor
from gatewright.frontend.queries import constant, integer

from . import rewrite
from .placement import LINEAR
from .rewrite import Array, real_constant, shape_of, sole_reader

HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "Abs", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"})


@dataclass
class Linear:
    """A Conv, Gemm or MatMul with a float weight, and its bias."""

    node: ir.Node
    bias: tuple[ir.Node, int] | None
    """Node and input index: its own, or the one of an Add right behind."""
    result: ir.Value
    """Behind the bias."""

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def weight(self) -> Array:
        array = real_constant(self.node.inputs[1])
        assert array is not None
        return array

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[self.output_axis])

    @property
    def output_axis(self) -> int:
        """Of the weight."""
        return 0 if self.node.op_type == "Conv" else 1

    def by_output(self, weight: Array) -> Array:
        """A view [output channels, everything else] (a copy for Gemm and MatMul)."""
        return np.moveaxis(weight, self.output_axis, 0).reshape(self.outputs, -1)

    def by_input(self, weight: Array, channels: int) -> Array:
        """A copy [input channels, everything that reads them]."""
        if self.node.op_type != "Conv":
            return weight.reshape(channels, -1)
        group = integer(self.node, "group", 1)
        shape = (group, weight.shape[0] // group, weight.shape[1], -1)
        return np.swapaxes(weight.reshape(shape), 1, 2).reshape(channels, -1)

    def scaled_outputs(self, weight: Array, factors: Array) -> Array:
        return np.asarray(weight * factors.reshape(tuple(-1 if i == self.output_axis else 1 for i in range(weight.ndim))))

    def scaled_inputs(self, weight: Array, factors: Array) -> Array:
        """``factors``: one per input channel; each stands for as many rows of a Gemm as a Reshape made of it."""
        if self.node.op_type != "Conv":
            return np.asarray(weight * np.repeat(factors, weight.shape[0] // len(factors))[:, None])
        group = integer(self.node, "group", 1)
        each = np.repeat(factors.reshape(group, 1, -1), weight.shape[0] // group, axis=1).reshape(weight.shape[:2])
        return np.asarray(weight * each.reshape(*weight.shape[:2], *[1] * (weight.ndim - 2)))

    def read_bias(self) -> Array:
        """float64 [output channels]; zeros where there is none."""
        if self.bias is None:
            return np.zeros(self.outputs)
        array = real_constant(self.bias[0].inputs[self.bias[1]])
        assert array is not None
        return np.broadcast_to(array.reshape(-1).astype(np.float64), (self.outputs,)).copy()

    def write_bias(self, edit: Editor, bias: Array) -> None:
        """Set the bias; a Conv or Gemm without one gets an input for it. A MatMul without one cannot have any but zeros."""
        if self.bias is None:
            if not bias.any():
                return
            if self.node.op_type == "MatMul":
                raise PassError(f"layer {self.name!r} (MatMul) has no bias to write to")
            self.node.resize_inputs(3)
            self.node.replace_input_with(2, edit.constant(bias.astype(np.float32), f"{self.name}_bias"))
            self.bias = (self.node, 2)
            return
        node, index = self.bias
        old = real_constant(node.inputs[index])
        assert old is not None
        behind = self.weight.ndim - 2 if node is not self.node and self.node.op_type == "Conv" else 0
        spread = (-1, *[1] * behind)
        shape = old.shape if old.size == self.outputs else bias.reshape(spread).shape
        rewrite.replace_constant(edit, node, index, bias.reshape(shape).astype(np.float32))

    def write_weight(self, edit: Editor, weight: Array) -> None:
        rewrite.replace_constant(edit, self.node, 1, weight.astype(np.float32))


@dataclass
class Pair:
    """Two layers: what ``first`` makes reaches ``second`` alone."""

    first: Linear
    second: Linear
    between: list[ir.Node] = field(default_factory=list)
    """In order, without the bias."""


def linear_of(node: ir.Node) -> Linear | None:
    """The layer that a node is, if its weight is a float32 constant (or stored as integers that stand for one)."""
    if node.op_type not in LINEAR or node.domain or len(node.inputs) < 2:
        return None
    weight = real_constant(node.inputs[1])
    if weight is None or weight.dtype != np.float32 or (node.op_type != "Conv" and weight.ndim != 2):
        return None
    if node.op_type == "Gemm" and any(integer(node, k, 0) for k in ("transA", "transB")):
        return None
    channels = weight.shape[0 if node.op_type == "Conv" else 1]
    value = node.outputs[0]
    own = node.inputs[2] if len(node.inputs) > 2 else None
    if own is not None:
        array = real_constant(own)
        if array is None or array.size not in (1, channels) or (array.ndim > 1 and array.shape[-1] != array.size):
            return None
        return Linear(node, (node, 2), value)
    add = sole_reader(value)
    if add is not None and add.op_type == "Add" and add.outputs[0].shape == value.shape:
        index = 1 if add.inputs[0] is value else 0
        array = real_constant(add.inputs[index])
        if array is not None and _per_channel(array, channels, len(shape_of(value)), node.op_type == "Conv"):
            return Linear(node, (add, index), add.outputs[0])
    return Linear(node, None, value)


def _per_channel(array: Array, channels: int, rank: int, conv: bool) -> bool:
    """Whether a constant broadcasts over everything but the channels."""
    if array.size == 1:
        return True
    behind = rank - 2 if conv else 0
    return array.size == channels and array.ndim > behind and array.shape[array.ndim - 1 - behind] == channels


def pairs(graph: ir.Graph) -> list[Pair]:
    """All pairs, in the order of their first layers."""
    found = []
    for node in graph:
        first = linear_of(node)
        if first is None:
            continue
        value, between = first.result, list[ir.Node]()
        while (reader := sole_reader(value)) is not None:
            second = linear_of(reader)
            if second is not None and reader.inputs[0] is value and all(v is not value for v in reader.inputs[1:]):
                if _channels_fit(first, second, value):
                    found.append(Pair(first, second, between))
                break
            if not _transparent(reader, value, first):
                break
            between.append(reader)
            value = reader.outputs[0]
    return found


def _transparent(node: ir.Node, value: ir.Value, first: Linear) -> bool:
    if node.inputs[0] is not value or any(v is value for v in node.inputs[1:]):
        return False
    if node.op_type in HOMOGENEOUS:
        images = first.node.op_type == "Conv"
        only = all(not v.consumers() and not v.is_graph_output() for v in node.outputs[1:])
        slope = constant(node.inputs[1]) if node.op_type == "PRelu" else None
        return only and (node.op_type != "PRelu" or slope is not None) and (images or "Pool" not in node.op_type)
    if node.op_type == "Reshape":
        before, after = shape_of(value), shape_of(node.outputs[0])
        # [N, C, …] to [N, C·…]: a channel stays one run of values.
        return first.node.op_type == "Conv" and len(after) == 2 and after == (before[0], math.prod(before[1:]))
    if node.op_type == "Pad" and first.node.op_type == "Conv":
        mode, pads = node.attributes.get("mode"), constant(node.inputs[1])
        fill = rewrite.scalar(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else 0.0
        rank = len(shape_of(value))
        plain = (mode is None or mode.as_string() == "constant") and fill == 0.0 and (len(node.inputs) < 4 or node.inputs[3] is None)
        return plain and pads is not None and pads.size == 2 * rank and not np.any(pads.reshape(2, rank)[:, :2])
    return False


def _channels_fit(first: Linear, second: Linear, value: ir.Value) -> bool:
    shape = shape_of(value)
    if second.node.op_type == "Conv":
        return first.node.op_type == "Conv" and shape[1] == first.outputs
    rows = int(second.weight.shape[0])
    if len(shape) > 2 and first.node.op_type == "Conv":
        return False
    return shape[-1] == rows and rows % first.outputs == 0
