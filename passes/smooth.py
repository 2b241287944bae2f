"""``smoothquant``: outliers of activations moved into weights, where they are easier to round.

Xiao et al. 2022, SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models, §4. Channel j of what
several products read is divided by s_j = max|x_j|^α / max|W_j|^(1−α) in whatever makes it (a LayerNormalization's scale and bias, a
Mul, the layer before) and the weights for it are multiplied by s_j: the network computes what it did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .calibrate import traces
from .chains import Linear, linear_of
from .rewrite import Array, shape_of, sole_reader

LARGEST = 1e4
"""Bounds of s, either way."""


@dataclass
class Family:
    """Products that read one value, and the constants that make that value, by which it can be scaled."""

    source: ir.Value
    layers: list[Linear]
    constants: list[tuple[ir.Node, int]] = field(default_factory=list)
    """Node and input index of each constant that scales with the value's channels (divided by s)."""
    before: Linear | None = None
    """The layer whose output channels scale with them."""
    carried: list[ir.Value] = field(default_factory=list)
    """Values that are scaled on the way."""


def families(graph: ir.Graph) -> tuple[list[Family], dict[str, str]]:
    """Those whose value can be scaled; and of the others their first layer's name and why not."""
    readers: dict[ir.Value, list[Linear]] = {}
    for node in graph:
        layer = linear_of(node)
        if layer is not None and node.op_type != "Conv" and node.inputs[0] is not None:
            readers.setdefault(node.inputs[0], []).append(layer)
    found, refused = [], {}
    for source, layers in readers.items():
        family = Family(source, layers)
        if source.is_graph_output() or len(source.uses()) != len(layers):
            refused[layers[0].name] = f"others read {source.name!r} too"
        elif (why := _origin(family, source)) is not None:
            refused[layers[0].name] = why
        else:
            found.append(family)
    return found, refused


