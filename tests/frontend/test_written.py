"""Operators written out as others: ONNX's own node tests of each, computed by the reference on what was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

from gatewright.frontend import sampling
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.frontend.written import ALWAYS, INTEGERS, written_out

KINDS = {
    "GridSample": "test_gridsample", "TopK": "test_top_k", "ReverseSequence": "test_reversesequence", "Col2Im": "test_col2im",
    "ScatterElements": "test_scatter_elements", "ScatterND": "test_scatternd", "MatMulInteger": "test_matmulinteger",
    "DynamicQuantizeLinear": "test_dynamicquantizelinear",
}  # fmt: skip


FOLDERS = Path(onnx.backend.test.__file__).parent / "data" / "node"


def names() -> list[str]:
    return sorted(f.name for f in FOLDERS.iterdir() if f.name.startswith(tuple(KINDS.values())) and "expanded" not in f.name)


def bound(folder: Path) -> tuple[Model, list[np.ndarray], list[np.ndarray]]:
    """The test's model, its inputs behind the first (data) made constants where they are indices; the other inputs; the outputs."""
    proto = onnx.load(folder / "model.onnx")
    arrays = {}
    for kind in ("input", "output"):
        files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"), key=lambda f: int(f.stem.rsplit("_", 1)[1]))
        arrays[kind] = [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]
    given = []
    for value, array in zip(list(proto.graph.input), arrays["input"], strict=True):
        if value.name != proto.graph.input[0].name and array.dtype.kind == "i" and array.dtype != np.int8:
            proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
            proto.graph.input.remove(value)
        else:
            given.append(array)
    return load(proto), given, arrays["output"]


@pytest.mark.parametrize("name", names())
def test_what_is_written_computes_the_same(name: str) -> None:
    model, given, wanted = bound(FOLDERS / name)
    made = written_out(model, frozenset(ALWAYS | INTEGERS))
    left = {node.op_type for node in made.graph} & set(KINDS)
    assert not left
    found = Reference(made).run({info.name: array for info, array in zip(made.inputs, given, strict=True)})
    for info, array in zip(made.outputs, wanted, strict=True):
        assert found[info.name].dtype == array.dtype
        np.testing.assert_allclose(found[info.name], array, rtol=1e-3, atol=1e-6)


def test_every_kind_is_tested() -> None:
    assert all(any(name.startswith(prefix) for name in names()) for prefix in KINDS.values())
    assert set(KINDS) | {"LSTM", "GRU", "RNN"} == set(ALWAYS) | set(INTEGERS)


def test_a_wrong_share_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    taps = sampling._Sample._taps
    monkeypatch.setattr(sampling._Sample, "_taps", lambda self, place: taps(self, place)[::-1][:1])
    with pytest.raises(AssertionError):
        test_what_is_written_computes_the_same("test_gridsample_bilinear")


def test_scattering_repeated_places_takes_one_after_the_other() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 18]> g (float[4] x) => (float[4] y) <int64[3,1] i = {1, 1, 3}, float[3] u = {5, 7, 2}> '
        '{ y = ScatterND<reduction: string = "add">(x, i, u) }'
    )
    model = load(onnx.parser.parse_model(text))
    found = Reference(written_out(model)).run({"x": np.arange(4, dtype=np.float32)})["y"]
    np.testing.assert_array_equal(found, [0, 13, 2, 5])
