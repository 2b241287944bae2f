"""If becomes what every target runs where it can, and stays, with its graphs, where it cannot."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from gatewright.frontend import branches
from gatewright.frontend.canonicalize import check_canonical
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.runtime.cli import app


def model_of(then: str, other: str, inputs: str = "float[2,3] x, bool c", output: str = "float[2,3] y", more: str = "") -> Model:
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({output}) {more} '
        f"{{ t = Add(x, x) y = If (c) <then_branch = g1 () => (float[2,3] p) {{ {then} }}, "
        f"else_branch = g2 () => (float[2,3] q) {{ {other} }}> }}"
    )
    return load(onnx.parser.parse_model(text))


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("shape", ["", "[1]"])
def test_two_cheap_branches_are_both_computed_and_one_is_taken(shape: str) -> None:
    model = model_of("p = Relu(t)", "n = Neg(t) q = Sqrt(n)", inputs=f"float[2,3] x, bool{shape} c")
    check_canonical(model.ir)
    assert "If" not in operators(model)
    assert "Where" in operators(model)
    x = np.array([[-1.0, 2, -3], [4, -5, 6]], np.float32)
    with np.errstate(invalid="ignore"):
        root = np.sqrt(-2 * x)
    for taken, wanted in ((True, np.maximum(2 * x, 0)), (False, root)):
        with np.errstate(invalid="ignore"):
            found = Reference(model).run({"x": x, "c": np.full([1] if shape else [], taken)})["y"]
        np.testing.assert_array_equal(found, wanted)


def test_what_the_other_branch_makes_of_it_goes_nowhere() -> None:
    """Logarithms of negative numbers, divisions by zero: NaN and infinity in every value that is not taken."""
    model = model_of("p = Relu(t)", "z = Sub(t, t) n = Log(z) q = Div(n, z)")
    assert "If" not in operators(model)
    x = np.array([[-1.0, 2, -3], [4, -5, 6]], np.float32)
    with np.errstate(all="ignore"):
        found = Reference(model).run({"x": x, "c": np.asarray(True)})["y"]
    np.testing.assert_array_equal(found, np.maximum(2 * x, 0))


def test_convolutions_of_other_sizes_inside() -> None:
    """Each branch has shapes of its own on the way: with a stride, and with a dilation."""
    weights = "<float[2,1,3] v = {1, 2, 3, -1, 0, 2}, float[2,1,2] w = {0.5, 1, -1, 2}>"
    strided, dilated = "a = Conv<strides = [2]>(x, v) p = ReduceSum(a, i)", "b = Conv<dilations = [4]>(x, w) q = ReduceSum(b, i)"
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,9] x, bool c) => (float[1,2,1] y) '
        f"{weights[:-1]}, int64[1] i = {{2}}> {{ y = If (c) <then_branch = g1 () => (float[1,2,1] p) {{ {strided} }}, "
        f"else_branch = g2 () => (float[1,2,1] q) {{ {dilated} }}> }}"
    )
    proto = onnx.parser.parse_model(text)
    model, session = load(proto), onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert "If" not in operators(model)
    (note,) = model.history[0].notes
    assert "both branches" in note
    # 2 x 4 sums of 3 and 2 x 5 of 2, and the two sums of each.
    assert "48 operations instead of 26 at most" in note
    x = np.random.default_rng(0).normal(size=(1, 1, 9)).astype(np.float32)
    for taken in (True, False):
        feeds = {"x": x, "c": np.asarray(taken)}
        np.testing.assert_allclose(Reference(model).run(feeds)["y"], session.run(None, feeds)[0], rtol=1e-5, atol=1e-6)


UNFIT = {
    "a branch that these sizes never reach": ("p = Identity(t)", "k = Constant<value = int64[2] {7, 2}>() r = Reshape(t, k) q = Relu(r)"),
    "results of two shapes": ("p = Identity(t)", "i = Constant<value = int64[1] {0}>() q = ReduceSum(t, i)"),
    "a shape that depends on data": ("p = Identity(t)", "n = NonZero(t) f = Cast<to = 1>(n) s = ReduceSum<keepdims = 0>(f) q = Add(t, s)"),
    "much to compute": ("p = Identity(t)", "a = MatMul(w, w) b = MatMul(a, a) s = ReduceMax(b) q = Add(t, s)"),
}


@pytest.mark.parametrize("why", UNFIT)
def test_a_branch_that_does_not_fit_stays_a_branch(why: str) -> None:
    then, other = UNFIT[why]
    inputs = "float[2,3] x, bool c, float[256,256] w"
    model = model_of(then, other, inputs)
    assert "If" in operators(model)
    assert not model.history[0].notes
    found = Reference(model).run({"x": np.ones((2, 3), np.float32), "c": np.asarray(True), "w": np.ones((256, 256), np.float32)})["y"]
    np.testing.assert_array_equal(found, np.full((2, 3), 2))


def test_a_known_condition_leaves_its_branch_alone() -> None:
    model = model_of("p = Relu(t)", "q = Tanh(t)", inputs="float[2,3] x", more="<bool c = {1}>")
    assert operators(model) == ["Add", "Relu"]


FAILING = {
    "an index that may be out of range": ("p = Identity(t)", "q = Gather(t, i)", "float[2,3] x, bool c, int64[2] i"),
    "a random number": ("p = Identity(t)", "q = RandomNormalLike(t)", "float[2,3] x, bool c"),
}


@pytest.mark.parametrize("why", FAILING)
def test_a_branch_that_can_fail_stays_a_branch(why: str) -> None:
    then, other, inputs = FAILING[why]
    assert "If" in operators(model_of(then, other, inputs))


def test_the_reference_runs_only_the_branch_that_is_taken() -> None:
    then, other, inputs = FAILING["an index that may be out of range"]
    feeds = {"x": np.ones((2, 3), np.float32), "i": np.array([0, 7])}
    reference = Reference(model_of(then, other, inputs))
    np.testing.assert_array_equal(reference.run({**feeds, "c": np.asarray(True)})["y"], np.full((2, 3), 2))
    with pytest.raises(IndexError):
        reference.run({**feeds, "c": np.asarray(False)})


def test_a_branch_that_costs_much_stays_a_branch() -> None:
    dims = "float[2,3] x, bool c, float[3,400000] w, float[400000,3] v"
    assert "If" in operators(model_of("p = Relu(t)", "m = MatMul(t, w) q = MatMul(m, v)", dims))


def nested(level: int, result: str) -> str:
    """An If whose else branch is another one, so many times, and at last what cannot be computed in vain."""
    if not level:
        return f"n = NonZero(t) f = Cast<to = 1>(n) s = ReduceSum<keepdims = 0>(f) {result} = Add(t, s)"
    inner = nested(level - 1, f"q{level}")
    return (
        f"{result} = If (c) <then_branch = a{level} () => (float[2,3] p{level}) {{ p{level} = Identity(t) }}, "
        f"else_branch = b{level} () => (float[2,3] q{level}) {{ {inner} }}>"
    )


def test_ifs_in_ifs_take_no_longer_than_there_are() -> None:
    """Each level looked into by every round of each level around it would be 3¹⁴ times and more."""
    began = time.monotonic()
    model = model_of("p = Relu(t)", nested(14, "q"))
    assert time.monotonic() - began < 20
    assert "If" in operators(model)


def test_a_branch_is_looked_into_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    cost = branches._cost
    monkeypatch.setattr(branches, "_cost", lambda *given: asked.append(given[1]) or cost(*given))
    assert "If" in operators(model_of(*UNFIT["much to compute"], "float[2,3] x, bool c, float[256,256] w"))
    assert asked == ["then_branch", "else_branch"]


def test_inspect_tells_what_is_computed_in_vain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model_of("p = Relu(t)", "q = Neg(t)").save(tmp_path / "two.onnx")
    with pytest.raises(SystemExit):
        app(["inspect", str(tmp_path / "two.onnx")])
    assert "both branches" in " ".join(capsys.readouterr().out.split())
