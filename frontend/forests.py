"""Boosted trees of other libraries as ONNX's TreeEnsemble, and what surrounds it: the base score and the link to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from gatewright.errors import ModelError

Array = NDArray[Any]
Link = Literal["none", "logistic", "softmax", "exp"]

_COLUMNS = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true")


@dataclass
class Forest:
    """Trees as rows of ONNX's attributes, filled tree by tree."""

    outputs: int
    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    leaves: list[tuple[int, int, int, float]] = field(default_factory=list)
    """Tree, node, output, weight."""

    def branch(self, tree: int, node: int, feature: int, threshold: float, mode: str, yes: int, no: int, nan_is_yes: bool) -> None:
        self._row(tree, node, feature, threshold, mode, yes, no, int(nan_is_yes))

    def leaf(self, tree: int, node: int, output: int, weight: float) -> None:
        self._row(tree, node, 0, 0.0, "LEAF", 0, 0, 0)
        self.leaves.append((tree, node, output, weight))

    def _row(self, *values: Any) -> None:
        for name, value in zip(_COLUMNS, values, strict=True):
            self.rows[name].append(value)

    def thresholds(self, features: int) -> tuple[Array, Array]:
        """Of each feature the lowest and the highest number that it is compared with; infinite where it is not."""
        low, high = np.full(features, np.inf), np.full(features, -np.inf)
        for feature, value, mode in zip(self.rows["featureids"], self.rows["values"], self.rows["modes"], strict=True):
            if mode != "LEAF":
                low[feature], high[feature] = min(low[feature], value), max(high[feature], value)
        return low, high


def model_of(forest: Forest, features: int, base: Sequence[float], link: Link, classes: int) -> onnx.ModelProto:
    """x [batch, features] to y, or for ``classes`` to label and probabilities: the sum of leaves and ``base``, through the link."""
    order = sorted(range(len(forest.rows["treeids"])), key=lambda i: (forest.rows["treeids"][i], forest.rows["nodeids"][i]))
    rows: dict[str, Any] = {f"nodes_{name}": [values[i] for i in order] for name, values in forest.rows.items()}
    columns = list(zip(*forest.leaves, strict=True))
    names = ("treeids", "nodeids", "ids", "weights")
    leaves: dict[str, Any] = {f"target_{name}": list(values) for name, values in zip(names, columns, strict=True)}
    initializers = [onnx.numpy_helper.from_array(np.asarray(base, np.float32).reshape(1, -1), "base")]
    nodes = [
        helper.make_node(
            "TreeEnsembleRegressor", ["x"], ["sums"], domain="ai.onnx.ml", name="trees", n_targets=forest.outputs, **rows, **leaves
        ),
        helper.make_node("Add", ["sums", "base"], ["margin"]),
    ]
    width = max(classes, forest.outputs) if classes else forest.outputs
    value = "margin"
    if link == "softmax":
        nodes.append(helper.make_node("Softmax", ["margin"], ["scores"], axis=1))
        value = "scores"
    elif link == "exp":
        nodes.append(helper.make_node("Exp", ["margin"], ["scores"]))
        value = "scores"
    elif link == "logistic":
        nodes.append(helper.make_node("Sigmoid", ["margin"], ["scores"]))
        value = "scores"
        if classes == 2:
            initializers.append(onnx.numpy_helper.from_array(np.array(1, np.float32), "one"))
            nodes.append(helper.make_node("Sub", ["one", "scores"], ["others"]))
            nodes.append(helper.make_node("Concat", ["others", "scores"], ["both"], axis=1))
            value = "both"
    output = "probabilities" if classes else "y"
    nodes.append(helper.make_node("Identity", [value], [output]))
    infos = [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["batch", width])]
    if classes:
        nodes.append(helper.make_node("ArgMax", [value], ["label"], axis=1, keepdims=0))
        infos.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", features])
    graph = helper.make_graph(nodes, "forest", [x], infos, initializers)
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def samples(forest: Forest, features: int, count: int) -> Array:
    """[count, features] float32 over the range of each feature's thresholds, with some values missing (NaN)."""
    rng = np.random.default_rng(0)
    low, high = forest.thresholds(features)
    used = np.isfinite(low)
    margin = np.where(used, 0.1 * (high - low) + 1e-3, 0)
    x = np.where(used, rng.uniform(np.where(used, low - margin, -1), np.where(used, high + margin, 1), (count, features)), 0)
    x[rng.random(x.shape) < 0.05] = np.nan
    return x.astype(np.float32)


def require(condition: bool, what: str, hint: str) -> None:
    """Raises ModelError saying ``what`` unless the condition holds."""
    if not condition:
        raise ModelError(what, hint=hint)
