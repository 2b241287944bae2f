"""Files made to do harm, or damaged by accident: each is refused with a GatewrightError, quickly, or is still a model."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, parser

from gatewright.errors import GatewrightError, ModelError
from gatewright.frontend.load import load

SMALL = (
    '<ir_version: 8, opset_import: ["" : 17]> g (float[N,1,4,4] x) => (float[N,2] y) '
    "<float[1,1,3,3] w={1,2,3,4,5,6,7,8,9}, float[4,2] v={1,2,3,4,5,6,7,8}, float s={0.1}, uint8 z={3}> "
    '{ c = Conv<auto_pad="SAME_UPPER">(x,w) r = Relu(c) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) '
    "q = QuantizeLinear(p,s,z) d = DequantizeLinear(q,s,z) f = Flatten(d) m = MatMul(f,v) y = Softmax(m) }"
)
SECONDS = 10.0


def survives(data: bytes) -> bool:
    """True if it loads, False if it is refused; anything else, or a long wait, is a failure. In this process, where a crash is one."""
    start = time.monotonic()
    try:
        load(data, trust=True)
        loaded = True
    except GatewrightError:
        loaded = False
    assert time.monotonic() - start < SECONDS
    return loaded


def test_bit_flips() -> None:
    whole = parser.parse_model(SMALL).SerializeToString()
    assert survives(whole)
    rng = random.Random(0)
    outcomes = []
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 1, 1, 3])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        outcomes.append(survives(bytes(damaged)))
    assert 0 < sum(outcomes) < 400, "flips in weights are still models, flips in structure are not"


def test_pieces_overwritten_by_others() -> None:
    whole = parser.parse_model(SMALL).SerializeToString()
    rng = random.Random(1)
    for _ in range(200):
        damaged = bytearray(whole)
        source, target, length = rng.randrange(len(whole)), rng.randrange(len(whole)), rng.randrange(1, 40)
        damaged[target : target + length] = whole[source : source + length]
        survives(bytes(damaged))


def damaged(change: Callable[[onnx.ModelProto], object]) -> bytes:
    proto = parser.parse_model(SMALL)
    change(proto)
    return bytes(proto.SerializeToString())


def initializer(proto: onnx.ModelProto, name: str = "v") -> TensorProto:
    return next(t for t in proto.graph.initializer if t.name == name)


def set_dims(proto: onnx.ModelProto, *dims: int) -> None:
    del initializer(proto).dims[:]
    initializer(proto).dims.extend(dims)


def attribute(proto: onnx.ModelProto, op: str, name: str) -> onnx.AttributeProto:
    node = next(n for n in proto.graph.node if n.op_type == op)
    return next(a for a in node.attribute if a.name == name)


def set_ints(proto: onnx.ModelProto, op: str, name: str, values: list[int]) -> None:
    found = attribute(proto, op, name)
    del found.ints[:]
    found.ints.extend(values)


def scale_of(proto: onnx.ModelProto, value: float) -> None:
    initializer(proto, "s").CopyFrom(onnx.numpy_helper.from_array(np.array(value, np.float32), "s"))


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "negative dimension": (lambda p: set_dims(p, -4, 2), "negative dimension"),
    "more dimensions than data": (lambda p: set_dims(p, 4, 3), "it needs 12"),
    "huge dimensions": (lambda p: set_dims(p, 2**40, 2**40), "the limit is"),
    "dimensions that overflow": (lambda p: set_dims(p, 2**62, 4), "the limit is"),
    "a hundred axes": (lambda p: set_dims(p, *[1] * 98, 4, 2), "has 100 axes"),
    "raw data too short": (lambda p: setattr(initializer(p), "raw_data", b"abc"), "holds 3 bytes"),
    "unknown tensor type": (lambda p: setattr(initializer(p), "data_type", 99), "tensor type 99"),
    "undefined tensor type": (lambda p: setattr(initializer(p), "data_type", 0), ""),
    "segments": (lambda p: setattr(initializer(p).segment, "begin", 1), "segments"),
    "duplicate weights": (lambda p: p.graph.initializer.append(initializer(p)), "v"),
    "weight made by a node too": (lambda p: p.graph.node[0].output.__setitem__(0, "v"), ""),
    "no outputs": (lambda p: p.graph.ClearField("output"), "has no outputs"),
    "output that nobody makes": (lambda p: setattr(p.graph.output[0], "name", "none"), ""),
    "input without a type": (lambda p: p.graph.input[0].ClearField("type"), ""),
    "input that is a sequence": (lambda p: p.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent(), ""),
    "negative pads": (lambda p: p.graph.node[2].attribute.append(onnx.helper.make_attribute("pads", [-9, -9, -9, -9])), ""),
    "stride 0": (lambda p: set_ints(p, "MaxPool", "strides", [0, 0]), ""),
    "kernel 0": (lambda p: set_ints(p, "MaxPool", "kernel_shape", [0, 0]), ""),
    "kernel of three axes": (lambda p: set_ints(p, "MaxPool", "kernel_shape", [2, 2, 2]), ""),
    "huge kernel": (lambda p: set_ints(p, "MaxPool", "kernel_shape", [2**40, 2]), ""),
    "auto_pad of bytes": (lambda p: setattr(attribute(p, "Conv", "auto_pad"), "s", b"\xff\xfe"), "is no text"),
    "auto_pad unknown": (lambda p: setattr(attribute(p, "Conv", "auto_pad"), "s", b"SAME"), ""),
    "opset 0": (lambda p: setattr(p.opset_import[0], "version", 0), "opset is 0"),
    "IR version of tomorrow": (lambda p: setattr(p, "ir_version", 2**31), "IR version"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    change, message = REFUSED[name]
    with pytest.raises(GatewrightError) as caught:
        load(damaged(change))
    assert message in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0, 1e-45])
def test_scales_of_no_sense_do_not_crash(value: float) -> None:
    survives(damaged(lambda p: scale_of(p, value)))


@pytest.mark.parametrize(
    "name", ['"; $(touch harm)', "*/ int main() {", "a\nb", "../../etc/passwd", "нейрон", "x" * 5000, "'; DROP TABLE", "{{7*7}}"]
)
def test_names_are_only_names(name: str) -> None:
    def change(proto: onnx.ModelProto) -> None:
        for node in proto.graph.node:
            node.name = name
            node.input[:] = [name if i == "r" else i for i in node.input]
            node.output[:] = [name if o == "r" else o for o in node.output]

    model = load(damaged(change))
    assert any(value.name == name for node in model.graph for value in node.outputs)
    assert load(model.to_bytes()).digest == model.digest


def test_ten_thousand_branches_deep() -> None:
    """Written by hand: protobuf's own writer would refuse to nest so deep."""
    graph = b""
    for _ in range(10_000):
        graph_field = b"\x32" + _varint(len(graph)) + graph
        attr = b"\x0a\x01g" + graph_field
        node = b"\x22\x02If" + b"\x2a" + _varint(len(attr)) + attr
        graph = b"\x0a" + _varint(len(node)) + node
    model = b"\x08\x08" + b"\x3a" + _varint(len(graph)) + graph
    with pytest.raises(ModelError, match=r"is not an ONNX model|lie deeper"):
        load(model)


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def test_sparse_weights_that_point_outside() -> None:
    def change(proto: onnx.ModelProto) -> None:
        kept = [t for t in proto.graph.initializer if t.name != "v"]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)
        values = onnx.numpy_helper.from_array(np.ones(2, np.float32), "v")
        indices = onnx.numpy_helper.from_array(np.array([0, 10**9]), "i")
        proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, indices, [4, 2]))

    with pytest.raises(ModelError, match="indices do not fit"):
        load(damaged(change))


def test_sparse_weights_are_weights() -> None:
    proto = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (float[1,3] y) { y = Add(x,v) }')
    values = onnx.numpy_helper.from_array(np.array([7, 8], np.float32), "v")
    proto.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, onnx.numpy_helper.from_array(np.array([0, 2])), [3]))
    tensor = load(proto).graph.initializers["v"].const_value
    assert tensor is not None
    assert tensor.numpy().tolist() == [7, 0, 8]


def test_a_file_larger_than_it_says_is_not_read_whole() -> None:
    """A constant that unfolds to gigabytes when it is computed stays computed."""
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) <int64[2] s={40000,40000}, int64[2] a={0,1}> '
        "{ z = ConstantOfShape(s) t = ReduceMax<axes=[0,1],keepdims=0>(z) y = Add(x,t) }"
    )
    start = time.monotonic()
    model = load(proto)
    assert time.monotonic() - start < SECONDS
    assert "ConstantOfShape" in [node.op_type for node in model.graph]
