"""Models that ONNX Runtime's quantizer wrote in its own operators give the same bits as standard QDQ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from gatewright.errors import ModelError
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession

BODY = """(float[1,3,8,8] x) => (float[1,5] y) {
    a = Conv<pads=[1,1,1,1]>(x,w1,b1) r = Relu(a) c = Conv<pads=[1,1,1,1]>(r,w2) l = LeakyRelu<alpha=0.1>(c) s = Add(r,l)
    k = Concat<axis=1>(s,r,l) p = AveragePool<kernel_shape=[2,2],strides=[2,2]>(k) m = Sigmoid(p) u = Mul(p,m)
    g = GlobalAveragePool(u) f = Flatten(g) e = Gemm<transB=1>(f,w3,b3) t = MatMul(e,w4) y = Softmax(t)
}"""
SHAPES = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "w3": (6, 12), "b3": (6,), "w4": (6, 5)}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
def test_the_quantizers_operators(tmp_path: Path, per_channel: bool, weights: str) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    rng = np.random.default_rng(0)
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g {BODY}')
    for name, shape in SHAPES.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array((0.3 * rng.normal(size=shape)).astype(np.float32), name))
    onnx.save(proto, tmp_path / "float.onnx")
    samples = [rng.normal(size=(1, 3, 8, 8)).astype(np.float32) for _ in range(16)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.rest = iter(samples[:8])

        def get_next(self) -> dict[str, np.ndarray] | None:
            x = next(self.rest, None)
            return None if x is None else {"x": x}

    path = tmp_path / "quantized.onnx"
    quantization.quantize_static(
        tmp_path / "float.onnx", path, Reader(), quant_format=quantization.QuantFormat.QOperator, per_channel=per_channel,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType[weights],
    )  # fmt: skip
    kinds = {node.op_type for node in onnx.load(path).graph.node if node.domain == "com.microsoft"}
    assert {"QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearAveragePool", "QLinearSoftmax", "QGemm"} <= kinds
    model = load(path)
    assert {node.domain for node in model.graph} == {""}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    original, canonical = onnxruntime.InferenceSession(path, options), OrtSession(model, optimize=False)
    for x in samples:
        np.testing.assert_array_equal(canonical.run({"x": x})["y"], original.run(None, {"x": x})[0])


def test_another_of_its_operators_is_refused_by_name() -> None:
    body = "(float[1,3] x) => (float[1,3] y) { y = com.microsoft.Inverse(x) }"
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g {body}')
    with pytest.raises(ModelError, match=r"op 'Inverse' of domain 'com\.microsoft' is not an op of ONNX"):
        load(proto)


def test_channels_last_is_refused() -> None:
    body = (
        "(uint8[1,4,4,3] x) => (uint8[1,1,1,3] y) <float s={0.1}, uint8 z={0}> "
        "{ y = com.microsoft.QLinearGlobalAveragePool<channels_last=1>(x,s,z,s,z) }"
    )
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g {body}')
    with pytest.raises(ModelError, match="has its channels last"):
        load(proto)
