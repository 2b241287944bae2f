"""``equalize`` and ``absorb``: one scale for a whole tensor is enough once its channels are alike.

Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction, §4.1 and §4.1.3. Between two layers with a
positively homogeneous function in between (``chains.py``), channel i leaves the first divided by s_i = √(r1_i / r2_i) and enters the
second multiplied by it, r the largest |weight| of the channel on either side: both ranges become √(r1_i·r2_i), and the network computes
what it did. Pairs share layers, so all are gone through until nothing changes.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from gatewright.errors import PassError, UsageError, nearest
from gatewright.frontend.edit import Editor
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer

from . import rewrite
from .base import Effect, Pass, PassContext, PassResult
from .bias import means
from .calibrate import traces
from .chains import Linear, Pair, pairs
from .rewrite import Array, ints

ROUNDS = 100
SETTLED = 1e-6
"""Largest |log s| of a round that ends it."""
DEAD = 1e-6
"""A channel whose weights are below this part of the largest one's is dead, and left as it is."""
CONSTANT = 64.0
"""One whose bias is more than this many times its largest weight is all but constant: raising it to the others' range would raise the
constant with it, and spoil the range of the activation."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Exact, up to float32 rounding. After fuse, before quantize."""

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = "exact"

    pow2: bool = False
    """Factors that are powers of two: not a bit of the outputs changes, the ranges agree to a factor of √2."""
    exclude: tuple[str, ...] = ()
    """Names or patterns of layers that stay as they are."""

    def run(self, model: Model, context: PassContext) -> PassResult:
        edited, found = _prepared(self, model, self.exclude)
        if not found:
            return PassResult(model, False, ("no two layers follow one another with only Relu, pooling or the like in between",))
        layers = {layer.name: layer for pair in found for layer in (pair.first, pair.second)}
        weights = {name: layer.weight.astype(np.float64) for name, layer in layers.items()}
        biases = {name: layer.read_bias() for name, layer in layers.items()}
        before = {name: _spread(layers[name], weights[name]) for name in layers}
        # Pairs that share a layer settle together; powers of two are applied to the stored weights once all are known.
        total = [np.ones(pair.first.outputs) for pair in found]
        alive = [_alive(pair, weights, biases) for pair in found]
        for _ in range(ROUNDS):
            largest = 0.0
            for index, pair in enumerate(found):
                first, second = _ranges(pair, weights)
                factors = np.where(alive[index], np.sqrt(first / np.where(alive[index], second, 1.0)), 1.0)
                _apply(pair, weights, biases, factors)
                total[index] *= factors
                largest = max(largest, float(np.abs(np.log(factors)).max(initial=0.0)))
            if largest < SETTLED:
                break
        if self.pow2:
            weights = {name: layer.weight.astype(np.float64) for name, layer in layers.items()}
            biases = {name: layer.read_bias() for name, layer in layers.items()}
            for pair, factors in zip(found, total, strict=True):
                _apply(pair, weights, biases, np.exp2(np.rint(np.log2(factors))))
        edit = Editor(edited)
        after = {name: _spread(layers[name], weights[name]) for name in layers}
        scaled = [pair for pair, factors in zip(found, total, strict=True) if np.any(factors != 1)]
        for layer in {layer.name: layer for pair in scaled for layer in (pair.first, pair.second)}.values():
            layer.write_weight(edit, weights[layer.name])
            if layer.bias is not None:
                layer.write_bias(edit, biases[layer.name])
        for pair in scaled:
            _renamed(edit, pair)
        rewrite.remove_dead(edited.graph)
        worst = max(before, key=lambda name: before[name] / after[name])
        note = f"{len(found)} pairs of layers: channels of {worst} differed by up to {before[worst]:.3g}×, now by {after[worst]:.3g}×"
        details: dict[str, object] = {
            "pairs": [[pair.first.name, pair.second.name] for pair in found],
            "spread": {name: [round(before[name], 4), round(after[name], 4)] for name in layers},
        }
        return PassResult(model.with_ir(edited), bool(scaled), (note,), details)


@dataclass(frozen=True)
class Absorb(Pass):
    """Lossy. A channel that is (almost) always above c ≥ 0 need not carry c through its activation: the bias of the next layer does.

    Needs data: c is the channel's mean less ``sigma`` standard deviations, before the activation. After equalize, which may leave large
    biases behind.
    """

    name: ClassVar[str] = "absorb"
    effect: ClassVar[Effect] = "lossy"
    needs_data: ClassVar[bool] = True

    sigma: float = 3.0
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 100:
            raise UsageError(f"option 'sigma' of pass 'absorb' is {self.sigma:g}; it takes 0 to 100")

    def run(self, model: Model, context: PassContext) -> PassResult:
        if context.data is None:
            raise PassError("absorb needs data to measure on", hint="give data=Dataset.load(…), or --data FILE")
        edited, every = _prepared(self, model, self.exclude)
        reasons = {f"{p.first.name} to {p.second.name}": why for p in every if (why := _keeps(p)) is not None}
        found = [p for p in every if _keeps(p) is None]
        taps = {p.first.name: (p.first.result.name or "", 1 if p.first.node.op_type == "Conv" else -1) for p in found}
        amounts: dict[str, Array] = {}
        if taps:
            mean, _ = means(model, taps, context.data)
            deviation = _deviations(model, taps, mean, context)
            amounts = {name: np.maximum(0.0, mean[name] - self.sigma * deviation[name]) for name in taps}
        edit, moved = Editor(edited), 0
        for pair in found:
            amount = amounts[pair.first.name]
            if amount.any():
                moved += int(np.count_nonzero(amount))
                pair.first.write_bias(edit, pair.first.read_bias() - amount)
                shift = _through(pair.second, amount)
                pair.second.write_bias(edit, pair.second.read_bias() + shift)
        notes = [f"{moved} channels of {len(found)} layers carry less of their bias through the activation"]
        notes += [f"{names}: left as it is, {why}" for names, why in reasons.items()]
        details: dict[str, object] = {"absorbed": {name: float(amount.max(initial=0.0)) for name, amount in amounts.items()}}
        return PassResult(model.with_ir(edited), moved > 0, tuple(notes), details)


