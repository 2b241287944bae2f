"""Models that are damaged, senseless, or made to do harm: ``MODELS`` has the bytes of each by name, the same ones every time.

Those that a family can make by the dozen (cuts, flips, fields) are numbered; the others say what they try.
"""

# ruff: noqa: E501 (a model a line)

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import seeds
from mutation import mutated
from onnx import TensorProto, helper, numpy_helper, parser

NAMES = (
    '"; $(touch harm) #', "*/ int main() { return 1; } /*", "a\nb\r\n`touch harm`", "../../../../tmp/harm", "нейрон 神経", "x" * 3000,
    "'; DROP TABLE", "{{7*7}}{% for x in y %}", "<script>alert(1)</script>", "[red]rich[/red]", "%s%n%x", "\\end{verbatim}", "endmodule //",
    "]; exec touch harm; [", "a\0b", "CON", "-rf", "__import__('os')", "\u202egnp.exe", "int", "module", "$finish;", "`include \"/etc/passwd\"",
    "\x1b[31m", "&& touch harm", "| touch harm", "0", " ", "a.b/c:d", "../" * 50,
)  # fmt: skip
"""What a model may call its values, its nodes and itself."""

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g '


def bytes_of(text: str) -> bytes:
    return bytes(parser.parse_model(text).SerializeToString())


def _plain(body: str, x: str = "float[4] x", y: str = "float[4] y", weights: str = "") -> bytes:
    return bytes_of(f"{HEAD}({x}) => ({y}) {f'<{weights}>' if weights else ''} {{ {body} }}")


def _changed(change: Callable[[onnx.ModelProto], object], name: str = "cnn") -> bytes:
    proto = seeds.models()[name]
    change(proto)
    return bytes(proto.SerializeToString())


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _damaged() -> Iterator[tuple[str, bytes]]:
    whole = bytes(seeds.models()["cnn"].SerializeToString())
    for end in range(0, len(whole), 29):
        yield f"cut at {end}", whole[:end]
    rng = random.Random(7)
    for number in range(24):
        flipped = bytearray(whole)
        for _ in range(rng.choice((1, 1, 2, 8))):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        yield f"bits flipped {number}", bytes(flipped)
    for name, proto in seeds.models().items():
        data = bytes(proto.SerializeToString())
        for number in range(6):
            yield f"fields of {name} changed {number}", mutated(data, random.Random(f"{name}{number}")) or b""
    yield "nothing", b""
    yield "zeros", bytes(4096)
    yield "noise", random.Random(1).randbytes(4096)
    yield "text", b"import os; os.system('touch harm')\n"
    yield "a pickle", b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\ntouch harm\x85R."
    yield "a zip", b"PK\x05\x06" + bytes(18)
    yield "garbage behind", whole + random.Random(2).randbytes(100)
    yield "the graph twice", whole + whole
    yield "a length of 4 GB", b"\x3a\xff\xff\xff\xff\x0f"
    yield "unknown fields", whole + _field(15, b"x" * 1000) * 200
    graph = b""
    for _ in range(10_000):
        graph = _field(1, _field(4, b"If") + _field(5, b"\x0a\x01g" + _field(6, graph)))
    yield "10,000 Ifs within one another", b"\x08\x08" + _field(7, graph)
    kind = _field(1, b"\x08\x01")
    for _ in range(5_000):
        kind = _field(4, _field(1, kind))
    yield "a sequence of sequences", b"\x08\x08" + _field(7, _field(11, _field(1, b"x") + _field(2, kind)))
    yield "a million empty nodes", b"\x08\x08" + _field(7, _field(1, b"") * 1_000_000 + _field(12, _field(1, b"y")))
    yield "a million empty opsets", whole + _field(8, b"") * 1_000_000