def _origin(family: Family, value: ir.Value) -> str | None:
    """Walk back to what sets the scale of ``value``'s channels. The reason where nothing does."""
    width = shape_of(value)[-1]
    while True:
        family.carried.append(value)
        node = value.producer()
        if node is None:
            return "it reads an input of the model"
        if (layer := _layer_behind(node)) is not None:
            if layer.outputs != width:
                return f"{layer.name} makes other channels"
            family.before = layer
            family.carried.append(layer.node.outputs[0])
            return None
        if node.op_type == "LayerNormalization":
            family.constants += [(node, i) for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
            last = integer(node, "axis", -1) in (-1, len(shape_of(value)) - 1)
            known = all(rewrite.real_constant(n.inputs[i]) is not None for n, i in family.constants)
            return None if last and known and len(node.outputs) == 1 else f"{node.name} has no constant scale per channel"
        index = next((i for i, v in enumerate(node.inputs) if rewrite.real_constant(v) is None), 0)
        x = node.inputs[index]
        if x is None or sole_reader(x) is not node or shape_of(x)[-1:] != (width,):
            return f"{node.name} ({node.op_type}) does not keep the channels to itself"
        others = [i for i in range(len(node.inputs)) if i != index]
        if node.op_type in ("Mul", "Add") and len(others) == 1:
            family.constants.append((node, others[0]))
            if node.op_type == "Mul":
                return None
        elif node.op_type not in ("Relu", "LeakyRelu", "Abs", "Reshape"):
            return f"{node.name} ({node.op_type}) cannot be scaled"
        value = x


def _layer_behind(node: ir.Node) -> Linear | None:
    """The product that ``node`` is, or whose bias it adds."""
    for inner in (node, *(v.producer() for v in node.inputs if v is not None and node.op_type == "Add")):
        layer = linear_of(inner) if inner is not None else None
        if layer is not None and layer.node.op_type != "Conv" and layer.result is node.outputs[0]:
            return layer
    return None


def migrate(edit: Editor, family: Family, s: Array) -> None:
    """Divide the value's channels by s [channels], multiply the weights that read them."""
    for layer in family.layers:
        layer.write_weight(edit, layer.weight.astype(np.float64) * s[:, None])
    for node, index in family.constants:
        array = rewrite.real_constant(node.inputs[index])
        assert array is not None
        rewrite.replace_constant(edit, node, index, (array.astype(np.float64) / s).astype(np.float32))
    if family.before is not None:
        family.before.write_weight(edit, family.before.weight.astype(np.float64) / s[None, :])
        if family.before.bias is not None:
            family.before.write_bias(edit, family.before.read_bias() / s)
    for value in dict.fromkeys(family.carried):
        # Another value now: whoever compares inner tensors by name has to know.
        value.name = edit.fresh(f"{value.name}_scaled")


def channel_sizes(model: Model, names: Sequence[str], data: Dataset) -> dict[str, tuple[Array, Array]]:
    """Largest and mean magnitude of each channel (last axis) of these values, float64."""
    given = {info.name for info in model.inputs}
    largest: dict[str, Array] = {}
    total: dict[str, Array] = {}
    count = dict.fromkeys(names, 0)
    for feeds, traced in traces(model, [n for n in names if n not in given], data):
        for name in names:
            rows = np.abs((traced[name] if name in traced else feeds[name]).astype(np.float64))
            rows = rows.reshape(-1, rows.shape[-1])
            if not np.isfinite(rows).all():
                raise PassError(f"{name!r} is not finite on the data", hint="look at the data and its Input preparation")
            largest[name] = np.maximum(largest.get(name, 0.0), rows.max(axis=0))
            total[name] = total.get(name, 0.0) + rows.sum(axis=0)
            count[name] += len(rows)
    return {name: (largest[name], total[name] / count[name]) for name in names}


@dataclass(frozen=True)
class Smoothquant(Pass):
    """Exact, up to float32 rounding; measures on data. After fuse, before quantize."""

    name: ClassVar[str] = "smoothquant"
    effect: ClassVar[Effect] = "exact"
    needs_data: ClassVar[bool] = True

    alpha: float = 0.5
    """How much of an outlier is moved: 0 nothing but the weights' own differences, 1 all of it."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"option 'alpha' of pass 'smoothquant' is {self.alpha:g}; it takes 0 to 1")

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited, found, refused = prepared(self, model, context)
        if not found:
            return PassResult(model, False, tuple(f"{name}: left as it is, {why}" for name, why in refused.items()))
        assert context.data is not None
        sizes = channel_sizes(model, [f.source.name or "" for f in found], context.data)
        edit, spread = Editor(edited), {}
        for family in found:
            name = family.source.name or ""
            x = sizes[name][0]
            w = np.max([np.abs(layer.weight.astype(np.float64)).max(axis=1) for layer in family.layers], axis=0)
            alive = (x > 0) & (w > 0)
            s = np.where(alive, np.where(alive, x, 1.0) ** self.alpha / np.where(alive, w, 1.0) ** (1 - self.alpha), 1.0)
            # A common factor moves no outlier: it is taken out, so that the value keeps its size.
            s = np.clip(s / math.exp(float(np.log(s[alive]).mean()) if alive.any() else 0.0), 1 / LARGEST, LARGEST)
            s[~alive] = 1.0
            spread[name] = [_ratio(x[alive]), _ratio((x / s)[alive])]
            migrate(edit, family, s)
        rewrite.remove_dead(edited.graph)
        worst = max(spread.values(), key=lambda pair: pair[0])
        notes = [f"{len(found)} values smoothed: their largest channel was up to {worst[0]:.3g} times the median one, now {worst[1]:.3g}"]
        notes += [f"{name}: left as it is, {why}" for name, why in refused.items()]
        return PassResult(model.with_ir(edited), True, tuple(notes), {"outliers": spread, "dataset": context.data.digest})


def prepared(item: Pass, model: Model, context: PassContext) -> tuple[ir.Model, list[Family], dict[str, str]]:
    """A copy to edit and its families. Raises PassError without data, or where the model is quantized."""
    if rewrite.is_quantized(model.graph):
        raise PassError(f"{item.name} works on float weights, the model is quantized", hint=f"first {item.name}, then quantize{{…}}")
    if context.data is None:
        raise PassError(f"{item.name} needs data to measure on", hint="give data=Dataset.load(…), or --data FILE")
    edited = model.copy_ir()
    found, refused = families(edited.graph)
    if not found and not refused:
        raise PassError(f"{model.name} has no MatMul or Gemm with constant weights", hint="equalize is for convolutions")
    return edited, found, refused


def _ratio(sizes: Array) -> float:
    return round(float(sizes.max() / np.median(sizes)), 4) if sizes.size else 1.0
