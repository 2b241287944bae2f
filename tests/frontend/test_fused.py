"""ONNX Runtime's fused operators as standard ones: equal to ONNX Runtime's own kernels, and refused by name in forms that are not known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from gatewright.errors import ModelError
from gatewright.frontend import fused_attention
from gatewright.frontend.load import load
from gatewright.frontend.reference import Reference

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
B, S, T, H, N = 2, 5, 7, 16, 4


def normal(*shape: int) -> Array:
    return RNG.normal(size=shape).astype(np.float32)


def angles(rows: int, width: int) -> dict[str, Array]:
    found = np.arange(rows)[:, None] / 10.0 ** (np.arange(width // 2) / 3)
    return {"c": np.cos(found).astype(np.float32), "n": np.sin(found).astype(np.float32)}


def packed(bits: int, columns: int, depth: int, block: int, *, zeros: bool = False) -> dict[str, Array]:
    blocks = -(-depth // block)
    found = {
        "w": RNG.integers(0, 256, (columns, blocks, block * bits // 8)).astype(np.uint8),
        "s": RNG.uniform(0.01, 0.1, columns * blocks).astype(np.float32),
    }
    return found | ({"z": RNG.integers(0, 256, (columns * -(-blocks * bits // 8))).astype(np.uint8)} if zeros else {})


X = {"x": normal(B, S, H)}
QKV = {"x": normal(B, S, H), "k": normal(B, T, H), "v": normal(B, T, H)}
SELF = {"x": normal(B, S, H), "w": normal(H, 3 * H), "b": normal(3 * H)}
IDS = {"i": RNG.integers(0, 9, (B, S)).astype(np.int32), "g": RNG.integers(0, 2, (B, S)).astype(np.int32)}
TABLES = {"w": normal(9, H), "p": normal(S + 2, H), "t": normal(2, H), "a": normal(H), "b": normal(H)}
KEPT = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], np.int32)

FORMS: dict[str, tuple[str, dict[str, Array], int]] = {
    "skip, norm": ("SkipLayerNormalization(x,s,a,b,c)", {**X, "s": normal(B, S, H), "a": normal(H), "b": normal(H), "c": normal(H)}, 1),
    "skip, norm, and the sum": ("SkipLayerNormalization<epsilon=0.01>(x,s,a)", {**X, "s": normal(B, S, H), "a": normal(H)}, 4),
    "skip, root mean square": ("SkipSimplifiedLayerNormalization(x,s,a)", {**X, "s": normal(B, S, H), "a": normal(H)}, 4),
    "embeddings": ("EmbedLayerNormalization(i,g,w,p,t,a,b)", {**IDS, **TABLES}, 2),
    "embeddings with a mask": ("EmbedLayerNormalization(i,g,w,p,t,a,b,m)", {**IDS, **TABLES, "m": KEPT}, 3),
    "gelu": ("Gelu(x)", X, 1),
    "gelu of a sum": ("BiasGelu(x,b)", {**X, "b": normal(H)}, 1),
    "gelu by tanh": ("FastGelu(x,b)", {**X, "b": normal(H)}, 1),
    "gelu by sigmoid": ("QuickGelu<alpha=1.5>(x)", X, 1),
    "halves": ("BiasSplitGelu(x,b)", {"x": normal(B, S, 2 * H), "b": normal(2 * H)}, 0),
    "product, turned": ("FusedMatMul<transB=1, alpha=0.3>(x,k)", {"x": normal(B, S, H), "k": normal(B, T, H)}, 1),
    "product, left turned": ("FusedMatMul<transA=1>(x,k)", {"x": normal(B, S, H), "k": normal(B, S, T)}, 1),
    "convolution": (
        'FusedConv<activation="LeakyRelu", activation_params=[0.2], kernel_shape=[3,3], pads=[1,1,1,1]>(x,w,b)',
        {"x": normal(1, 3, 6, 6), "w": normal(4, 3, 3, 3), "b": normal(4)}, 1,
    ),
    "convolution and a sum": (
        'FusedConv<activation="Relu", kernel_shape=[1,1]>(x,w,b,z)',
        {"x": normal(1, 3, 6, 6), "w": normal(4, 3, 1, 1), "b": normal(4), "z": normal(1, 4, 6, 6)}, 1,
    ),
    "gemm": ('FusedGemm<activation="Relu", transB=1>(x,w,b)', {"x": normal(3, 8), "w": normal(5, 8), "b": normal(5)}, 1),
    "attention": ("Attention<num_heads=4>(x,w,b)", SELF, 1),
    "attention, causal": ("Attention<num_heads=4, unidirectional=1>(x,w,b)", SELF, 1),
    "attention of lengths": ("Attention<num_heads=4>(x,w,b,m)", {**SELF, "m": np.array([3, 5], np.int32)}, 1),
    "attention of kept keys": ("Attention<num_heads=4>(x,w,b,m)", {**SELF, "m": KEPT}, 1),
    "attention with a past": (
        "Attention<num_heads=4, unidirectional=1>(x,w,b,,p)", {**SELF, "p": normal(2, B, N, 3, H // N)}, 2,
    ),
    "heads": ("MultiHeadAttention<num_heads=4>(x,k,v)", QKV, 1),
    "heads, biased": ("MultiHeadAttention<num_heads=4, scale=0.7>(x,k,v,b)", {**QKV, "b": normal(3 * H)}, 1),
    "heads, of kept keys": (
        "MultiHeadAttention<num_heads=4>(x,k,v,,m)", {**QKV, "m": np.array([[1] * 6 + [0], [1] * 3 + [0] * 4], np.int32)}, 1,
    ),
    "heads, with what is added": ("MultiHeadAttention<num_heads=4>(x,k,v,,,a)", {**QKV, "a": normal(B, N, S, T)}, 1),
    "heads, with a past": (
        "MultiHeadAttention<num_heads=4>(x,k,v,,,,p,q)", {**QKV, "p": normal(B, N, 3, H // N), "q": normal(B, N, 3, H // N)}, 3,
    ),
    "groups, a prompt": (
        "GroupQueryAttention<num_heads=4, kv_num_heads=2>(x,k,v,,,l,t)",
        {"x": normal(B, S, 32), "k": normal(B, S, 16), "v": normal(B, S, 16),
         "l": np.array([4, 4], np.int32), "t": np.array([S], np.int32)},
        3,
    ),
    "groups, one step behind a cache": (
        "GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1, scale=0.4>(x,k,v,p,q,l,t,c,n)",
        {"x": normal(B, 1, 64), "k": normal(B, 1, 32), "v": normal(B, 1, 32), "p": normal(B, 2, 6, 16), "q": normal(B, 2, 6, 16),
         "l": np.array([6, 3], np.int32), "t": np.array([7], np.int32), **angles(9, 16)}, 3,
    ),
    "groups, side by side, in a window": (
        "GroupQueryAttention<num_heads=4, kv_num_heads=2, do_rotary=1, rotary_interleaved=1, local_window_size=2>(x,,,,,l,t,c,n)",
        {"x": normal(B, S, 128), "l": np.array([4, 4], np.int32), "t": np.array([S], np.int32), **angles(9, 16)}, 3,
    ),
    "groups, capped, several steps": (
        "GroupQueryAttention<num_heads=4, kv_num_heads=4, softcap=2.0>(x,k,v,p,q,l,t)",
        {"x": normal(1, 3, 32), "k": normal(1, 3, 32), "v": normal(1, 3, 32), "p": normal(1, N, 4, 8), "q": normal(1, N, 4, 8),
         "l": np.array([6], np.int32), "t": np.array([7], np.int32)}, 3,
    ),
    "rotation": ("RotaryEmbedding<num_heads=4>(x,i,c,n)", {**X, "i": RNG.integers(0, 9, (B, S)), **angles(9, 4)}, 1),
    "rotation, interleaved, from a place": (
        "RotaryEmbedding<interleaved=1, num_heads=4>(x,i,c,n)", {**X, "i": np.array([2]), **angles(9, 4)}, 1,
    ),
    "rotation of a part": (
        "RotaryEmbedding<num_heads=2, rotary_embedding_dim=4>(x,i,c,n)", {**X, "i": RNG.integers(0, 9, (B, S)), **angles(9, 4)}, 1,
    ),
    "rotation of heads": (
        "RotaryEmbedding(x,i,c,n)", {"x": normal(B, N, S, 4), "i": RNG.integers(0, 9, (B, S)), **angles(9, 4)}, 1,
    ),
    "4 bits": ("MatMulNBits<K=64, N=6, bits=4, block_size=32>(x,w,s)", {"x": normal(B, S, 64), **packed(4, 6, 64, 32)}, 1),
    "4 bits with zero points": (
        "MatMulNBits<K=64, N=6, bits=4, block_size=16>(x,w,s,z)", {"x": normal(S, 64), **packed(4, 6, 64, 16, zeros=True)}, 1,
    ),
    "4 bits, the last block not full": (
        "MatMulNBits<K=40, N=6, bits=4, block_size=32>(x,w,s)", {"x": normal(S, 40), **packed(4, 6, 40, 32)}, 1,
    ),
    "8 bits": ("MatMulNBits<K=64, N=6, bits=8, block_size=32>(x,w,s)", {"x": normal(S, 64), **packed(8, 6, 64, 32)}, 1),
    "bytes by the range of the input": (
        "DynamicQuantizeMatMul(x,w,s,z,b)",
        {"x": normal(S, 12), "w": RNG.integers(-90, 90, (12, 6)).astype(np.int8), "s": np.float32(0.1), "z": np.int8(3), "b": normal(6)}, 1,
    ),
    "bytes to floats": (
        "MatMulIntegerToFloat(x,w,d,s,y0,z)",
        {"x": RNG.integers(0, 255, (S, 12)).astype(np.uint8), "w": RNG.integers(-90, 90, (12, 6)).astype(np.int8), "d": np.float32(0.02),
         "s": np.float32(0.1), "y0": np.uint8(120), "z": np.int8(3)}, 1,
    ),
}  # fmt: skip
CONSTANT = {"MatMulNBits": ("w", "s", "z"), "GroupQueryAttention": ("t",)}


def model_of(form: str, arrays: dict[str, Array], outputs: int) -> onnx.ModelProto:
    """The operator alone; those of its operands that are weights as constants, the others as inputs."""
    names = ["y", "o1", "o2", "o3"][: max(outputs, 1)]
    text = f'<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g () => () {{ {", ".join(names)} = com.microsoft.{form} }}'
    proto = onnx.parser.parse_model(text)
    op = form.partition("<")[0].partition("(")[0]
    for name, array in arrays.items():
        if name in CONSTANT.get(op, ()):
            proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
        else:
            kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype)
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, np.asarray(array).shape))
    shown = {"SkipLayerNormalization": [0, 3], "SkipSimplifiedLayerNormalization": [0, 3]}.get(op, list(range(len(names))))
    kinds = {"EmbedLayerNormalization": [1, 6, 1]}.get(op, [1] * 4)
    for i in shown[: len(names)]:
        if i < len(names):
            proto.graph.output.append(onnx.helper.make_empty_tensor_value_info(names[i]))
            proto.graph.output[-1].type.tensor_type.elem_type = kinds[min(i, len(kinds) - 1)]
    return proto


def sized(proto: onnx.ModelProto, outputs: dict[str, Array]) -> onnx.ModelProto:
    for info in proto.graph.output:
        info.CopyFrom(onnx.helper.make_tensor_value_info(info.name, info.type.tensor_type.elem_type, outputs[info.name].shape))
    return proto


@pytest.mark.parametrize("name", FORMS)
def test_equal_to_onnx_runtime(name: str) -> None:
    form, arrays, outputs = FORMS[name]
    proto = model_of(form, arrays, outputs)
    given = {i.name: np.asarray(arrays[i.name]) for i in proto.graph.input}
    if outputs:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        wanted = dict(zip((o.name for o in session.get_outputs()), session.run(None, given), strict=True))
    else:
        # Its kernel is for GPUs alone.
        left, right = np.split(arrays["x"] + arrays["b"], 2, axis=-1)
        wanted = {"y": left * right * (1 + np.vectorize(math.erf)(right / np.sqrt(2)).astype(np.float32)) / 2}
    model = load(sized(proto, wanted))
    assert {node.domain for node in model.graph} == {""}
    found = Reference(model).run(given)
    assert set(found) == set(wanted)
    for value, right in wanted.items():
        assert found[value].dtype == right.dtype
        # Its kernels sum in float32, in an order of their own; 4-bit ones may round what they multiply to 8 bits.
        np.testing.assert_allclose(found[value], right, rtol=2e-4, atol=2e-5, err_msg=value)


def test_weights_of_4_bits_stay_4_bits() -> None:
    form, arrays, outputs = FORMS["4 bits"]
    model = load(sized(model_of(form, arrays, outputs), {"y": np.zeros((B, S, 6))}))
    (weight,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    assert str(weight.inputs[0].dtype) == "INT4"
    assert weight.attributes.get_int("block_size", 0) == 32


def test_a_head_turned_the_wrong_way_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused_attention.rotated
    monkeypatch.setattr(
        fused_attention, "rotated", lambda new, x, at, cos, sin, sizes, interleaved: right(new, x, at, sin, cos, sizes, interleaved)
    )
    with pytest.raises(AssertionError):
        test_equal_to_onnx_runtime("rotation")


def test_forms_that_are_not_known_are_refused_by_name() -> None:
    for form, arrays, why in (
        ("FusedMatMul<transBatchA=1>(x,k)", {"x": normal(S, B, H), "k": normal(S, H, T)}, r"FusedMatMul.*this form of ONNX Runtime's own"),
        ("CropAndResize(x,k,v)", QKV, r"op 'CropAndResize' of domain 'com\.microsoft' is not an op of ONNX"),
    ):
        with pytest.raises(ModelError, match=why):
            load(sized(model_of(form, arrays, 1), {"y": np.zeros((B, S, H))}))