def _graphs() -> Iterator[tuple[str, bytes]]:
    yield "a cycle of two", _plain("a = Relu(b) b = Relu(a) y = Add(x, a)")
    yield "a node that reads itself", _plain("a = Add(a, x) y = Relu(a)")
    inner = "then_branch = t () => (float[4] p) { p = Relu(a) }, else_branch = e () => (float[4] q) { q = Neg(x) }"
    yield "a cycle through a branch", bytes_of(f"{HEAD}(float[4] x, bool c) => (float[4] y) {{ a = If(c)<{inner}> y = Relu(a) }}")
    yield "an input out of nowhere", _plain("y = Add(x, nothing)")
    yield "an output that nobody makes", _plain("a = Relu(x)")
    yield "one value made twice", _plain("a = Relu(x) a = Neg(x) y = Relu(a)")
    yield "an input made again", _plain("x = Relu(x) y = Neg(x)")
    yield "two inputs of one name", _changed(lambda p: p.graph.input.append(p.graph.input[0]))
    yield "two outputs of one name", _changed(lambda p: p.graph.output.append(p.graph.output[0]))
    yield "two weights of one name", _changed(lambda p: p.graph.initializer.append(p.graph.initializer[0]))
    yield "nodes of one name", _changed(lambda p: [setattr(n, "name", "n") for n in p.graph.node])
    yield "an output that is an input", _plain("a = Relu(x)", y="float[4] x")
    yield "a node without outputs", _changed(lambda p: p.graph.node[1].ClearField("output"))
    yield "a node without inputs", _changed(lambda p: p.graph.node[1].ClearField("input"))
    yield "a node with empty names", _changed(lambda p: p.graph.node[1].output.__setitem__(0, ""))
    yield "a node of a hundred inputs", _changed(lambda p: p.graph.node[1].input.extend(["x"] * 100))
    yield "a node of a hundred outputs", _changed(lambda p: p.graph.node[1].output.extend([f"o{i}" for i in range(100)]))
    yield "no operator", _changed(lambda p: p.graph.node[1].ClearField("op_type"))
    yield "an operator that is none", _plain("y = Rellu(x)")
    yield (
        "a domain of one's own",
        bytes_of('<ir_version: 8, opset_import: ["" : 17, "evil" : 1]> g (float[4] x) => (float[4] y) { y = evil.Run(x) }'),
    )
    yield "no graph", _changed(lambda p: p.ClearField("graph"))
    yield "no inputs", _plain("y = Constant<value_floats = [1.0, 2.0, 3.0, 4.0]>()", x="")
    yield "no outputs", _changed(lambda p: p.graph.ClearField("output"))
    yield "no opset", _changed(lambda p: p.ClearField("opset_import"))
    yield "opset 999", _changed(lambda p: setattr(p.opset_import[0], "version", 999))
    yield "opset -1", _changed(lambda p: setattr(p.opset_import[0], "version", -1))
    yield "two opsets", _changed(lambda p: p.opset_import.add(domain="", version=9))
    yield "IR version 2147483647", _changed(lambda p: setattr(p, "ir_version", 2**31 - 1))
    yield "IR version -1", _changed(lambda p: setattr(p, "ir_version", -1))
    yield "an input without a type", _changed(lambda p: p.graph.input[0].ClearField("type"))
    yield "an input that is a map", _changed(lambda p: setattr(p.graph.input[0].type.map_type, "key_type", 7))
    yield "an input of type 99", _changed(lambda p: setattr(p.graph.input[0].type.tensor_type, "elem_type", 99))
    yield "an input of 2^62 values", _changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 2**62))
    yield "an input of negative size", _changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", -(2**63)))
    yield "an input of no size", _changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[2], "dim_value", 0))
    yield (
        "a dimension called 9**9**9**9",
        _changed(lambda p: setattr(p.graph.input[0].type.tensor_type.shape.dim[0], "dim_param", "9**9**9**9")),
    )
    yield "an output that claims 2^40", _changed(lambda p: setattr(p.graph.output[0].type.tensor_type.shape.dim[1], "dim_value", 2**40))
    deep = "y = Relu(x)"
    for level in range(25):
        deep = (
            f"y = If(c)<then_branch = a{level} () => (float[4] y) {{ {deep} }}, else_branch = b{level} () => (float[4] y) {{ y = Neg(x) }}>"
        )
    yield "25 Ifs within one another", bytes_of(f"{HEAD}(float[4] x, bool c) => (float[4] y) {{ {deep} }}")
    library = '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> g (float[4] x) => (float[4] y) { y = l.f(x) }'
    one = '<domain: "l", opset_import: ["" : 17, "l" : 1]> '
    yield "a function that calls itself", bytes_of(f"{library} {one} f (x) => (y) {{ y = l.f(x) }}")
    yield "functions that call one another", bytes_of(f"{library} {one} f (x) => (y) {{ y = l.h(x) }} {one} h (x) => (y) {{ y = l.f(x) }}")
    yield "a function defined twice", bytes_of(f"{library} {one} f (x) => (y) {{ y = Relu(x) }} {one} f (x) => (y) {{ y = Neg(x) }}")
    yield "a function that is not there", bytes_of(library)
    growing = [f"{one} f0 (x) => (y) {{ y = Relu(x) }}"]
    growing += [
        f"{one} f{i} (x) => (y) {{ a = l.f{i - 1}(x) b = l.f{i - 1}(a) c = l.f{i - 1}(b) y = l.f{i - 1}(c) }}" for i in range(1, 15)
    ]
    yield "4^14 nodes once inlined", bytes_of(library.replace("l.f(x)", "l.f14(x)") + " ".join(growing))
    yield (
        "a function that takes Relu's place",
        bytes_of(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { y = Relu(x) } '
            '<domain: "", opset_import: ["" : 17]> Relu (x) => (y) { y = Neg(x) }'
        ),
    )


