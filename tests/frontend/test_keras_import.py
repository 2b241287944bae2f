"""Keras models as objects and files, and SavedModels, compared with themselves; files with code of their own stay closed."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gatewright.errors import MismatchError, ModelError, ToolMissing
from gatewright.frontend import keras_file, keras_import
from gatewright.frontend.limits import Limits
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")
pytest.importorskip("tf2onnx")
L = keras.layers
LIMITS = Limits()


def residual() -> Any:
    i = keras.Input((12, 12, 3), name="image")
    x = L.Conv2D(8, 3, padding="same", activation="relu")(i)
    x = L.BatchNormalization()(L.Add()([x, L.DepthwiseConv2D(3, padding="same")(x)]))
    x = L.GlobalAveragePooling2D()(L.ReLU(6)(x))
    return keras.Model(i, [L.Dense(4, activation="softmax", name="kind")(x), L.Dense(1, name="size")(x)])


def attention() -> Any:
    i = keras.Input((6, 16))
    x = L.LayerNormalization()(L.MultiHeadAttention(2, 8)(i, i) + i)
    return keras.Model(i, L.GlobalAveragePooling1D()(L.Dense(16, activation="gelu")(x)))


def two_inputs() -> Any:
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    return keras.Model({"a": a, "b": b}, L.Dense(2)(L.Concatenate()([a, L.Dense(4, activation="tanh")(b)])))


MODELS: dict[str, Callable[[], Any]] = {
    "mlp": lambda: keras.Sequential([keras.Input((20,)), L.Dense(16, activation="relu"), L.Dropout(0.2), L.Dense(3)], name="mlp"),
    "cnn": lambda: keras.Sequential(
        [keras.Input((12, 12, 1)), L.Conv2D(8, 3, strides=2, padding="same", activation="relu"), L.BatchNormalization(), L.MaxPooling2D(),
         L.Flatten(), L.Dense(10, activation="softmax")], name="cnn"),
    "residual": residual,
    "attention": attention,
    "two_inputs": two_inputs,
    "recurrent": lambda: keras.Sequential([keras.Input((4, 5)), L.LSTM(6, return_sequences=True), L.Bidirectional(L.GRU(4)), L.Dense(2)]),
    "grouped": lambda: keras.Sequential(
        [keras.Input((9, 9, 6)), L.Normalization(mean=[0.5] * 6, variance=[2.0, 1, 3, 1, 4, 1]), L.Conv2D(12, 3, groups=3), L.Flatten(),
         L.Dense(3)]),
    "signal": lambda: keras.Sequential([keras.Input((16, 2)), L.Conv1D(4, 3, padding="causal"), L.LeakyReLU(), L.UpSampling1D(2)]),
}  # fmt: skip


@pytest.fixture(scope="module")
def networks() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def network(name: str) -> Any:
        if name not in made:
            keras.utils.set_random_seed(0)
            made[name] = MODELS[name]()
        return made[name]

    return network


LONG = {"recurrent", "attention", "signal"}
"""Whose layers take seconds to trace."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in MODELS])
def test_equal_to_keras(name: str, networks: Callable[[str], Any]) -> None:
    network = networks(name)
    model = load(network)
    assert model.history[-1].action == "keras"
    assert max(model.history[-1].details["checked"]["difference"].values()) <= 1e-4
    rng = np.random.default_rng(7)
    feeds = {info.name: rng.normal(size=info.shape).astype(np.float32) for info in model.inputs}
    given = feeds if name == "two_inputs" else next(iter(feeds.values()))
    wanted = [np.asarray(tensor) for tensor in tf.nest.flatten(network(given, training=False))]
    for found, value in zip(OrtSession(model).run(feeds).values(), wanted, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-4, atol=1e-5)


def test_names_are_those_of_the_model(networks: Callable[[str], Any]) -> None:
    model = load(networks("residual"))
    assert [i.name for i in model.inputs] == ["image"]
    assert [o.name for o in model.outputs] == ["kind", "size"]
    assert not any(layer.unroll for layer in networks("recurrent")._flatten_layers() if hasattr(layer, "unroll")), (
        "the user's layers changed"
    )


