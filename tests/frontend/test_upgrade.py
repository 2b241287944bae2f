"""Old files, brought to the canonical opset, compute what they computed: against ONNX Runtime, or numpy where that is too new for them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import parser

from gatewright.errors import ModelError
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession

CASES = {
    "resize10_nearest": (10, "(float[1,2,5,7] x) => (float[1,2,7,9] y) <float[4] s={1,1,1.5,1.4}> { y = Resize<mode='nearest'>(x,s) }"),
    "resize10_shrink": (10, "(float[1,2,5,7] x) => (float[1,2,3,5] y) <float[4] s={1,1,0.7,0.8}> { y = Resize<mode='nearest'>(x,s) }"),
    "resize10_linear": (10, "(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s={1,1,2,2}> { y = Resize<mode='linear'>(x,s) }"),
    "upsample9_nearest": (9, "(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s={1,1,2,2}> { y = Upsample<mode='nearest'>(x,s) }"),
    "upsample9_linear": (9, "(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s={1,1,2,2}> { y = Upsample<mode='linear'>(x,s) }"),
    "upsample7": (7, "(float[1,2,4,4] x) => (float[1,2,8,8] y) { y = Upsample<mode='nearest',scales=[1.0,1.0,2.0,2.0]>(x) }"),
    "resize11_corners": (
        11,
        "(float[1,2,4,4] x) => (float[1,2,8,8] y) <float[4] s={1,1,2,2}, float[0] r={}> "
        "{ y = Resize<mode='linear',coordinate_transformation_mode='align_corners'>(x,r,s) }",
    ),
    "resize11_cubic": (
        11, "(float[1,2,4,4] x) => (float[1,2,7,7] y) <int64[4] s={1,2,7,7}, float[0] r={}> { y = Resize<mode='cubic'>(x,r,r,s) }"
    ),
    "slice9": (9, "(float[3,4] x) => (float[1,4] y) { y = Slice<axes=[0],starts=[1],ends=[2]>(x) }"),
    "topk9": (9, "(float[3,4] x) => (float[3,2] y, int64[3,2] i) { y,i = TopK<axis=1,k=2>(x) }"),
    "clip7": (7, "(float[3,4] x) => (float[3,4] y) { y = Clip<min=-0.5,max=0.5>(x) }"),
    "clip7_half": (7, "(float[3,4] x) => (float[3,4] y) { y = Clip<min=-0.5>(x) }"),
    "pad10": (10, "(float[3,4] x) => (float[4,6] y) { y = Pad<pads=[1,1,0,1],value=2.5>(x) }"),
    "softmax12": (12, "(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = Softmax<axis=1>(x) }"),
    "softmax11_default": (11, "(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = Softmax(x) }"),
    "logsoftmax11": (11, "(float[2,3,4,5] x) => (float[2,3,4,5] y) { y = LogSoftmax<axis=2>(x) }"),
    "hardmax11": (11, "(float[2,3,4] x) => (float[2,3,4] y) { y = Hardmax<axis=1>(x) }"),
    "split12": (12, "(float[3,4] x) => (float[3,1] y, float[3,3] z) { y,z = Split<axis=1,split=[1,3]>(x) }"),
    "split11_equal": (11, "(float[3,4] x) => (float[3,2] y, float[3,2] z) { y,z = Split<axis=1>(x) }"),
    "squeeze12": (12, "(float[3,1,4] x) => (float[3,4] y) { y = Squeeze<axes=[1]>(x) }"),
    "squeeze12_all": (12, "(float[3,1,4,1] x) => (float[3,4] y) { y = Squeeze(x) }"),
    "unsqueeze12": (12, "(float[3,4] x) => (float[1,3,1,4] y) { y = Unsqueeze<axes=[0,2]>(x) }"),
    "reducesum12": (12, "(float[3,4] x) => (float[3] y) { y = ReduceSum<axes=[1],keepdims=0>(x) }"),
    "reducemean17_all": (17, "(float[3,4] x) => (float[1,1] y) { y = ReduceMean(x) }"),
    "reducel2_13": (13, "(float[3,4] x) => (float[3,1] y) { y = ReduceL2<axes=[-1]>(x) }"),
    "dropout11": (11, "(float[3,4] x) => (float[3,4] y) { y = Dropout<ratio=0.3>(x) }"),
    "batchnorm8": (
        8,
        "(float[2,2,4,4] x) => (float[2,2,4,4] y) <float[2] s={1,2}, float[2] b={0,1}, float[2] m={0.1,0.2}, float[2] v={1,2}> "
        "{ y = BatchNormalization<spatial=1>(x,s,b,m,v) }",
    ),
    "scatter10": (
        10, "(float[3,4] x) => (float[3,4] y) <int64[1,4] i={0,1,2,0}, float[1,4] u={9,9,9,9}> { y = Scatter<axis=0>(x,i,u) }"
    ),
    "roialign15": (
        15,
        "(float[1,2,8,8] x) => (float[1,2,2,2] y) <float[1,4] r={0.5,0.5,5,6}, int64[1] i={0}> "
        "{ y = RoiAlign<output_height=2,output_width=2,sampling_ratio=2>(x,r,i) }",
    ),
    "gridsample16": (
        16, "(float[1,1,4,4] x) => (float[1,1,1,2] y) <float[1,1,2,2] g={0.1,0.2,-0.3,0.4}> { y = GridSample<mode='bilinear'>(x,g) }"
    ),
    "dft17": (17, "(float[1,8,1] x) => (float[1,8,2] y) { y = DFT<axis=1>(x) }"),
    "avgpool18_ceil": (18, "(float[1,1,5,5] x) => (float[1,1,3,3] y) { y = AveragePool<kernel_shape=[2,2],strides=[2,2],ceil_mode=1>(x) }"),
    "prelu8": (8, "(float[2,3,4] x) => (float[2,3,4] y) <float[3,1] b={1,2,3}> { y = PRelu(x,b) }"),
    "max8": (8, "(float[3,4] x) => (float[3,4] y) <float[4] b={1,0,0,1}> { y = Max(x,b) }"),
    "quantize10": (
        10, "(float[3,4] x) => (float[3,4] y) <float s={0.1}, uint8 z={100}> { q=QuantizeLinear(x,s,z) y=DequantizeLinear(q,s,z) }"
    ),
    "cast9": (9, "(float[3,4] x) => (int32[3,4] y) { y = Cast<to=6>(x) }"),
    "branches11": (
        11,
        "(float[3,1,4] x) => (float[3,4] y) { s = ReduceSum<keepdims=0>(x) z = Constant<value = float {0.0}>() c = Greater(s,z) "
        "y = If(c)<then_branch = a () => (float[3,4] a) { a = Squeeze<axes=[1]>(x) }, "
        "else_branch = b () => (float[3,4] b) { q = Neg(x) b = Squeeze<axes=[1]>(q) }> }",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_against_onnx_runtime(name: str) -> None:
    opset, body = CASES[name]
    body = body.replace("'", '"')
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> g {body}')
    rng = np.random.default_rng(1)
    feeds = {i.name: rng.normal(size=[d.dim_value for d in i.type.tensor_type.shape.dim]).astype(np.float32) for i in proto.graph.input}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    expected = onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)
    model = load(proto)
    found = OrtSession(model, optimize=False).run(feeds)
    for output, wanted in zip(proto.graph.output, expected, strict=True):
        assert found[output.name].shape == wanted.shape
        # The operators are the same; only the constants' place changed, so the last bit is all that may differ.
        np.testing.assert_allclose(found[output.name], wanted, rtol=1e-6, atol=1e-6)


def old(opset: int, *nodes: onnx.NodeProto, inputs: dict[str, tuple[int, ...]], out: tuple[int, ...], dtype: int = 1) -> onnx.ModelProto:
    """A file of IR version 3 and an opset that ONNX Runtime has given up."""
    infos = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()]
    graph = onnx.helper.make_graph(list(nodes), "g", infos, [onnx.helper.make_tensor_value_info("y", dtype, out)])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=3)


GEMM = {"a": (3, 4), "w": (4, 5), "c": (5,)}
X, B, W = (np.random.default_rng(2).normal(size=shape).astype(np.float32) for shape in ((2, 3, 4), (3,), (4, 5)))


@pytest.mark.parametrize(
    ("proto", "feeds", "expected"),
    [
        pytest.param(
            old(6, onnx.helper.make_node("Add", ["x", "b"], ["y"], axis=1, broadcast=1), inputs={"x": (2, 3, 4), "b": (3,)}, out=(2, 3, 4)),
            {"x": X, "b": B},
            X + B[:, None],
            id="Add with axis",
        ),
        pytest.param(
            old(6, onnx.helper.make_node("PRelu", ["x", "b"], ["y"]), inputs={"x": (2, 3, 4), "b": (3,)}, out=(2, 3, 4)),
            {"x": X, "b": B},
            np.where(X < 0, X * B[:, None], X),
            id="PRelu by channel",
        ),
        pytest.param(
            old(5, onnx.helper.make_node("Reshape", ["x", "s"], ["y"]), inputs={"x": (2, 3, 4)}, out=(6, 4)),
            {"x": X},
            X.reshape(6, 4),
            id="Reshape",
        ),
        pytest.param(
            old(4, onnx.helper.make_node("Reshape", ["x"], ["y"], shape=[6, 4]), inputs={"x": (2, 3, 4)}, out=(6, 4)),
            {"x": X},
            X.reshape(6, 4),
            id="Reshape by attribute",
        ),
        pytest.param(
            old(3, onnx.helper.make_node("Concat", ["x", "x"], ["y"]), inputs={"x": (2, 3, 4)}, out=(2, 6, 4)),
            {"x": X},
            np.concatenate([X, X], axis=1),
            id="Concat without axis",
        ),
        pytest.param(
            old(6, onnx.helper.make_node("Gemm", ["a", "w", "c"], ["y"], broadcast=1), inputs=GEMM, out=(3, 5)),
            {"a": X[0], "w": W, "c": W[0]},
            X[0] @ W + W[0],
            id="Gemm with broadcast",
        ),
        pytest.param(
            old(6, onnx.helper.make_node("Dropout", ["x"], ["y"], is_test=1, ratio=0.5), inputs={"x": (2, 3, 4)}, out=(2, 3, 4)),
            {"x": X},
            X,
            id="Dropout",
        ),
    ],
)
def test_before_opset_7(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], expected: np.ndarray) -> None:
    if proto.graph.node[0].op_type == "Reshape" and len(proto.graph.node[0].input) == 2:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([6, 4]), "s"))
    found = OrtSession(load(proto), optimize=False).run(feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_slope_that_fits_no_axis_is_refused() -> None:
    text = '<ir_version: 8, opset_import: ["": 16]> g (float[2,3,4] x, float[3] b) => (float[2,3,4] y) { y = PRelu(x, b) }'
    with pytest.raises(ModelError, match=r"slope of shape \[3\].*\[2, 3, 4\]"):
        load(parser.parse_model(text))


def test_what_cannot_be_converted_is_refused() -> None:
    proto = old(5, onnx.helper.make_node("Cast", ["x"], ["y"], to="INT32"), inputs={"x": (2, 3, 4)}, out=(2, 3, 4), dtype=6)
    with pytest.raises(ModelError, match=r"opset 5 cannot be converted to 21.*Cast"):
        load(proto)


def test_scan_with_a_batch_is_refused() -> None:
    body = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["s", "v"], ["t"]), onnx.helper.make_node("Identity", ["t"], ["u"])],
        "body",
        [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in ("s", "v")],
        [onnx.helper.make_tensor_value_info(n, 1, [2]) for n in ("t", "u")],
    )
    scan = onnx.helper.make_node("Scan", ["", "h", "x"], ["last", "y"], num_scan_inputs=1, body=body, name="loop")
    with pytest.raises(ModelError, match="'loop': Scan of opset 8"):
        load(old(8, scan, inputs={"h": (1, 2), "x": (1, 3, 2)}, out=(1, 3, 2)))


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (24, "(float[2,3] x) => (float[2,3] y) { y = Swish(x) }"),
        (23, "(float[2,3] x) => (float[2,3] y) <float[3] w={1,2,3}> { y = RMSNormalization(x, w) }"),
        (22, "(float[1,1,4,4] x) => (float[1,1,2,2] y) { y = MaxPool<kernel_shape=[2,2],strides=[2,2]>(x) }"),
        (23, "(float[1,2,3,4] x) => (float[1,2,3,4] y) { y = Attention(x, x, x) }"),
    ],
)
def test_newer_opsets_are_expressed_in_21(opset: int, body: str) -> None:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {body}')
    x = np.random.default_rng(3).normal(size=[d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]).astype(np.float32)
    expected = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]
    model = load(proto)
    assert model.ir.opset_imports == {"": 21}
    np.testing.assert_allclose(OrtSession(model, optimize=False).run({"x": x})["y"], expected, rtol=1e-5, atol=1e-6)


def test_an_attribute_newer_than_21_is_refused_by_name() -> None:
    body = '(float[4] x) => (float8e8m0[4] y) { y = Cast<to=24, round_mode="up">(x) }'
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> g {body}')
    with pytest.raises(ModelError, match=r"\(Cast\): its attribute 'round_mode' came after opset 21"):
        load(proto)
