"""TFLite files, float and quantized, compared with TFLite's reference kernels."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gatewright as gw
from gatewright.errors import GatewrightError, MismatchError, ModelError, ToolMissing, UnsupportedOp
from gatewright.frontend import tflite_import, tflite_ops
from gatewright.frontend.limits import Limits
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.runtime.cli import app

pytest.importorskip("ai_edge_litert")
tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
L = keras.layers


def residual() -> Any:
    i = keras.Input((12, 12, 3), batch_size=1)
    x = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(i)
    x = L.ReLU(6)(L.Add()([x, L.DepthwiseConv2D(3, padding="same")(x)]))
    x = L.AveragePooling2D(2)(L.Concatenate()([x, L.Conv2D(4, 1)(x)]))
    return keras.Model(i, L.Dense(4, activation="softmax")(L.GlobalAveragePooling2D()(x)))


MODELS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: keras.Sequential([keras.Input((20,)), L.Dense(16, activation="relu"), L.Dense(3)]),
    "cnn": lambda: keras.Sequential(
        [keras.Input((12, 12, 1)), L.Conv2D(8, 3, activation="relu"), L.MaxPooling2D(), L.Flatten(), L.Dense(10, activation="softmax")]),
    "residual": residual,
    "upscaling": lambda: keras.Sequential(
        [keras.Input((6, 6, 2)), L.Conv2D(4, 3, padding="same", activation="tanh"), L.UpSampling2D(2, interpolation="bilinear"),
         L.Conv2DTranspose(3, 3, strides=2, padding="same"), L.LeakyReLU(), L.ZeroPadding2D(1), L.Conv2D(2, 3, activation="sigmoid")]),
}  # fmt: skip


def converted(network: Any, kind: str) -> bytes:
    shape = [1, *network.inputs[0].shape[1:]]
    rng = np.random.default_rng(0)
    function = tf.function(lambda x: network(x, training=False), input_signature=[tf.TensorSpec(shape, name="x")], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])

    def calibration() -> Iterator[list[np.ndarray]]:
        for _ in range(20):
            yield [rng.normal(size=shape).astype(np.float32)]

    if kind != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind in ("int8", "int16"):
        converter.representative_dataset = calibration
    if kind == "int8":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if kind == "int16":
        converter.target_spec.supported_ops = [tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8]
    if kind == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return bytes(converter.convert())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    folder = tmp_path_factory.mktemp("tflite")
    networks: dict[str, Any] = {}

    def file(name: str, kind: str) -> Path:
        path = folder / f"{name}_{kind}.tflite"
        if not path.exists():
            if name not in networks:
                keras.utils.set_random_seed(0)
                networks[name] = MODELS[name]()
            path.write_bytes(converted(networks[name], kind))
        return path

    return file


def read(path: Path) -> Model:
    return tflite_import.read_file(str(path), {}, None, Limits())


def checked(model: Model) -> dict[str, Any]:
    return dict(model.history[-1].details["checked"])


@pytest.mark.parametrize("kind", ["float", "float16"])
@pytest.mark.parametrize("name", MODELS)
def test_float_models_are_equal(name: str, kind: str, files: Callable[[str, str], Path]) -> None:
    model = read(files(name, kind))
    assert model.history[-1].action == "tflite"
    assert max(checked(model)["difference"].values()) <= 1e-4
    assert [node.op_type for node in model.graph].count("Transpose") <= 2, (
        "layouts are turned around once on the way in, once on the way out"
    )


@pytest.mark.parametrize("name", MODELS)
def test_8_bit_models_keep_their_integers(name: str, files: Callable[[str, str], Path]) -> None:
    model = read(files(name, "int8"))
    assert (model.inputs[0].dtype, model.outputs[0].dtype) == (np.int8, np.int8)
    assert max(checked(model)["difference"].values()) <= 1 < checked(model)["steps"]
    assert "up to" in model.history[-1].notes[-1]
    weights = [v for v in model.graph.initializers.values() if v.dtype is not None and v.dtype.name == "INT8" and v.shape is not None]
    assert weights, "weights stay integers"


def test_16_bit_activations(files: Callable[[str, str], Path]) -> None:
    assert max(checked(read(files("cnn", "int16")))["difference"].values()) <= 1e-3


def test_weights_of_8_bits_alone(files: Callable[[str, str], Path]) -> None:
    data = converted(keras.Sequential([keras.Input((64,)), L.Dense(64), L.Dense(8)]), "dynamic")
    path = files("mlp", "float").with_name("dynamic.tflite")
    path.write_bytes(data)
    model = read(path)
    assert checked(model)["tolerance"] == 0.05
    assert any("rounds the activations too" in note for note in model.history[-1].notes)


def test_a_quantized_model_fits_hls(files: Callable[[str, str], Path]) -> None:
    assert gw.check(read(files("mlp", "int8")), "hls:pynq-z2").ok


def test_inspect_tells_of_the_comparison(files: Callable[[str, str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        app(["inspect", str(files("mlp", "int8"))])
    assert ended.value.code in (0, None)
    assert "differs from TFLite's reference kernels" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_in_a_process_of_its_own(files: Callable[[str, str], Path]) -> None:
    model = load(files("residual", "int8"))
    assert (model.name, model.inputs[0].name) == ("residual_int8", "x")


def test_a_wrong_operator_is_noticed(files: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tflite_ops.OPERATORS, "MAX_POOL_2D", tflite_ops.OPERATORS["AVERAGE_POOL_2D"])
    with pytest.raises(MismatchError, match=r"differs from that of TFLite's reference kernels .* by 0\.\d+ of its largest value"):
        read(files("cnn", "float"))
    with pytest.raises(MismatchError, match=r"by \d+ steps, not at most \d"):
        read(files("cnn", "int8"))


def test_an_unknown_operator_is_named(files: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(tflite_ops.OPERATORS, "SOFTMAX")
    with pytest.raises(UnsupportedOp, match=r"\(SOFTMAX\): it has no form here .*load\(keras_model\)"):
        read(files("cnn", "float"))


def test_damaged_files(files: Callable[[str, str], Path], tmp_path: Path) -> None:
    whole = files("mlp", "int8").read_bytes()
    bad = tmp_path / "bad.tflite"
    rng = np.random.default_rng(0)
    pieces = [whole[:n] for n in (0, 4, 8, 40, len(whole) // 2)]
    for _ in range(6):
        flipped = bytearray(whole)
        flipped[int(rng.integers(16, 400))] ^= 1 << int(rng.integers(8))
        pieces.append(bytes(flipped))
    for data in pieces:
        bad.write_bytes(data)
        # Loaded or refused: nothing else may happen to this process.
        with contextlib.suppress(GatewrightError):
            load(bad, limits=Limits(seconds=60))
    bad.write_bytes(whole[:8])
    with pytest.raises(ModelError):
        load(bad)
    bad.write_bytes(b"nothing")
    with pytest.raises(ModelError, match="no TFLite model"):
        load(bad)


def test_without_the_extra_it_is_named(files: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ToolMissing, match=r"pip install 'gatewright\[tflite\]'"):
        read(files("mlp", "float"))
