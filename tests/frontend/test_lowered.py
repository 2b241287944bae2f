"""Operators written out as others give what ONNX Runtime makes of the file as it is; and they are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from gatewright.frontend import unroll
from gatewright.frontend.load import load
from gatewright.frontend.ortrun import OrtSession
from gatewright.frontend.reference import Reference

Array = NDArray[Any]

BODY = "body (float[3] s, float[3] x) => (float[3] t, float[3] y) { t = Add(s, x) y = Mul(t, outside) }"
SCAN = "t, y = Scan<body = {body}, num_scan_inputs = 1, {options}>(s, x)"
LOOP = """trips = Constant<value = int64 {{{trips}}}>() true = Constant<value = bool {{1}}>()
    t, y = Loop<body = body (int64 i, bool go, float[3] s) => (bool still, float[3] t, float[3] y)
    {{ still = {still} f = Cast<to = 1>(i) t = Add(s, f) y = Mul(t, x) }}>(trips, true, x)"""

BACKWARDS = "scan_input_axes = [1], scan_input_directions = [1], scan_output_axes = [1], scan_output_directions = [1]"
CASES = {
    "hardmax": ("float[2,5] x", "float[2,5] y", "y = Hardmax<axis = 1>(x)"),
    "hardmax_first_axis": ("float[4,5,2] x", "float[4,5,2] y", "y = Hardmax<axis = 0>(x)"),
    **{
        f"lp_pool_{p}": ("float[1,2,6,7] x", "float[1,2,4,5] y", f"y = LpPool<kernel_shape = [3, 3], p = {p}>(x)") for p in (1, 2, 3)
    },
    "lp_pool_padded": (
        "float[1,2,6,7] x", "float[1,2,3,4] y", "y = LpPool<kernel_shape = [3, 2], strides = [2, 2], pads = [0, 1, 1, 1]>(x)",
    ),
    **{
        f"einsum_{equation}": (inputs, f"float{shape} y", f"y = Einsum<equation = \"{equation}\">({names})")
        for equation, inputs, shape, names in (
            ("bij,bjk->bik", "float[2,3,4] x, float[2,4,5] z", "[2,3,5]", "x, z"),
            ("bhid,bhjd->bhij", "float[2,3,4,5] x, float[2,3,6,5] z", "[2,3,4,6]", "x, z"),
            ("bij,jk->bik", "float[2,3,4] x, float[4,5] z", "[2,3,5]", "x, z"),
            ("i,j->ij", "float[3] x, float[4] z", "[3,4]", "x, z"),
            ("ij,ij->", "float[3,4] x, float[3,4] z", "", "x, z"),
            ("...ij,...jk->...ik", "float[2,3,4] x, float[2,4,5] z", "[2,3,5]", "x, z"),
            ("ik,kj", "float[3,4] x, float[4,2] z", "[3,2]", "x, z"),
            ("abc,cd->da", "float[2,3,4] x, float[4,5] z", "[5,2]", "x, z"),
            ("ijk->kj", "float[2,3,4] x", "[4,3]", "x"),
        )
    },
    "scan": (
        "float[3] s, float[4,3] x, float[3] outside", "float[3] t, float[4,3] y", SCAN.format(body=BODY, options="scan_input_axes = [0]"),
    ),
    "scan_backwards": (
        "float[3] s, float[3,4] x, float[3] outside", "float[3] t, float[3,4] y",
        SCAN.format(body=BODY, options=BACKWARDS),
    ),
    "loop": ("float[3] x", "float[3] t, float[4,3] y", LOOP.format(trips=4, still="Identity(go)")),
    "layer_normalization": (
        "float[2,3,8] x, float[8] s", "float[2,3,8] y, float[2,3,1] m, float[2,3,1] v", "y, m, v = LayerNormalization<axis = -1>(x, s)",
    ),
    "crop": ("float[7,3] x", "float[4,6] y", "w = Constant<value = int64[2] {4, 6}>() y = CenterCropPad(x, w)"),
    "log_likelihood": (
        "float[3,5] x", "float y",
        "t = Constant<value = int64[3] {4, 0, 2}>() l = LogSoftmax<axis = 1>(x) y = NegativeLogLikelihoodLoss<reduction = \"mean\">(l, t)",
    ),
    "cross_entropy": (
        "float[3,5,2] x", "float[3,2] y",
        "t = Constant<value = int64[3,2] {4, 0, 2, 1, 1, 3}>() y = SoftmaxCrossEntropyLoss<reduction = \"none\">(x, t)",
    ),
    "sum_of_nothing": (
        "float[2,3] x", "float[2,1] y",
        "a = Constant<value = int64[1] {1}>() b = Constant<value = int64[1] {3}>() e = Slice(x, b, b, a) s = ReduceSum(e, a) "
        "m = ReduceMax(x, a) y = Add(s, m)",
    ),
}  # fmt: skip
GONE = {"Hardmax", "LpPool", "Einsum", "Scan", "Loop", "CenterCropPad", "NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"}


def proto(inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g ({inputs}) => ({outputs}) {{ {body} }}')


@pytest.mark.parametrize("name", CASES)
def test_it_means_the_same(name: str) -> None:
    given = proto(*CASES[name])
    model = load(given)
    assert not GONE & {node.op_type for node in model.graph}
    rng = np.random.default_rng(0)
    feeds: dict[str, Array] = {info.name: rng.normal(size=info.shape).astype(info.dtype) for info in model.inputs}
    wanted = OrtSession(given.SerializeToString(), optimize=False).run(feeds)
    for key, found in Reference(model).run(feeds).items():
        assert found.shape == wanted[key].shape
        np.testing.assert_allclose(found, wanted[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("trips", "still"), [("4", "Not(go)"), (str(unroll.UNROLLED_NODES), "Identity(go)")], ids=["ends by itself", "too long"]
)
def test_a_loop_that_stays(trips: str, still: str) -> None:
    only_state = LOOP.format(trips=trips, still=still).replace("t, y =", "t =").replace(", float[3] y)", ")").replace("y = Mul(t, x)", "")
    given = proto("float[3] x", "float[3] t", only_state)
    assert "Loop" in {node.op_type for node in load(given).graph}


def test_a_sum_over_a_diagonal_stays() -> None:
    given = proto("float[2,3,3] x", "float[2,3] y", 'y = Einsum<equation = "bii->bi">(x)')
    assert [node.op_type for node in load(given).graph] == ["Einsum"]


def test_blocked_scales() -> None:
    given = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[2,5] x, float[2,3] s, int8[2,3] z) => (int8[2,5] y)'
        "{ y = QuantizeLinear<axis = 1, block_size = 2>(x, s, z) }"
    )
    feeds: dict[str, Array] = {
        "x": np.linspace(-9, 9, 10, dtype=np.float32).reshape(2, 5),
        "s": np.array([[0.5, 1, 2], [3, 0.25, 1]], np.float32),
        "z": np.array([[1, -2, 3], [0, 7, -7]], np.int8),
    }
    wanted = OrtSession(given.SerializeToString(), optimize=False).run(feeds)["y"]
    np.testing.assert_array_equal(Reference(load(given)).run(feeds)["y"], wanted)
