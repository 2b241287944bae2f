"""Boosted trees of other libraries as ONNX's TreeEnsemble, and what surrounds it: the base score and the link to probabilities.

A split on categories asks whether a feature's whole number is in a set. Each such question is looked up in a table, before the trees,
and is a further feature to them, of 0 and 1: trees themselves only compare.
"""

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

_MOST_ANSWERS = 1 << 24
"""Of all tables together; a model has so many where categories are numbered by what is no category."""
_BEFORE = 2
"""Rows of a table before that of category 0: of a missing value, and of a number below 0."""
_COLUMNS = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids", "missing_value_tracks_true")


@dataclass(frozen=True)
class Question:
    """Whether a feature is one of some categories. ``inside``: the answer where it is, of all else the opposite; ``missing``: of NaN."""

    feature: int
    categories: frozenset[int]
    inside: bool
    missing: bool

    def answers(self, rows: int) -> Array:
        """float32 [rows]: of a missing value, of a number below 0, of category 0, 1, …, and of what is above them all."""
        found = np.full(rows, not self.inside)
        found[[_BEFORE + c for c in self.categories]] = self.inside
        found[0] = self.missing
        return found.astype(np.float32)


@dataclass
class Forest:
    """Trees as rows of ONNX's attributes, filled tree by tree. ``floors``: a category is a number rounded down, not towards 0."""

    outputs: int
    floors: bool = False
    rows: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in _COLUMNS})
    leaves: list[tuple[int, int, int, float]] = field(default_factory=list)
    """Tree, node, output, weight."""
    questions: dict[Question, int] = field(default_factory=dict)
    """Each with its number; in ``rows`` its answer is feature −1 − number."""

    def branch(self, tree: int, node: int, feature: int, threshold: float, mode: str, yes: int, no: int, nan_is_yes: bool) -> None:
        self._row(tree, node, feature, threshold, mode, yes, no, int(nan_is_yes))

    def member(self, tree: int, node: int, question: Question, yes: int, no: int) -> None:
        number = self.questions.setdefault(question, len(self.questions))
        self._row(tree, node, -1 - number, 0.5, "BRANCH_GT", yes, no, 0)

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
            if mode != "LEAF" and feature >= 0:
                low[feature], high[feature] = min(low[feature], value), max(high[feature], value)
        return low, high

    def highest(self) -> dict[int, int]:
        """Of each feature that is asked for categories the highest."""
        found: dict[int, int] = {}
        for question in self.questions:
            found[question.feature] = max([found.get(question.feature, 0), *question.categories])
        return found


def model_of(forest: Forest, features: int, base: Sequence[float], link: Link, classes: int) -> onnx.ModelProto:
    """x [batch, features] to y, or for ``classes`` to label and probabilities: the sum of leaves and ``base``, through the link."""
    order = sorted(range(len(forest.rows["treeids"])), key=lambda i: (forest.rows["treeids"][i], forest.rows["nodeids"][i]))
    rows: dict[str, Any] = {f"nodes_{name}": [values[i] for i in order] for name, values in forest.rows.items()}
    looked_up, tables, column = _looked_up(forest, features)
    rows["nodes_featureids"] = [column[-1 - feature] if feature < 0 else feature for feature in rows["nodes_featureids"]]
    columns = list(zip(*forest.leaves, strict=True))
    names = ("treeids", "nodeids", "ids", "weights")
    leaves: dict[str, Any] = {f"target_{name}": list(values) for name, values in zip(names, columns, strict=True)}
    initializers = [*tables, onnx.numpy_helper.from_array(np.asarray(base, np.float32).reshape(1, -1), "base")]
    nodes = [
        *looked_up,
        helper.make_node(
            "TreeEnsembleRegressor",
            ["asked" if looked_up else "x"],
            ["sums"],
            domain="ai.onnx.ml",
            name="trees",
            n_targets=forest.outputs,
            **rows,
            **leaves,
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


def _looked_up(forest: Forest, features: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], dict[int, int]]:
    """What makes asked [batch, features + questions] of x, its constants, and of each question the column of its answer."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {}
    parts, column, next_column = ["x"], {}, features
    highest = forest.highest()
    asked = {f: [(q, number) for q, number in forest.questions.items() if q.feature == f] for f in sorted(highest)}
    answers = sum((highest[f] + _BEFORE + 2) * len(those) for f, those in asked.items())
    many = f"its splits on categories have {answers:,} answers, the limit is {_MOST_ANSWERS:,}"
    require(answers <= _MOST_ANSWERS, many, "number the categories of a feature from 0 on, without gaps")
    for feature, those in asked.items():
        above = highest[feature] + 1
        table = np.stack([question.answers(_BEFORE + above + 1) for question, _ in those], axis=1)
        column.update({number: next_column + i for i, (_, number) in enumerate(those)})
        next_column += len(those)
        name = f"feature_{feature}"
        held: dict[str, Any] = {
            "at": np.int64(feature),
            "below": np.float32(-1),
            "above": np.float32(above),
            "missing": np.float32(-_BEFORE),
        }
        held |= {"before": np.int64(_BEFORE), "table": table}
        constants |= {f"{name}_{what}": np.asarray(value) for what, value in held.items()}
        raw, known = f"{name}_raw", f"{name}_raw"
        nodes.append(helper.make_node("Gather", ["x", f"{name}_at"], [raw], axis=1))
        if forest.floors:
            known = f"{name}_floor"
            nodes.append(helper.make_node("Floor", [raw], [known]))
        nodes += [
            helper.make_node("Clip", [known, f"{name}_below", f"{name}_above"], [f"{name}_within"]),
            helper.make_node("IsNaN", [raw], [f"{name}_is_missing"]),
            helper.make_node("Where", [f"{name}_is_missing", f"{name}_missing", f"{name}_within"], [f"{name}_number"]),
            helper.make_node("Cast", [f"{name}_number"], [f"{name}_whole"], to=TensorProto.INT64),
            helper.make_node("Add", [f"{name}_whole", f"{name}_before"], [f"{name}_row"]),
            helper.make_node("Gather", [f"{name}_table", f"{name}_row"], [f"{name}_answers"], axis=0),
        ]
        parts.append(f"{name}_answers")
    if nodes:
        nodes.append(helper.make_node("Concat", parts, ["asked"], axis=1))
    return nodes, [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()], column


def samples(forest: Forest, features: int, count: int) -> Array:
    """[count, features] float32 over the range of each feature's thresholds and categories, with some values missing (NaN)."""
    rng = np.random.default_rng(0)
    low, high = forest.thresholds(features)
    used = np.isfinite(low)
    margin = np.where(used, 0.1 * (high - low) + 1e-3, 0)
    x = np.where(used, rng.uniform(np.where(used, low - margin, -1), np.where(used, high + margin, 1), (count, features)), 0)
    for feature, last in forest.highest().items():
        x[:, feature] = rng.integers(-1, last + 2, count)
    x[rng.random(x.shape) < 0.05] = np.nan
    return x.astype(np.float32)


def categorical_notes(forest: Forest, names: Sequence[str] | None) -> tuple[str, ...]:
    """What the user has to know of features that are categories."""
    those = [names[f] if names else f"feature {f}" for f in sorted(forest.highest())]
    return (f"{', '.join(those)}: the number of the category (its code) as a float, NaN where it is missing",) if those else ()


def require(condition: bool, what: str, hint: str) -> None:
    """Raises ModelError saying ``what`` unless the condition holds."""
    if not condition:
        raise ModelError(what, hint=hint)
