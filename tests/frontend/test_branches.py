"""If becomes what every target runs where it can, and stays, with its graphs, where it cannot."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from gatewright.frontend.canonicalize import check_canonical
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference


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
