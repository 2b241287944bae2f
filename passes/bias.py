"""Bias correction: rounding shifts the mean of a layer's outputs; the shift is measured on data and taken out of the bias.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, §4.2, in its measured form: E[y] of the
float model less E[y] of the quantized one, for each output channel, before the activation. A layer's shift is partly its
predecessors', so layers are corrected in order, each measured behind the corrected ones: one run over the data for each layer, up to
that layer. (All at once overshoots: on a network of ten layers the shift grew from layer to layer.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from gatewright.errors import DataError
from gatewright.frontend.data import Dataset
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import INTEGER_BOUNDS, clip_bounds, constant
from gatewright.progress import Progress

from . import rewrite
from .calibrate import traces
from .placement import Layer
from .rewrite import Array

SAMPLES = 512
"""The first so many are measured on: a mean needs no more."""


@dataclass
class Corrections:
    """What is added to the biases, by the layer's node name, float64 [channels]."""

    amounts: dict[str, Array] = field(default_factory=dict)
    shift: tuple[float, float] = (0.0, 0.0)
    """Mean squared shift of the layers' outputs before and after, in variances of the float outputs."""

    @property
    def notes(self) -> tuple[str, ...]:
        before, after = self.shift
        if not self.amounts:
            return (f"biases are left as they are: the outputs are shifted by {before:.2g} of their variance, corrected by {after:.2g}",)
        return (f"mean squared shift of the outputs: {before:.2g} of their variance, {after:.2g} with corrected biases",)

    def apply(self, edit: Editor, layers: Sequence[Layer]) -> None:
        """Add to the float biases of a graph; every layer has one (``add_biases``)."""
        for layer in layers:
            amount = self.amounts.get(layer.node.name or "")
            if amount is None:
                continue
            node, index = layer.biases[0]
            array = rewrite.real_constant(node.inputs[index])
            assert array is not None
            total = array.reshape(-1).astype(np.float64) + amount
            rewrite.replace_constant(edit, node, index, total.reshape(_shape(layer, array)).astype(np.float32))


def _shape(layer: Layer, bias: Array) -> tuple[int, ...]:
    """Of a bias with one value per channel; its own, where it is one already."""
    node, weight = layer.biases[0][0], layer.node.inputs[1]
    assert weight is not None
    channels = rewrite.shape_of(weight)[layer.axis]
    behind = len(rewrite.shape_of(node.outputs[0])) - 2 if node is not layer.node and layer.node.op_type == "Conv" else 0
    return bias.shape if bias.size == channels else (channels, *[1] * behind)


def add_biases(edit: Editor, layers: Sequence[Layer]) -> None:
    """A bias of zeros for each layer without one: an input of Conv and Gemm, an Add behind MatMul."""
    for layer in layers:
        node = layer.node
        if layer.biases:
            continue
        weight = node.inputs[1]
        assert weight is not None
        zeros = edit.constant(np.zeros(rewrite.shape_of(weight)[layer.axis], np.float32), f"{node.name}_bias")
        if node.op_type != "MatMul":
            node.resize_inputs(3)
            node.replace_input_with(2, zeros)
            continue
        old = node.outputs[0]
        shape = rewrite.shape_of(old)
        made = rewrite.typed_node(
            edit, "Add", [old, zeros], f"{old.name}_biased", name=f"{node.name}_bias_add", shape=shape, dtype=ir.DataType.FLOAT
        )
        edit.graph.insert_after(node, made)
        made.replace_input_with(0, None)
        rewrite.adopt(edit.graph, made.outputs[0], old)
        old.name = edit.fresh(f"{made.outputs[0].name}_product")
        made.replace_input_with(0, old)


def measured_corrections(
    prepared: Model, layers: Sequence[Layer], build: Callable[[Corrections | None], Model], data: Dataset, progress: Progress
) -> Corrections:
    """The corrections that bring the channels' means of ``build(None)`` to those of ``prepared`` on ``data``; none where they don't."""
    data = data.take(min(SAMPLES, len(data)))
    taps = {layer.node.name or "": (_result(layer).name or "", 1 if layer.node.op_type == "Conv" else -1) for layer in layers}
    wanted, variance = means(prepared, taps, data)

    def size(got: dict[str, Array]) -> float:
        return float(np.mean([np.mean((wanted[name] - got[name]) ** 2) / max(variance[name], 1e-30) for name in taps]))

    quantized = simulation(build(None))
    before = size(means(quantized, taps, data, optimize=False)[0])
    edited = quantized.copy_ir()
    biases = _float_biases(Editor(edited), layers)
    current = quantized.with_ir(edited)
    amounts: dict[str, Array] = {}
    for count, (name, tap) in enumerate(taps.items()):
        progress("correcting biases", count, len(taps))
        got, _ = means(_up_to(current, tap[0]), {name: tap}, data, optimize=False)
        amounts[name] = wanted[name] - got[name]
        value = biases[name]
        held = value.const_value
        assert held is not None
        value.const_value = ir.tensor((held.numpy() + amounts[name].reshape(held.shape.numpy())).astype(np.float32), name=value.name)
    after = size(means(current, taps, data, optimize=False)[0])
    return Corrections(amounts if after < before else {}, (before, after))


