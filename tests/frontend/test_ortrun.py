"""ONNX Runtime as a tool: feeds that do not fit are errors, and nothing depends on how an array lies in memory."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from gatewright.errors import DataError, ModelError
from gatewright.frontend import ortrun
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession


@pytest.fixture
def model() -> Model:
    body = "g (float[2,3] x, float s) => (float[2,3] y) { y = Mul(x,s) }"
    return load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {body}'))


def test_runs(model: Model) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2).T
    assert not x.flags.c_contiguous
    found = OrtSession(model).run({"x": x, "s": np.asarray(2, np.float32)})
    np.testing.assert_array_equal(found["y"], 2 * x)


def test_bad_feeds(model: Model) -> None:
    session = OrtSession(model)
    with pytest.raises(DataError, match="no array for input 's'"):
        session.run({"x": np.zeros((2, 3), np.float32)})
    with pytest.raises(DataError, match="do not fit"):
        session.run({"x": np.zeros((2, 4), np.float32), "s": np.asarray(2, np.float32)})


def test_bad_model() -> None:
    with pytest.raises(ModelError, match="ONNX Runtime refuses the model"):
        OrtSession(b"nonsense")


def test_a_model_past_protobufs_limit_goes_through_a_file(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ortrun, "_INLINE_BYTES", -1)
    found = OrtSession(model).run({"x": np.ones((2, 3), np.float32), "s": np.asarray(2, np.float32)})
    np.testing.assert_array_equal(found["y"], np.full((2, 3), 2, np.float32))


def test_a_transposed_matrix_times_a_vector() -> None:
    """Its optimizer takes the transposition into the product, which it then computes wrongly (seen in 1.31)."""
    body = "g (float[3,8,7] x, float[8] v) => (float[3,7] y) { t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(t, v) }"
    random = np.random.default_rng(0)
    x, v = random.normal(size=(3, 8, 7)).astype(np.float32), random.normal(size=8).astype(np.float32)
    found = OrtSession(load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {body}'))).run({"x": x, "v": v})
    np.testing.assert_allclose(found["y"], x.transpose(0, 2, 1) @ v, rtol=1e-4, atol=1e-5)


def test_a_factor_of_doubles_stays_double() -> None:
    """Fused into the product it would be a float32 (seen in 1.31)."""
    body = "g (double[2,3] x) => (double[2,2] y) <double[3,2] w = {1,2,3,4,5,6}, double f = {0.7}> { p = MatMul(x, w) y = Mul(p, f) }"
    x = np.array([[1, -2, 0.3], [0.1, 5, 1]])
    found = OrtSession(load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {body}'))).run({"x": x})
    np.testing.assert_allclose(found["y"], x @ np.arange(1.0, 7).reshape(3, 2) * 0.7, rtol=1e-14)


def test_a_transposed_matrix_of_halves() -> None:
    """Its optimizer ends the process over this one (seen in 1.31): so would this test."""
    body = "g (float16[3,2,2] x) => (float16[2,2,4] y) <float16[3,4] w = {15360,0,0,0,0,15360,0,0,0,0,15360,0}> "
    body += "{ t = Transpose<perm = [1, 2, 0]>(x) y = MatMul(t, w) }"
    x = np.arange(12, dtype=np.float16).reshape(3, 2, 2)
    found = OrtSession(load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {body}'))).run({"x": x})
    assert np.array_equal(found["y"][..., :3], x.transpose(1, 2, 0))