def test_an_axis_without_a_size_is_bound() -> None:
    tokens = keras.Sequential([keras.Input((None,), dtype="int32", name="tokens"), L.Embedding(50, 8), L.LSTM(5), L.Dense(2)])
    with pytest.raises(ModelError, match=r"axis 1 of input 'tokens' has no size .*--dims tokens\.1=16"):
        load(tokens)
    model = load(tokens, dims={"tokens.1": 5, "batch": 2})
    assert model.inputs[0].shape == (2, 5)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_files(suffix: str, networks: Callable[[str], Any], tmp_path: Path) -> None:
    networks("residual").save(tmp_path / f"net{suffix}")
    model = keras_import.read_file(str(tmp_path / f"net{suffix}"), {}, None, LIMITS)
    assert (model.name, model.history[-1].text, model.history[-1].action) == ("net", f"net{suffix}", "keras")
    x = np.random.default_rng(1).normal(size=(1, 12, 12, 3)).astype(np.float32)
    found = OrtSession(model).run({model.inputs[0].name: x})
    np.testing.assert_allclose(found["kind"], np.asarray(networks("residual")(x)[0]), atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", *(pytest.param(n, marks=pytest.mark.slow) for n in ("residual", "two_inputs"))])
def test_saved_models(name: str, networks: Callable[[str], Any], tmp_path: Path) -> None:
    networks(name).export(tmp_path / "saved", verbose=False)
    model = keras_import.read_file(str(tmp_path / "saved"), {}, None, LIMITS)
    assert (model.name, model.history[-1].action) == ("saved", "savedmodel")
    assert max(model.history[-1].details["checked"]["difference"].values()) <= 1e-4


@pytest.mark.slow
def test_a_file_is_read_in_a_process_of_its_own(networks: Callable[[str], Any], tmp_path: Path) -> None:
    networks("mlp").save(tmp_path / "net.keras")
    assert load(tmp_path / "net.keras").history[-1].details["checked"]["framework"].startswith("Keras 3")


class Scaled(L.Layer):  # type: ignore[misc, name-defined]
    def call(self, x: Any) -> Any:
        return 2 * x


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: L.Lambda(lambda x: x * 2), "runs code that comes with the file"),
        (Scaled, r"custom object|module 'test_keras_import'|Scaled"),
    ],
)
def test_code_in_a_file_needs_trust(suffix: str, layer: Callable[[], Any], why: str, tmp_path: Path) -> None:
    path = tmp_path / f"net{suffix}"
    keras.Sequential([keras.Input((4,)), layer()]).save(path)
    with pytest.raises(ModelError, match=why) as refused:
        keras_import.read_file(str(path), {}, None, LIMITS)
    assert "trust" in str(refused.value) or "Scaled" in str(refused.value)


def test_code_in_a_trusted_file_runs(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((4,)), L.Lambda(lambda x: x * 2), L.Dense(2)]).save(tmp_path / "net.keras")
    model = load(tmp_path / "net.keras", trust=True)
    assert model.outputs[0].shape == (1, 2)


def test_a_saved_model_that_reads_files_needs_trust(tmp_path: Path) -> None:
    class Reader(tf.Module):  # type: ignore[misc, name-defined]
        @tf.function(input_signature=[tf.TensorSpec([None, 2])])
        def __call__(self, x: Any) -> Any:
            return x + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    tf.saved_model.save(Reader(), str(tmp_path / "reader"))
    with pytest.raises(ModelError, match=r"\(ReadFile\) may do more than compute .*trust=True"):
        keras_import.read_file(str(tmp_path / "reader"), {}, None, LIMITS)
    (tmp_path / "reader" / "assets" / "x").symlink_to("/etc/hostname")
    with pytest.raises(ModelError, match="is a symbolic link"):
        keras_import.read_file(str(tmp_path / "reader"), {}, None, LIMITS)


def test_damaged_files(networks: Callable[[str], Any], tmp_path: Path) -> None:
    good, bad = tmp_path / "good.keras", tmp_path / "bad.keras"
    networks("mlp").save(good)
    whole = good.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 10):
        bad.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            keras_import.read_file(str(bad), {}, None, LIMITS)
    with zipfile.ZipFile(good) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(held["config.json"])
    for change, match in (
        ({"config": {"layers": [{"module": "os", "class_name": "system", "config": {"name": "x"}}]}}, "comes from module 'os'"),
        ({"config": {"layers": [{"module": "keras.layers", "class_name": "TFSMLayer", "config": {}}]}}, "runs code"),
        ({"config": {"layers": [{"module": "keras.layers", "class_name": "StringLookup", "config": {}}]}}, "may read other files"),
    ):
        with zipfile.ZipFile(bad, "w") as archive:
            for name, data in (held | {"config.json": json.dumps(config | change).encode()}).items():
                archive.writestr(name, data)
        with pytest.raises(ModelError, match=match):
            keras_file.check(bad, LIMITS, trust=False)
    with zipfile.ZipFile(bad, "w") as archive:
        archive.writestr("../config.json", b"{}")
    with pytest.raises(ModelError, match="outside of the archive"):
        keras_file.check(bad, LIMITS, trust=False)
    with pytest.raises(ModelError, match="the limit is 1,000"):
        keras_file.check(good, Limits(weight_bytes=1000), trust=False)
    networks("mlp").save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(ModelError, match="weights without a model"):
        keras_file.check(tmp_path / "only.weights.h5", LIMITS, trust=False)


def test_hdf5_links_do_not_leave_the_file(networks: Callable[[str], Any], tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    networks("mlp").save(tmp_path / "net.h5")
    with h5py.File(tmp_path / "net.h5", "a") as file:
        file["model_weights/away"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(ModelError, match="away is a link to another place"):
        keras_file.check(tmp_path / "net.h5", LIMITS, trust=False)


def test_a_wrong_conversion_is_noticed(networks: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    good = keras_import._without_erfc

    def bent(proto: Any) -> None:
        good(proto)
        next(node for node in proto.graph.node if node.op_type == "Relu").op_type = "Abs"

    monkeypatch.setattr(keras_import, "_without_erfc", bent)
    with pytest.raises(MismatchError, match=r"output 'dense.*' of 'mlp' differs from that of Keras"):
        load(networks("mlp"))


def test_without_the_extra_it_is_named(networks: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tf2onnx", None)
    with pytest.raises(ToolMissing, match=r"needs tf2onnx.*pip install 'gatewright\[keras\]'"):
        load(networks("mlp"))
