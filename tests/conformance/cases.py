"""One line per operator and variant: an expression over shared inputs, in ONNX's text syntax. Add a line to cover an operator.

Float branches read ``x`` float[1,4,6,6] in −2 … 2, ``p`` like x but positive, ``v`` float[1,12]. Integer branches read the
dequantized ``xq`` int8[1,4,6,6], ``uq`` uint8[1,4,6,6] and ``vq`` int8[1,12], and are quantized again as the table says. Whole branches
read ``i`` int32[1,4,6], any of its integers, ``j`` like i without 0, and ``k`` uint32[1,4,6] below 40.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import onnx
from graphs import Array

from gatewright.frontend.load import load
from gatewright.frontend.model import Model


@dataclass(frozen=True)
class Case:
    name: str
    body: str
    """Statements; the last one defines ``OUT``."""
    shape: tuple[int, ...]
    weights: tuple[tuple[str, tuple[int, ...]], ...] = ()
    """Float weights by name and shape, drawn at random."""
    tolerance: float = 1e-5
    """Relative to the largest magnitude of the reference's output: float32 sums of at most a few hundred terms."""


X = (1, 4, 6, 6)
FLOAT = [
    *(Case(op, f"OUT = {op}(x)", X) for op in (
        "Relu", "Sigmoid", "Tanh", "Abs", "Neg", "Exp", "Floor", "Ceil", "Round", "Sign", "Erf", "Softplus", "Softsign",
        "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "Sin", "Cos", "Mish", "Gelu", "Identity",
    )),
    Case("GlobalAveragePool", "OUT = GlobalAveragePool(x)", (1, 4, 1, 1)),
    Case("GlobalMaxPool", "OUT = GlobalMaxPool(x)", (1, 4, 1, 1)),
    *(Case(op, f"OUT = {op}(p)", X) for op in ("Log", "Sqrt", "Reciprocal")),
    *(Case(op, f"OUT = {op}(x, p)", X) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu", "Sum")),
    Case("Pow", "OUT = Pow(p, x)", X),
    Case("Gelu_tanh", 'OUT = Gelu<approximate = "tanh">(x)', X),
    Case("Add_channel", "OUT = Add(x, w)", X, (("w", (4, 1, 1)),)),
    Case("Clip", "lo = Constant<value = float {-0.5}>() hi = Constant<value = float {1.25}>() OUT = Clip(x, lo, hi)", X),
    Case("Conv", "OUT = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w, b)", (1, 5, 6, 6), (("w", (5, 4, 3, 3)), ("b", (5,)))),
    Case("Conv_1x1", "OUT = Conv<kernel_shape = [1, 1]>(x, w)", (1, 7, 6, 6), (("w", (7, 4, 1, 1)),)),
    Case("Conv_stride", "OUT = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]>(x, w)", (1, 3, 3, 3),
         (("w", (3, 4, 3, 3)),)),
    Case("Conv_dilated", "OUT = Conv<kernel_shape = [2, 2], dilations = [2, 3]>(x, w)", (1, 3, 4, 3), (("w", (3, 4, 2, 2)),)),
    Case("Conv_grouped", "OUT = Conv<kernel_shape = [3, 3], group = 2>(x, w)", (1, 6, 4, 4), (("w", (6, 2, 3, 3)),)),
    Case("Conv_depthwise", "OUT = Conv<kernel_shape = [3, 3], group = 4, pads = [1, 1, 1, 1]>(x, w)", X, (("w", (4, 1, 3, 3)),)),
    Case("ConvTranspose", "OUT = ConvTranspose<kernel_shape = [2, 2], strides = [2, 2]>(x, w)", (1, 3, 12, 12), (("w", (4, 3, 2, 2)),)),
    Case("Gemm", "OUT = Gemm(v, w, b)", (1, 9), (("w", (12, 9)), ("b", (9,)))),
    Case("MatMul", "OUT = MatMul(v, w)", (1, 9), (("w", (12, 9)),)),
    Case("MatMul_batched", "t = Transpose<perm = [0, 1, 3, 2]>(p) OUT = MatMul(x, t)", X),
    Case("MaxPool", "OUT = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)", (1, 4, 3, 3)),
    Case("MaxPool_ceil", "OUT = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)", (1, 4, 3, 3)),
    Case("AveragePool", "OUT = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", (1, 4, 3, 3)),
    Case("AveragePool_pad", "OUT = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)", X),
    Case("AveragePool_count", "OUT = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)", X),
    Case("Softmax", "OUT = Softmax<axis = 1>(x)", X),
    Case("LogSoftmax", "OUT = LogSoftmax<axis = -1>(x)", X),
    *(Case(op, f"a = Constant<value = int64[2] {{2, 3}}>() OUT = {op}<keepdims = 0>({i}, a)", (1, 4)) for op, i in (
        ("ReduceMean", "x"), ("ReduceSum", "x"), ("ReduceMax", "x"), ("ReduceMin", "x"), ("ReduceProd", "x"), ("ReduceL2", "x"),
        ("ReduceL1", "x"), ("ReduceSumSquare", "x"), ("ReduceLogSum", "p"), ("ReduceLogSumExp", "x"),
    )),
    Case("Transpose", "OUT = Transpose<perm = [0, 2, 3, 1]>(x)", (1, 6, 6, 4)),
    Case("Reshape", "s = Constant<value = int64[2] {1, 144}>() OUT = Reshape(x, s)", (1, 144)),
    Case("Concat", "OUT = Concat<axis = 1>(x, p, x)", (1, 12, 6, 6)),
    Case("Slice", "a = Constant<value = int64[2] {1, 5}>() b = Constant<value = int64[2] {3, 0}>() c = Constant<value = int64[2] {1, 3}>() "
         "d = Constant<value = int64[2] {1, -2}>() OUT = Slice(x, a, b, c, d)", (1, 2, 6, 3)),
    Case("Split", "OUT, rest = Split<axis = 1, num_outputs = 2>(x)", (1, 2, 6, 6)),
    Case("Pad", "a = Constant<value = int64[8] {0, 0, 1, 2, 0, 0, 0, 1}>() OUT = Pad(x, a)", (1, 4, 7, 9)),
    Case("Expand", "s = Constant<value = int64[4] {1, 4, 6, 6}>() m = ReduceMax(x) OUT = Expand(m, s)", X),
    Case("Tile", "s = Constant<value = int64[4] {1, 2, 1, 1}>() OUT = Tile(x, s)", (1, 8, 6, 6)),
    Case("Gather", "i = Constant<value = int64[3] {3, 0, 1}>() OUT = Gather<axis = 1>(x, i)", (1, 3, 6, 6)),
    Case("Where", "c = Greater(x, p) OUT = Where(c, x, p)", X),
    Case("Resize_nearest", 's = Constant<value = float[4] {1, 1, 2, 2}>() OUT = Resize<mode = "nearest", '
         'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(x, , s)', (1, 4, 12, 12)),
    Case("Resize_linear", 's = Constant<value = float[4] {1, 1, 2, 2}>() OUT = Resize<mode = "linear", '
         'coordinate_transformation_mode = "half_pixel">(x, , s)', (1, 4, 12, 12)),
    Case("BatchNormalization", "OUT = BatchNormalization(x, s, b, m, n)", X, (("s", (4,)), ("b", (4,)), ("m", (4,)), ("n", (4,)))),
    Case("LayerNormalization", "OUT = LayerNormalization<axis = -1>(x, s, b)", X, (("s", (6,)), ("b", (6,)))),
    Case("InstanceNormalization", "OUT = InstanceNormalization(x, s, b)", X, (("s", (4,)), ("b", (4,)))),
    Case("DepthToSpace", "OUT = DepthToSpace<blocksize = 2>(x)", (1, 1, 12, 12)),
    Case("SpaceToDepth", "OUT = SpaceToDepth<blocksize = 2>(x)", (1, 16, 3, 3)),
    Case("Cast", "i = Cast<to = 6>(x) OUT = Cast<to = 1>(i)", X),
    Case("LRN", "OUT = LRN<size = 3>(x)", X),
    Case(
        "DequantizeLinear_blocks",
        "k = Constant<value = float {7.0}>() m = Mul(w, k) q = Cast<to = 22>(m) d = DequantizeLinear<axis = 0, block_size = 4>(q, s) "
        "OUT = MatMul(v, d)", (1, 9), (("w", (12, 9)), ("s", (3, 9))),
    ),
    Case("Hardmax", "OUT = Hardmax<axis = 1>(x)", X),
    Case("LpPool", "OUT = LpPool<kernel_shape = [2, 2], strides = [2, 2], p = 3>(x)", (1, 4, 3, 3)),
    Case("Einsum", 'OUT = Einsum<equation = "bchw,bcjw->bchj">(x, p)', X),
    Case("LayerNormalization_mean", "y, OUT = LayerNormalization<axis = -1>(x, s)", (1, 4, 6, 1), (("s", (6,)),)),
    Case("RNN", "s = Constant<value = int64[3] {1, 6, 24}>() t = Reshape(x, s) u = Transpose<perm = [1, 0, 2]>(t) "
         "OUT, last = RNN<hidden_size = 3>(u, w, r)", (6, 1, 1, 3), (("w", (1, 3, 24)), ("r", (1, 3, 3)))),
]  # fmt: skip

# Quantized branches: dequantize → body → quantize with scale 0.05 and zero point 3 to int8.
INTEGER = [
    Case("conv", "OUT = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w)", (1, 5, 6, 6), (("w", (5, 4, 3, 3)),)),
    Case("conv_stride_relu", "c = Conv<kernel_shape = [3, 3], strides = [2, 2]>(x, w) OUT = Relu(c)", (1, 3, 2, 2), (("w", (3, 4, 3, 3)),)),
    Case("conv_dilated", "OUT = Conv<kernel_shape = [2, 2], dilations = [2, 3]>(u, w)", (1, 3, 4, 3), (("w", (3, 4, 2, 2)),)),
    Case("conv_grouped", "OUT = Conv<kernel_shape = [3, 3], group = 2>(u, w)", (1, 6, 4, 4), (("w", (6, 2, 3, 3)),)),
    Case("conv_depthwise", "OUT = Conv<kernel_shape = [3, 3], group = 4, pads = [1, 1, 1, 1]>(x, w)", X, (("w", (4, 1, 3, 3)),)),
    Case("matmul", "OUT = MatMul(v, w)", (1, 9), (("w", (12, 9)),)),
    Case("matmul_of_activations", "t = Transpose<perm = [0, 1, 3, 2]>(uq) d = DequantizeLinear(t, su, zu) OUT = MatMul(x, d)", X),
    Case("sum", "OUT = Add(x, u)", X),
    Case("difference_relu", "s = Sub(x, u) OUT = Relu(s)", X),
    Case("product", "OUT = Mul(x, u)", X),
    Case("concat", "OUT = Concat<axis = 1>(x, u)", (1, 8, 6, 6)),
    Case("average", "OUT = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)", (1, 4, 3, 3)),
    Case("average_partial", "OUT = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)", X),
    Case("global_average", "OUT = GlobalAveragePool(u)", (1, 4, 1, 1)),
    Case("reduce_mean", "a = Constant<value = int64[2] {2, 3}>() OUT = ReduceMean<keepdims = 0>(x, a)", (1, 4)),
    Case("maximum", "OUT = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)", (1, 4, 3, 3)),
    Case("global_maximum", "OUT = GlobalMaxPool(x)", (1, 4, 1, 1)),
    Case("relu", "OUT = Relu(x)", X),
    Case("clip", "lo = Constant<value = float {-0.5}>() hi = Constant<value = float {1.25}>() OUT = Clip(x, lo, hi)", X),
    Case("requantize", "OUT = Identity(u)", X),
    Case("moved", "OUT = Transpose<perm = [0, 2, 3, 1]>(u)", (1, 6, 6, 4)),
    *(Case(f"table_{op}", f"OUT = {op}(x)", X) for op in ("Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Elu", "Gelu", "Abs", "Exp")),
    Case("softmax", "OUT = Softmax<axis = 1>(x)", X),
]  # fmt: skip

# Branches of whole numbers, whose results are equal on every target; each is cast to int64.
WHOLE_X = (1, 4, 6)
WHOLE = [
    *(Case(op, f"OUT = {op}(i)", WHOLE_X) for op in ("Abs", "Neg", "Sign", "BitwiseNot", "Relu")),
    *(Case(op, f"OUT = {op}(i, j)", WHOLE_X) for op in (
        "Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Less", "Greater",
        "LessOrEqual", "GreaterOrEqual",
    )),
    Case("Mod_c", "OUT = Mod<fmod = 1>(i, j)", WHOLE_X),
    *(Case(f"{op}_by_zero", f"n = Constant<value = int32 {{4}}>() r = Mod(j, n) OUT = {op}(i, r)", WHOLE_X) for op in ("Div", "Mod")),
    Case("Mod_c_by_zero", "n = Constant<value = int32 {4}>() r = Mod(j, n) OUT = Mod<fmod = 1>(i, r)", WHOLE_X),
    Case("Div_half", "two = Constant<value = int32 {2}>() OUT = Div(i, two)", WHOLE_X),
    Case("Pow", "two = Constant<value = int32 {2}>() OUT = Pow(i, two)", WHOLE_X),
    Case("Clip", "lo = Constant<value = int32 {-9}>() hi = Constant<value = int32 {1000000}>() OUT = Clip(i, lo, hi)", WHOLE_X),
    *(Case(f"BitShift_{way}", f'OUT = BitShift<direction = "{way}">(k, k)', WHOLE_X) for way in ("LEFT", "RIGHT")),
    *(Case(op, f"a = Constant<value = int64[1] {{2}}>() OUT = {op}(i, a)", (1, 4, 1)) for op in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceSumSquare",
    )),
    *(Case(f"{op}_of_all", f"OUT = {op}(i)", (1, 1, 1)) for op in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceProd", "ReduceSumSquare",
    )),
    *(Case(op, f"OUT = {op}<axis = 1>(i)", (1, 1, 6)) for op in ("ArgMax", "ArgMin")),
    Case("CumSum", "a = Constant<value = int64 {2}>() OUT = CumSum<exclusive = 1, reverse = 1>(i, a)", WHOLE_X),
    Case("TopK", "n = Constant<value = int64[1] {3}>() OUT, place = TopK<axis = 2>(i, n)", (1, 4, 3)),
    Case("Where", "c = Less(i, j) OUT = Where(c, i, j)", WHOLE_X),
    Case("MatMul", "t = Transpose<perm = [0, 2, 1]>(j) OUT = MatMul(i, t)", (1, 4, 4)),
    *(Case(f"Cast_{name}", f"y = Cast<to = {to}>(i) OUT = Cast<to = 6>(y)", WHOLE_X)
      for name, to in (("int8", 3), ("uint8", 2), ("int16", 5), ("uint32", 12), ("bool", 9), ("double", 11))),
]  # fmt: skip


