"""What differential fuzzing found, each as small as it was shrunk to: the reference on the loaded model against the engine named."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from gatewright.errors import ModelError
from gatewright.frontend.batch import batch_reason
from gatewright.frontend.load import load
from gatewright.frontend.reference import Reference

CASES = {
    "slice of int32 bounds": (17, "float[2,5] x", "float[2,2] y", "int32[1] a = {1}, int32[1] b = {3}, int32[1] c = {1}",
                              "y = Slice(x, a, b, c)"),
    "clip of float16 before opset 11": (8, "float16[1,3,16] x", "float16[1,3,16] y", "", "y = Clip<max: float = 0.5>(x)"),
    "value of a Pad that fills nothing in": (9, "float[3] x", "float[9] y", "",
                                             'y = Pad<mode: string = "edge", pads: ints = [3, 3], value: float = 0.5>(x)'),
    "pad by less than nothing": (13, "float[2,5] x", "float[3,3] y", "int64[4] p = {1, -1, 0, -1}", "y = Pad(x, p)"),
    "1-norm keeps the sign": (17, "float[2,1,5] x", "float[2,1,5] y", "", "y = LpNormalization<axis: int = 1, p: int = 1>(x)"),
    "mean of broadcast operands": (13, "float[3,1,3] x", "float[2,3,3,3] y", "float[2,1,3,1] a = {1,2,3,4,5,6}", "y = Mean(x, a)"),
    "places of maxima": (12, "float[2,3,3,3] x", "float[2,3,3,2] v, int64[2,3,3,2] y", "",
                         "v, y = MaxPool<kernel_shape: ints = [1, 2]>(x)"),
    "places of maxima, padded": (12, "float[2,2,5,4] x", "float[2,2,3,2] v, int64[2,2,3,2] y", "",
                                 "v, y = MaxPool<kernel_shape: ints = [3, 3], strides: ints = [2, 2], pads: ints = [1, 1, 1, 0]>(x)"),
    "transposed convolution of groups": (13, "float[2,4,3,3] x", "float[2,4,3,6] y", "float[4,1,1,2] w = {1,2,3,4,5,6,7,8}",
                                         "y = ConvTranspose<group: int = 4, kernel_shape: ints = [1, 2], strides: ints = [1, 2]>(x, w)"),
    "logarithm of a sum of integers' powers": (18, "int32[2,3] x", "int32[2,1] y", "int64[1] a = {1}", "y = ReduceLogSumExp(x, a)"),
    "sum of integers' squares that are known": (18, "int32[2,3] x", "int32[2,3] y", "int32[2,3] c = {1,2,3,4,5,6}, int64[1] a = {1}",
                                                "s = ReduceSumSquare(c, a) y = Add(x, s)"),
    "mean of integers whose sum overflows": (18, "int32[1,3] x", "int32[2,1] y",
                                             "int32[2,3] c = {2147483647,2147483647,9,-7,-7,-7}, int32[1] z = {0}, int64[1] a = {1}",
                                             "n = Mul(x, z) t = Add(n, c) y = ReduceMean(t, a)"),
    "branch that reads what is around it": (13, "float[2,3] x, bool c", "float[2,3] y", "",
                                            "t = Neg(x) y = If (c) <then_branch = g1 () => (float[2,3] p) { p = Relu(t) }, "
                                            "else_branch = g2 () => (float[2,3] q) { q = Loop0(t) }>"),
    "scattered along the last of five axes": (18, "float[1,2,1,2,4] x", "float[1,2,1,2,4] y",
                                              "int64[1,1,1,1,2] i = {3, 0}, float[1,1,1,1,2] u = {5, 6}",
                                              "y = ScatterElements<axis: int = -1>(x, i, u)"),
    "resized by thirds, cubically": (13, "float[1,1,5,4] x", "float[1,1,7,6] y", "float[4] s = {1, 1, 1.5, 1.5}",
                                     'y = Resize<mode: string = "cubic">(x, , s)'),
}  # fmt: skip


def model_of(opset: int, inputs: str, outputs: str, constants: str, body: str) -> onnx.ModelProto:
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) <{constants}> {{ {body.replace("Loop0", "Abs")} }}'
    return onnx.parser.parse_model(text.replace("<>", ""))


def feeds_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    feeds = {}
    for value in proto.graph.input:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
        feeds[value.name] = np.asarray(random.normal(size=shape) * (1 if dtype.kind == "f" else 3)).astype(dtype)
    return feeds


@pytest.mark.parametrize("name", CASES)
def test_reference_agrees_with_onnx_runtime(name: str) -> None:
    proto = model_of(*CASES[name])
    feeds = feeds_of(proto)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    found = Reference(load(proto)).run(feeds)
    for value, array in zip(proto.graph.output, wanted, strict=True):
        assert found[value.name].dtype == array.dtype
        np.testing.assert_allclose(found[value.name], array, rtol=1e-5, atol=1e-6)


def test_a_product_of_nothing_is_what_is_added() -> None:
    """Of which ONNX Runtime forgets beta."""
    body = "y = Gemm<alpha: float = 2.0, beta: float = 1.5>(x, w, c)"
    proto = model_of(13, "float[2,0] x, float[1,3] c", "float[2,3] y", "float[0,3] w = {}", body)
    found = Reference(load(proto)).run({"x": np.zeros((2, 0), np.float32), "c": np.array([[1, 2, 3]], np.float32)})
    np.testing.assert_array_equal(found["y"], np.array([[1.5, 3, 4.5]] * 2, np.float32))


def test_places_of_maxima_that_are_known() -> None:
    """Of doubles, which onnx's evaluator is asked for where ONNX Runtime has no Erf of them; its places are wrong."""
    constant = f"double[6,2,1,1] c = {{{', '.join(map(str, range(12)))}}}"
    body = 'e = Erf(x) t = Trilu(c) v, y = MaxPool<auto_pad: string = "SAME_LOWER", kernel_shape: ints = [1, 1]>(t)'
    proto = model_of(19, "double[6] x", "double[6] e, int64[6,2,1,1] y", constant, body)
    found = Reference(load(proto)).run({"x": np.zeros(6)})
    np.testing.assert_array_equal(found["y"].reshape(-1), np.arange(12))