def _prepared(item: Pass, model: Model, exclude: Sequence[str]) -> tuple[ir.Model, list[Pair]]:
    """A copy to edit and the pairs that may be touched."""
    if rewrite.is_quantized(model.graph):
        raise PassError(f"{item.name} works on float weights, the model is quantized", hint=f"first {item.name}, then quantize{{…}}")
    edited = model.copy_ir()
    node = next((n for n in edited.graph if n.op_type == "BatchNormalization"), None)
    if node is not None:
        raise PassError(f"node {node.name!r} (BatchNormalization) stands between layers", hint=f"run fuse first: fuse,{item.name}")
    known = [n.name or "" for n in edited.graph]
    for pattern in exclude:
        if not any(fnmatch.fnmatchcase(name, pattern) or name == pattern for name in known):
            raise UsageError(f"exclude={pattern} names no node of the model", hint=nearest(pattern, known[:200], "names"))
    left_out = {name for name in known for p in exclude if name == p or fnmatch.fnmatchcase(name, p)}
    return edited, [p for p in pairs(edited.graph) if not {p.first.name, p.second.name} & left_out]


def _ranges(pair: Pair, weights: dict[str, Array]) -> tuple[Array, Array]:
    """r1, r2: the largest |weight| of each channel on either side."""
    first = np.abs(pair.first.by_output(weights[pair.first.name])).max(axis=1, initial=0.0)
    second = np.abs(pair.second.by_input(weights[pair.second.name], pair.first.outputs)).max(axis=1, initial=0.0)
    return first, second


def _alive(pair: Pair, weights: dict[str, Array], biases: dict[str, Array]) -> Array:
    """The channels that are worth a factor."""
    first, second = _ranges(pair, weights)
    varies = np.abs(biases[pair.first.name]) <= CONSTANT * first
    return np.asarray((first > DEAD * first.max()) & (second > DEAD * second.max()) & varies)


def _apply(pair: Pair, weights: dict[str, Array], biases: dict[str, Array], factors: Array) -> None:
    first, second = pair.first.name, pair.second.name
    weights[first] = pair.first.scaled_outputs(weights[first], 1 / factors)
    biases[first] = biases[first] / factors
    weights[second] = pair.second.scaled_inputs(weights[second], factors)


def _renamed(edit: Editor, pair: Pair) -> None:
    """Values with rescaled channels are other values: whoever compares inner tensors by name has to know."""
    for value in (pair.first.node.outputs[0], pair.first.result, *(node.outputs[0] for node in pair.between)):
        if value.name and not value.name.endswith("_equalized"):
            value.name = edit.fresh(f"{value.name}_equalized")


def _spread(layer: Linear, weight: Array) -> float:
    """The largest range of an output channel by the smallest, dead ones aside."""
    reach = np.abs(layer.by_output(weight)).max(axis=1, initial=0.0)
    alive = reach[reach > DEAD * reach.max(initial=0.0)]
    return float(alive.max() / alive.min()) if alive.size else 1.0


def _keeps(pair: Pair) -> str | None:
    """Why a constant cannot pass from one layer to the next."""
    for node in pair.between:
        if node.op_type == "Pad" or (node.op_type == "AveragePool" and any(ints(node, "pads"))):
            return f"{node.name} pads with zeros"
        if node.op_type not in ("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Reshape"):
            return f"{node.name} ({node.op_type}) bends what is above zero too"
    if pair.second.node.op_type == "Conv" and any(ints(pair.second.node, "pads")):
        return f"{pair.second.name} pads with zeros"
    if any(p.bias is None and p.node.op_type == "MatMul" for p in (pair.first, pair.second)):
        return "a MatMul has no bias"
    return None


def _through(layer: Linear, amount: Array) -> Array:
    """What the constant ``amount`` per input channel adds to each output, float64 [output channels]."""
    weight = layer.weight.astype(np.float64)
    if layer.node.op_type != "Conv":
        return np.asarray(np.repeat(amount, weight.shape[0] // len(amount)) @ weight)
    group = integer(layer.node, "group", 1)
    summed = weight.reshape(*weight.shape[:2], -1).sum(axis=2).reshape(group, -1, weight.shape[1])
    return np.asarray(np.einsum("goc,gc->go", summed, amount.reshape(group, -1)).reshape(-1))


def _deviations(model: Model, taps: dict[str, tuple[str, int]], mean: dict[str, Array], context: PassContext) -> dict[str, Array]:
    """The standard deviation of each channel, by a second run: sums of squares around the mean."""
    assert context.data is not None
    total: dict[str, Array] = {}
    count = dict.fromkeys(taps, 0)
    for _, traced in traces(model, list(dict.fromkeys(name for name, _ in taps.values())), context.data):
        for key, (name, axis) in taps.items():
            rows = np.moveaxis(traced[name], axis, 0).reshape(len(mean[key]), -1).astype(np.float64)
            total[key] = total.get(key, 0.0) + ((rows - mean[key][:, None]) ** 2).sum(axis=1)
            count[key] += rows.shape[1]
    return {key: np.sqrt(total[key] / count[key]) for key in taps}
