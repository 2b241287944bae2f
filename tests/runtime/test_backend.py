"""ONNX's Backend API: what it runs, for which values it compiles, what falls back with a note, and what it refuses."""

from __future__ import annotations

import unittest

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.backend.test import BackendTest

import gatewright.backend as backend
from gatewright.errors import DataError, UnsupportedError, UsageError

X = np.array([[-1, 2, 3], [4, -5, 6]], np.float32)


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {text}')


RESHAPE = "(float[2,3] x, int64[2] s) => (float[a,b] y) { y = Reshape(x, s) }"
NONZERO = "(float[2,3] x) => (int64[2,n] y) { y = NonZero(x) }"


def test_a_node() -> None:
    (found,) = backend.of("ref").run_node(helper.make_node("Relu", ["x"], ["y"]), [X])
    np.testing.assert_array_equal(found, np.maximum(X, 0))
    (found,) = backend.of("ref").run_node(helper.make_node("ReduceSum", ["x"], ["y"], axes=[0]), [X], opset_version=11)
    np.testing.assert_array_equal(found, X.sum(axis=0, keepdims=True))


def test_a_model_on_target_cpu() -> None:
    text = "(float[2,3] x, float[3] z) => (float[2,3] y) { y = Add(x, z) }"
    prepared = backend.prepare(model(text))
    (found,) = prepared.run([X, np.ones(3, np.float32)])
    np.testing.assert_array_equal(found, X + 1)
    assert prepared.notes == ()
    (by_name,) = prepared.run({"x": X, "z": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(by_name, X)


def test_a_shape_among_the_inputs() -> None:
    prepared = backend.of("ref").prepare(model(RESHAPE))
    for shape in ([3, 2], [6, 1], [3, 2]):
        (found,) = prepared.run([X, np.array(shape)])
        np.testing.assert_array_equal(found, X.reshape(shape))
        assert prepared.notes == ("compiled for the values of s",)


def test_weights_that_a_target_wants_constant() -> None:
    text = "(float[1,2,4,4] x, float[3,2,3,3] w) => (float[1,3,2,2] y) { y = Conv(x, w) }"
    prepared = backend.of("cpu{fallback=none}").prepare(model(text))
    x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((3, 2, 3, 3), np.float32)
    np.testing.assert_array_equal(prepared.run([x, w])[0], np.full((1, 3, 2, 2), 18, np.float32))
    assert prepared.notes == ("compiled for the values of w",)


def test_shapes_that_depend_on_data() -> None:
    prepared = backend.prepare(model(NONZERO))
    np.testing.assert_array_equal(prepared.run([X])[0], np.stack(np.nonzero(X)))
    assert prepared.notes[0].startswith("the whole model runs on ONNX Runtime: node")
    with pytest.raises(UnsupportedError, match=r"cpu\{fallback=none\} takes models of known shapes: .*NonZero"):
        backend.of("cpu{fallback=none}").prepare(model(NONZERO))
    assert not backend.of("ref").is_compatible(model(NONZERO))
    assert backend.is_compatible(model(NONZERO))


def test_an_engine_that_fails_when_it_runs_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no")

    prepared = backend.prepare(model(NONZERO))
    monkeypatch.setattr(onnxruntime.InferenceSession, "run", fail)
    np.testing.assert_array_equal(prepared.run([X])[0], np.stack(np.nonzero(X)))
    assert prepared.notes[0].startswith("the whole model runs on onnx's reference evaluator")


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(UsageError, match="CUDA"):
        backend.prepare(model(NONZERO), "CUDA")
    with pytest.raises(UsageError, match="there is no target 'nope'"):
        backend.of("nope")
    with pytest.raises(DataError, match="the model takes 2 inputs"):
        backend.of("ref").prepare(model(RESHAPE)).run([X])
    assert backend.supports_device("CPU")
    assert not backend.supports_device("TPU")


def test_onnx_runs_its_own_tests() -> None:
    """Through onnx's runner, as it would for any backend."""
    cases = BackendTest(backend.of("ref"), __name__).include(r"^test_(relu|gather_0|conv_with_strides_padding|matmul_2d)_cpu$")
    suite = unittest.TestSuite(
        unittest.defaultTestLoader.loadTestsFromTestCase(case) for name, case in cases.test_cases.items() if "NodeModel" in name
    )
    result = unittest.TestResult()
    suite.run(result)
    assert (result.testsRun - len(result.skipped), result.failures, result.errors) == (4, [], [])
