"""Forests as integer products: read back as they are, right to the step of a feature, equal on every target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gatewright as gw
from gatewright.errors import DoesNotFit, UsageError
from gatewright.frontend.batch import with_batch
from gatewright.frontend.integer import plan
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.walked import Tree, walks
from gatewright.passes import trees as trees_pass
from gatewright.targets.rtl.interpret import run as interpret
from gatewright.targets.rtl.lower import lower

FEATURES, OUTPUTS = 4, 3
MODES = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT"]
Array = np.ndarray
SHARED = [("skl_iris_rf_zipmap", "sk_iris"), ("skl_breast_gbc", "sk_breast_cancer"), ("skl_digits_rf", "sk_digits")]


def forest(seed: int, count: int, depth: int, mode: str = "BRANCH_LEQ", grid: float = 0.5, missing: bool = False) -> Model:
    """A regressor whose thresholds lie on a grid; leaves at different depths, in steps of 1/16."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[Any, ...]] = []
    ends: list[tuple[int, int, int, float]] = []

    def grow(tree: int, level: int, numbers: Any) -> int:
        own = next(numbers)
        if level == depth or (level and rng.random() < 0.3):
            rows.append((tree, own, "LEAF", 0, 0.0, 0, 0, 0))
            ends.extend((tree, own, column, float(rng.integers(-30, 31)) / 16) for column in range(OUTPUTS))
            return own
        feature, value = int(rng.integers(FEATURES)), float(rng.integers(-8, 9)) * grid
        yes, no = grow(tree, level + 1, numbers), grow(tree, level + 1, numbers)
        rows.append((tree, own, mode, feature, value, yes, no, int(missing)))
        return own

    for tree in range(count):
        grow(tree, 0, iter(range(1000)))
    rows.sort()
    names = ("treeids", "nodeids", "modes", "featureids", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")
    table = {f"nodes_{name}": list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    leaves = dict(zip(("treeids", "nodeids", "ids", "weights"), map(list, zip(*ends, strict=True)), strict=True))
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", name="it", n_targets=OUTPUTS,
        **table, **{f"target_{name}": column for name, column in leaves.items()},
    )  # fmt: skip
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", w]) for n, w in (("x", FEATURES), ("y", OUTPUTS)))
    graph = onnx.helper.make_graph([node], "forest", [x], [y])
    imports = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("ai.onnx.ml", 3)]
    return load(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))


def run(model: Model, x: Array) -> Array:
    return Reference(with_batch(model, len(x))).run({"x": x})["y"]


def samples(seed: int, grid: float = 0.5) -> Array:
    """On the thresholds' grid, between its points, and far outside."""
    rng = np.random.default_rng(seed)
    on = rng.integers(-10, 11, (60, FEATURES)) * grid
    return np.concatenate([on, on + grid / 4, on - grid / 4, rng.choice([-1e6, 1e6], (20, FEATURES))]).astype(np.float32)


def walked(trees: tuple[Tree, ...], x: Array) -> Array:
    """What the trees add, by the definition of a path: every answer on a leaf's way is right."""
    total = np.zeros((len(x), OUTPUTS))
    for tree in trees:
        says = x[:, tree.feature] <= tree.threshold
        reached = np.all((tree.path[None] == 0) | ((tree.path[None] > 0) == says[:, :, None]), axis=1)
        assert np.all(reached.sum(axis=1) == 1)
        total += reached @ tree.values
    return total


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 5), st.sampled_from(["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GT"]), st.booleans()
)
def test_a_walk_is_read_back(seed: int, count: int, depth: int, mode: str, missing: bool) -> None:
    model, x = forest(seed, count, depth, mode, missing=missing), samples(seed)
    (walk,) = walks(model.graph)
    assert len(walk.trees) == count
    np.testing.assert_allclose(walked(walk.trees, x), run(model, x), rtol=1e-6, atol=1e-6)


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 5), st.sampled_from(MODES), st.sampled_from([0.5, 3.0, 0.1, 700.0]),
)  # fmt: skip
def test_every_leaf_is_right_where_a_step_tells_the_numbers_apart(seed: int, count: int, depth: int, mode: str, grid: float) -> None:
    model, x = forest(seed, count, depth, mode, grid), samples(seed, grid)
    if not any(len(tree.feature) for walk in walks(model.graph) for tree in walk.trees):
        return
    small = gw.transform(model, "trees")
    assert not any(walks(small.graph))
    # Leaves are sixteenths below 2, which 8 bits of a power of two hold: the sums are exact.
    assert np.array_equal(run(small, x), run(model, x))
    assert {op.kind for op in plan(small).integer_ops} <= {"matmul", "concat"}