def test_a_shape_that_onnx_gets_wrong_is_not_folded() -> None:
    constant, body = "float[1,2,1,1,2] c = {1,2,3,4}", "h = Cast<to: int = 10>(c) m = GlobalMaxPool(h) y = Max(x, m)"
    proto = model_of(12, "float16[1,2,1,1,3] x", "float16[1,2,1,1,3] y", constant, body)
    found = Reference(load(proto)).run({"x": np.zeros((1, 2, 1, 1, 3), np.float16)})
    np.testing.assert_array_equal(found["y"], np.array([2, 2, 2, 4, 4, 4], np.float16).reshape(1, 2, 1, 1, 3))


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("RNN", 1), ("LSTM", 4), ("GRU", 3)])
def test_recurrent_layers_of_any_direction_and_length(op: str, gates: int, direction: str) -> None:
    random, ways, hidden = np.random.default_rng(1), 2 if direction == "bidirectional" else 1, 3
    arrays = {
        "w": random.normal(size=(ways, gates * hidden, 2)), "r": random.normal(size=(ways, gates * hidden, hidden)),
        "b": random.normal(size=(ways, 2 * gates * hidden)), "h": random.normal(size=(ways, 4, hidden)),
    }  # fmt: skip
    weights = [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()]
    weights.append(onnx.numpy_helper.from_array(np.array([5, 3, 1, 4], np.int32), "n"))
    extra = {"linear_before_reset": 1} if op == "GRU" else {}
    node = onnx.helper.make_node(op, ["x", "w", "r", "b", "n", "h"], ["y", "last"], hidden_size=hidden, direction=direction, **extra)
    info = onnx.helper.make_tensor_value_info
    outputs = [info("y", 1, [5, ways, 4, hidden]), info("last", 1, [ways, 4, hidden])]
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, [5, 4, 2])], outputs, weights)
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    feeds = feeds_of(proto)
    wanted = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    found = Reference(load(proto)).run(feeds)
    for value, array in zip(("y", "last"), wanted, strict=True):
        np.testing.assert_allclose(found[value], array, rtol=1e-5, atol=1e-6)


