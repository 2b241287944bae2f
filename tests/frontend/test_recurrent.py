"""Recurrent nodes written out give what ONNX Runtime's own kernels give."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from gatewright.frontend.batch import batch_reason
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.recurrent import written_out
from gatewright.frontend.reference import Reference

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, IN, HIDDEN = 5, 2, 3, 4


def recurrent(
    op: str, *, directions: int = 1, bias: bool = True, state: bool = False, peepholes: bool = False, **attributes: object
) -> Model:
    """A model of one node with random weights: x [5, 2, 3], outputs y [5, directions, 2, 4] and the last states."""
    rng, gates = np.random.default_rng(0), GATES[op]

    def random(*shape: int) -> np.ndarray:
        return rng.normal(scale=0.5, size=shape).astype(np.float32)

    given: dict[str, np.ndarray] = {"w": random(directions, gates * HIDDEN, IN), "r": random(directions, gates * HIDDEN, HIDDEN)}
    names = ["x", "w", "r", "b" if bias else "", "", "h" if state else "", "c" if state and op == "LSTM" else "", "p" if peepholes else ""]
    if bias:
        given["b"] = random(directions, 2 * gates * HIDDEN)
    if peepholes:
        given["p"] = random(directions, 3 * HIDDEN)
    for name in ("h", "c"):
        if name in names:
            given[name] = random(directions, BATCH, HIDDEN)
    while not names[-1]:
        names.pop()
    outputs = ["y", "y_h", "y_c"][: 3 if op == "LSTM" else 2]
    node = helper.make_node(op, names, outputs, hidden_size=HIDDEN, **attributes)
    shapes = [[STEPS, directions, BATCH, HIDDEN], *[[directions, BATCH, HIDDEN]] * 2]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [STEPS, BATCH, IN])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in zip(outputs, shapes, strict=False)],
        [numpy_helper.from_array(array, name) for name, array in given.items()],
    )  # fmt: skip
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(
    "form",
    [
        {}, {"bias": False}, {"state": True}, {"direction": "reverse"}, {"direction": "bidirectional", "directions": 2, "state": True},
    ],
    ids=["plain", "no bias", "initial state", "reverse", "bidirectional"],
)  # fmt: skip
def test_the_same_as_the_node(op: str, form: dict[str, object]) -> None:
    check(recurrent(op, **form))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "form"),
    [("GRU", {"linear_before_reset": 1}), ("LSTM", {"peepholes": True}), ("LSTM", {"activations": ["Sigmoid", "Relu", "Softsign"]})],
)
def test_other_forms(op: str, form: dict[str, object]) -> None:
    check(recurrent(op, **form))  # type: ignore[arg-type]


def check(model: Model) -> None:
    made = written_out(model)
    assert not set(GATES) & {node.op_type for node in made.graph}
    feeds = {"x": np.random.default_rng(1).normal(size=(STEPS, BATCH, IN)).astype(np.float32)}
    wanted = OrtSession(model, optimize=False).run(feeds)
    for name, found in Reference(made).run(feeds).items():
        np.testing.assert_allclose(found, wanted[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", [{"clip": 1.0}, {"activations": ["Elu", "Tanh"]}])
def test_what_is_not_written_out_stays(form: dict[str, object]) -> None:
    model = recurrent("GRU", **form)  # type: ignore[arg-type]
    assert written_out(model) is model


def test_a_long_sequence_stays() -> None:
    text = "(float[4000,1,3] x, float[1,1,3] w, float[1,1,1] r) => (float[4000,1,1,1] y) { y = RNN<hidden_size = 1>(x, w, r) }"
    model = load(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}'))
    assert written_out(model) is model


def test_no_axis_is_taken_for_the_samples_that_was_not() -> None:
    body = "{ t = Transpose<perm = [1,0,2]>(x) all, h = RNN<hidden_size = 4>(t, w, r) }"
    text = f"(float[1,5,3] x, float[1,4,3] w, float[1,4,4] r) => (float[1,1,4] h) {body}"
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')
    for name in ("w", "r"):
        shape = next([d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input if v.name == name)
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    model = load(proto)
    assert (batch_reason(model) is None) == (batch_reason(written_out(model)) is None)
