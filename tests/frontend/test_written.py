"""Operators written out as others: ONNX's own node tests of each, computed by the reference on what was written."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import onnx.backend.test
import pytest
from onnx import numpy_helper

from gatewright.frontend import sampling
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference
from gatewright.frontend.written import ALONE, ALWAYS, written_out

KINDS = {
    "GridSample": "test_gridsample", "TopK": "test_top_k", "ReverseSequence": "test_reversesequence", "Col2Im": "test_col2im",
    "ScatterElements": "test_scatter_elements", "ScatterND": "test_scatternd", "MatMulInteger": "test_matmulinteger",
    "DynamicQuantizeLinear": "test_dynamicquantizelinear", "ConvInteger": "test_convinteger", "RoiAlign": "test_roialign",
    "DeformConv": "test_deform_conv", "DFT": "test_dft", "STFT": "test_stft",
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
    made = written_out(model, frozenset(ALWAYS | ALONE))
    left = {node.op_type for node in made.graph} & set(KINDS)
    assert not left
    found = Reference(made).run({info.name: array for info, array in zip(made.inputs, given, strict=True)})
    for info, array in zip(made.outputs, wanted, strict=True):
        assert found[info.name].dtype == array.dtype
        np.testing.assert_allclose(found[info.name], array, rtol=1e-3, atol=1e-6)


def test_every_kind_is_tested() -> None:
    assert all(any(name.startswith(prefix) for name in names()) for prefix in KINDS.values())
    assert set(KINDS) | {"LSTM", "GRU", "RNN"} == set(ALWAYS) | set(ALONE)


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


@pytest.mark.parametrize("half", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_boxes_beyond_the_image(half: str, mode: str) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 16]> g (float[2,3,9,7] x, float[40,4] rois, int64[40] at) => (float[40,3,2,3] y) '
        f'{{ y = RoiAlign<output_height = 2, output_width = 3, sampling_ratio = 2, spatial_scale = 0.5, mode = "{mode}", '
        f'coordinate_transformation_mode = "{half}">(x, rois, at) }}'
    )
    rng = np.random.default_rng(0)
    corners = rng.uniform(-8, 26, (40, 2, 2)).astype(np.float32)
    feeds = {
        "x": rng.normal(size=(2, 3, 9, 7)).astype(np.float32), "rois": np.sort(corners, axis=1).reshape(40, 4),
        "at": rng.integers(0, 2, 40),
    }  # fmt: skip
    model = load(onnx.parser.parse_model(text))
    made = written_out(model)
    assert "RoiAlign" not in {node.op_type for node in made.graph}
    np.testing.assert_allclose(Reference(made).run(feeds)["y"], OrtSession(model).run(feeds)["y"], rtol=1e-4, atol=1e-5)


def test_moved_convolutions() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 19]> g (float[2,4,7,6] x, float[2,24,4,3] o, float[2,12,4,3] m) => (float[2,6,4,3] y) '
        "<float[6,2,3,2] w, float[6] b> { y = DeformConv<group = 2, offset_group = 2, kernel_shape = [3, 2], strides = [2, 2], "
        "pads = [1, 0, 2, 1], dilations = [1, 2]>(x, w, o, b, m) }"
    )
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(1)
    del proto.graph.initializer[:]
    for name, shape in (("w", (6, 2, 3, 2)), ("b", (6,))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    feeds = {"x": rng.normal(size=(2, 4, 7, 6)), "o": rng.normal(0, 2, (2, 24, 4, 3)), "m": rng.uniform(size=(2, 12, 4, 3))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    model = load(proto)
    made = written_out(model)
    assert "DeformConv" not in {node.op_type for node in made.graph}
    np.testing.assert_allclose(Reference(made).run(feeds)["y"], OrtSession(model).run(feeds)["y"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inverse", [0, 1])
@pytest.mark.parametrize("length", [5, 8, 11])
def test_transforms_of_other_lengths(length: int, inverse: int) -> None:
    """Of a signal of 8: cut, as it is, filled up with zeros; along the first axis, where the samples' axis stays behind it."""
    text = (
        f'<ir_version: 8, opset_import: ["" : 20]> g (float[8,3,2] x) => (float[{length},3,2] y) <int64 n = {{{length}}}, int64 a = {{0}}> '
        f"{{ y = DFT<inverse = {inverse}>(x, n, a) }}"
    )
    model = load(onnx.parser.parse_model(text))
    made = written_out(model, frozenset(ALONE))
    assert "DFT" not in {node.op_type for node in made.graph}
    x = np.random.default_rng(2).normal(size=(8, 3, 2)).astype(np.float32)
    wanted = (np.fft.ifft if inverse else np.fft.fft)(x[..., 0] + 1j * x[..., 1], n=length, axis=0)
    np.testing.assert_allclose(Reference(made).run({"x": x})["y"], np.stack([wanted.real, wanted.imag], -1), atol=1e-6)


def test_integer_convolutions_too_deep_for_float32() -> None:
    """3 x 3 x 64 products of 255 · 255 are more than 2²⁴: summed in doubles, every one is right."""
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (uint8[1,64,5,5] x) => (int32[1,2,5,5] y) '
        "<uint8[2,64,3,3] w, uint8 z = {3}, uint8 v = {0}> { y = ConvInteger<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, z, v) }"
    )
    proto, rng = onnx.parser.parse_model(text), np.random.default_rng(3)
    weights = rng.integers(200, 256, (2, 64, 3, 3)).astype(np.uint8)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([*kept, numpy_helper.from_array(weights, "w")])
    model = load(proto)
    made = written_out(model, frozenset(ALONE))
    assert "ConvInteger" not in {node.op_type for node in made.graph}
    x = rng.integers(200, 256, (1, 64, 5, 5)).astype(np.uint8)
    wide = np.pad(x.astype(np.int64) - 3, ((0, 0), (0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(2, 3))
    np.testing.assert_array_equal(Reference(made).run({"x": x})["y"], np.einsum("nchwij,ocij->nohw", views, weights.astype(np.int64)))


@pytest.mark.parametrize(
    "text",
    [
        "(float[1,8,1] x) => (float[1,a,2] y) <int64 n = {16777216}> { y = DFT<axis = 1>(x, n) }",
        "(float[1,9000000,1] x) => (float[1,1,a,2] y) <int64 s = {1}, int64 n = {9000000}> { y = STFT(x, s, , n) }",
        "(float[1,2000000,1] x) => (float[1,a,b,2] y) <int64 s = {1}, int64 n = {1024}> { y = STFT(x, s, , n) }",
        "(float[1,1,4,4] x, float[1,4] r, int64[1] b) => (float[1,1,1,1] y) { y = RoiAlign<sampling_ratio = 2000000000>(x, r, b) }",
    ],
)
def test_what_would_be_too_large_is_not_begun(text: str) -> None:
    model = load(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {text}'))
    began = time.monotonic()
    assert written_out(model, frozenset(ALWAYS | ALONE)) is model
    assert time.monotonic() - began < 1