def _float_biases(edit: Editor, layers: Sequence[Layer]) -> dict[str, ir.Value]:
    """The layers' biases in a quantized graph, as float constants with one value per channel that may be set."""
    by_name = {node.name: node for node in edit.graph}
    found = {}
    for layer in layers:
        node, index = layer.biases[0]
        own = by_name[node.name]
        array = rewrite.real_constant(own.inputs[index])
        assert array is not None
        shape = _shape(layer, array)
        whole = array if array.size == np.prod(shape) else np.full(shape, array.reshape(-1)[0])
        value = edit.constant(np.array(whole, np.float32).reshape(shape), f"{own.name}_bias_float")
        own.replace_input_with(index, value)
        found[layer.node.name or ""] = value
    rewrite.remove_dead(edit.graph)
    return found


def _up_to(model: Model, name: str) -> Model:
    """The part of the model that computes the value ``name``, which is its only output."""
    edited = model.copy_ir()
    made = {v.name: v for node in edited.graph for v in node.outputs}
    value = made.get(f"{name}_prequant", made[name])
    edited.graph.outputs.clear()
    edited.graph.outputs.append(value)
    rewrite.remove_dead(edited.graph)
    return model.with_ir(edited)


def _result(layer: Layer) -> ir.Value:
    """The layer's value behind its bias, before any clamp."""
    return (layer.biases[0][0] if layer.biases else layer.node).outputs[0]


def means(
    model: Model, taps: dict[str, tuple[str, int]], data: Dataset, *, optimize: bool = True
) -> tuple[dict[str, Array], dict[str, float]]:
    """Mean of each channel, and the variance over everything, of the tapped values: name to (value, channel axis)."""
    made = {v.name for node in model.graph for v in node.outputs}
    # A tapped graph output is looked at before it is rounded.
    source = {key: f"{name}_prequant" if f"{name}_prequant" in made else name for key, (name, _) in taps.items()}
    total: dict[str, Array] = {}
    squares, count = dict.fromkeys(taps, 0.0), dict.fromkeys(taps, 0)
    for _, traced in traces(model, list(dict.fromkeys(source.values())), data, optimize=optimize):
        for key, (_, axis) in taps.items():
            values = np.moveaxis(traced[source[key]], axis, 0)
            rows = values.reshape(len(values), -1).astype(np.float64)
            total[key] = total.get(key, 0.0) + rows.sum(axis=1)
            squares[key] += float((rows**2).sum())
            count[key] += rows.shape[1]
    if not total:
        raise DataError("there are no samples to measure on")
    mean = {key: total[key] / count[key] for key in taps}
    return mean, {key: squares[key] / (count[key] * len(mean[key])) - float(mean[key].mean()) ** 2 for key in taps}


def simulation(model: Model) -> Model:
    """A quantized model with its integer Clips done in float before they round, which is the same: ONNX Runtime lacks some of them."""
    edited = model.copy_ir()
    edit = Editor(edited)
    for clip in list(edited.graph):
        source = clip.inputs[0] if clip.op_type == "Clip" else None
        quantize = source.producer() if source is not None and source.dtype in INTEGER_BOUNDS else None
        if source is None or quantize is None or quantize.op_type != "QuantizeLinear" or len(source.uses()) != 1:
            continue
        scale, zero = constant(quantize.inputs[1]), constant(quantize.inputs[2])
        real, ends = quantize.inputs[0], clip_bounds(clip)
        if scale is None or zero is None or real is None or None in ends:
            continue
        bounds = [np.asarray(float(scale) * (float(e or 0.0) - float(zero)), np.float32) for e in ends]
        constants = [edit.constant(b, f"{clip.name}_{w}") for b, w in zip(bounds, ("low", "high"), strict=True)]
        made = rewrite.typed_node(
            edit, "Clip", [real, *constants], f"{real.name}_clamped", name=f"{clip.name}_float", shape=rewrite.shape_of(real),
            dtype=ir.DataType.FLOAT,
        )  # fmt: skip
        edit.graph.insert_before(quantize, made)
        quantize.replace_input_with(0, made.outputs[0])
        rewrite.bypass(edit.graph, clip)
    return model.with_ir(edited)