def weights(case: Case) -> dict[str, Array]:
    """The case's weights; drawn from its own name, so that a new case changes no other. Variances ("n") are positive."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    drawn = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in case.weights}
    return {name: np.abs(array) + 0.1 if name == "n" else array for name, array in drawn.items()}


def _branch(case: Case, inputs: str, body: str, shared: set[str]) -> list[onnx.NodeProto]:
    """The nodes of one case with every name that is not shared made the case's own, so that all branches fit in one graph."""
    parsed = onnx.parser.parse_graph(f"g ({inputs}) => (float[1] OUT) {{ {body} }}")
    for node in parsed.node:
        for names in (node.input, node.output):
            names[:] = [f"{case.name}_{name}" if name and name not in shared else name for name in names]
    return list(parsed.node)


def _joined(cases: list[Case], inputs: str, bodies: list[str], arrays: dict[str, Array], dtype: int) -> Model:
    """All branches in one graph: one compilation, one output per case, named after it."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => () {{ }}')
    shared = {value.name for value in proto.graph.input} | {name for name in arrays if "_" not in name}
    for case, body in zip(cases, bodies, strict=True):
        proto.graph.node.extend(_branch(case, inputs, body, shared))
        proto.graph.output.append(onnx.helper.make_tensor_value_info(f"{case.name}_OUT", dtype, case.shape))
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items())
    return load(proto, name="conformance")


def float_model(cases: list[Case]) -> Model:
    """The float branches; the output of a case is ``<name>_OUT``."""
    arrays = {f"{case.name}_{name}": array for case in cases for name, array in weights(case).items()}
    return _joined(cases, "float[1,4,6,6] x, float[1,4,6,6] p, float[1,12] v", [c.body for c in cases], arrays, onnx.TensorProto.FLOAT)


def whole_model(cases: list[Case]) -> Model:
    """The branches of whole numbers."""
    inputs = "int32[1,4,6] i, int32[1,4,6] j, uint32[1,4,6] k"
    bodies = [case.body.replace("OUT", "y_") + " OUT = Cast<to = 7>(y_)" for case in cases]
    return _joined(cases, inputs, bodies, {}, onnx.TensorProto.INT64)


def integer_model(cases: list[Case]) -> Model:
    """The quantized branches; weights are int8 at scale 1/64, each branch has its own Dequantize- and QuantizeLinears."""
    arrays: dict[str, Array] = {
        "sx": np.float32(0.02), "zx": np.int8(-5), "su": np.float32(0.013), "zu": np.uint8(9), "sw": np.float32(1 / 64),
        "zw": np.int8(0), "sy": np.float32(0.05), "zy": np.int8(3),
    }  # fmt: skip
    bodies = []
    for case in cases:
        lines = ["x = DequantizeLinear(xq, sx, zx)", "u = DequantizeLinear(uq, su, zu)", "v = DequantizeLinear(vq, sx, zx)"]
        for name, array in weights(case).items():
            arrays[f"{case.name}_{name}q"] = np.rint(array * 64).astype(np.int8)
            lines.append(f"{name} = DequantizeLinear({name}q, sw, zw)")
        body = " ".join([*lines, case.body]).replace("OUT =", "y =")
        bodies.append(f"{body} OUT = QuantizeLinear(y, sy, zy)")
    return _joined(cases, "int8[1,4,6,6] xq, uint8[1,4,6,6] uq, int8[1,12] vq", bodies, arrays, onnx.TensorProto.INT8)


def float_feeds() -> dict[str, Array]:
    rng = np.random.default_rng(1)
    x = rng.uniform(-2, 2, (3, 4, 6, 6)).astype(np.float32)
    return {"x": x, "p": (np.abs(x[::-1]) + 0.1).astype(np.float32), "v": rng.uniform(-2, 2, (3, 12)).astype(np.float32)}


def integer_feeds() -> dict[str, Array]:
    """Every integer of the types occurs, the ends among them."""
    rng = np.random.default_rng(2)
    x = rng.integers(-128, 128, (5, 4, 6, 6)).astype(np.int8)
    x[0, 0, 0, :2] = -128, 127
    return {"xq": x, "uq": rng.integers(0, 256, (5, 4, 6, 6)).astype(np.uint8), "vq": rng.integers(-128, 128, (5, 12)).astype(np.int8)}


def whole_feeds() -> dict[str, Array]:
    """Small and large integers of both signs, so that sums and products overflow in some samples and not in others."""
    rng = np.random.default_rng(3)
    reach = np.array([5, 1000, 2**31 - 1])[:, None, None]
    i, j = (np.rint(rng.uniform(-1, 1, (3, *WHOLE_X[1:])) * reach).astype(np.int32) for _ in "ij")
    i[2, 0, 0] = -(2**31)
    return {"i": i, "j": np.where(j == 0, np.int32(-3), j), "k": rng.integers(0, 40, i.shape).astype(np.uint32)}
