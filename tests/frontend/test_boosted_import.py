"""XGBoost's and LightGBM's trees, compared with their own predictions, missing values included."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from gatewright.errors import MismatchError, ModelError, ToolMissing, UsageError
from gatewright.frontend import forests, lightgbm_import, xgboost_import
from gatewright.frontend.batch import with_batch
from gatewright.frontend.limits import Limits
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference

RNG = np.random.default_rng(0)
X = RNG.normal(size=(300, 6)).astype(np.float32)
X[RNG.random(X.shape) < 0.1] = np.nan
KNOWN = np.nan_to_num(X)
AMOUNT = KNOWN[:, 0] * 2 + np.sin(KNOWN[:, 1] * 3) + 5
TWO = (KNOWN[:, 0] + KNOWN[:, 2] > 0.2).astype(int)
THREE = np.digitize(KNOWN[:, 0] + KNOWN[:, 3], [-0.5, 0.7])

OBJECTIVES: list[tuple[str, dict[str, Any], Any]] = [
    ("xgboost", {"objective": "reg:squarederror"}, AMOUNT),
    ("xgboost", {"objective": "binary:logistic"}, TWO),
    ("xgboost", {"objective": "multi:softprob", "num_class": 3}, THREE),
    ("xgboost", {"objective": "multi:softmax", "num_class": 3}, THREE),
    ("xgboost", {"objective": "count:poisson"}, TWO),
    ("xgboost", {"objective": "reg:squarederror", "booster": "dart", "rate_drop": 0.5}, AMOUNT),
    ("lightgbm", {"objective": "regression"}, AMOUNT),
    ("lightgbm", {"objective": "binary"}, TWO),
    ("lightgbm", {"objective": "multiclass", "num_class": 3}, THREE),
    ("lightgbm", {"objective": "poisson"}, TWO),
    ("lightgbm", {"objective": "regression", "boosting": "rf", "bagging_freq": 1, "bagging_fraction": 0.7}, AMOUNT),
]


def booster(library: str, options: dict[str, Any], y: Any) -> Any:
    if library == "xgboost":
        xgboost = pytest.importorskip("xgboost")
        return xgboost.train({"max_depth": 4, "seed": 0, "nthread": 1, **options}, xgboost.DMatrix(X, y), 8)
    lightgbm = pytest.importorskip("lightgbm")
    settings = {"num_leaves": 9, "min_data_in_leaf": 5, "verbose": -1, "seed": 0, "num_threads": 1, **options}
    return lightgbm.train(settings, lightgbm.Dataset(X.astype(np.float64), y), 8)


def own(library: str, model: Any, x: np.ndarray) -> np.ndarray:
    if library == "xgboost":
        import xgboost

        return np.asarray(model.predict(xgboost.DMatrix(x)))
    return np.asarray(model.predict(x.astype(np.float64)))


def rows(model: Model, x: np.ndarray) -> dict[str, np.ndarray]:
    session = OrtSession(model)
    made = [session.run({"x": row[None]}) for row in x]
    return {key: np.concatenate([row[key] for row in made]) for key in made[0]}


@pytest.mark.parametrize(("library", "options", "y"), OBJECTIVES, ids=lambda v: v.get("objective", "") if isinstance(v, dict) else "")
def test_equal_to_the_library(library: str, options: dict[str, Any], y: Any) -> None:
    source = booster(library, options, y)
    model = load(source)
    assert model.history[-1].action == library
    assert max(model.history[-1].details["checked"]["difference"].values()) <= 1e-4
    assert not [node for node in model.graph if node.domain], "trees are tensor operations"
    found, wanted = rows(model, X[:60]), own(library, source, X[:60])
    if options["objective"] == "multi:softmax":
        assert np.array_equal(found["label"], wanted)
    else:
        values = found["y"] if "y" in found else found["probabilities"]
        values = values[:, -1] if wanted.ndim == 1 else values
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-5)
    if "label" in found:
        assert np.mean(found["label"] == y[:60]) > 0.8


def test_the_wrappers_for_scikit_learn() -> None:
    xgboost, lightgbm = pytest.importorskip("xgboost"), pytest.importorskip("lightgbm")
    for made in (xgboost.XGBClassifier(n_estimators=4, n_jobs=1), lightgbm.LGBMClassifier(n_estimators=4, n_jobs=1, verbose=-1)):
        made.fit(X, THREE)
        model = load(made, example_inputs=X[:50])
        assert [o.name for o in model.outputs] == ["label", "probabilities"]
        assert np.array_equal(rows(model, X[:30])["label"], made.predict(X[:30]))
    with pytest.raises(ModelError, match="holds no trained booster"):
        load(xgboost.XGBRegressor())
    with pytest.raises(UsageError, match="takes rows of 6 features"):
        load(made, example_inputs=X[:, :3])


@pytest.mark.parametrize("suffix", [".ubj", *(pytest.param(suffix, marks=pytest.mark.slow) for suffix in (".json", ".txt"))])
def test_files(suffix: str, tmp_path: Path) -> None:
    library = "lightgbm" if suffix == ".txt" else "xgboost"
    source = booster(library, {"objective": "binary" if suffix == ".txt" else "binary:logistic"}, TWO)
    path = tmp_path / f"trees{suffix}"
    source.save_model(path)
    reader = lightgbm_import if suffix == ".txt" else xgboost_import
    # Once as users do, in a process of its own.
    model = load(path) if suffix == ".ubj" else reader.read_file(str(path), {}, None, Limits())
    assert (model.name, model.history[-1].text, model.history[-1].action) == ("trees", path.name, library)
    np.testing.assert_allclose(rows(model, X[:20])["probabilities"][:, 1], own(library, source, X[:20]), atol=1e-5)
    whole = path.read_bytes()
    # The libraries' own readers crash on some of these, which is why they run in a process of their own.
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError):
        load(path)
    path.write_bytes(b"nothing like it")
    with pytest.raises(ModelError, match="is no model of"):
        reader.read_file(str(path), {}, None, Limits())


def test_the_reference_agrees() -> None:
    source = booster("xgboost", {"objective": "multi:softprob", "num_class": 3}, THREE)
    model = with_batch(load(source), 40)
    np.testing.assert_allclose(Reference(model).run({"x": X[:40]})["probabilities"], own("xgboost", source, X[:40]), atol=1e-5)


def test_a_wrong_tree_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    good: Callable[..., None] = forests.Forest.branch

    def strict(self: Any, *values: Any) -> None:
        good(self, *values[:-1], not values[-1])

    source = booster("xgboost", {"objective": "reg:squarederror"}, AMOUNT)
    monkeypatch.setattr(forests.Forest, "branch", strict)
    with pytest.raises(MismatchError, match=r"output 'y' of 'Booster' differs from that of XGBoost"):
        load(source, example_inputs=X)


KINDS = np.column_stack([RNG.integers(0, 12, 300), RNG.normal(size=300), RNG.integers(0, 5, 300)])
HOLES = np.where(RNG.random(KINDS.shape) < 0.08, np.nan, KINDS)
WORTH = np.isin(HOLES[:, 0], [1, 4, 7, 11]) * 2.0 + np.nan_to_num(HOLES[:, 1]) + np.isin(HOLES[:, 2], [0, 3])
ODD = np.array([[-0.5, 0, -1], [-1.5, 1, 3.7], [300, 0.2, 0], [4.9, -1, 4], [-(2.0**31), 0, 2.0**40], [np.nan, 0, np.nan]])
"""No categories, but a library has an answer for each of them too."""


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
@pytest.mark.parametrize("alone", [1, 20], ids=["sets", "one against the others"])
def test_splits_on_categories(library: str, alone: int) -> None:
    module = pytest.importorskip(library)
    x = np.concatenate([HOLES, ODD[:4], ODD[5:]])
    if library == "xgboost":
        kinds = {"feature_types": ["c", "q", "c"], "enable_categorical": True}
        options = {"max_depth": 4, "nthread": 1, "max_cat_to_onehot": alone}
        source = module.train(options, module.DMatrix(HOLES, WORTH, **kinds), 6)
        wanted = source.predict(module.DMatrix(x, **kinds))
    else:
        rules = {"num_leaves": 9, "min_data_in_leaf": 5, "min_data_per_group": 1, "cat_smooth": 1, "max_cat_to_onehot": alone}
        options = {"objective": "regression", "verbose": -1, "num_threads": 1, **rules}
        source = module.train(options, module.Dataset(HOLES, WORTH, categorical_feature=[0, 2]), 6)
        wanted = source.predict(x)
    model = load(source)
    assert any("the number of the category" in note for step in model.history for note in step.notes)
    assert not [node for node in model.graph if node.domain]
    np.testing.assert_allclose(rows(model, x.astype(np.float32))["y"].reshape(-1), wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(wanted[:300] - WORTH).mean() < np.abs(WORTH - WORTH.mean()).mean() / 1.5, "the categories were learned"


def test_a_forgotten_category_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    xgboost = pytest.importorskip("xgboost")
    source = xgboost.train({"max_depth": 4}, xgboost.DMatrix(HOLES, WORTH, feature_types=["c", "q", "c"], enable_categorical=True), 6)
    right = forests.Question.answers
    monkeypatch.setattr(forests.Question, "answers", lambda self, count: np.roll(right(self, count), 1))
    with pytest.raises(MismatchError):
        load(source)


def test_categories_of_a_frame() -> None:
    pandas, xgboost, lightgbm = (pytest.importorskip(name) for name in ("pandas", "xgboost", "lightgbm"))
    frame = pandas.DataFrame({"a": pandas.Categorical(RNG.choice(["u", "v", "w"], 200)), "b": RNG.normal(size=200)})
    codes = np.column_stack([frame.a.cat.codes, frame.b]).astype(np.float32)
    chosen = (frame.a == "v").astype(int)
    for made in (
        xgboost.XGBClassifier(n_estimators=3, enable_categorical=True, n_jobs=1),
        lightgbm.LGBMClassifier(n_estimators=3, n_jobs=1, verbose=-1, min_data_per_group=1),
    ):
        model = load(made.fit(frame, chosen))
        assert any(note.startswith("a: the number of the category") for step in model.history for note in step.notes)
        np.testing.assert_allclose(rows(model, codes[:40])["probabilities"], made.predict_proba(frame[:40]), atol=1e-5)


def test_what_has_no_form_here() -> None:
    xgboost = pytest.importorskip("xgboost")
    source = xgboost.train({}, xgboost.DMatrix(KINDS, KINDS[:, 0] % 2, feature_types=["c", "q", "c"], enable_categorical=True), 1)
    with mock.patch.object(forests, "_MOST_ANSWERS", 5), pytest.raises(ModelError, match="the limit is 5"):
        load(source)
    with pytest.raises(ModelError, match="objective 'survival:cox' is not known here"):
        load(booster("xgboost", {"objective": "survival:cox"}, AMOUNT))
    with pytest.raises(ModelError, match="booster 'gblinear' is no trees"):
        load(booster("xgboost", {"objective": "reg:squarederror", "booster": "gblinear"}, AMOUNT))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_without_the_extra_it_is_named(library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = booster(library, {"objective": "reg:squarederror" if library == "xgboost" else "regression"}, AMOUNT)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ToolMissing, match=rf"pip install 'gatewright\[{library}\]'"):
        load(source)
