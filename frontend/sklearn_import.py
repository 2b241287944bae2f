"""scikit-learn estimators and pipelines, converted by skl2onnx and compared with their own predictions.

load(pipeline)                          float32 features [N, n_features]; samples are made from what the estimator has learned
load(pipeline, example_inputs=frame)    a DataFrame: one input [N, 1] for each column, text columns as strings

A classifier has the outputs label and probabilities (or decision scores), a regressor its prediction, a transformer its result.
Pickles and joblib files run code when they are opened, so they need ``trust=True``.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import ModelError, UsageError

from .importing import SAMPLES, Imported, finish, need, trusted
from .limits import Limits
from .model import Model

Array = NDArray[Any]

_EXTRA = "sklearn"
_OPSETS = {"": 21, "ai.onnx.ml": 3}
"""Version 3 of ai.onnx.ml: later ones say the same about trees in a form of their own."""


def from_sklearn(
    estimator: Any,
    example_inputs: Any = None,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    limits: Limits | None = None,
) -> Model:
    """A fitted estimator as a canonical model. ``example_inputs``: an array [N, n_features] or a DataFrame to compare on."""
    sklearn = need("sklearn", _EXTRA, "a scikit-learn model")
    need("skl2onnx", _EXTRA, "a scikit-learn model")
    title = name or type(estimator).__name__
    _require_fitted(sklearn, estimator, title)
    if example_inputs is None and hasattr(estimator, "feature_names_in_") and _takes_columns(estimator):
        columns = ", ".join(map(str, estimator.feature_names_in_[:6]))
        raise UsageError(f"{title} was fitted on the columns {columns}: give it a few rows", hint="load(pipeline, example_inputs=frame)")
    given = typical(estimator) if example_inputs is None else example_inputs
    source, samples = _samples(given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = _converted(estimator, source, title)
        expected, labels = _expected(estimator, source, len(proto.graph.output))
    if not hasattr(given, "columns"):
        samples = {proto.graph.input[0].name: next(iter(samples.values()))}
    imported = Imported(
        proto, "sklearn", type(estimator).__name__, f"scikit-learn {sklearn.__version__}", samples, expected, labels=labels,
        per_sample=True, notes=_notes(estimator),
    )  # fmt: skip
    return finish(imported, dims=dims, name=title, limits=limits)


def unpickled(path: Path, trust: bool) -> Any:
    """The object of a pickle or joblib file. Raises ModelError unless it is trusted."""
    trusted(trust, str(path), "a pickle runs whatever code it holds when it is opened")
    joblib = need("joblib", _EXTRA, "a pickled model")
    try:
        return joblib.load(path)
    except Exception as error:
        raise ModelError(f"{path} cannot be unpickled: {type(error).__name__}: {str(error)[:300]}") from error


def typical(estimator: Any, count: int = SAMPLES) -> Array:
    """Samples [count, features] float32 that reach what the estimator has learned: around its scales, thresholds or vectors."""
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        hint = "give it: load(model, example_inputs=x)"
        raise UsageError(f"{type(estimator).__name__} does not say how many features it takes", hint=hint)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, features))
    first = estimator.steps[0][1] if hasattr(estimator, "steps") else estimator
    if _array(first, "scale_", features) is not None and hasattr(first, "mean_"):
        x = (first.mean_ if first.mean_ is not None else 0) + first.scale_ * x
    elif _array(first, "data_min_", features) is not None:
        x = rng.uniform(first.data_min_, np.maximum(first.data_max_, first.data_min_ + 1e-6), x.shape)
    elif (known := _vectors(first, features)) is not None:
        spread = known.std(axis=0)
        x = known[rng.integers(len(known), size=count)] + 0.3 * spread * x
    else:
        low, high = _thresholds(estimator, features)
        x = np.where(np.isfinite(low), rng.uniform(np.where(np.isfinite(low), low, 0), np.where(np.isfinite(low), high, 1), x.shape), x)
    return x.astype(np.float32)


def _array(estimator: Any, name: str, features: int) -> Array | None:
    held = getattr(estimator, name, None)
    return held if isinstance(held, np.ndarray) and held.shape == (features,) else None


def _vectors(estimator: Any, features: int) -> Array | None:
    """Points in the space of features that the estimator keeps: support vectors, neighbours, centres, means."""
    for name in ("support_vectors_", "_fit_X", "cluster_centers_", "theta_", "means_"):
        held = getattr(estimator, name, None)
        if isinstance(held, np.ndarray) and held.ndim == 2 and held.shape[1] == features and len(held):
            return held.astype(np.float64)
    mean = _array(estimator, "mean_", features)
    return None if mean is None else mean[None]


def _thresholds(estimator: Any, features: int) -> tuple[Array, Array]:
    """Of each feature the range that trees compare it with, a little wider; infinite where none does."""
    low, high = np.full(features, np.inf), np.full(features, -np.inf)

    def take(feature: Array, threshold: Array) -> None:
        inside = (feature >= 0) & (feature < features) & np.isfinite(threshold)
        np.minimum.at(low, feature[inside], threshold[inside])
        np.maximum.at(high, feature[inside], threshold[inside])

    waiting, seen = [estimator], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, np.ndarray):
            waiting.extend(part.flat if part.dtype == object else ())
        elif isinstance(part, list | tuple):
            waiting.extend(part)
        elif hasattr(part, "tree_"):
            take(np.asarray(part.tree_.feature), np.asarray(part.tree_.threshold))
        elif hasattr(part, "nodes") and hasattr(part, "predict_binned"):
            take(part.nodes["feature_idx"].astype(int), part.nodes["num_threshold"])
        else:
            waiting.extend(getattr(part, key) for key in ("estimators_", "_predictors", "estimator_") if hasattr(part, key))
    margin = 0.1 * np.where(np.isfinite(low), np.maximum(high - low, 1e-3), 0)
    return low - margin, high + margin


def _require_fitted(sklearn: Any, estimator: Any, title: str) -> None:
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    try:
        check_is_fitted(estimator)
    except NotFittedError:
        raise ModelError(f"{title} is not fitted", hint="call its fit first") from None
    except TypeError:
        raise ModelError(f"a {title} of scikit-learn {sklearn.__version__} is no estimator", hint="give the fitted model itself") from None


def _takes_columns(estimator: Any) -> bool:
    """Whether a step chooses columns by name or holds categories, so that an array of numbers would not do."""
    steps = [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]
    return any(hasattr(step, "transformers_") or hasattr(step, "categories_") for step in steps)


def _samples(given: Any) -> tuple[Any, dict[str, Array]]:
    """What scikit-learn takes, and the same as inputs of the ONNX model by name."""
    if hasattr(given, "columns") and hasattr(given, "iloc"):
        frame = given.copy()
        samples: dict[str, Array] = {}
        for column in frame.columns:
            values = frame[column].to_numpy()
            if values.dtype.kind == "f":
                frame[column] = values.astype(np.float32)
            elif values.dtype.kind in "iub":
                frame[column] = values.astype(np.int64)
            else:
                frame[column] = values.astype(object)
            samples[str(column)] = frame[column].to_numpy().reshape(-1, 1)
        return frame, samples
    array = np.asarray(given)
    if array.ndim != 2 or not len(array) or array.dtype.kind not in "fiub":
        what = f"example_inputs of shape {list(array.shape)}: a scikit-learn model takes rows of features"
        raise UsageError(what, hint="[N, n_features]")
    array = array.astype(np.float32)
    return array, {"X": array}


def _converted(estimator: Any, source: Any, title: str) -> Any:
    from skl2onnx import to_onnx

    try:
        return to_onnx(estimator, source[:1], target_opset=_OPSETS, options=_options(estimator))
    except Exception as error:
        # skl2onnx raises types of its own and plain RuntimeErrors; its first line names the estimator that it lacks.
        text = " ".join(str(error).split())[:300]
        if "flatten_transform" in text:
            hint = "set flatten_transform=False, which its predictions do not need"
            raise ModelError(f"skl2onnx cannot convert {title}", hint=hint) from error
        if "sparse" in text:
            hint = "ask for dense results: sparse_output=False, or encode='onehot-dense'"
            raise ModelError(f"skl2onnx cannot convert {title}: {text}", hint=hint) from error
        hint = "its parts may convert one by one; supported estimators: https://onnx.ai/sklearn-onnx/supported.html"
        raise ModelError(f"skl2onnx cannot convert {title}: {text}", hint=hint) from error


def _options(estimator: Any) -> dict[int, dict[str, bool]] | None:
    """Scores of a support vector machine of two classes come with their signs exchanged unless they are asked for raw."""
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    plain = hasattr(last, "dual_coef_") and hasattr(last, "decision_function") and not hasattr(last, "predict_proba")
    return {id(last): {"raw_scores": True}} if plain and hasattr(last, "classes_") else None


def _expected(estimator: Any, source: Any, outputs: int) -> tuple[list[Array], dict[int, int]]:
    """The estimator's own answers in the order of the outputs, and which output is a label chosen by which."""
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    # A selector of features may predict as well; in ONNX it selects.
    if not hasattr(estimator, "predict") or hasattr(last, "get_support"):
        return [_dense(estimator.transform(source))], {}
    label = np.asarray(estimator.predict(source))
    label = label.astype(np.int64) if label.dtype.kind == "b" else label
    if outputs == 1:
        return [label.astype(np.float32) if label.dtype.kind == "f" else label], {}
    for method in ("predict_proba", "decision_function", "transform"):
        if hasattr(estimator, method):
            return [label, _dense(getattr(estimator, method)(source))], {0: 1}
    raise ModelError(f"{type(estimator).__name__} has {outputs} outputs in ONNX, but nothing to compare its scores with")


def _dense(values: Any) -> Array:
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values).astype(np.float32)


def _notes(estimator: Any) -> tuple[str, ...]:
    classes = getattr(estimator, "classes_", None)
    if not isinstance(classes, np.ndarray):
        return ()
    shown = ", ".join(map(str, classes[:10])) + (", …" if len(classes) > 10 else "")
    return (f"{len(classes)} classes: {shown}",)
