"""Saving: a model appears whole or the one that was there stays, with its weights inside and with them beside it."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import graph

import gatewright as gw
from gatewright.errors import ModelError
from gatewright.frontend import model as model_module
from gatewright.frontend.mapped import place_of, reopened
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference


def _model(value: float) -> Model:
    return graph("(float[1,64] x) => (float[1,8] y) { y = MatMul(x, w) }", w=np.full((64, 8), value, np.float32))


def _output(model: Model) -> float:
    return float(Reference(model).run({"x": np.ones((1, 64), np.float32)})["y"][0, 0])


@pytest.fixture(params=["inside", "beside"])
def where(request, monkeypatch):
    monkeypatch.setattr(model_module, "INSIDE_BYTES", 1_500_000_000 if request.param == "inside" else 100)
    return request.param


def test_saved_models_load_back_and_are_replaced(where, tmp_path):
    path = tmp_path / "m.onnx"
    for value in (1.0, 2.0, 3.0):
        _model(value).save(path)
        assert _output(gw.load(path)) == 64 * value
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".tmp"] == []
    assert (tmp_path / "m.onnx.data").exists() == (where == "beside")


def test_a_model_loaded_from_a_file_can_be_saved_over_it(where, tmp_path):
    path = tmp_path / "m.onnx"
    _model(5.0).save(path)
    gw.load(path).save(path)
    assert _output(gw.load(path)) == 320


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failure_on_the_way_leaves_the_model_that_was_there(where, failing, tmp_path, monkeypatch):
    path = tmp_path / "m.onnx"
    _model(1.0).save(path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"gatewright.files.os.{failing}", full)
        with pytest.raises(ModelError, match="No space left on device"):
            _model(2.0).save(path)
    assert _output(gw.load(path)) == 64
    assert not list(tmp_path.glob("*.tmp"))


def test_a_file_of_weights_is_mapped_once(monkeypatch, tmp_path):
    """A contained process has 12 GiB of addresses: thirty maps of a file of 500 MB are more."""
    monkeypatch.setattr(model_module, "INSIDE_BYTES", 100)
    weights = {f"w{i}": np.full((8, 8), i, np.float32) for i in range(4)}
    chain = "a = MatMul(x, w0) b = MatMul(a, w1) c = MatMul(b, w2) y = MatMul(c, w3)"
    graph(f"(float[1,8] x) => (float[1,8] y) {{ {chain} }}", **weights).save(tmp_path / "m.onnx")
    with monkeypatch.context() as patched:
        patched.setattr(ir.ExternalTensor, "_load", None)
        found = reopened(tmp_path / "m.onnx").graph.initializers
    for name, wanted in weights.items():
        np.testing.assert_array_equal(found[name].const_value.numpy(), wanted)
    assert {place_of(found[name].const_value.numpy()).path for name in weights} == {str(tmp_path / "m.onnx.data")}