def test_an_empty_output_of_the_graph_keeps_its_name() -> None:
    proto = model_of(13, "float[0,3] x", "float[0,2] y, float[0,2] z", "float[3,2] w = {1,2,3,4,5,6}", "y = MatMul(x, w) z = Relu(y)")
    found = Reference(load(proto)).run({"x": np.zeros((0, 3), np.float32)})
    assert {name: array.shape for name, array in found.items()} == {"y": (0, 2), "z": (0, 2)}


def test_a_convolution_may_have_nothing_to_give() -> None:
    body = "y = Conv<dilations: ints = [2, 2], group: int = 2, kernel_shape: ints = [2, 2]>(x, w)"
    proto = model_of(17, "float[1,2,5,2] x", "float[1,2,3,0] y", "float[2,1,2,2] w = {1,2,3,4,5,6,7,8}", body)
    assert Reference(load(proto)).run(feeds_of(proto))["y"].shape == (1, 2, 3, 0)


def test_places_of_maxima_count_over_all_samples() -> None:
    reason = batch_reason(load(model_of(*CASES["places of maxima"])))
    assert reason is not None
    assert "counts places over all samples" in reason


def test_a_softmax_of_old_that_is_empty_keeps_its_shape() -> None:
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        proto = model_of(12, "float[0,4] x", "float[0,4] y", "", f"y = {op}<axis: int = 0>(x)")
        assert Reference(load(proto)).run(feeds_of(proto))["y"].shape == (0, 4)


def test_a_softmax_of_old_wants_an_axis_that_there_is() -> None:
    with pytest.raises(ModelError, match=r"\(Softmax\): its input of rank 1 has no axis 1"):
        load(model_of(12, "float[4] x", "float[4] y", "", "y = Softmax(x)"))
    proto = model_of(12, "float[4] x", "float[4] y", "", "y = Softmax<axis: int = 0>(x)")
    assert Reference(load(proto)).run(feeds_of(proto))["y"].sum() == pytest.approx(1)


def test_zeros_quantize_dynamically_as_in_onnx_runtime() -> None:
    proto = model_of(21, "float[2] x", "uint8[2] y, float s, uint8 z", "", "y, s, z = DynamicQuantizeLinear(x)")
    for x in ([0, 0], [1, 3], [-2, 0.5], [-3, -1]):
        feeds = {"x": np.array(x, np.float32)}
        wanted = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
        found = Reference(load(proto)).run(feeds)
        for name, array in zip(("y", "s", "z"), wanted, strict=True):
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array), (x, name)


def test_constants_of_float16_are_rounded_where_they_are_folded() -> None:
    """ONNX Runtime computes float16 in float32, and drops the roundings between two nodes. (The bits 16384 are 2.)"""
    body = "h = HardSwish(c) y = Cast<to: int = 1>(h) z = Add(x, y)"
    found = Reference(load(model_of(21, "float[1] x", "float[1] z", "float16[1] c = {16384}", body))).run({"x": np.zeros(1, np.float32)})
    assert found["z"][0] == np.float32(np.float16(2 * 5 / 6))


def test_what_onnx_evaluates_wrongly_is_not_folded_by_it() -> None:
    """Its norm of p = 1 forgets the signs, and ONNX Runtime has no Asinh of double."""
    body = "n = LpNormalization<axis: int = 0, p: int = 1>(c) a = Asinh(n) y = Add(x, a)"
    proto = model_of(21, "double[2] x", "double[2] y", "double[2] c = {1.0, -3.0}", body)
    found = Reference(load(proto)).run({"x": np.zeros(2)})
    np.testing.assert_allclose(found["y"], np.arcsinh([0.25, -0.75]), rtol=1e-6)


def test_a_product_of_no_columns_is_zeros() -> None:
    """ONNX Runtime leaves the memory of such a result as it was."""
    model = load(model_of(21, "float[2,3,0] x", "float[2,3] y", "float[0] w = {}", "y = MatMul(x, w)"))
    assert [node.op_type for node in model.graph] == ["Identity"]
    assert not np.any(Reference(model).run({"x": np.zeros((2, 3, 0), np.float32)})["y"])
