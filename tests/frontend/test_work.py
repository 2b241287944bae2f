"""Multiply-accumulates, bytes and live memory against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from graphs import graph, scale

from gatewright.frontend import work
from gatewright.frontend.load import load


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_a_convolution() -> None:
    model = graph(
        "(float[1,3,8,8] x) => (float[1,4,4,4] y) { y = Conv<strides=[2,2],pads=[1,1,1,1],kernel_shape=[3,3]>(x, w, b) }",
        w=ones(4, 3, 3, 3),
        b=ones(4),
    )
    (layer,) = work.layer_costs(model)
    assert layer.macs == 4 * 4 * 4 * 3 * 3 * 3
    assert layer.weight_bytes == 4 * (4 * 3 * 3 * 3 + 4)
    assert layer.activation_bytes == 4 * (3 * 8 * 8 + 4 * 4 * 4)
    assert (layer.elementwise_ops, layer.dtype) == (4 * 4 * 4, "float32")


def test_groups_and_transposed_convolutions() -> None:
    depthwise = graph("(float[1,6,5,5] x) => (float[1,6,3,3] y) { y = Conv<group=6>(x, w) }", w=ones(6, 1, 3, 3))
    assert work.macs(depthwise) == 6 * 3 * 3 * 9
    transposed = graph("(float[1,2,3,3] x) => (float[1,4,5,5] y) { y = ConvTranspose(x, w) }", w=ones(2, 4, 3, 3))
    assert work.macs(transposed) == 2 * 3 * 3 * 4 * 9


def test_products_of_matrices() -> None:
    assert work.macs(graph("(float[5,4] x) => (float[5,3] y) { y = Gemm(x, w) }", w=ones(4, 3))) == 5 * 4 * 3
    assert work.macs(graph("(float[2,5,4] x) => (float[2,5,3] y) { y = MatMul(x, w) }", w=ones(4, 3))) == 2 * 5 * 4 * 3
    attention = graph("(float[2,5,4] a, float[2,4,6] b) => (float[2,5,6] y) { y = MatMul(a, b) }")
    (layer,) = work.layer_costs(attention)
    assert (layer.macs, layer.weight_bytes) == (2 * 5 * 4 * 6, 0)


def test_views_cost_nothing_and_pools_read_their_windows() -> None:
    model = graph(
        "(float[1,2,4,4] x) => (float[1,8] y) { p = AveragePool<kernel_shape=[2,2],strides=[2,2]>(x)  y = Reshape(p, to) }",
        to=np.asarray([1, 8]),
    )
    (layer,) = work.layer_costs(model)
    assert (layer.op, layer.macs, layer.elementwise_ops) == ("AveragePool", 0, 2 * 2 * 2 * 4)


QUANTIZED = """(float[1,4] x) => (float[1,3] y) {
  xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  wd = DequantizeLinear(w, ws, wz)
  h = MatMul(xd, wd)  hq = QuantizeLinear(h, s, z)  y = DequantizeLinear(hq, s, z) }"""


def test_a_quantized_layer_is_one_layer_in_its_own_width() -> None:
    model = graph(QUANTIZED, s=scale(0.25), z=np.int8(0), w=np.ones((4, 3), np.int8), ws=scale(0.5), wz=np.int8(0))
    layer = next(layer for layer in work.layer_costs(model) if layer.macs)
    assert (layer.macs, layer.dtype, layer.activation_bytes) == (12, "int8", 4 + 3)
    assert layer.weight_bytes in (12, 12 + 4 * 3), "with or without a bias of zeros"


def test_peak_memory() -> None:
    model = graph("(float[1,4] x) => (float[1,2] y) { a = Gemm(x, w)  b = Relu(a)  y = Gemm(b, v) }", w=ones(4, 100), v=ones(100, 2))
    assert work.peak_memory_bytes(model) == 4 * (4 * 100 + 100 * 2) + 4 * (100 + 100)
    kept = graph("(float[1,4] x) => (float[1,4] y) { a = Relu(x)  b = Exp(a)  c = Exp(b)  y = Add(a, c) }")
    assert work.peak_memory_bytes(kept) == 4 * 12, "a lives until the Add"


def test_peak_memory_of_a_quantized_model_counts_integers() -> None:
    model = graph(QUANTIZED, s=scale(0.25), z=np.int8(0), w=np.ones((4, 3), np.int8), ws=scale(0.5), wz=np.int8(0))
    assert work.peak_memory_bytes(model) == work.weight_bytes(model) + 4 * 4 + 4, "x in float and its integers, at the widest"


def test_nonzero_share() -> None:
    half = np.asarray([[1.0, 0.0], [0.0, 2.0]], np.float32)
    assert work.nonzero_share(graph("(float[1,2] x) => (float[1,2] y) { y = Gemm(x, w, b) }", w=half, b=ones(2))) == 0.5
    assert work.nonzero_share(graph("(float[1,2] x) => (float[1,2] y) { y = Relu(x) }")) == 1.0
    zero_point = graph(QUANTIZED, s=scale(0.25), z=np.int8(0), w=np.full((4, 3), 7, np.int8), ws=scale(0.5), wz=np.int8(7))
    assert work.nonzero_share(zero_point) == 0.0


def test_known_networks(shared_model: Callable[[str], Path]) -> None:
    # MLPerf Tiny states 12.5 M MACs for its ResNet-8 and 2.7 M for the keyword model.
    assert abs(work.macs(load(shared_model("tiny_ic_resnet8_fp32.onnx"))) / 12.5e6 - 1) < 0.01
    assert abs(work.macs(load(shared_model("tiny_kws_dscnn_fp32.onnx"))) / 2.66e6 - 1) < 0.02
    assert work.macs(load(shared_model("tiny_kws_dscnn_int8.onnx"))) == work.macs(load(shared_model("tiny_kws_dscnn_fp32.onnx")))