@pytest.mark.parametrize("where", ["questions", "paths"])
def test_a_wrong_constant_is_seen(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Thresholds and numbers on one grid, whose points are the steps: nothing is nearer.
    model, x = forest(3, 5, 4), samples(3)[:60]
    whole = trees_pass._Forest._layer
    assert np.array_equal(run(gw.transform(model, "trees{bits=5}"), x), run(model, x))

    def off_by_one(self: Any, value: Any, weight: Array, bias: Array, grid: Any) -> Any:
        planted = (weight.min() == -1 and weight.max() == 0) == (where == "questions")
        return whole(self, value, weight, bias + planted, grid)

    monkeypatch.setattr(trees_pass._Forest, "_layer", off_by_one)
    assert not np.array_equal(run(gw.transform(model, "trees{bits=5}"), x), run(model, x))


def test_targets_agree() -> None:
    model, x = forest(11, 6, 4), samples(11)
    small = gw.transform(model, "trees{bits=6}")
    wanted = run(small, x)
    art = gw.compile(small, "cpu")
    with art.load() as exe:
        assert np.array_equal(exe.run({"x": x})["y"], wanted)
    network, parts = lower(with_batch(small, 1))
    assert parts.host_pre is not None
    assert [node.op_type for node in parts.host_pre.graph] == ["Sub", "Mul", "Clip", "QuantizeLinear", "Clip"]
    (name,) = parts.inputs
    entering = Reference(with_batch(parts.host_pre, len(x))).run({"x": x})[name]
    (core,) = Reference(with_batch(parts.core_model, len(x))).run({name: entering}).values()
    assert np.array_equal(interpret(network, [entering.astype(np.int64)])[0].reshape(core.shape), core)


def test_layers_stay_within_what_is_unrolled() -> None:
    tree = Tree(np.zeros(15, int), np.zeros(15), np.zeros((15, 16), np.int8), np.zeros((16, 1)))
    groups = list(trees_pass.grouped([tree] * 30, 4))
    assert sum(map(len, groups)) == 30
    assert all(15 * len(g) * 16 * len(g) <= trees_pass.UNROLLED for g in groups)
    assert len(list(trees_pass.grouped([tree] * 3, 10_000))) == 3
    large = Tree(np.zeros(1, int), np.zeros(1), np.broadcast_to(np.int8(0), (5000, 5001)), np.zeros((5001, 1)))
    with pytest.raises(gw.GatewrightError, match="tree 0 has 5000 comparisons") as error:
        list(trees_pass.grouped([large], 4))
    assert "max_depth" in str(error.value.hint)


def test_what_is_lost_is_told() -> None:
    fine = forest(5, 8, 4, grid=1e-3)
    assert not any("more bits" in note for note in gw.transform(fine, "trees").history[-1].notes)
    assert any("more bits" in note for note in gw.transform(fine, "trees{bits=3}").history[-1].notes)
    assert any("NaN" in note for note in gw.transform(forest(5, 2, 3, missing=True), "trees").history[-1].notes)
    with pytest.raises(UsageError, match="2 to 16"):
        gw.transform(fine, "trees{bits=17}")


def test_quantize_takes_trees_too() -> None:
    model = forest(7, 4, 3)
    data = gw.Dataset({"x": samples(7)})
    small = gw.transform(model, "fuse,quantize{bits=6,grid=pow2}", data)
    assert np.array_equal(run(small, samples(7)), run(gw.transform(model, "trees{bits=6,leaf_bits=6}"), samples(7)))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), SHARED[:1])
def test_a_forest_on_an_fpga(name: str, data: str, shared_model: Callable[[str], Path], shared_data: Callable[[str], Path]) -> None:
    """Emulated by the design's own C++: every sample as the reference has it, and labels as scikit-learn's."""
    model, held = load(shared_model(f"{name}.onnx")), gw.Dataset.load(shared_data(f"{data}.npz"))
    small = gw.transform(model, "trees")
    feeds = held.feeds(small.inputs)
    wanted = Reference(with_batch(small, len(held))).run(feeds)
    with gw.compile(small, "hls:pynq-z2").load("emulate") as exe:
        found = exe.run(feeds)
    assert all(np.array_equal(found[key], wanted[key]) for key in wanted)
    label = model.outputs[0].name
    assert np.array_equal(found[label], Reference(with_batch(model, len(held))).run(feeds)[label])


@pytest.mark.slow
def test_a_forest_that_is_too_large_is_refused(shared_model: Callable[[str], Path]) -> None:
    small = gw.transform(load(shared_model("skl_digits_rf.onnx")), "trees")
    with pytest.raises(DoesNotFit, match="does not fit"):
        gw.compile(small, "hls:pynq-z2")