def _sizes() -> Iterator[tuple[str, bytes]]:
    def dims(*sizes: int) -> Callable[[onnx.ModelProto], None]:
        def change(proto: onnx.ModelProto) -> None:
            tensor = next(t for t in proto.graph.initializer if t.name == "v")
            del tensor.dims[:]
            tensor.dims.extend(sizes)

        return change

    def tensor(**fields: Any) -> Callable[[onnx.ModelProto], None]:
        def change(proto: onnx.ModelProto) -> None:
            found = next(t for t in proto.graph.initializer if t.name == "v")
            for key, value in fields.items():
                getattr(found, key).extend(value) if isinstance(value, list) else setattr(found, key, value)

        return change

    yield "a weight of negative size", _changed(dims(-4, 2))
    yield "a weight larger than its data", _changed(dims(4, 3))
    yield "a weight of 2^80 values", _changed(dims(2**40, 2**40))
    yield "a weight whose size overflows", _changed(dims(2**62, 4))
    yield "a weight of a hundred axes", _changed(dims(*[1] * 98, 4, 2))
    yield "a weight of no values", _changed(dims(0, 2))
    yield "raw data beside other data", _changed(tensor(raw_data=b"abc"))
    yield "more data than values", _changed(tensor(float_data=[1.0]))
    yield "a tensor type that is none", _changed(tensor(data_type=99))
    yield "a tensor type of nothing", _changed(tensor(data_type=0))
    yield "a weight that is text", _changed(tensor(data_type=TensorProto.STRING))
    yield "a weight in segments", _changed(lambda p: setattr(p.graph.initializer[0].segment, "begin", 1))
    for op, body, weights in (
        ("Tile", "y = Tile(x, r)", "int64[1] r = {1099511627776}"),
        ("Expand", "y = Expand(x, r)", "int64[2] r = {1099511627776, 4}"),
        ("ConstantOfShape", "c = ConstantOfShape(r) m = ReduceMax<keepdims=0>(c) y = Add(x, m)", "int64[2] r = {1048576, 1048576}"),
        ("ConstantOfShape below zero", "c = ConstantOfShape(r) m = ReduceMax<keepdims=0>(c) y = Add(x, m)", "int64[1] r = {-5}"),
        ("Pad", "y = Pad(x, r)", "int64[2] r = {1099511627776, 0}"),
        ("Pad below zero", "y = Pad(x, r)", "int64[2] r = {-100, -100}"),
        ("Range", "c = Range(a, b, d) m = ReduceMax<keepdims=0>(c) y = Add(x, m)", "float a = {0}, float b = {1e30}, float d = {1}"),
        ("Range of step 0", "c = Range(a, b, d) m = ReduceMax<keepdims=0>(c) y = Add(x, m)", "float a = {0}, float b = {1}, float d = {0}"),
        ("OneHot", "i = Cast<to=7>(x) c = OneHot(i, r, v) y = ReduceMax<axes=[1],keepdims=0>(c)", "int64[1] r = {1099511627776}, float[2] v = {0,1}"),
        ("Reshape", "y = Reshape(x, r)", "int64[3] r = {-1, -1, 0}"),
        ("Reshape to more", "y = Reshape(x, r)", "int64[1] r = {5}"),
        ("Slice of step 0", "y = Slice(x, a, b, c, d)", "int64[1] a={0}, int64[1] b={4}, int64[1] c={0}, int64[1] d={0}"),
        ("Slice far outside", "y = Slice(x, a, b)", "int64[1] a={-9223372036854775808}, int64[1] b={9223372036854775807}"),
        ("Gather outside", "y = Gather(x, i)", "int64[1] i = {1000000}"),
        ("Gather of a constant outside", "c = Gather(w, i) y = Add(x, c)", "float[2] w = {1, 2}, int64[1] i = {1000000}"),
        ("Resize to nothing", "y = Resize(x, , s)", "float[1] s = {0}"),
        ("Resize by NaN", "y = Resize(x, , s)", "float[1] s = {nan}"),
        ("Resize a million times", "y = Resize(x, , s)", "float[1] s = {1e12}"),
        ("TopK", "y, i = TopK(x, k)", "int64[1] k = {1099511627776}"),
        ("Split", "a, y = Split(x, s)", "int64[2] s = {-1, 5}"),
        ("Unsqueeze", "y = Unsqueeze(x, s)", "int64[2] s = {99, 99}"),
        ("a division by zero", "c = Div(a, b) d = Cast<to=1>(c) y = Add(x, d)", "int64[1] a = {1}, int64[1] b = {0}"),
        ("a remainder of zero", "c = Mod(a, b) d = Cast<to=1>(c) y = Add(x, d)", "int64[1] a = {1}, int64[1] b = {0}"),
        ("the least integer by -1", "c = Div(a, b) d = Cast<to=1>(c) y = Add(x, d)", "int64[1] a = {-9223372036854775808}, int64[1] b = {-1}"),
        ("a shift by 200", "c = BitShift<direction=\"LEFT\">(a, b) d = Cast<to=1>(c) y = Add(x, d)", "uint64[1] a = {1}, uint64[1] b = {200}"),
        ("Loop of 2^62 trips", "y = Loop(n, t, x)<body = b (int64 k, bool g, float[4] h) => (bool o, float[4] u) { o = Identity(g) u = Add(h, h) }>",
         "int64 n = {4611686018427387904}, bool t = {1}"),
        ("Loop of -5 trips", "y = Loop(n, t, x)<body = b (int64 k, bool g, float[4] h) => (bool o, float[4] u) { o = Identity(g) u = Add(h, h) }>",
         "int64 n = {-5}, bool t = {1}"),
        ("Loop whose body takes less", "y = Loop(n, t, x)<body = b (int64 k) => (bool o) { o = Cast<to=9>(k) }>", "int64 n = {3}, bool t = {1}"),
        ("products of constants without end", "a = ConstantOfShape(r) " + " ".join(f"a{i + 1} = MatMul(a{i or ''}, a{i or ''})" for i in range(40))
         + " m = ReduceMax<keepdims=0>(a40) y = Add(x, m)", "int64[2] r = {8000, 8000}"),
        ("products of integers without end", "a = ConstantOfShape<value = int64[1] {1}>(r) "
         + " ".join(f"a{i + 1} = MatMul(a{i or ''}, a{i or ''})" for i in range(9))
         + " m = ReduceMax<keepdims=0>(a9) f = Cast<to=1>(m) y = Add(x, f)", "int64[2] r = {1500, 1500}"),
        ("an Einsum without end", 'a = ConstantOfShape(r) m = Einsum<equation = "ab,cd,ef,gh->">(a, a, a, a) y = Add(x, m)', "int64[2] r = {2000, 2000}"),
        ("an Einsum that is none", 'y = Einsum<equation = "(((->,,,">(x)', ""),
        ("a pool of constants without end", "a = ConstantOfShape(r) p = AveragePool<kernel_shape=[3000,3000],pads=[1500,1500,1500,1500]>(a) "
         "m = ReduceMax<keepdims=0>(p) y = Add(x, m)", "int64[4] r = {1, 1, 4000, 4000}"),
        ("a regular expression without end", 'a = Constant<value_strings = ["' + "a" * 40 + '!"]>() '
         'b = RegexFullMatch<pattern = "(a+)+">(a) c = Cast<to=1>(b) y = Add(x, c)', ""),
    ):  # fmt: skip
        opset = 20 if "Regex" in body else 17
        yield op, _plain(body, weights=weights, y="float[N] y").replace(b"\x10\x11", bytes([0x10, opset]))
    scan = "s = Identity(h)"
    for level in range(6):
        body = f"b{level} (float[4] h, float[1] e) => (float[4] s) {{ {scan} }}"
        scan = f"{'s' if level < 5 else 'y'} = Scan<num_scan_inputs = 1, body = {body}>({'h' if level < 5 else 'x'}, w)"
    yield "Scans within Scans", _plain(scan, weights="float[64,1] w = {" + ",".join(["1"] * 64) + "}")


