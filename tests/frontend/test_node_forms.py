"""Operators that are gone once a model is loaded: ONNX's own node tests of them, computed by the reference on what took their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

from gatewright.errors import ModelError
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference
from gatewright.frontend.written import written_out

FOLDERS = Path(onnx.backend.test.__file__).parent / "data" / "node"
GONE = {
    "Det": ("test_det_",), "BatchNormalization": ("test_batchnorm_epsilon_training", "test_batchnorm_example_training"),
    "Compress": ("test_compress_",), "Dropout": ("test_training_dropout_zero_ratio",), "CumProd": ("test_cumprod_",),
    "TensorScatter": ("test_tensorscatter",), "Binarizer": ("test_ai_onnx_ml_binarizer",),
}  # fmt: skip
CASES = [(op, folder.name) for op, prefixes in GONE.items() for folder in sorted(FOLDERS.iterdir()) if folder.name.startswith(prefixes)]


def arrays(folder: Path, kind: str) -> list[np.ndarray]:
    files = sorted((folder / "test_data_set_0").glob(f"{kind}_*.pb"), key=lambda file: int(file.stem.rsplit("_", 1)[1]))
    return [numpy_helper.to_array(onnx.TensorProto.FromString(file.read_bytes())) for file in files]


@pytest.mark.parametrize(("op", "name"), CASES)
def test_what_takes_its_place_computes_the_same(op: str, name: str) -> None:
    proto, given, wanted = onnx.load(FOLDERS / name / "model.onnx"), arrays(FOLDERS / name, "input"), arrays(FOLDERS / name, "output")
    if op in ("Compress", "CumProd", "Dropout"):
        for value, array in list(zip(proto.graph.input, given, strict=True))[1:]:
            proto.graph.initializer.append(numpy_helper.from_array(array, value.name))
        del proto.graph.input[1:]
    model = load(proto)
    assert op not in {node.op_type for node in model.graph}
    feeds = {info.name: array for info, array in zip(model.inputs, given, strict=False)}
    found = Reference(model).run(feeds)
    for info, array in zip(model.outputs, wanted, strict=True):
        assert found[info.name].dtype == array.dtype
        np.testing.assert_allclose(found[info.name], array, rtol=1e-4, atol=1e-6)


def test_every_kind_has_tests() -> None:
    assert {op for op, _ in CASES} == set(GONE)


def one(op: str, opset: int, *shapes: list[int], **attributes: object) -> onnx.ModelProto:
    names = [f"x{i}" for i in range(len(shapes))]
    kinds = [onnx.TensorProto.INT64 if name == "x2" else onnx.TensorProto.FLOAT for name in names]
    given = [onnx.helper.make_tensor_value_info(*value) for value in zip(names, kinds, shapes, strict=True)]
    made = [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shapes[0] if op == "TensorScatter" else None)]
    graph = onnx.helper.make_graph([onnx.helper.make_node(op, names, ["y"], **attributes)], op, given, made)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])


@pytest.mark.parametrize("axis", [1, -3, 3, -1])
@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_a_cache_is_written_along_any_axis(axis: int, mode: str) -> None:
    shape, fresh, rng = [2, 5, 6, 7], [2, 5, 6, 7], np.random.default_rng(0)
    fresh[axis] = 3
    past, update = rng.normal(size=shape).astype(np.float32), rng.normal(size=fresh).astype(np.float32)
    starts = np.array([2, 4 if mode == "circular" else 0])
    model = load(one("TensorScatter", 24, shape, fresh, [2], axis=axis, mode=mode))
    found = Reference(model).run({"x0": past, "x1": update, "x2": starts})["y"]
    wanted = past.copy()
    for sample, start in enumerate(starts):
        at, new = (
            np.moveaxis(wanted[sample], axis if axis < 0 else axis - 1, 0),
            np.moveaxis(update[sample], axis if axis < 0 else axis - 1, 0),
        )
        for step in range(3):
            at[(start + step) % len(at)] = new[step]
    np.testing.assert_array_equal(found, wanted)


def test_a_one_sided_spectrum_has_its_shape_whatever_the_file_claims() -> None:
    """onnx's inference, and so what it writes into files, has the two-sided one."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,32,1] x) => (float[1,5,4,2] y) <int64 step = {7}, int64 n = {4}> '
        "{ s = STFT(x, step, , n) y = Abs(s) }"
    )
    proto = onnx.parser.parse_model(text)
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, [1, 5, 4, 2]))
    model = load(proto)
    assert model.outputs[0].shape == (1, 5, 3, 2)
    x = np.random.default_rng(0).normal(size=(1, 32, 1)).astype(np.float32)
    wanted = np.stack([np.fft.rfft(x[0, 7 * i : 7 * i + 4, 0]) for i in range(5)])
    found = Reference(model).run({"x": x})["y"][0]
    np.testing.assert_allclose(found, np.abs(np.stack([wanted.real, wanted.imag], -1)), atol=1e-5)


def test_the_claimed_shape_of_a_spectrum_is_not_believed() -> None:
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,32,1] x, int64 step) => (float[1,5,4,2] y) '
    text += "<int64 n = {4}> { y = STFT(x, step, , n) }"
    with pytest.raises(ModelError, match="STFT"):
        load(onnx.parser.parse_model(text))


def test_a_frame_longer_than_the_signal_is_refused() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,8,1] x) => (float[a,b,c,d] y) <int64 s = {2}, int64 n = {16}> '
        "{ y = STFT(x, s, , n) }"
    )
    with pytest.raises(ModelError, match="STFT"):
        load(onnx.parser.parse_model(text))


@pytest.mark.parametrize(("length", "written"), [(6, True), (5, False)])
def test_lengths_that_are_all_the_whole_one_say_nothing(length: int, written: bool) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[6,1,3] x, float[1,8,3] w, float[1,8,2] r, float[1,8] z, float[1,6] p) '
        f"=> (float[6,1,1,2] y) <int32[1] n = {{{length}}}> "
        "{ b = Concat<axis = 1>(z, z) y = LSTM<hidden_size = 2>(x, w, r, b, n, , , p) }"
    )
    model = load(onnx.parser.parse_model(text))
    made = written_out(model)
    assert ("LSTM" not in {node.op_type for node in made.graph}) == written
    rng = np.random.default_rng(0)
    feeds = {info.name: rng.normal(size=info.shape).astype(np.float32) for info in model.inputs}
    wanted = OrtSession(model).run(feeds)["y"]
    np.testing.assert_allclose(Reference(made).run(feeds)["y"], wanted, rtol=1e-4, atol=1e-5)
