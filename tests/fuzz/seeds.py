"""Small models that between them have most of what a file can hold: what fuzzing and the hostile corpus begin from."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

OPSET = '<ir_version: 8, opset_import: ["" : 17]> g '

CNN = (
    OPSET + "(float[N,1,4,4] x) => (float[N,2] y) "
    "<float[1,1,3,3] w={1,2,3,4,5,6,7,8,9}, float[4,2] v={1,2,3,4,5,6,7,8}, float s={0.1}, uint8 z={3}> "
    '{ c = Conv<auto_pad="SAME_UPPER">(x,w) r = Relu(c) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) '
    "q = QuantizeLinear(p,s,z) d = DequantizeLinear(q,s,z) f = Flatten(d) m = MatMul(f,v) y = Softmax(m) }"
)
CONTROL = (
    OPSET + "(float[4] x, bool c) => (float[4] y, float[3,4] s) <int64 n={3}, bool t={1}> "
    "{ i = If(c)<then_branch = a () => (float[4] b) { b = Relu(x) }, else_branch = e () => (float[4] d) { d = Neg(x) }> "
    "y, s = Loop(n, t, i)<body = body (int64 k, bool go, float[4] h) => (bool on, float[4] u, float[4] z) "
    "{ on = Identity(go) u = Add(h, h) z = Identity(u) }> }"
)
SHAPES = (
    OPSET + "(float[B,6] x) => (float[B,3,2] y, int64[B] k) <int64[2] e={3,2}, int64[1] o={0}, int64[1] l={1}> "
    "{ h = Shape(x) b = Slice(h, o, l) g = Concat<axis=0>(b, e) y = Reshape(x, g) k = ArgMax<axis=1,keepdims=0>(x) }"
)
RECURRENT = (
    OPSET + "(float[2,1,3] x) => (float[2,1,1,2] y, float[1,1,2] h) "
    "<float[1,8,3] w={1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[1,8,2] r={1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}> "
    "{ y, h = LSTM<hidden_size=2>(x, w, r) }"
)
FUNCTIONS = (
    '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> g (float[4] x) => (float[4] y) { a = l.f(x) y = l.f(a) }'
    '<domain: "l", opset_import: ["" : 17]> f (x) => (y) { t = Relu(x) y = Neg(t) }'
)
OLD = (
    '<ir_version: 3, opset_import: ["" : 8]> g (float[2,3] x, float[3] w) => (float[2,3] y) <float[3] w={1,2,3}> '
    "{ a = Add(x,w) y = Dropout<ratio=0.5>(a) }"
)

FUSED = (
    '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1,2,4] x, float[1,2,4] s) => (float[1,2,2] y) '
    "<float[4] g={1,1,1,1}, float[4,12] w={1,2,3,4,5,6,7,8,9,8,7,6,1,2,3,4,5,6,7,8,9,8,7,6,"
    "1,2,3,4,5,6,7,8,9,8,7,6,1,2,3,4,5,6,7,8,9,8,7,6}, "
    "int32[1] n={2}, uint8[2,1,8] q={1,2,3,4,5,6,7,8,1,2,3,4,5,6,7,8}, float[2] c={1,2}> "
    "{ a = com.microsoft.SkipLayerNormalization(x,s,g) b = com.microsoft.Attention<num_heads=2,unidirectional=1>(a,w,,n) "
    "d = com.microsoft.FastGelu(b) y = com.microsoft.MatMulNBits<K=4,N=2,bits=4,block_size=16>(d,q,c) }"
)
ENCODERS = (
    '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3]> g (float[1,2] x, int64[1,2] i) => (float[1,2] y, float[1,2,2] o) '
    "{ a = ai.onnx.ml.Imputer<imputed_value_floats=[1.0,2.0],replaced_value_float=0.0>(x) y = ai.onnx.ml.Binarizer<threshold=0.5>(a) "
    "l = ai.onnx.ml.LabelEncoder<keys_int64s=[1,2],values_int64s=[5,6]>(i) o = ai.onnx.ml.OneHotEncoder<cats_int64s=[5,6],zeros=1>(l) }"
)


def models() -> dict[str, onnx.ModelProto]:
    """By name; each loads as it is."""
    made = {name: parser.parse_model(text) for name, text in globals().items() if name.isupper() and name != "OPSET"}
    made["TREES"] = _trees()
    made["SPARSE"] = _sparse()
    made["NARROW"] = _narrow()
    return {name.lower(): proto for name, proto in made.items()}


def _trees() -> onnx.ModelProto:
    tree = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2],
        nodes_featureids=[0, 0, 0], nodes_values=[0.5, 0.0, 0.0], nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0],
        nodes_falsenodeids=[2, 0, 0], target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    return _model([tree], [("x", [1, 2])], [("y", [1, 1])], extra={"ai.onnx.ml": 3})


def _sparse() -> onnx.ModelProto:
    proto = _model([helper.make_node("Add", ["x", "v"], ["y"])], [("x", [1, 3])], [("y", [1, 3])])
    values = numpy_helper.from_array(np.array([7, 8], np.float32), "v")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([0, 2])), [3]))
    return proto


def _narrow() -> onnx.ModelProto:
    nodes = [helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], axis=1), helper.make_node("MatMul", ["x", "w"], ["y"])]
    proto = _model(nodes, [("x", [1, 4])], [("y", [1, 2])], opset=21)
    proto.graph.initializer.extend(
        [
            helper.make_tensor("q", TensorProto.INT4, [4, 2], bytes([0x21, 0x43, 0x65, 0x87]), raw=True),
            numpy_helper.from_array(np.array([0.5, 0.25], np.float32), "s"),
            helper.make_tensor("z", TensorProto.INT4, [2], bytes([0]), raw=True),
        ]
    )
    return proto


def _model(
    nodes: list[onnx.NodeProto], inputs: list[tuple[str, list[int]]], outputs: list[tuple[str, list[int]]], opset: int = 17,
    extra: dict[str, int] | None = None,
) -> onnx.ModelProto:  # fmt: skip
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in side] for side in (inputs, outputs)]
    imports = [helper.make_opsetid(domain, version) for domain, version in {"": opset, **(extra or {})}.items()]
    return helper.make_model(helper.make_graph(nodes, "g", *ends), opset_imports=imports, ir_version=10)