def _attributes() -> Iterator[tuple[str, bytes]]:
    def ints(op: str, name: str, *values: int) -> bytes:
        def change(proto: onnx.ModelProto) -> None:
            node = next(n for n in proto.graph.node if n.op_type == op)
            for old in [a for a in node.attribute if a.name == name]:
                node.attribute.remove(old)
            node.attribute.append(helper.make_attribute(name, list(values)))

        return _changed(change)

    def attribute(op: str, name: str, value: Any) -> bytes:
        return _changed(lambda p: next(n for n in p.graph.node if n.op_type == op).attribute.append(helper.make_attribute(name, value)))

    for value in (0, -1, 2**40, -(2**63)):
        yield f"MaxPool strides {value}", ints("MaxPool", "strides", value, value)
        yield f"MaxPool kernel {value}", ints("MaxPool", "kernel_shape", value, value)
        yield f"Conv dilations {value}", ints("Conv", "dilations", value, value)
        yield f"MaxPool pads {value}", ints("MaxPool", "pads", value, value, value, value)
    yield "MaxPool kernel of three axes", ints("MaxPool", "kernel_shape", 2, 2, 2)
    yield "Conv groups 0", attribute("Conv", "group", 0)
    yield "Conv groups 2^40", attribute("Conv", "group", 2**40)
    yield "Conv groups -1", attribute("Conv", "group", -1)
    yield "Flatten axis 99", attribute("Flatten", "axis", 99)
    yield "Softmax axis -99", attribute("Softmax", "axis", -99)
    yield "an attribute twice", attribute("MaxPool", "strides", [1, 1])
    yield "an attribute that nobody knows", attribute("Relu", "evil", "__import__('os').system('touch harm')")
    yield "an attribute of another type", attribute("Softmax", "axis", "one")
    yield "an attribute of NaN", attribute("Softmax", "axis", float("nan"))
    yield "a reference to nothing", _changed(lambda p: p.graph.node[-1].attribute.add(name="axis", ref_attr_name="axis", type=2))
    yield "an attribute that is no text", _changed(lambda p: setattr(p.graph.node[0].attribute[0], "s", b"\xff\xfe"))
    yield "auto_pad of one's own", _changed(lambda p: setattr(p.graph.node[0].attribute[0], "s", b"SAME"))
    yield "a Cast to 99", _plain("y = Cast<to=99>(x)")
    yield "a permutation that is none", _plain("y = Transpose<perm=[0,0,7]>(x)")
    yield "a Constant of two values", _plain("c = Constant<value_float=1.0, value_int=3>() y = Add(x, c)")
    yield "an If without branches", bytes_of(f"{HEAD}(float[4] x, bool c) => (float[4] y) {{ y = If(c) }}")
    yield "DepthToSpace of 0", _plain("y = DepthToSpace<blocksize=0>(x)", x="float[1,4,2,2] x", y="float[1,1,4,4] y")
    yield "DepthToSpace of -2", _plain("y = DepthToSpace<blocksize=-2>(x)", x="float[1,4,2,2] x", y="float[1,1,4,4] y")
    yield "a million numbers", attribute("Relu", "numbers", [0] * 1_000_000)
    yield (
        "BatchNormalization of negative variance",
        _plain(
            "y = BatchNormalization(x, s, s, s, v)", x="float[1,2,4] x", y="float[1,2,4] y", weights="float[2] s={1,1}, float[2] v={-1,-1}"
        ),
    )
    yield "LSTM of hidden size 0", _changed(lambda p: setattr(p.graph.node[0].attribute[0], "i", 0), "recurrent")
    yield "LSTM of hidden size 2^40", _changed(lambda p: setattr(p.graph.node[0].attribute[0], "i", 2**40), "recurrent")


