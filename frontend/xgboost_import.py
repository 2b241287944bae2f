"""XGBoost boosters, scikit-learn wrappers of it, and files .json and .ubj, read from XGBoost's own JSON and compared with its predictions.

A booster of one output or several gives y; a classifier gives label and probabilities. A feature that is missing is a NaN, as in XGBoost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import ModelError, UsageError

from .forests import Forest, Link, Question, categorical_notes, model_of, require, samples
from .importing import SAMPLES, Imported, finish, need
from .limits import Limits, raised
from .model import Model

Array = NDArray[Any]

_EXTRA = "xgboost"
_LINKS: dict[str, tuple[Link, int]] = {
    "reg:squarederror": ("none", 0), "reg:squaredlogerror": ("none", 0), "reg:absoluteerror": ("none", 0),
    "reg:pseudohubererror": ("none", 0), "reg:quantileerror": ("none", 0), "rank:pairwise": ("none", 0), "rank:ndcg": ("none", 0),
    "rank:map": ("none", 0), "reg:linear": ("none", 0), "reg:logistic": ("logistic", 0), "binary:logistic": ("logistic", 2),
    "binary:logitraw": ("none", 0), "multi:softprob": ("softmax", -1), "multi:softmax": ("softmax", -1), "count:poisson": ("exp", 0),
    "reg:gamma": ("exp", 0), "reg:tweedie": ("exp", 0),
}  # fmt: skip
"""Of each objective how sums become answers, and how many classes it has (−1: as many as outputs)."""


def from_xgboost(
    source: Any,
    example_inputs: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    limits: Limits | None = None,
    text: str | None = None,
) -> Model:
    """A Booster or a fitted XGBModel as a canonical model with the input x [batch, features]."""
    xgboost = need("xgboost", _EXTRA, "an XGBoost model")
    title = name or type(source).__name__
    try:
        booster = source if isinstance(source, xgboost.Booster) else source.get_booster()
        held = json.loads(bytes(booster.save_raw(raw_format="json")))
    except Exception as error:
        raise ModelError(f"{title} holds no trained booster: {str(error)[:200]}", hint="call its fit first") from error
    try:
        forest, features, base, link, classes, objective = _forest(held["learner"], booster)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"{title}: XGBoost's own JSON is not as known: {type(error).__name__} {error}", hint="XGBoost 2 or 3") from error
    if example_inputs is None:
        x = samples(forest, features, SAMPLES)
    else:
        x = np.asarray(example_inputs, np.float32)
        if x.ndim != 2 or x.shape[1] != features:
            raise UsageError(f"example_inputs of shape {list(x.shape)}, {title} takes rows of {features} features")
    matrix = xgboost.DMatrix(x, feature_names=booster.feature_names, feature_types=booster.feature_types, enable_categorical=True)
    wanted: list[Array] = [booster.predict(matrix, output_margin=objective == "multi:softmax")]
    if objective == "multi:softmax":
        # It predicts labels only; the probabilities are those of its margins.
        shifted = np.exp(wanted[0] - wanted[0].max(axis=1, keepdims=True))
        wanted = [shifted / shifted.sum(axis=1, keepdims=True)]
    if classes == 2:
        wanted = [np.stack([1 - wanted[0], wanted[0]], axis=1)]
    if classes:
        wanted = [wanted[0].argmax(axis=1), wanted[0]]
    proto = model_of(forest, features, base, link, classes)
    imported = Imported(
        proto, "xgboost", text or type(source).__name__, f"XGBoost {xgboost.__version__}", {"x": x}, wanted, per_sample=True,
        labels={0: 1} if classes else {}, notes=(f"objective {objective}", *categorical_notes(forest, booster.feature_names)),
    )  # fmt: skip
    return finish(imported, dims=dims, name=title, limits=limits)


def read_file(path: str, dims: Mapping[str, int], name: str | None, limits: Limits, trust: bool = False) -> Model:
    """A .json or .ubj file, in this process."""
    file = Path(path)
    size = file.stat().st_size
    if size > limits.file_bytes:
        raise ModelError(f"{file.name} is {size:,} bytes, the limit is {limits.file_bytes:,}", hint=f"raise it: {raised('file_bytes')}")
    start = file.read_bytes()[:4096]
    if b"learner" not in start and b"version" not in start:
        raise ModelError(f"{file.name} is no model of XGBoost", hint="save it with booster.save_model('model.json')")
    xgboost = need("xgboost", _EXTRA, file.name)
    booster = xgboost.Booster()
    try:
        booster.load_model(str(file))
    except Exception as error:
        raise ModelError(
            f"XGBoost cannot open {file.name}: {' '.join(str(error).split())[:200]}", hint="is it a file of XGBoost?"
        ) from error
    return from_xgboost(booster, dims=dims, name=name or file.stem, limits=limits, text=file.name)


def _forest(learner: Mapping[str, Any], booster: Any) -> tuple[Forest, int, list[float], Link, int, str]:
    """The trees, how many features, the base score of each output, the link, the classes, the objective."""
    objective = str(learner["objective"]["name"])
    hint = f"known objectives: {', '.join(_LINKS)}"
    require(objective in _LINKS, f"XGBoost's objective {objective!r} is not known here", hint)
    link, classes = _LINKS[objective]
    booster_kind = learner["gradient_booster"]["name"]
    require(booster_kind in ("gbtree", "dart"), f"XGBoost's booster {booster_kind!r} is no trees", "gbtree and dart are trees")
    held = learner["gradient_booster"]
    model = held["gbtree"]["model"] if booster_kind == "dart" else held["model"]
    weights = held["weight_drop"] if booster_kind == "dart" else None
    params = learner["learner_model_param"]
    features = max(int(params["num_feature"]), booster.num_features())
    outputs = max(int(params["num_class"]), int(params.get("num_target", 1)), 1)
    base = _base(str(params["base_score"]), outputs, link)
    forest = Forest(outputs, floors=True)
    ends = getattr(booster, "best_iteration", None) if booster.attr("best_iteration") is not None else None
    trees = model["trees"]
    if ends is not None:
        trees = trees[: int(model["iteration_indptr"][int(ends) + 1])]
    for number, tree in enumerate(trees):
        size = int(tree["tree_param"].get("size_leaf_vector", 1) or 1)
        require(size <= 1, "its trees have vectors as leaves (multi_strategy)", "train with multi_strategy='one_output_per_tree'")
        categories = _categories(tree)
        scale = float(weights[number]) if weights is not None else 1.0
        output = int(model["tree_info"][number])
        for node, (left, right) in enumerate(zip(tree["left_children"], tree["right_children"], strict=True)):
            value = float(np.float32(tree["split_conditions"][node]))
            if left == -1:
                if node == 0 or node in _reachable(tree):
                    forest.leaf(number, node, output, float(np.float32(value * scale)))
            elif node in _reachable(tree):
                feature, nan_left = int(tree["split_indices"][node]), bool(tree["default_left"][node])
                if node in categories:
                    # The categories of the set go right; a number that is none of any goes left.
                    forest.member(number, node, Question(feature, categories[node], inside=False, missing=nan_left), left, right)
                    continue
                forest.branch(number, node, feature, value, "BRANCH_LT", left, right, nan_left)
    return forest, features, base, link, outputs if classes < 0 else classes, objective


def _categories(tree: Mapping[str, Any]) -> dict[int, frozenset[int]]:
    """By node: the categories that it sends to the right."""
    found = {}
    for node, start, size in zip(*(tree.get(f"categories_{what}", ()) for what in ("nodes", "segments", "sizes")), strict=True):
        found[int(node)] = frozenset(int(c) for c in tree["categories"][start : start + size])
        require(min(found[int(node)], default=0) >= 0, f"node {node} of a tree has a category below 0", "the file is damaged")
    return found


def _reachable(tree: dict[str, Any]) -> set[int]:
    """Nodes that the root leads to: pruned ones stay in the arrays."""
    if "_reachable" not in tree:
        found, waiting = {0}, [0]
        while waiting:
            node = waiting.pop()
            for child in (tree["left_children"][node], tree["right_children"][node]):
                if child != -1 and child not in found:
                    found.add(child)
                    waiting.append(child)
        tree["_reachable"] = found
    reached: set[int] = tree["_reachable"]
    return reached


def _base(text: str, outputs: int, link: Link) -> list[float]:
    """The base score, which is kept as an answer, as the margin before the link: one number, or from XGBoost 3.1 on one for each output."""
    values = [float(part) for part in text.strip("[]").split(",")]
    values = values * outputs if len(values) == 1 else values
    if link == "logistic":
        return [float(np.log(p / (1 - p))) for p in values]
    return [float(np.log(v)) for v in values] if link == "exp" else values
