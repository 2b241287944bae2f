"""Which operators keep samples apart: every claim is checked by running three samples together and alone."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import parser

from gatewright.errors import ModelError
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession


def graph(body: str) -> Model:
    return load(parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g {body}'.replace("'", '"')))


def independent(model: Model, n: int = 3) -> bool:
    """True if ``n`` samples at a time give what each gives alone."""
    many = with_batch(model, n)
    rng = np.random.default_rng(5)
    feeds = {i.name: rng.normal(size=i.shape).astype(i.dtype) if i.dtype.kind == "f" else rng.integers(0, 3, i.shape) for i in many.inputs}
    together, alone = OrtSession(many, optimize=False).run(feeds), OrtSession(model, optimize=False)
    for sample in range(n):
        for name, wanted in alone.run({key: value[sample : sample + 1] for key, value in feeds.items()}).items():
            if not np.allclose(together[name][sample : sample + 1], wanted, rtol=1e-5, atol=1e-6):
                return False
    return True


APART = {
    "elementwise": "(float[1,2,3] x) => (float[1,2,3] y) <float[3] b={1,2,3}> { a = Add(x,b) c = Mul(a,x) y = Relu(c) }",
    "constant of rank 3": "(float[1,2,3] x) => (float[1,2,3] y) <float[1,1,3] b={1,2,3}> { y = Add(x,b) }",
    "matmul": "(float[1,2,3] x) => (float[1,2,2] y) <float[3,2] w={1,2,3,4,5,6}> { y = MatMul(x,w) }",
    "matmul of rows": "(float[1,3] x) => (float[1,2] y) <float[3,2] w={1,2,3,4,5,6}> { y = MatMul(x,w) }",
    "matmul from the left": "(float[1,3,2] x) => (float[1,2,2] y) <float[2,3] w={1,2,3,4,5,6}> { y = MatMul(w,x) }",
    "matmul of two": "(float[1,2,3] x, float[1,3,2] z) => (float[1,2,2] y) { y = MatMul(x,z) }",
    "matmul with a vector": "(float[1,3] x) => (float[1] y) <float[3] w={1,2,3}> { y = MatMul(x,w) }",
    "gemm": "(float[1,3] x) => (float[1,2] y) <float[3,2] w={1,2,3,4,5,6}, float[2] c={1,2}> { y = Gemm(x,w,c) }",
    "gemm with a row": "(float[1,3] x) => (float[1,2] y) <float[3,2] w={1,2,3,4,5,6}, float[1,2] c={1,2}> { y = Gemm(x,w,c) }",
    "conv and pool": "(float[1,1,4,4] x) => (float[1,1,1,1] y) <float[1,1,3,3] w={1,2,3,4,5,6,7,8,9}> "
    "{ a = Conv(x,w) y = MaxPool<kernel_shape=[2,2]>(a) }",
    "reshape": "(float[1,2,3] x) => (float[1,6] y) <int64[2] s={1,6}> { y = Reshape(x,s) }",
    "transpose": "(float[1,2,3] x) => (float[1,3,2] y) { y = Transpose<perm=[0,2,1]>(x) }",
    "there and back": "(float[1,2,3] x) => (float[1,2,3] y) { a = Transpose<perm=[1,0,2]>(x) b = Relu(a) y = Transpose<perm=[1,0,2]>(b) }",
    "softmax": "(float[1,2,3] x) => (float[1,2,3] y) { y = Softmax(x) }",
    "reduce": "(float[1,2,3] x) => (float[1,2] y) <int64[1] a={2}> { y = ReduceMean<keepdims=0>(x,a) }",
    "reduce before": "(float[1,2,3] x) => (float[1,3] y) <int64[1] a={0}> "
    "{ t = Transpose<perm=[1,0,2]>(x) y = ReduceSum<keepdims=0>(t,a) }",
    "concat": "(float[1,2] x, float[1,3] z) => (float[1,5] y) { y = Concat<axis=1>(x,z) }",
    "split": "(float[1,4] x) => (float[1,2] y, float[1,2] z) { y, z = Split<axis=1,num_outputs=2>(x) }",
    "slice": "(float[1,4] x) => (float[1,2] y) <int64[1] s={1}, int64[1] e={3}, int64[1] a={1}> { y = Slice(x,s,e,a) }",
    "pad": "(float[1,2] x) => (float[1,4] y) <int64[4] p={0,1,0,1}> { y = Pad(x,p) }",
    "gather": "(float[1,4] x) => (float[1,2] y) <int64[2] i={3,1}> { y = Gather<axis=1>(x,i) }",
    "embedding": "(int64[1,4] x) => (float[1,4,2] y) <float[3,2] t={1,2,3,4,5,6}> { y = Gather(t,x) }",
    "layer norm": "(float[1,2,3] x) => (float[1,2,3] y) <float[3] w={1,2,3}> { y = LayerNormalization(x,w) }",
    "expand": "(float[1,1,3] x) => (float[1,2,3] y) <int64[3] s={1,2,3}> { y = Expand(x,s) }",
    "quantize": "(float[1,3] x) => (float[1,3] y) <float s={0.1}, int8 z={1}> { q = QuantizeLinear(x,s,z) y = DequantizeLinear(q,s,z) }",
    "quantize per channel": "(float[1,3] x) => (int8[1,3] y) <float[3] s={0.1,0.2,0.3}, int8[3] z={1,2,3}> "
    "{ y = QuantizeLinear<axis=1>(x,s,z) }",
    "argmax": "(float[1,3] x) => (int64[1] y) { y = ArgMax<axis=1,keepdims=0>(x) }",
    "topk": "(float[1,4] x) => (float[1,2] y, int64[1,2] i) <int64[1] k={2}> { y, i = TopK(x,k) }",
    "cumsum": "(float[1,4] x) => (float[1,4] y) <int64 a={1}> { y = CumSum(x,a) }",
    "einsum": "(float[1,2,3] x, float[1,3,2] z) => (float[1,2,2] y) { y = Einsum<equation='bij,bjk->bik'>(x,z) }",
    "resize": "(float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] s={1,1,2,2}> { y = Resize<mode='nearest'>(x,,s) }",
    "one hot": "(int64[1,2] x) => (float[1,2,3] y) <int64 d={3}, float[2] v={0,1}> { y = OneHot(x,d,v) }",
    "lstm": "(float[1,3,2] x) => (float[1,3,1] y) <float[1,4,2] w={0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8}, "
    "float[1,4,1] r={0.1,0.2,0.3,0.4}, int64[3] s={1,3,1}> "
    "{ t = Transpose<perm=[1,0,2]>(x) u = LSTM<hidden_size=1>(t,w,r) v = Transpose<perm=[2,0,1,3]>(u) y = Reshape(v,s) }",
}  # fmt: skip

MIXED = {
    "reduce over all": ("(float[1,3] x) => (float y) { y = ReduceSum<keepdims=0>(x) }", "reduces across samples"),
    "reduce axis 0": ("(float[1,3] x) => (float[1,3] y) <int64[1] a={0}> { y = ReduceMax(x,a) }", "reduces across samples"),
    "softmax axis 0": ("(float[1,3] x) => (float[1,3] y) { y = Softmax<axis=0>(x) }", "works across samples"),
    "argmax axis 0": ("(float[1,3] x) => (int64[1,3] y) { y = ArgMax<axis=0>(x) }", "works across samples"),
    "moved": ("(float[1,3] x) => (float[3,1] y) { y = Transpose(x) }", "output 'y' has the samples on axis 1"),
    "merged": ("(float[1,2,3] x) => (float[2,3] y) <int64[2] s={2,3}> { y = Reshape(x,s) }", "reshapes across samples"),
    "contracted": ("(float[1,3] x) => (float[2,3] y) <float[2,1] w={1,2}> { y = MatMul(w,x) }", "multiplies across samples"),
    "gram": ("(float[1,3] x) => (float[1,1] y) { t = Transpose(x) y = MatMul(x,t) }", "combines samples on different axes"),
    "gram of two": ("(float[1,3] x) => (float[3,3] y) { t = Transpose(x) y = MatMul(t,x) }", "multiplies across samples"),
    "outer sum": ("(float[1,3] x) => (float[3,3] y) { t = Transpose(x) y = Add(t,x) }", "combines samples on different axes"),
    "own constants": ("(float[2,3] x) => (float[2,3] y) <float[2,1] b={1,2}> { y = Add(x,b) }", "its own part of 'b'"),
    "own bias": (
        "(float[2,3] x) => (float[2,2] y) <float[3,2] w={1,2,3,4,5,6}, float[2,2] c={1,2,3,4}> { y = Gemm(x,w,c) }",
        "its own bias",
    ),
    "own matrices": ("(float[2,1,3] x) => (float[2,1,1] y) <float[2,3,1] w={1,2,3,4,5,6}> { y = MatMul(x,w) }", "its own matrix"),
    "own scales": (
        "(float[2,3] x) => (int8[2,3] y) <float[2] s={0.1,0.2}, int8[2] z={0,0}> { y = QuantizeLinear<axis=0>(x,s,z) }",
        "one scale for each",
    ),
    "joined": ("(float[1,3] x) => (float[2,3] y) { t = Neg(x) y = Concat<axis=0>(x,t) }", "joins along the samples"),
    "joined with a constant": ("(float[1,3] x) => (float[1,4] y) <float[1,1] c={1}> { y = Concat<axis=1>(x,c) }", "not one per sample"),
    "picked": ("(float[2,3] x) => (float[1,3] y) <int64[1] i={0}> { y = Gather<axis=0>(x,i) }", "gathers across samples"),
    "cut": ("(float[2,3] x) => (float[1,3] y) <int64[1] s={0}, int64[1] e={1}> { y = Slice(x,s,e) }", "cuts along the samples"),
    "padded": ("(float[1,3] x) => (float[2,3] y) <int64[4] p={1,0,0,0}> { y = Pad(x,p) }", "pads along the samples"),
    "repeated": ("(float[1,3] x) => (float[4,3] y) <int64[2] s={4,3}> { y = Expand(x,s) }", "repeats samples"),
    "tiled": ("(float[1,3] x) => (float[2,3] y) <int64[2] s={2,1}> { y = Tile(x,s) }", "repeats samples"),
    "normed": ("(float[1,3] x) => (float[1,3] y) <float[1,3] w={1,2,3}> { y = LayerNormalization<axis=0>(x,w) }", "works across samples"),
    "dynamic scale": ("(float[1,3] x) => (uint8[1,3] y, float s, uint8 z) { y, s, z = DynamicQuantizeLinear(x) }", "is not known to keep"),
    "counted": ("(float[2,3] x) => (float[2,3] y) <int64 a={0}> { y = CumSum(x,a) }", "works across samples"),
    "a number": ("(float[1,3] x, float z) => (float[1,3] y) { y = Add(x,z) }", "input 'z' is a single number"),
    "different inputs": ("(float[1,3] x, float[2,3] z) => (float[2,3] y) { y = Add(x,z) }", "differ in their axis 0"),
    "nothing from the input": ("(float[1,3] x) => (float[2] y) <float[2] c={1,2}> { y = Identity(c) }", "the same for all samples"),
    "branch": (
        "(float[1,3] x, bool[1] c) => (float[1,3] y) { y = If(c)<then_branch = a () => (float[1,3] a) { a = Relu(x) }, "
        "else_branch = b () => (float[1,3] b) { b = RandomUniformLike(x) }> }",
        "holds a graph of its own",
    ),
    "a state for all": (
        "(float[3,1,2] x) => (float[3,1,1,1] y) <float[1,4,2] w={0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8}, float[1,4,1] r={0.1,0.2,0.3,0.4}, "
        "float[1,1,1] h={0.5}> { y = LSTM<hidden_size=1>(x,w,r,,,h) }",
        "(LSTM) takes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", APART)
def test_apart(name: str) -> None:
    model = graph(APART[name])
    assert batch_reason(model) is None
    assert independent(model)


@pytest.mark.parametrize("name", MIXED)
def test_mixed(name: str) -> None:
    body, why = MIXED[name]
    model = graph(body)
    reason = batch_reason(model)
    assert reason is not None
    assert why in reason
    with pytest.raises(ModelError, match="at a time"):
        with_batch(model, 2)


def test_a_model_for_two_can_be_cut_to_one() -> None:
    model = graph("(float[2,3] x) => (float[2,2] y) <float[3,2] w={1,2,3,4,5,6}> { y = MatMul(x,w) }")
    one = with_batch(model, 1)
    assert one.inputs[0].shape == (1, 3)
    assert one.outputs[0].shape == (1, 2)
    assert model.inputs[0].shape == (2, 3), "the model itself was changed"