def _quantized() -> Iterator[tuple[str, bytes]]:
    def scale(value: float) -> bytes:
        def change(proto: onnx.ModelProto) -> None:
            next(t for t in proto.graph.initializer if t.name == "s").CopyFrom(numpy_helper.from_array(np.array(value, np.float32), "s"))

        return _changed(change)

    for value in (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, -1.0, 1e-45, 3e38):
        yield f"a scale of {value}", scale(value)

    def zero(array: Any) -> bytes:
        def change(proto: onnx.ModelProto) -> None:
            next(t for t in proto.graph.initializer if t.name == "z").CopyFrom(numpy_helper.from_array(array, "z"))

        return _changed(change)

    yield "a zero point of another type", zero(np.array(3, np.int64))
    yield "a zero point that is a float", zero(np.array(3, np.float32))
    yield "a hundred zero points", zero(np.zeros(100, np.uint8))
    yield "weights of NaN", _changed(lambda p: p.graph.initializer[0].float_data.__setitem__(slice(None), [float("nan")] * 9))
    yield "weights of infinity", _changed(lambda p: p.graph.initializer[0].float_data.__setitem__(slice(None), [float("inf")] * 9))
    four = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,4] x) => (float[1,2] y) <float[2] s={1,1}, int8[4,2] q={1,2,3,4,5,6,7,8}> '
    for axis, block in ((9, 0), (-9, 0), (1, 2**40), (0, 3), (0, -1)):
        yield (
            f"blocks of {block} on axis {axis}",
            bytes_of(four + f"{{ w = DequantizeLinear<axis={axis},block_size={block}>(q, s) y = MatMul(x, w) }}"),
        )
    contrib = '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[1,4] x) => (float[1,2] y) '
    weights = "<uint8[2,1,2] b={1,2,3,4}, float[2] s={1,1}>"
    for k, n, bits, block in ((4, 2, 4, 0), (4, 2, 3, 16), (2**40, 2, 4, 16), (4, -2, 4, 16), (4, 2, 4, 2**40)):
        attributes = f"K={k},N={n},bits={bits},block_size={block}"
        yield f"MatMulNBits {attributes}", bytes_of(contrib + weights + f"{{ y = com.microsoft.MatMulNBits<{attributes}>(x, b, s) }}")


