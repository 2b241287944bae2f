"""How important weights and units are, by one of seven rules. Smaller goes first.

| rule | of a weight w | of a unit (channel, head, hidden unit) |
|---|---|---|
| magnitude | \\|w\\| | the norm of the weights that make it (Li et al. 2017, arXiv:1608.08710) |
| taylor | (1/N)·Σ\\|w·∂L_n/∂w\\| | the sum over the weights that make it |
| gradient | (1/N)·Σ\\|∂L_n/∂w\\| | the sum |
| fisher | (1/N)·Σ(∂L_n/∂w)² | the sum |
| random | drawn | drawn |
| entropy | \\|w\\| times that of the unit it makes | the entropy of its activation |
| mutual | \\|w\\| times that of the unit it makes | what its activation tells about the label |

A weight that is zero already comes before all others. Gradients: ``training/gradients.py``; information: ``importance_information.py``.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from gatewright.errors import DataError, PassError
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.queries import integer

from .base import PassContext
from .dependency import PRODUCERS, Dependencies, Group
from .importance_information import unit_information
from .rewrite import Array, real_constant
from .shrink import storage

Kind = Literal["magnitude", "taylor", "gradient", "fisher", "random", "entropy", "mutual"]
Norm = Literal["l1", "l2"]

GRADIENTS = ("taylor", "gradient", "fisher")
INFORMATION = ("entropy", "mutual")


@dataclass(frozen=True)
class Importance:
    """One rule, evaluated on a model. Arrays are float64; larger is more important."""

    kind: Kind
    norm: Norm = "l2"
    """magnitude of a unit: of the weights that make it."""
    seed: int = 0
    weights: Mapping[str, Array] = field(default_factory=dict)
    """Gradient rules: of each weight, by its initializer's name."""
    units: Mapping[str, Array] = field(default_factory=dict)
    """Information rules: of each output channel, by the layer's name."""

    @classmethod
    def of(cls, kind: Kind, model: Model, context: PassContext, *, norm: Norm = "l2", bins: int = 16) -> Importance:
        """Raises DataError where the rule needs data or labels that are not there, ToolMissing where it needs PyTorch."""
        if kind in GRADIENTS:
            from .training.gradients import importance

            data = _data(kind, context)
            if data.labels is None:
                told = f"importance={kind} is about the loss against labels, {data.name or 'the data'} has none"
                raise DataError(told, hint="labels=NAME of their array, or importance=magnitude, which needs none")
            found = importance(model, data, kind, progress=context.progress)  # type: ignore[arg-type]
            return cls(kind, norm, context.seed, weights=found)
        if kind in INFORMATION:
            data = _data(kind, context)
            return cls(kind, norm, context.seed, units=unit_information(model, layers(model.graph), data, kind, bins))
        return cls(kind, norm, context.seed)

    def of_weight(self, node: ir.Node) -> Array:
        """Of every weight of a layer, in the weight's shape; −1 for weights that are zero already."""
        weight = weight_of(node)
        size = np.abs(weight)
        if self.kind == "random":
            score = self._random(node.name or "").random(weight.shape)
        elif self.kind in GRADIENTS:
            score = self._gradient(node)
        elif self.kind in INFORMATION:
            along = [1] * weight.ndim
            along[output_axis(node)] = -1
            score = size * np.maximum(self.units[node.name or ""], 0.0).reshape(along)
        else:
            score = size
        return np.where(weight == 0, -1.0, score)

    def of_units(self, found: Dependencies, group: Group) -> Array:
        """Of each class of units of a group, [classes]: over all layers that make them."""
        position = {c: i for i, c in enumerate(group.classes)}
        if self.kind == "random":
            return self._random(group.layers[0].name or "").random(len(position))
        total, makers = np.zeros(len(position)), np.zeros(len(position))
        for node in group.layers:
            for root, value in zip(found.units.roots(found.produced[node]).tolist(), self._of_outputs(node).tolist(), strict=True):
                if root in position:
                    total[position[root]] += value
                    makers[position[root]] += 1
        if self.kind in INFORMATION:
            return total / np.maximum(makers, 1)
        return np.sqrt(total) if self.kind == "magnitude" and self.norm == "l2" else total

    def of_layers(self, nodes: list[ir.Node]) -> float:
        """Of several layers together, as one thing to keep or drop: means, so that a large one is not important for its size alone.

        The gradient rules add up: their sum is what the loss would change by without the layers, to first order.
        """
        if self.kind == "random":
            return float(self._random(nodes[0].name or "").random())
        if self.kind in GRADIENTS:
            return float(sum(self._gradient(node).sum() for node in nodes))
        if self.kind in INFORMATION:
            return float(np.mean(np.concatenate([self.units[node.name or ""] for node in nodes])))
        return float(np.mean(np.concatenate([np.abs(weight_of(node)).reshape(-1) for node in nodes])))

    def _of_outputs(self, node: ir.Node) -> Array:
        """What each output channel of a layer adds to its class."""
        if self.kind in INFORMATION:
            return self.units[node.name or ""]
        weight = weight_of(node)
        score = self._gradient(node) if self.kind in GRADIENTS else weight**2 if self.norm == "l2" else np.abs(weight)
        return np.asarray(np.moveaxis(score, output_axis(node), 0).reshape(weight.shape[output_axis(node)], -1).sum(axis=1))

    def _gradient(self, node: ir.Node) -> Array:
        value = node.inputs[1]
        assert value is not None
        name = storage(value)[0].name or ""
        if name not in self.weights:
            told = f"weight {name!r} of {node.name!r} has no gradient"
            raise PassError(told, hint="exclude= the layer, or importance=magnitude")
        return self.weights[name].astype(np.float64)

    def _random(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(name.encode())])


def layers(graph: ir.Graph) -> list[ir.Node]:
    """Nodes with a constant weight."""
    return [n for n in graph if n.op_type in PRODUCERS and not n.domain and len(n.inputs) > 1 and real_constant(n.inputs[1]) is not None]


def weight_of(node: ir.Node) -> Array:
    """A layer's weight, float64."""
    weight = real_constant(node.inputs[1])
    assert weight is not None
    return weight.astype(np.float64)


def output_axis(node: ir.Node) -> int:
    """Of the weight's output channels: Conv [out, in, …], ConvTranspose [in, out, …], Gemm and MatMul […, in, out]."""
    if node.op_type == "Gemm":
        return 0 if integer(node, "transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1}.get(node.op_type, weight_of(node).ndim - 1)


def input_axis(node: ir.Node) -> int:
    """Of the weight's input channels (of one group)."""
    if node.op_type == "Gemm":
        return 1 if integer(node, "transB", 0) else 0
    return {"Conv": 1, "ConvTranspose": 0}.get(node.op_type, weight_of(node).ndim - 2)


def _data(kind: str, context: PassContext) -> Dataset:
    if context.data is None:
        raise DataError(f"importance={kind} needs data to judge weights by", hint="give data=Dataset.load(…), or --data FILE")
    return context.data
