"""Trees, support vector machines and linear models as tensor operations: equal to ONNX Runtime's own operators, NaNs included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatewright.errors import GatewrightError
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference

ML = "ai.onnx.ml"
FEATURES = 4


def model_of(op: str, outputs: list[tuple[str, int, list[Any]]], version: int = 3, **attributes: Any) -> onnx.ModelProto:
    node = onnx.helper.make_node(op, ["x"], [name for name, _, _ in outputs], domain=ML, name="it", **attributes)
    x = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", FEATURES])
    made = [onnx.helper.make_tensor_value_info(name, dtype, shape) for name, dtype, shape in outputs]
    graph = onnx.helper.make_graph([node], "classical", [x], made)
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid(ML, version)]
    return onnx.helper.make_model(graph, opset_imports=imports, ir_version=8)


def both(proto: onnx.ModelProto, x: np.ndarray) -> tuple[Model, dict[str, np.ndarray], list[np.ndarray]]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    model = load(proto)
    assert batch_reason(model) is None
    return model, Reference(with_batch(model, len(x))).run({"x": x}), session.run(None, {"x": x})


def assert_equal(found: dict[str, np.ndarray], wanted: list[np.ndarray]) -> None:
    for own, other in zip(found.values(), wanted, strict=True):
        if other.dtype.kind == "f":
            # Sums of a few dozen float32 in another order.
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=2e-6)
        else:
            assert np.array_equal(own, other)


def trees(rng: np.random.Generator, count: int, depth: int, modes: list[str], tracks: bool) -> dict[str, list[Any]]:
    """Random trees whose leaves lie at different depths."""
    rows: list[tuple[int, int, str, int, float, int, int, int]] = []
    for tree in range(count):
        numbers = iter(range(1000))

        def grow(level: int, tree: int = tree, numbers: Any = numbers) -> int:
            own = next(numbers)
            if level == depth or (level and rng.random() < 0.3):
                rows.append((tree, own, "LEAF", 0, 0.0, 0, 0, 0))
                return own
            mode, feature, value = str(rng.choice(modes)), int(rng.integers(FEATURES)), float(np.float32(rng.integers(-3, 4)))
            yes, no = grow(level + 1), grow(level + 1)
            rows.append((tree, own, mode, feature, value, yes, no, int(tracks and rng.random() < 0.5)))
            return own

        grow(0)
    rows.sort()
    names = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")
    return {f"nodes_{name}": list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def leaves(table: dict[str, list[Any]]) -> list[tuple[int, int]]:
    rows = zip(table["nodes_treeids"], table["nodes_nodeids"], table["nodes_modes"], strict=True)
    return [(tree, number) for tree, number, mode in rows if mode == "LEAF"]


def inputs(rng: np.random.Generator, nan: bool) -> np.ndarray:
    """Whole numbers, so that comparisons meet their thresholds, and some NaNs."""
    x = rng.integers(-4, 5, (40, FEATURES)).astype(np.float32)
    if nan:
        x[rng.random(x.shape) < 0.1] = np.nan
    return x


HOWS = ["SUM", "AVERAGE"]
POSTS = ["NONE", "SOFTMAX", "LOGISTIC"]
MODES = st.lists(st.sampled_from(["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]), min_size=1, max_size=2, unique=True)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(0, 5), MODES, st.booleans(), st.integers(3, 5), st.sampled_from(POSTS))
def test_tree_classifiers(seed: int, count: int, depth: int, modes: list[str], tracks: bool, classes: int, post: str) -> None:
    rng = np.random.default_rng(seed)
    table = trees(rng, count, depth, modes, tracks)
    ends = [(t, n, c) for t, n in leaves(table) for c in range(classes)]
    weights = rng.normal(size=len(ends)).astype(np.float32).tolist()
    proto = model_of(
        "TreeEnsembleClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("p", onnx.TensorProto.FLOAT, ["N", classes])],
        class_treeids=[t for t, _, _ in ends], class_nodeids=[n for _, n, _ in ends], class_ids=[c for _, _, c in ends],
        class_weights=weights, classlabels_int64s=[7 * c + 1 for c in range(classes)], post_transform=post, **table,
    )  # fmt: skip
    model, found, wanted = both(proto, inputs(rng, nan=True))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.booleans())
def test_binary_tree_classifiers(seed: int, count: int, depth: int, votes: bool, base: bool) -> None:
    rng = np.random.default_rng(seed)
    table = trees(rng, count, depth, ["BRANCH_LEQ"], False)
    ends = leaves(table)
    weights = (rng.uniform(0, 1 / count, len(ends)) if votes else rng.normal(size=len(ends))).astype(np.float32)
    if not votes:
        weights[0] = -abs(weights[0])
    extra = {"base_values": [0.25]} if base else {}
    proto = model_of(
        "TreeEnsembleClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("p", onnx.TensorProto.FLOAT, ["N", 2])],
        class_treeids=[t for t, _ in ends], class_nodeids=[n for _, n in ends], class_ids=[0] * len(ends),
        class_weights=weights.tolist(), classlabels_int64s=[0, 1], post_transform="NONE" if votes else "LOGISTIC", **table, **extra,
    )  # fmt: skip
    model, found, wanted = both(proto, inputs(rng, nan=False))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 4), MODES, st.integers(1, 3), st.sampled_from(HOWS), st.booleans())
def test_tree_regressors(seed: int, count: int, depth: int, modes: list[str], targets: int, how: str, base: bool) -> None:
    rng = np.random.default_rng(seed)
    table = trees(rng, count, depth, modes, False)
    ends = [(t, n, c) for t, n in leaves(table) for c in range(targets)]
    extra = {"base_values": rng.normal(size=targets).astype(np.float32).tolist()} if base else {}
    proto = model_of(
        "TreeEnsembleRegressor", [("y", onnx.TensorProto.FLOAT, ["N", targets])], n_targets=targets, aggregate_function=how,
        target_treeids=[t for t, _, _ in ends], target_nodeids=[n for _, n, _ in ends], target_ids=[c for _, _, c in ends],
        target_weights=rng.normal(size=len(ends)).astype(np.float32).tolist(), **table, **extra,
    )  # fmt: skip
    model, found, wanted = both(proto, inputs(rng, nan=False))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


@pytest.mark.parametrize("change", ["cycle", "stranger", "two_roots", "short"])
def test_what_is_no_forest_stays_an_operator_or_is_refused(change: str) -> None:
    rng = np.random.default_rng(0)
    table = trees(rng, 1, 3, ["BRANCH_LEQ"], False)
    inner = table["nodes_modes"].index("BRANCH_LEQ")
    if change == "cycle":
        table["nodes_truenodeids"][inner] = table["nodes_nodeids"][inner]
    elif change == "stranger":
        table["nodes_truenodeids"][inner] = 999
    elif change == "two_roots":
        table["nodes_truenodeids"][inner] = table["nodes_falsenodeids"][inner]
    else:
        table["nodes_values"].pop()
    ends = leaves(table)
    proto = model_of(
        "TreeEnsembleRegressor", [("y", onnx.TensorProto.FLOAT, ["N", 1])], n_targets=1,
        target_treeids=[t for t, _ in ends], target_nodeids=[n for _, n in ends], target_ids=[0] * len(ends),
        target_weights=[1.0] * len(ends), **table,
    )  # fmt: skip
    try:
        model = load(proto)
    except GatewrightError:
        return
    assert [node.op_type for node in model.graph] == ["TreeEnsembleRegressor"]


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_linear_classifiers(post: str) -> None:
    rng = np.random.default_rng(1)
    proto = model_of(
        "LinearClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("p", onnx.TensorProto.FLOAT, ["N", 3])], version=1,
        coefficients=rng.normal(size=3 * FEATURES).tolist(), intercepts=rng.normal(size=3).tolist(), classlabels_ints=[5, 6, 9],
        post_transform=post,
    )  # fmt: skip
    model, found, wanted = both(proto, rng.normal(size=(30, FEATURES)).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


def test_linear_regressors_scalers_and_normalizers() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, FEATURES)).astype(np.float32)
    x[3] = 0
    float_out = onnx.TensorProto.FLOAT
    rows = [0.5, -1.0, 2.0, 3.0, 1.0, 1.0, -2.0, 4.0]
    cases = [
        model_of("LinearRegressor", [("y", float_out, ["N", 2])], 1, coefficients=rows, intercepts=[1.0, 2.0], targets=2),
        model_of("Scaler", [("y", float_out, ["N", 4])], 1, offset=[1.0, 2.0, 3.0, 4.0], scale=[0.5, 0.25, 2.0, 1.0]),
        model_of("Normalizer", [("y", float_out, ["N", 4])], 1, norm="L1"),
        model_of("Normalizer", [("y", float_out, ["N", 4])], 1, norm="L2"),
    ]
    for proto in cases:
        model, found, wanted = both(proto, x)
        assert all(node.domain == "" for node in model.graph), proto.graph.node[0].op_type
        assert_equal(found, wanted)


@pytest.mark.parametrize("kernel", ["LINEAR", "POLY", "RBF", "SIGMOID"])
@pytest.mark.parametrize("classes", [3, 4])
def test_support_vector_classifiers(kernel: str, classes: int) -> None:
    rng = np.random.default_rng(classes)
    counts = [3, 2, 4, 1][:classes]
    total, pairs = sum(counts), classes * (classes - 1) // 2
    proto = model_of(
        "SVMClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("s", onnx.TensorProto.FLOAT, ["N", pairs])], 1,
        coefficients=rng.normal(size=(classes - 1) * total).tolist(), support_vectors=rng.normal(size=total * FEATURES).tolist(),
        vectors_per_class=counts, rho=rng.normal(size=pairs).tolist(), kernel_type=kernel, kernel_params=[0.5, 0.25, 3.0],
        classlabels_ints=list(range(classes)), post_transform="NONE",
    )  # fmt: skip
    model, found, wanted = both(proto, rng.normal(size=(40, FEATURES)).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


def test_probabilities_of_support_vectors_are_those_of_libsvm() -> None:
    rng = np.random.default_rng(5)
    counts = [3, 2, 4]
    proto = model_of(
        "SVMClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("p", onnx.TensorProto.FLOAT, ["N", 3])], 1,
        coefficients=rng.normal(size=18).tolist(), support_vectors=rng.normal(size=9 * FEATURES).tolist(), vectors_per_class=counts,
        rho=rng.normal(size=3).tolist(), kernel_type="RBF", kernel_params=[0.5, 0.0, 3.0], classlabels_ints=[0, 1, 2],
        prob_a=[-1.5, -0.7, -2.0], prob_b=[0.1, 0.0, -0.2], post_transform="NONE",
    )  # fmt: skip
    model, found, wanted = both(proto, rng.normal(size=(40, FEATURES)).astype(np.float32))
    assert [node.op_type for node in model.graph] == ["SVMClassifier"], "iterations are no tensor operations"
    assert_equal(found, wanted)


def test_support_vector_regressors() -> None:
    rng = np.random.default_rng(6)
    proto = model_of(
        "SVMRegressor", [("y", onnx.TensorProto.FLOAT, ["N", 1])], 1, coefficients=rng.normal(size=5).tolist(), n_supports=5,
        support_vectors=rng.normal(size=5 * FEATURES).tolist(), rho=[0.3], kernel_type="RBF", kernel_params=[0.5, 0.0, 3.0],
    )  # fmt: skip
    model, found, wanted = both(proto, rng.normal(size=(40, FEATURES)).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)
