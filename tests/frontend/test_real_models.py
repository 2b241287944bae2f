"""Real models load, and their canonical form computes what the file computes: ONNX Runtime on both, without its optimizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from gatewright.errors import ModelError
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.canonicalize import check_canonical
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession

Feeds = dict[str, np.ndarray]

MODELS: dict[str, dict[str, int]] = {
    "basic_pitch": {}, "doc_orientation": {}, "magika_v3_3": {}, "melspectrogram": {"samples": 5120}, "mnist_cntk": {}, "oww_okay_nabu": {},
    "ppocr_cls": {"x.2": 48, "x.3": 192}, "ppocrv4_det": {"p2o.DynamicDimension.1": 160, "p2o.DynamicDimension.2": 160},
    "silero_vad_ifless": {"sequence": 576}, "skl_breast_gbc": {}, "skl_digits_mlp": {}, "skl_digits_pca_logreg": {}, "skl_digits_rf": {},
    "skl_digits_svc_rbf": {}, "skl_iris_rf_zipmap": {}, "skl_wine_svc_prob": {}, "speech_embedding": {}, "tflm_micro_speech_int8": {},
    "tflm_sine": {}, "tiny_ad01_fp32": {}, "tiny_ad01_int8": {}, "tiny_ic_resnet8_fp32": {}, "tiny_ic_resnet8_int8": {},
    "tiny_kws_dscnn_fp32": {}, "tiny_kws_dscnn_int8": {}, "tiny_sww_int8": {}, "tiny_vww_fp32": {}, "tiny_vww_int8": {},
    "ultraface_slim320_nopost": {},
}  # fmt: skip
"""Every model, and the sizes of its dynamic axes beside the batch."""

MIXES = {
    "basic_pitch": "(Slice) cuts along the samples",
    "melspectrogram": "(ReduceMax) reduces across samples",
    "silero_vad_ifless": "input 'sr' is a single number",
    "ultraface_slim320_nopost": "(Reshape) reshapes across samples",
}
"""Models that do not keep samples apart, or write it so that it cannot be seen, and why."""


def original(path: Path) -> onnxruntime.InferenceSession:
    """The file as it is, but for repeated opset imports, which ONNX Runtime refuses."""
    proto = onnx.load(path)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in versions.items())
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def random_feeds(model: Model, seed: int = 0) -> Feeds:
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for info in model.inputs:
        if info.dtype.kind == "f":
            feeds[info.name] = rng.normal(size=info.shape).astype(info.dtype)
        elif info.name == "sr":
            feeds[info.name] = np.asarray(16000, info.dtype)
        else:
            low, high = (-128, 128) if info.dtype == np.int8 else (0, 257)
            feeds[info.name] = rng.integers(low, high, info.shape).astype(info.dtype)
    return feeds


def as_array(value: object) -> np.ndarray:
    """ZipMap gives a list of maps; its canonical form is their values."""
    return np.array([list(row.values()) for row in value], np.float32) if isinstance(value, list) else np.asarray(value)


@pytest.mark.parametrize("name", MODELS)
def test_canonical_form_computes_the_same(shared_model: Callable[[str], Path], name: str) -> None:
    path = shared_model(f"{name}.onnx")
    model = load(path, dims=MODELS[name])
    check_canonical(model.ir)
    feeds = random_feeds(model)
    session = original(path)
    found = OrtSession(model, optimize=False).run(feeds)
    for output, wanted in zip(session.get_outputs(), map(as_array, session.run(None, feeds)), strict=True):
        result = found[output.name]
        assert result.shape == wanted.shape
        assert result.dtype == wanted.dtype
        if wanted.dtype.kind == "f":
            # Explicit padding makes ONNX Runtime choose another convolution in mnist_cntk: the order of float32 sums differs.
            scale = max(float(np.abs(wanted).max()), 1e-6)
            assert np.abs(result.astype(np.float64) - wanted.astype(np.float64)).max() <= 1e-6 * scale
        else:
            np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_samples_are_independent_where_it_says_so(shared_model: Callable[[str], Path], name: str) -> None:
    model = load(shared_model(f"{name}.onnx"), dims=MODELS[name])
    reason = batch_reason(model)
    if name in MIXES:
        assert reason is not None
        assert MIXES[name] in reason
        with pytest.raises(ModelError, match="cannot take 3 samples at a time"):
            with_batch(model, 3)
        return
    assert reason is None
    three = with_batch(model, 3)
    check_canonical(three.ir)
    assert with_batch(three, 1).digest == model.digest
    feeds = {key: np.abs(value) if value.dtype == np.int32 else value for key, value in random_feeds(three).items()}
    together = OrtSession(three, optimize=False).run(feeds)
    alone = OrtSession(model, optimize=False)
    for sample in range(3):
        expected = alone.run({key: value[sample : sample + 1] for key, value in feeds.items()})
        for output, wanted in expected.items():
            # Larger matrices are blocked differently, so float sums differ in their last bits.
            np.testing.assert_allclose(together[output][sample : sample + 1], wanted, rtol=1e-4, atol=1e-6)


def test_a_model_of_qonnx(shared_model: Callable[[str], Path]) -> None:
    """Its Quant nodes become ONNX's own; QONNX's float sums fall on the other side of a rounding boundary now and then."""
    pytest.importorskip("qonnx", reason="qonnx is not installed (extra qonnx)")
    model = load(shared_model("qonnx_espcn_subpixel_q.onnx"))
    assert {node.op_type for node in model.ir.graph} >= {"QuantizeLinear", "Conv", "DepthToSpace"}
    assert "on a rounding boundary" in model.history[-1].notes[-1]


def test_all_models_are_listed(shared_model: Callable[[str], Path]) -> None:
    present = {path.stem for path in shared_model("mnist_cntk.onnx").parent.glob("*.onnx")}
    assert present <= set(MODELS) | {"qonnx_espcn_subpixel_q"}
