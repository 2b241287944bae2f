"""scikit-learn models, compared with their own predictions; what cannot be right is refused."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gatewright as gw
from gatewright.errors import MismatchError, ModelError, ToolMissing, UsageError
from gatewright.frontend import sklearn_import
from gatewright.frontend.batch import with_batch
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference

sklearn = pytest.importorskip("sklearn")
pytest.importorskip("skl2onnx")

from sklearn import (  # noqa: E402
    cluster,
    compose,
    datasets,
    ensemble,
    impute,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

X, Y = datasets.load_digits(n_class=4, return_X_y=True)
X = X[:200].astype(np.float32)
Y = Y[:200]
TWO = np.array(["low", "high"])[(Y > 1).astype(int)]
AMOUNT = (X @ np.linspace(-1, 1, 64)).astype(np.float32)
scaled = preprocessing.StandardScaler

MODELS: dict[str, tuple[Callable[[], Any], Any]] = {
    "logistic": (lambda: pipeline.make_pipeline(scaled(), linear_model.LogisticRegression(max_iter=50)), Y),
    "two_named_classes": (lambda: linear_model.LogisticRegression(max_iter=50), TWO),
    "tree": (lambda: tree.DecisionTreeClassifier(random_state=0), Y),
    "forest": (lambda: ensemble.RandomForestClassifier(10, random_state=0), Y),
    "forest_regressor": (lambda: ensemble.RandomForestRegressor(5, max_depth=6, random_state=0), AMOUNT),
    "boosting": (lambda: ensemble.GradientBoostingClassifier(n_estimators=3, random_state=0), Y),
    "histogram_boosting": (lambda: ensemble.HistGradientBoostingClassifier(max_iter=4), Y),
    "svm": (lambda: pipeline.make_pipeline(scaled(), svm.SVC()), Y),
    "svm_of_two": (lambda: pipeline.make_pipeline(scaled(), svm.SVC()), TWO),
    "linear_svm": (lambda: svm.LinearSVC(), Y),
    "svm_regressor": (lambda: pipeline.make_pipeline(scaled(), svm.SVR()), AMOUNT),
    "svm_regressor_linear": (lambda: svm.SVR(kernel="linear"), AMOUNT),
    "network": (lambda: neural_network.MLPClassifier((16,), max_iter=20, random_state=0), Y),
    "neighbours": (lambda: neighbors.KNeighborsClassifier(3), Y),
    "bayes": (lambda: naive_bayes.GaussianNB(var_smoothing=1e-3), Y),
    "ridge": (lambda: pipeline.make_pipeline(preprocessing.PolynomialFeatures(2), linear_model.Ridge()), AMOUNT),
    "clusters": (lambda: cluster.KMeans(4, n_init=1, random_state=0), Y),
    "transformer": (lambda: preprocessing.MinMaxScaler(), Y),
}


@pytest.fixture(scope="module")
def fitted() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def fit(name: str) -> Any:
        if name not in made:
            make, target = MODELS[name]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[name] = make().fit(X[:, :16] if name == "ridge" else X, target)
        return made[name]

    return fit


LONG = {"neighbours", "ridge", "histogram_boosting"}
"""Whose graphs take seconds to make canonical."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in MODELS])
def test_equal_to_scikit_learn(name: str, fitted: Callable[[str], Any]) -> None:
    estimator = fitted(name)
    model = load(estimator)
    step = model.history[-1]
    assert (step.action, step.details["checked"]["samples"]) == ("sklearn", 32)
    assert max(step.details["checked"]["difference"].values()) <= 1e-4
    # On data that the import did not choose, too.
    x = X[160:, :16] if name == "ridge" else X[160:]
    session = OrtSession(model, optimize=False)
    rows = [session.run({model.inputs[0].name: row[None]}) for row in x]
    found = [np.concatenate([row[info.name] for row in rows]) for info in model.outputs]
    wanted = estimator.predict(x) if hasattr(estimator, "predict") else estimator.transform(x)
    if wanted.dtype.kind == "f":
        np.testing.assert_allclose(found[0].reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    else:
        assert [str(a) for a in found[0].reshape(-1)] == [str(a) for a in wanted]
    if hasattr(estimator, "predict_proba"):
        np.testing.assert_allclose(found[1], estimator.predict_proba(x), atol=1e-4)


SMALL: dict[str, tuple[Callable[[], Any], Any]] = {
    "forest": (lambda: ensemble.RandomForestClassifier(3, max_depth=3, random_state=0), Y),
    "svm": (lambda: svm.SVC(decision_function_shape="ovr", gamma=1e-3), Y),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_trees_and_support_vectors_run_on_cpu_as_on_ref(name: str, tmp_path: Path) -> None:
    make, target = SMALL[name]
    model = load(make().fit(X[:40], target[:40]))
    assert not [node.op_type for node in model.graph if node.domain]
    made = gw.compile(model, "cpu{fallback=none}", out=tmp_path / "built")
    with made.load() as executor:
        found = executor.run({model.inputs[0].name: X[:20]})
    wanted = Reference(with_batch(model, 20)).run({model.inputs[0].name: X[:20]})
    for key, value in wanted.items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-5)
        else:
            assert np.array_equal(found[key], value)


@pytest.mark.parametrize("name", ["linear_svm", "svm_regressor_linear"])
def test_linear_support_vectors_fit_hls(name: str, fitted: Callable[[str], Any]) -> None:
    data = gw.Dataset({"X": X})
    quantized = gw.transform(load(fitted(name)), "fuse,quantize{bits=8,grid=pow2}", data=data)
    assert gw.check(quantized, "hls:pynq-z2").ok


def test_columns_of_a_table() -> None:
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    towns = rng.choice(["Ulm", "Köln", "Bonn"], 120)
    age = np.where(rng.random(120) < 0.1, np.nan, rng.uniform(18, 80, 120))
    frame = pandas.DataFrame({"age": age, "kids": rng.integers(0, 4, 120), "town": towns})
    numbers = pipeline.make_pipeline(impute.SimpleImputer(), scaled())
    columns = compose.ColumnTransformer(
        [("n", numbers, ["age"]), ("k", "passthrough", ["kids"]), ("c", preprocessing.OneHotEncoder(handle_unknown="ignore"), ["town"])]
    )
    estimator = pipeline.make_pipeline(columns, ensemble.RandomForestClassifier(10, random_state=0))
    estimator.fit(frame, (frame.kids > 1) ^ (frame.town == "Ulm"))
    with pytest.raises(UsageError, match="fitted on the columns age, kids, town: give it a few rows"):
        load(estimator)
    model = load(estimator, example_inputs=frame)
    assert [(i.name, i.shape) for i in model.inputs] == [("age", (1, 1)), ("kids", (1, 1)), ("town", (1, 1))]
    assert model.history[-1].details["checked"]["samples"] == 120


def test_a_wrong_conversion_is_noticed(fitted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    good = sklearn_import._converted

    def bent(*arguments: Any) -> Any:
        proto = good(*arguments)
        node = next(node for node in proto.graph.node if node.op_type == "TreeEnsembleRegressor")
        next(a for a in node.attribute if a.name == "target_weights").floats[3] += 0.5
        return proto

    monkeypatch.setattr(sklearn_import, "_converted", bent)
    with pytest.raises(MismatchError, match=r"output 'variable' of 'RandomForestRegressor' differs from that of scikit-learn .* by 0\.0"):
        load(fitted("forest_regressor"), example_inputs=X)


def test_what_is_no_model() -> None:
    with pytest.raises(ModelError, match="LogisticRegression is not fitted"):
        load(linear_model.LogisticRegression())
    with pytest.raises(ModelError, match="skl2onnx cannot convert SpectralClustering"):
        load(cluster.SpectralClustering(2).fit(X[:20]), example_inputs=X[:20])
    vote = ensemble.VotingClassifier([("a", naive_bayes.GaussianNB()), ("b", tree.DecisionTreeClassifier())], voting="soft").fit(X, Y)
    with pytest.raises(ModelError, match="set flatten_transform=False"):
        load(vote)
    with pytest.raises(UsageError, match=r"rows of features \(\[N, n_features\]\)"):
        load(tree.DecisionTreeClassifier().fit(X, Y), example_inputs=X[0])


def test_a_pickle_needs_trust(fitted: Callable[[str], Any], tmp_path: Path) -> None:
    joblib = pytest.importorskip("joblib")
    path = tmp_path / "digits.joblib"
    joblib.dump(fitted("tree"), path)
    with pytest.raises(ModelError, match=r"a pickle runs whatever code it holds .*trust=True in Python, --trust"):
        load(path)
    assert load(path, trust=True).name == "digits"
    joblib.dump([1, 2], path)
    with pytest.raises(ModelError, match="holds a list, which is no model of"):
        load(path, trust=True)
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be unpickled"):
        load(path, trust=True)


def test_without_the_converter_the_extra_is_named(fitted: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ToolMissing, match=r"needs skl2onnx.*pip install 'gatewright\[sklearn\]'"):
        load(fitted("tree"))


def test_a_selector_that_could_predict_selects() -> None:
    feature_selection, linear_model = pytest.importorskip("sklearn.feature_selection"), pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    selector = feature_selection.RFE(linear_model.LogisticRegression(), n_features_to_select=2).fit(x, x[:, 1] + x[:, 3] > 0)
    model = load(selector, example_inputs=x[:4])
    assert np.array_equal(OrtSession(model).run({"X": x[:1]})[model.outputs[0].name], selector.transform(x[:1]))