def _sparse() -> Iterator[tuple[str, bytes]]:
    def made(indices: Any, dims: list[int], values: Any = (7.0, 8.0)) -> bytes:
        proto = seeds.models()["sparse"]
        del proto.graph.sparse_initializer[:]
        sparse = proto.graph.sparse_initializer.add()
        sparse.values.CopyFrom(numpy_helper.from_array(np.asarray(values, np.float32) if isinstance(values, tuple) else values, "v"))
        sparse.indices.CopyFrom(numpy_helper.from_array(np.asarray(indices), "i"))
        sparse.dims.extend(dims)
        return bytes(proto.SerializeToString())

    yield "sparse indices outside", made([0, 10**9], [3])
    yield "sparse indices below zero", made([-1, -2], [3])
    yield "sparse indices the wrong way round", made([2, 0], [3])
    yield "sparse indices twice", made([1, 1], [3])
    yield "sparse indices that are fractions", made([0.5, 1.5], [3])
    yield "sparse indices of three axes", made([[[0]], [[1]]], [3])
    yield "sparse indices of two axes", made([[0, 0], [0, 2]], [1, 3])
    yield "sparse indices of two axes outside", made([[0, 0], [9, 2]], [1, 3])
    yield "fewer sparse values than indices", made([0, 1, 2], [3])
    yield "a sparse weight of 2^60 values", made([0, 2], [2**60])
    yield "a sparse weight of 2^90 values", made([0, 2], [2**45, 2**45])
    yield "a sparse weight of negative size", made([0, 2], [-3])
    yield "a sparse weight of text", made([0, 2], [3], np.array([b"a", b"b"], object))
    yield "sparse indices that overflow", made([[2**62, 2**62], [0, 2]], [1, 3])


