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
from gatewright.frontend import machines, svm
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


KERNELS = ["LINEAR", "POLY", "RBF", "SIGMOID"]


def machine(kernel: str, classes: int, probable: bool, post: str = "NONE", sharp: float = 1.0, dtype: int = 1) -> onnx.ModelProto:
    """An SVMClassifier of random vectors; ``sharp`` makes its pairwise probabilities nearly 0 and 1."""
    rng = np.random.default_rng(classes)
    counts = ([3, 2, 4, 1] * 6)[:classes]
    total, pairs = sum(counts), classes * (classes - 1) // 2
    platt = {"prob_a": (-sharp * rng.uniform(0.5, 3, pairs)).tolist(), "prob_b": rng.normal(size=pairs).tolist()} if probable else {}
    proto = model_of(
        "SVMClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("s", onnx.TensorProto.FLOAT, ["N", None])], 1,
        coefficients=rng.normal(size=(classes - 1) * total).tolist(), support_vectors=rng.normal(size=total * FEATURES).tolist(),
        vectors_per_class=counts, rho=rng.normal(size=pairs).tolist(), kernel_type=kernel, kernel_params=[0.5, 0.25, 3.0],
        classlabels_ints=[3 * c + 1 for c in range(classes)], post_transform=post, **platt,
    )  # fmt: skip
    proto.graph.input[0].type.tensor_type.elem_type = dtype
    return proto


@pytest.mark.parametrize("probable", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_support_vector_classifiers(kernel: str, classes: int, probable: bool) -> None:
    proto = machine(kernel, classes, probable)
    model, found, wanted = both(proto, np.random.default_rng(1).normal(size=(400, FEATURES)).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


@pytest.mark.parametrize("post", ["LOGISTIC", "SOFTMAX"])
@pytest.mark.parametrize(("classes", "probable"), [(2, True), (3, True), (3, False)])
def test_scores_of_support_vectors_are_transformed(post: str, classes: int, probable: bool) -> None:
    model, found, wanted = both(machine("RBF", classes, probable, post), np.eye(FEATURES, dtype=np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_probabilities_of_decided_pairs(classes: int) -> None:
    """Pairwise probabilities at their bounds, where the matrix has entries of 1e-14 beside 1: other orders of sums show most there."""
    proto = machine("LINEAR", classes, True, sharp=40.0)
    x = 3 * np.random.default_rng(2).normal(size=(400, FEATURES)).astype(np.float32)
    _, found, wanted = both(proto, x)
    np.testing.assert_array_equal(found["y"], wanted[0])
    np.testing.assert_allclose(found["s"], wanted[1], atol=2e-5)


def test_the_sweeps_that_are_written_out_suffice() -> None:
    """Of random pairwise probabilities, weak and sharp, of up to 12 classes: every one is at rest before the last sweep."""
    rng = np.random.default_rng(3)
    for classes in (2, 3, 5, 12):
        logits = rng.normal(size=(2000, classes, classes)) * rng.choice([0.5, 3.0, 15.0], size=(2000, 1, 1))
        upper = np.triu(np.clip(1 / (1 + np.exp(-logits)), svm.LEAST, 1 - svm.LEAST), 1)
        r = upper + np.tril(1 - upper.transpose(0, 2, 1), -1)
        last = (machines.SWEEPS if classes > 2 else machines.SWEEPS // 2) - 1
        np.testing.assert_array_equal(svm.coupled(r, last), svm.coupled(r))


def test_what_is_no_number_has_equal_probabilities() -> None:
    x = np.full((2, FEATURES), np.nan, np.float32)
    _, found, wanted = both(machine("RBF", 3, True), x)
    assert_equal(found, wanted)


@pytest.mark.parametrize("dtype", [onnx.TensorProto.DOUBLE, onnx.TensorProto.INT64])
def test_support_vectors_count_in_float32(dtype: int) -> None:
    x = np.random.default_rng(4).integers(-2, 3, (20, FEATURES)).astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    model, found, wanted = both(machine("RBF", 3, True, dtype=dtype), x)
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


def test_far_support_vectors_keep_their_distances() -> None:
    """|x - v|² of vectors around 3000: from |x|², x·v and |v|² nothing would be left of it."""
    proto = machine("RBF", 3, True)
    (vectors,) = (one for one in proto.graph.node[0].attribute if one.name == "support_vectors")
    vectors.floats[:] = [value + 3000 for value in vectors.floats]
    model, found, wanted = both(proto, (3000 + np.random.default_rng(5).normal(size=(40, FEATURES))).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


def test_linear_machines_without_vectors() -> None:
    rng = np.random.default_rng(6)
    proto = model_of(
        "SVMClassifier", [("y", onnx.TensorProto.INT64, ["N"]), ("s", onnx.TensorProto.FLOAT, ["N", 3])], 1, rho=[0.3],
        coefficients=rng.normal(size=3 * FEATURES).tolist(), classlabels_ints=[0, 1, 2], kernel_type="LINEAR",
        kernel_params=[0.0, 0.0, 3.0], post_transform="NONE",
    )  # fmt: skip
    model, found, wanted = both(proto, rng.normal(size=(40, FEATURES)).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)


@pytest.mark.parametrize("change", ["softmax of one decision", "no negative coefficient", "too many classes", "short"])
def test_machines_that_are_left_to_who_runs_the_operator(change: str) -> None:
    classes = machines.MOST_CLASSES + 1 if "many" in change else 2
    proto = machine("RBF", classes, probable="many" in change, post="SOFTMAX" if "softmax" in change else "NONE")
    (held,) = (one for one in proto.graph.node[0].attribute if one.name == "coefficients")
    if change == "no negative coefficient":
        held.floats[:] = [abs(value) for value in held.floats]
    elif change == "short":
        del held.floats[-1]
    assert [node.op_type for node in load(proto).graph] == ["SVMClassifier"]


def test_support_vector_regressors() -> None:
    rng = np.random.default_rng(6)
    proto = model_of(
        "SVMRegressor", [("y", onnx.TensorProto.FLOAT, ["N", 1])], 1, coefficients=rng.normal(size=5).tolist(), n_supports=5,
        support_vectors=rng.normal(size=5 * FEATURES).tolist(), rho=[0.3], kernel_type="RBF", kernel_params=[0.5, 0.0, 3.0],
    )  # fmt: skip
    model, found, wanted = both(proto, rng.normal(size=(40, FEATURES)).astype(np.float32))
    assert all(node.domain == "" for node in model.graph)
    assert_equal(found, wanted)
