"""The demo's models and data, as shipped: small, readable, right, and the split that the training script states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "runtime" / "demo_data"


def test_files_are_small_and_all_there() -> None:
    sizes = {file.name: file.stat().st_size for file in FOLDER.iterdir()}
    assert set(sizes) == {"digits.npz", "digits_mlp.onnx", "digits_cnn.onnx"}
    assert max(sizes.values()) < 200_000


def test_data_is_the_raw_stratified_split() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    data = np.load(FOLDER / "digits.npz")
    assert {key: (data[key].shape, str(data[key].dtype)) for key in data} == {
        "X": ((540, 64), "uint8"), "y": ((540,), "int64"), "X_train": ((1257, 64), "uint8"), "y_train": ((1257,), "int64"),
    }  # fmt: skip
    digits = datasets.load_digits()

    def rows(pixels: np.ndarray, labels: np.ndarray) -> list[bytes]:
        return sorted(bytes(np.append(p, label).astype(np.uint8)) for p, label in zip(pixels, labels, strict=True))

    both = rows(np.concatenate([data["X"], data["X_train"]]), np.concatenate([data["y"], data["y_train"]]))
    assert both == rows(digits.data, digits.target), "every digit once, none changed"
    assert np.ptp(np.bincount(data["y"])) <= 3, "stratified: classes are about equally frequent"


@pytest.mark.parametrize(("name", "shape"), [("digits_mlp", (64,)), ("digits_cnn", (1, 8, 8))])
def test_model_reaches_its_accuracy(name: str, shape: tuple[int, ...]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = onnx.load(FOLDER / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.ir_version, model.opset_import[0].version) == (10, 21)
    axes = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert (model.graph.input[0].name, axes) == ("x", ["batch", *shape])
    assert sum(int(np.prod(w.dims)) for w in model.graph.initializer) < 10_000
    data = np.load(FOLDER / "digits.npz")
    feeds = {"x": (data["X"].astype(np.float32) / 16).reshape(-1, *shape)}
    (logits,) = onnxruntime.InferenceSession(FOLDER / f"{name}.onnx", providers=["CPUExecutionProvider"]).run(None, feeds)
    assert (logits.argmax(axis=1) == data["y"]).mean() >= 0.98