def _trees() -> Iterator[tuple[str, bytes]]:
    def tree(**lists: list[Any]) -> bytes:
        def change(proto: onnx.ModelProto) -> None:
            node = proto.graph.node[0]
            for old in [a for a in node.attribute if a.name in lists]:
                node.attribute.remove(old)
            node.attribute.extend(helper.make_attribute(name, values) for name, values in lists.items())

        return _changed(change, "trees")

    yield "a tree that is a circle", tree(nodes_truenodeids=[0, 0, 0], nodes_falsenodeids=[0, 0, 0])
    yield "a tree that leads nowhere", tree(nodes_truenodeids=[77, 0, 0])
    yield "a tree of negative nodes", tree(nodes_truenodeids=[-1, 0, 0])
    yield "a tree of feature 2^40", tree(nodes_featureids=[2**40, 0, 0])
    yield "a tree of feature -1", tree(nodes_featureids=[-1, 0, 0])
    yield "a tree of unknown modes", tree(nodes_modes=["BRANCH_EVIL", "LEAF", "LEAF"])
    yield "a tree that lacks lists", tree(nodes_values=[0.5])
    yield "a tree with 2^40 targets", tree(n_targets=2**40)  # type: ignore[arg-type]
    yield "a tree whose target is 99", tree(target_ids=[99, 0])
    yield "a tree of NaN", tree(nodes_values=[float("nan"), 0.0, 0.0])
    yield "a tree all of branches", tree(nodes_modes=["BRANCH_LEQ"] * 3, nodes_truenodeids=[1, 2, 0], nodes_falsenodeids=[2, 0, 1])


def named(name: str) -> bytes:
    """A model that calls everything so, as far as names must differ with a number behind."""
    proto = seeds.models()["cnn"]
    renamed: dict[str, str] = {"": ""}
    for value in (*proto.graph.input, *proto.graph.initializer, *proto.graph.output):
        value.name = renamed.setdefault(value.name, f"{name}{len(renamed)}")
    for node in proto.graph.node:
        node.name = renamed.setdefault(f"{node.output[0]} the node", f"{name}{len(renamed)}")
        for names in (node.input, node.output):
            names[:] = [renamed.setdefault(item, f"{name}{len(renamed)}") for item in names]
    proto.graph.name = proto.producer_name = name
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = name
    proto.graph.doc_string = proto.doc_string = name
    proto.metadata_props.add(key=name, value=name)
    return bytes(proto.SerializeToString())


def _named() -> Iterator[tuple[str, bytes]]:
    for name in NAMES:
        yield f"called {name[:30]!r}", named(name)
    history = '[{"action": "load", "text": "x", "notes": [' + "[" * 500 + "]" * 500 + "]}]"
    yield "a history that is none", _changed(lambda p: p.metadata_props.add(key="gatewright.history", value=history))
    yield (
        "a history of markup",
        _changed(
            lambda p: p.metadata_props.add(key="gatewright.history", value='[{"action": "[blink]", "text": "<script>alert(1)</script>"}]')
        ),
    )


MODELS: dict[str, bytes] = {
    name: data for family in (_damaged, _graphs, _sizes, _attributes, _quantized, _sparse, _trees, _named) for name, data in family()
}
