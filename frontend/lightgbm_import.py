"""LightGBM boosters, scikit-learn wrappers of it, and its text files, read from LightGBM's own dump and compared with its predictions.

LightGBM compares float64 with float64 thresholds. The input here is float32, and x ≤ t for a float32 x is x ≤ the largest float32 not
above t, so every comparison comes out the same. Leaves are float32, which is where the difference to LightGBM comes from.
"""

from __future__ import annotations

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

_EXTRA = "lightgbm"
_LINKS: dict[str, tuple[Link, int]] = {
    "regression": ("none", 0), "regression_l1": ("none", 0), "huber": ("none", 0), "fair": ("none", 0), "quantile": ("none", 0),
    "mape": ("none", 0), "lambdarank": ("none", 0), "rank_xendcg": ("none", 0), "poisson": ("exp", 0), "gamma": ("exp", 0),
    "tweedie": ("exp", 0), "binary": ("logistic", 2), "multiclass": ("softmax", -1), "cross_entropy": ("logistic", 0),
}  # fmt: skip


def from_lightgbm(
    source: Any,
    example_inputs: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    limits: Limits | None = None,
    text: str | None = None,
) -> Model:
    """A Booster or a fitted LGBMModel as a canonical model with the input x [batch, features]."""
    lightgbm = need("lightgbm", _EXTRA, "a LightGBM model")
    title = name or type(source).__name__
    try:
        booster = source if isinstance(source, lightgbm.Booster) else source.booster_
        held = booster.dump_model()
    except Exception as error:
        raise ModelError(f"{title} holds no trained booster: {str(error)[:200]}", hint="call its fit first") from error
    objective, _, rest = str(held.get("objective", "")).partition(" ")
    hint = f"known objectives: {', '.join(_LINKS)}"
    require(objective in _LINKS, f"{title}: LightGBM's objective {objective or 'of your own'!r} is not known here", hint)
    options = dict(word.partition(":")[::2] for word in rest.split())
    plain = float(options.get("sigmoid", 1)) == 1 and "sqrt" not in rest.split()
    require(plain, f"{title}: LightGBM's {rest!r} is not known here", "train without reg_sqrt, with sigmoid=1")
    link, classes = _LINKS[objective]
    outputs, features = int(held["num_tree_per_iteration"]), int(held["max_feature_idx"]) + 1
    classes = outputs if classes < 0 else classes
    forest = Forest(outputs)
    average = bool(held.get("average_output"))
    count = len(held["tree_info"]) // outputs
    for number, tree in enumerate(held["tree_info"]):
        _grow(forest, number, number % outputs, tree["tree_structure"], 1 / count if average else 1.0, title)
    if example_inputs is None:
        x = samples(forest, features, SAMPLES)
    else:
        x = np.asarray(example_inputs, np.float32)
        if x.ndim != 2 or x.shape[1] != features:
            raise UsageError(f"example_inputs of shape {list(x.shape)}, {title} takes rows of {features} features")
    wanted: list[Array] = [np.asarray(booster.predict(x.astype(np.float64))).astype(np.float32)]
    if classes == 2:
        wanted = [np.stack([1 - wanted[0], wanted[0]], axis=1)]
    if classes:
        wanted = [wanted[0].argmax(axis=1), wanted[0]]
    proto = model_of(forest, features, [0.0] * outputs, link, classes)
    imported = Imported(
        proto, "lightgbm", text or type(source).__name__, f"LightGBM {lightgbm.__version__}", {"x": x}, wanted, per_sample=True,
        labels={0: 1} if classes else {}, notes=(f"objective {objective}", *categorical_notes(forest, booster.feature_name())),
    )  # fmt: skip
    return finish(imported, dims=dims, name=title, limits=limits)


def read_file(path: str, dims: Mapping[str, int], name: str | None, limits: Limits, trust: bool = False) -> Model:
    """A text file of LightGBM, in this process."""
    file = Path(path)
    size = file.stat().st_size
    if size > limits.file_bytes:
        raise ModelError(f"{file.name} is {size:,} bytes, the limit is {limits.file_bytes:,}", hint=f"raise it: {raised('file_bytes')}")
    data = file.read_bytes()
    if not data.startswith(b"tree\n"):
        raise ModelError(f"{file.name} is no model of LightGBM", hint="save it with booster.save_model('model.txt')")
    lightgbm = need("lightgbm", _EXTRA, file.name)
    try:
        booster = lightgbm.Booster(model_str=data.decode("utf-8"))
    except Exception as error:
        raise ModelError(f"LightGBM cannot open {file.name}: {' '.join(str(error).split())[:200]}", hint="the file is damaged") from error
    return from_lightgbm(booster, dims=dims, name=name or file.stem, limits=limits, text=file.name)


def _grow(forest: Forest, tree: int, output: int, root: Mapping[str, Any], scale: float, title: str) -> None:
    """One tree of the dump, which is nested: nodes get numbers in the order in which they are met."""
    waiting, count = [(root, 0)], 1
    while waiting:
        node, number = waiting.pop()
        if "leaf_value" in node:
            forest.leaf(tree, number, output, float(np.float32(node["leaf_value"] * scale)))
            continue
        kind = node["decision_type"]
        left, right, count = count, count + 1, count + 2
        waiting += [(node["left_child"], left), (node["right_child"], right)]
        if kind == "==":
            # What is missing or was not seen in training is in no set.
            categories = frozenset(int(number) for number in str(node["threshold"]).split("||"))
            forest.member(tree, number, Question(int(node["split_feature"]), categories, inside=True, missing=False), left, right)
            continue
        require(kind == "<=", f"{title} splits by {kind!r}, which is not known here", "<= and == are")
        # A missing value goes where the split says; without "missing" in the training data NaN counts as 0.
        threshold, missing = float(node["threshold"]), node["missing_type"]
        require(missing != "Zero", f"{title} takes zeros as missing", "train with zero_as_missing=false")
        nan_is_yes = bool(node["default_left"]) if missing == "NaN" else threshold >= 0.0
        forest.branch(tree, number, int(node["split_feature"]), _below(threshold), "BRANCH_LEQ", left, right, nan_is_yes)


def _below(threshold: float) -> float:
    """The largest float32 that is not above the threshold."""
    found = np.float32(threshold)
    return float(np.nextafter(found, np.float32(-np.inf)) if float(found) > threshold else found)
