"""One line per operator of the executor: statements over inputs of ``SHAPES``, all in −2 … 2 but ``p``, which is 0.3 … 2.3."""

from __future__ import annotations

import zlib

import numpy as np
from graphs import Array, graph

from gatewright.frontend.model import Model

CASES: dict[str, str] = {
    **{op: f"y = {op}(x)" for op in (
        "Abs", "Ceil", "Cos", "Cosh", "Elu", "Celu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Neg",
        "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Atan",
        "Asinh", "GlobalAveragePool", "GlobalMaxPool", "Identity",
    )},
    **{op: f"y = {op}(p)" for op in ("Log", "Sqrt", "Reciprocal")},
    **{op: f"s = Constant<value = float {{0.3}}>() t = Mul(x, s) y = {op}(t)" for op in ("Acos", "Asin", "Atanh", "Tan")},
    "Acosh": "o = Constant<value = float {1.5}>() t = Add(p, o) y = Acosh(t)",
    **{op: f"y = {op}(x, p)" for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")},
    "Pow": "y = Pow(p, x)",
    "Mod": "y = Mod<fmod = 1>(x, p)",
    "Gelu_tanh": 'y = Gelu<approximate = "tanh">(x)',
    "Selu_own": "y = Selu<alpha = 0.5, gamma = 2.0>(x)",
    "Clip": "lo = Constant<value = float {-0.5}>() hi = Constant<value = float {1.25}>() y = Clip(x, lo, hi)",
    "Clip_above": "hi = Constant<value = float {1.25}>() y = Clip(x, , hi)",
    **{op: f"c = {op}(x, p) y = Where(c, x, p)" for op in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal")},
    **{op: f"c = Greater(x, p) d = Less(x, p) e = {op}(c, d) y = Where(e, x, p)" for op in ("And", "Or", "Xor")},
    "Where": "c = Greater(x, p) y = Where(c, p, x)",
    "Not": "c = Greater(x, p) d = Not(c) y = Where(d, x, p)",
    "IsNaN": "c = IsNaN(x) y = Where(c, p, x)",
    "IsInf": "c = IsInf<detect_negative = 0>(x) y = Where(c, p, x)",
    "Cast": "c = Greater(x, p) d = Cast<to = 1>(c) y = Mul(d, x)",
    "CastLike": "c = Greater(x, p) d = CastLike(c, x) y = Mul(d, x)",
    "Conv": "y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, w5_4_3_3, b5)",
    "Conv_uneven": "y = Conv<kernel_shape = [3, 3], strides = [2, 2], pads = [0, 0, 1, 1]>(x, w3_4_3_3)",
    "Conv_grouped": "y = Conv<kernel_shape = [2, 2], group = 2, dilations = [2, 1]>(x, w6_2_2_2, b6)",
    "Conv_1d": "s = Constant<value = int64[3] {0, 4, 36}>() t = Reshape(x, s) y = Conv<kernel_shape = [5]>(t, w2_4_5)",
    "ConvTranspose": "y = ConvTranspose<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 1]>(x, w4_3_3_3, b3)",
    "ConvTranspose_extra": "y = ConvTranspose<kernel_shape = [2, 2], strides = [3, 3], output_padding = [1, 2], group = 2>"
    "(x, w4_3_2_2, b6)",
    "Gemm": "y = Gemm(v, w12_9, b9)",
    "MatMul": "y = MatMul(v, w12_9)",
    "MatMul_batched": "t = Transpose<perm = [0, 1, 3, 2]>(p) y = MatMul(x, t)",
    "Einsum": 'y = Einsum<equation = "bcij,bcjk->bik">(x, p)',
    "MaxPool": "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "MaxPool_ceil": "y = MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
    "MaxPool_dilated": "y = MaxPool<kernel_shape = [2, 2], dilations = [3, 2], pads = [1, 0, 0, 1]>(x)",
    "AveragePool": "y = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(x)",
    "AveragePool_pad": "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x)",
    "AveragePool_count": "y = AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)",
    "AveragePool_ceil": "y = AveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(x)",
    "AveragePool_dilated": "y = AveragePool<kernel_shape = [2, 2], dilations = [2, 2], pads = [1, 1, 1, 1]>(x)",
    "BatchNormalization": "y = BatchNormalization(x, b4, c4, d4, p4)",
    "InstanceNormalization": "y = InstanceNormalization(x, b4, c4)",
    "GroupNormalization": "y = GroupNormalization<num_groups = 2>(x, b4, c4)",
    "LayerNormalization": "y = LayerNormalization<axis = 2>(x, w6_6, c6_6)",
    "LpNormalization": "y = LpNormalization<axis = 1>(p)",
    "LRN": "y = LRN<size = 3>(x)",
    "Softmax": "y = Softmax<axis = 1>(x)",
    "LogSoftmax": "y = LogSoftmax<axis = -1>(x)",
    **{op: f"a = Constant<value = int64[2] {{2, 3}}>() y = {op}<keepdims = 0>({'p' if op == 'ReduceLogSum' else 'x'}, a)" for op in (
        "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceL1", "ReduceSumSquare", "ReduceLogSum",
        "ReduceLogSumExp",
    )},
    "Reshape": "s = Constant<value = int64[2] {0, 144}>() y = Reshape(x, s)",
    "Transpose": "y = Transpose<perm = [0, 2, 3, 1]>(x)",
    "Concat": "y = Concat<axis = 1>(x, p, x)",
    "Slice": "a = Constant<value = int64[2] {1, 5}>() b = Constant<value = int64[2] {3, 0}>() c = Constant<value = int64[2] {1, 3}>() "
    "d = Constant<value = int64[2] {1, -2}>() y = Slice(x, a, b, c, d)",
    "Split": "y, rest = Split<axis = 1, num_outputs = 2>(x)",
    "Pad": "a = Constant<value = int64[8] {0, 0, 1, 2, 0, 0, 0, -1}>() f = Constant<value = float {0.5}>() y = Pad(x, a, f)",
    **{f"Pad_{mode}": f'a = Constant<value = int64[8] {{0, 0, 1, 2, 0, 0, 3, 0}}>() y = Pad<mode = "{mode}">(x, a)' for mode in (
        "reflect", "edge", "wrap",
    )},
    "Expand": "s = Constant<value = int64[4] {2, 4, 6, 6}>() m = ReduceMax(x) y = Expand(m, s)",
    "Tile": "s = Constant<value = int64[4] {1, 2, 1, 3}>() y = Tile(x, s)",
    "Gather": "i = Constant<value = int64[3] {3, 0, -1}>() y = Gather<axis = 1>(x, i)",
    "GatherElements": "y = GatherElements<axis = 1>(v, i3_4)",
    "GatherND": "y = GatherND(v, i3_2)",
    "ScatterElements": "y = ScatterElements<axis = 1>(v, i3_4, w3_4)",
    "ScatterND": 'y = ScatterND<reduction = "add">(v, i3_2, w3)',
    "DepthToSpace": "y = DepthToSpace<blocksize = 2>(x)",
    "DepthToSpace_rows": 'y = DepthToSpace<blocksize = 2, mode = "CRD">(x)',
    "SpaceToDepth": "y = SpaceToDepth<blocksize = 3>(x)",
    "Trilu": "y = Trilu<upper = 0>(x)",
    "CumSum": "a = Constant<value = int64 {2}>() y = CumSum<exclusive = 1, reverse = 1>(x, a)",
    "OneHot": "g = ArgMax<axis = 1, keepdims = 0>(v) d = Constant<value = int64 {12}>() o = Constant<value = float[2] {0, 1}>() "
    "h = OneHot(g, d, o) y = Mul(h, v)",
    "TopK": "k = Constant<value = int64[1] {3}>() y, i = TopK(v, k)",
    **{op: f"g = {op}<axis = 1, select_last_index = 1>(v) f = Cast<to = 1>(g) y = Mul(f, v)" for op in ("ArgMax", "ArgMin")},
    **{f"Resize_{mode}_{place}": f's = Constant<value = float[4] {{1, 1, 1.5, 0.5}}>() y = Resize<mode = "{mode}", '
       f'coordinate_transformation_mode = "{place}">(x, , s)' for mode in ("nearest", "linear", "cubic")
       for place in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")},
    "LSTM": "t = Transpose<perm = [1, 0, 2]>(q) y, h, c = LSTM<hidden_size = 3>(t, w1_12_5, w1_12_3, b1_24)",
    "LSTM_both": 'y, h, c = LSTM<hidden_size = 3, direction = "bidirectional", layout = 0>(q, w2_12_5, w2_12_3, b2_24, , h0, c0, d2_9)',
    "GRU": 'h, y = GRU<hidden_size = 3, direction = "reverse">(q, w1_9_5, w1_9_3, b1_18)',
    "GRU_linear": 'y, h = GRU<hidden_size = 3, direction = "bidirectional", linear_before_reset = 1>(q, w2_9_5, w2_9_3, b2_18, , h0)',
    "RNN": 'y, h = RNN<hidden_size = 3, activations = ["Relu"]>(q, w1_3_5, w1_3_3)',
    "Resize_sizes": 's = Constant<value = int64[4] {2, 4, 9, 7}>() y = Resize<mode = "nearest", nearest_mode = "ceil">(x, , , s)',
}  # fmt: skip
"""The name is the op type, and what is special behind an underscore."""


SHAPES = {"x": "2,4,6,6", "p": "2,4,6,6", "v": "3,12", "q": "4,2,5", "h0": "2,2,3", "c0": "2,2,3"}


def case_model(name: str) -> Model:
    """A weight ``w5_4_3_3`` has the shape [5, 4, 3, 3]; ``i3_2`` are indices 0 … 2; ``p4`` is positive."""
    body = CASES[name]
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    weights: dict[str, Array] = {}
    for word in body.replace("(", " ").replace(")", " ").replace(",", " ").split():
        sizes = word[1:].split("_")
        if word[0] in "wbcdpi" and all(size.isdigit() for size in sizes):
            shape = tuple(map(int, sizes))
            if word[0] == "i":
                weights[word] = rng.integers(0, 3, shape)
            else:
                weights[word] = (rng.uniform(0.3, 2, shape) if word[0] == "p" else rng.normal(0, 0.5, shape)).astype(np.float32)
    if name.startswith("ScatterElements"):
        weights["i3_4"] = np.stack([rng.permutation(12)[:4] for _ in range(3)])
    inputs = ", ".join(f"float[{shape}] {n}" for n, shape in SHAPES.items() if _reads(body, n))
    return graph(f"({inputs}) => (float y) {{ {body} }}", **weights)


def _reads(body: str, name: str) -> bool:
    return any(f"{before}{name}{after}" in body for before in "( " for after in ",)")


def case_feeds(model: Model) -> dict[str, Array]:
    """Distinct values, none near a kink: every operator here is differentiable at them."""
    rng = np.random.default_rng(0)
    found = {}
    for info in model.inputs:
        size = int(np.prod(info.shape))
        spread = (rng.permutation(size) + 0.37) / size
        found[info.name] = (spread * 2 + 0.3 if info.name == "p" else spread * 4 - 2).reshape(info.shape).astype(np.float32)
    return found
