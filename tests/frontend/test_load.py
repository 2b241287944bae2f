"""load: every kind of source, dynamic axes, and one clear error for each thing that can be wrong with a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import parser

from gatewright.errors import ModelError, UsageError
from gatewright.frontend.limits import Limits
from gatewright.frontend.load import load
from gatewright.frontend.mapped import place_of
from gatewright.frontend.ortrun import OrtSession

MATMUL = "(float[1, 4] x) => (float[1, 3] y) <float[4, 3] w = {1,2,3,4,5,6,7,8,9,10,11,12}>"
RELU = '<ir_version: 8, opset_import: ["" : 17]> relu (float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }'


def text(body: str, opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]> g {body}')


class TestSources:
    def test_path_bytes_proto_and_ir_are_one_model(self, tmp_path: Path) -> None:
        proto = parser.parse_model(RELU)
        path = tmp_path / "relu.onnx"
        onnx.save(proto, path)
        before = proto.SerializeToString()
        models = [load(path), load(str(path)), load(tmp_path), load(path.read_bytes()), load(proto), load(ir.from_proto(proto))]
        assert len({model.digest for model in models}) == 1
        assert proto.SerializeToString() == before, "the caller's proto was changed"
        assert models[0].name == "relu"
        assert models[0].history[-1].text == "relu.onnx"
        assert models[0].history[-1].details["opset"] == 17

    def test_name(self) -> None:
        assert load(parser.parse_model(RELU)).name == "relu"
        assert load(parser.parse_model(RELU), name="other").name == "other"

    def test_history_survives_the_file(self, tmp_path: Path) -> None:
        first = load(parser.parse_model(RELU))
        first.save(tmp_path / "m.onnx")
        again = load(tmp_path / "m.onnx")
        assert again.digest == first.digest
        assert [step.action for step in again.history] == ["load", "load"]

    def test_a_folder_with_two_models(self, tmp_path: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            onnx.save(parser.parse_model(RELU), tmp_path / name)
        with pytest.raises(ModelError, match=r"should hold one \.onnx file, it holds a\.onnx, b\.onnx"):
            load(tmp_path)

    def test_something_else(self) -> None:
        with pytest.raises(ModelError, match="cannot load a dict"):
            load({})


class TestBadFiles:
    def test_missing(self, tmp_path: Path) -> None:
        onnx.save(parser.parse_model(RELU), tmp_path / "relu.onnx")
        with pytest.raises(ModelError, match=r"there is no file .*rlu\.onnx \(in that folder: relu\.onnx\)"):
            load(tmp_path / "rlu.onnx")

    @pytest.mark.parametrize("content", [b"", b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64), b"<html/>"])
    def test_not_onnx(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="is not an ONNX model"):
            load(tmp_path / "m.onnx")

    def test_a_pickle_is_refused_unopened(self, tmp_path: Path) -> None:
        (tmp_path / "m.pt").write_bytes(b"PK\x03\x04archive/data.pkl")
        with pytest.raises(ModelError, match=r"it is a pickle, which runs whatever code it holds.*--trust"):
            load(tmp_path / "m.pt")

    def test_every_truncation(self) -> None:
        whole = text(MATMUL + "{ y = MatMul(x, w) }").SerializeToString()
        load(whole)
        for length in range(len(whole)):
            try:
                model = load(whole[:length], trust=True)
            except ModelError:
                continue
            # Cut behind the graph only the opset import is lost, which then counts as the newest.
            assert model.outputs[0].shape == (1, 3)

    def test_unknown_op_names_node_op_domain_and_opset(self) -> None:
        proto = text("(float[1, 4] x) => (float[1, 4] y) { y = Rellu(x) }")
        proto.graph.node[0].name = "act"
        with pytest.raises(ModelError, match=r"node 'act': op 'Rellu' of domain 'ai\.onnx' is not known at opset 17 \(did you mean Relu"):
            load(proto)

    def test_an_op_from_a_later_opset(self) -> None:
        with pytest.raises(ModelError, match=r"op 'Gelu'.*opset 17.*it is known from opset 20 on"):
            load(text("(float[1, 4] x) => (float[1, 4] y) { y = Gelu(x) }"))

    def test_another_domain(self) -> None:
        imports = '<ir_version: 8, opset_import: ["" : 17, "qonnx" : 1]>'
        proto = parser.parse_model(f"{imports} g (float[1] x) => (float[1] y) {{ y = qonnx.Quant(x) }}")
        with pytest.raises(ModelError, match="op 'Quant' of domain 'qonnx' is not an op of ONNX"):
            load(proto)

    def test_types_that_contradict(self) -> None:
        with pytest.raises(ModelError, match="Add"):
            load(text("(float[1, 4] x, int64[1, 4] z) => (float[1, 4] y) { y = Add(x, z) }"))

    def test_shapes_that_contradict(self) -> None:
        with pytest.raises(ModelError, match=r"MatMul.*[Ii]ncompatible dimensions"):
            load(text("(float[1, 4] x, float[5, 2] z) => (float[1, 2] y) { y = MatMul(x, z) }"))

    def test_a_cycle(self) -> None:
        with pytest.raises(ModelError, match="topologically sorted"):
            load(text("(float[1, 4] x) => (float[1, 4] y) { y = Add(x, z)  z = Relu(y) }"))

    def test_two_values_of_one_name(self) -> None:
        with pytest.raises(ModelError, match="SSA"):
            load(text("(float[1, 4] x) => (float[1, 4] y) { y = Relu(x)  y = Neg(x) }"))

    def test_opsets_out_of_range(self) -> None:
        proto = parser.parse_model(RELU)
        proto.opset_import[0].version = 999
        with pytest.raises(ModelError, match="opset is 999"):
            load(proto)

    def test_repeated_imports_may_agree_but_not_differ(self) -> None:
        proto = parser.parse_model(RELU)
        proto.opset_import.add(domain="ai.onnx", version=17)
        load(proto)
        proto.opset_import.add(domain="", version=13)
        with pytest.raises(ModelError, match=r"two versions of domain ai\.onnx: 17 and 13"):
            load(proto)

    def test_a_shape_that_depends_on_data(self) -> None:
        with pytest.raises(ModelError, match=r"\(NonZero\): the shape of its output 'y' cannot be known"):
            load(text("(float[1, 4] x) => (int64[a, b] y) { y = NonZero(x) }"))

    def test_a_sequence(self) -> None:
        with pytest.raises(ModelError, match="no tensor but a SequenceType"):
            load(text("(float[4, 2] x) => (float[2] y) <int64 i = {0}> { s = SplitToSequence(x)  y = SequenceAt(s, i) }"))


class TestAxes:
    def test_the_batch_is_one_unless_bound(self) -> None:
        model = load(parser.parse_model(RELU))
        assert model.inputs[0].shape == (1, 4)
        assert model.history[-1].details["batch"] == "N"
        assert model.history[-1].details["dims"] == {"N": 1}
        assert load(parser.parse_model(RELU), dims={"N": 7}).inputs[0].shape == (7, 4)
        assert load(parser.parse_model(RELU), dims={"batch": 7}).inputs[0].shape == (7, 4)
        assert load(parser.parse_model(RELU), dims={"x.0": 7}).inputs[0].shape == (7, 4)

    def test_an_open_axis_is_named_with_what_to_say(self) -> None:
        proto = text("(float[N, T, 4] x) => (float[N, T, 4] y) { y = Relu(x) }")
        with pytest.raises(ModelError, match=r"axis 1 of input 'x' \(\[N, T, 4\]\).*dims=\{'T': 1\}.*--dims T=1"):
            load(proto)
        assert load(proto, dims={"T": 3}).outputs[0].shape == (1, 3, 4)

    def test_an_axis_without_a_name(self) -> None:
        proto = text("(float[?, ?, 4] x) => (float[?, ?, 4] y) { y = Relu(x) }")
        with pytest.raises(ModelError, match=r"axis 1 of input 'x' \(\[\?, \?, 4\]\).*--dims x\.1=1"):
            load(proto)
        model = load(proto, dims={"x.1": 3, "batch": 2})
        assert model.inputs[0].shape == (2, 3, 4)
        assert model.history[-1].details["batch"] == "batch"

    def test_an_axis_shared_by_inputs_is_one_axis(self) -> None:
        proto = text("(float[N, 4] a, float[N, 4] b) => (float[N, 4] y) { y = Add(a, b) }")
        assert [i.shape for i in load(proto, dims={"N": 3}).inputs] == [(3, 4), (3, 4)]
        assert [i.shape for i in load(proto).inputs] == [(1, 4), (1, 4)]

    def test_two_leading_axes_are_no_batch(self) -> None:
        proto = text("(float[N, 4] a, float[M, 4] b) => (float[K, 4] y) { y = Concat<axis = 0>(a, b) }")
        with pytest.raises(ModelError, match="axis 0 of input 'a'"):
            load(proto)
        assert load(proto, dims={"N": 2, "M": 3}).outputs[0].shape == (5, 4)

    def test_an_unknown_axis(self) -> None:
        with pytest.raises(UsageError, match=r"no dynamic axis 'batchsize' \(.*known axes: N\)"):
            load(parser.parse_model(RELU), dims={"batchsize": 2})
        with pytest.raises(UsageError, match="all its axes are fixed"):
            load(text("(float[1, 4] x) => (float[1, 4] y) { y = Relu(x) }"), dims={"N": 2})

    @pytest.mark.parametrize("size", [0, -1, 1.5, True])
    def test_a_size_that_is_none(self, size: object) -> None:
        with pytest.raises(UsageError, match="cannot have size"):
            load(parser.parse_model(RELU), dims={"N": size})  # type: ignore[dict-item]

    def test_negative_sizes(self) -> None:
        proto = parser.parse_model(RELU)
        proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = -5
        with pytest.raises(ModelError, match="has an axis of size -5"):
            load(proto)


def with_external(folder: Path, location: str = "w.bin", **fields: str) -> Path:
    """A model whose weight lies in ``location`` (not written here)."""
    proto = text("(float[1, 40] x) => (float[1, 50] y) { y = MatMul(x, w) }")
    tensor = proto.graph.initializer.add(name="w", data_type=onnx.TensorProto.FLOAT, dims=[40, 50], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


class TestExternalData:
    weight = np.arange(2000, dtype=np.float32).reshape(40, 50)

    def test_is_mapped_and_computes(self, tmp_path: Path) -> None:
        path = with_external(tmp_path)
        self.weight.tofile(tmp_path / "w.bin")
        model = load(path)
        weight = model.graph.initializers["w"].const_value
        assert isinstance(weight, ir.Tensor)
        assert (place := place_of(weight.numpy())) is not None
        assert (Path(place.path), place.offset, place.length) == (tmp_path / "w.bin", 0, 8000)
        assert model.history[-1].details["external_data"] == {"w.bin": hashlib.sha256((tmp_path / "w.bin").read_bytes()).hexdigest()}
        x = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32)
        np.testing.assert_allclose(OrtSession(model).run({"x": x})["y"], x @ self.weight, rtol=1e-5)
        assert load(tmp_path).digest == model.digest

    def test_small_ones_are_read(self, tmp_path: Path) -> None:
        proto = text("(float[1, 4] x) => (float[2, 2] y) { y = Reshape(x, s) }")
        tensor = proto.graph.initializer.add(name="s", data_type=onnx.TensorProto.INT64, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="w.bin")
        np.array([2, 2]).tofile(tmp_path / "w.bin")
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert load(tmp_path).outputs[0].shape == (2, 2)

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"external data 'w\.bin' of the model is missing"):
            load(with_external(tmp_path))

    def test_without_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="came without a folder"):
            load(with_external(tmp_path).read_bytes())

    @pytest.mark.parametrize(
        "location", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "C:\\secret", "\\\\host\\share", "", "w\0.bin"]
    )
    def test_paths_out_of_the_folder(self, tmp_path: Path, location: str) -> None:
        (tmp_path / "secret").write_bytes(bytes(8000))
        folder = tmp_path / "model"
        (folder / "a").mkdir(parents=True)
        with pytest.raises(ModelError, match="is refused"):
            load(with_external(folder, location))

    def test_symbolic_link_out(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(8000))
        folder = tmp_path / "model"
        folder.mkdir()
        os.symlink(tmp_path / "secret", folder / "w.bin")
        with pytest.raises(ModelError, match="symbolic link out of the folder"):
            load(with_external(folder))

    def test_linked_folder_out(self, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "w.bin").write_bytes(bytes(8000))
        folder = tmp_path / "model"
        folder.mkdir()
        os.symlink(tmp_path / "outside", folder / "data")
        with pytest.raises(ModelError, match="symbolic link out of the folder"):
            load(with_external(folder, "data/w.bin"))

    def test_hard_link(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(8000))
        folder = tmp_path / "model"
        folder.mkdir()
        os.link(tmp_path / "secret", folder / "w.bin")
        with pytest.raises(ModelError, match="hard link"):
            load(with_external(folder))

    @pytest.mark.parametrize("link", [os.symlink, os.link])
    def test_links_of_a_trusted_model(self, tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
        """Hugging Face's cache holds links to a folder of blobs."""
        self.weight.tofile(tmp_path / "blob")
        folder = tmp_path / "model"
        folder.mkdir()
        link(tmp_path / "blob", folder / "w.bin")
        for model in (load(with_external(folder), trust=True), load(with_external(folder), limits=Limits(links=True))):
            assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), self.weight)  # type: ignore[union-attr]
        with pytest.raises(ModelError, match="is refused"):
            load(with_external(folder, "../blob"), trust=True)

    def test_not_a_plain_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "w.bin")
        with pytest.raises(ModelError, match="not a plain file"):
            load(with_external(tmp_path))

    @pytest.mark.parametrize(
        "fields", [{"offset": "1"}, {"length": "7999"}, {"offset": "-8"}, {"offset": "99999999999999"}, {"length": "x"}]
    )
    def test_offsets_and_lengths(self, tmp_path: Path, fields: dict[str, str]) -> None:
        self.weight.tofile(tmp_path / "w.bin")
        with pytest.raises(ModelError, match=r"tensor 'w'"):
            load(with_external(tmp_path, **fields))


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "word"),
        [
            (Limits(file_bytes=50), "bytes"),
            (Limits(nodes=2), "nodes"),
            (Limits(weight_bytes=10), "weights"),
            (Limits(tensor_bytes=10), "tensor_bytes"),
            (Limits(rank=1), "axes"),
            (Limits(name_bytes=5), "name_bytes"),
            (Limits(attribute_bytes=7), "attribute 'perm' takes 16 bytes"),
        ],
    )
    def test_each_is_named(self, limits: Limits, word: str) -> None:
        data = text(MATMUL + "{ a = MatMul(x, w)  b = Transpose<perm = [0, 1]>(a)  y = Neg(b) }").SerializeToString()
        load(data)
        with pytest.raises(ModelError, match=word):
            load(data, limits=limits)

    def test_what_exporters_note_may_be_long(self) -> None:
        proto = text(MATMUL + "{ a = MatMul(x, w)  y = Neg(a) }")
        proto.metadata_props.add(key="program", value="x" * 100_000)
        proto.graph.node[0].metadata_props.add(key="stack", value="y" * 100_000)
        assert not load(proto.SerializeToString()).ir.metadata_props
        proto.graph.node[0].name = "z" * 100_000
        with pytest.raises(ModelError, match="name_bytes"):
            load(proto.SerializeToString())

    def test_depth(self) -> None:
        body = "y = Relu(x)"
        for level in range(5):
            other = f"else_branch = b{level} () => (float[4] y) {{ y = Neg(x) }}"
            body = f"y = If(c)<then_branch = a{level} () => (float[4] y) {{ {body} }}, {other}>"
        proto = text(f"(float[4] x, bool c) => (float[4] y) {{ {body} }}")
        with pytest.raises(ModelError, match="graphs lie deeper"):
            load(proto, limits=Limits(depth=3))

    def test_functions_that_grow_beyond_all_bounds(self) -> None:
        """f9 calls f8 twice, f8 calls f7 twice …: 2^30 nodes once inlined; refused before it is tried."""
        functions = ['<domain: "l", opset_import: ["" : 17]> f0 (x) => (y) { y = Relu(x) }']
        for i in range(1, 15):
            twice = f"a = l.f{i - 1}(x)  b = l.f{i - 1}(a)  c = l.f{i - 1}(b)  y = l.f{i - 1}(c)"
            functions.append(f'<domain: "l", opset_import: ["" : 17, "l" : 1]> f{i} (x) => (y) {{ {twice} }}')
        proto = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> g (float[4] x) => (float[4] y) { y = l.f14(x) }' + "\n".join(functions)
        )
        with pytest.raises(ModelError, match="more nodes"):
            load(proto)

    def test_functions_are_inlined(self) -> None:
        proto = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> g (float[4] x) => (float[4] y) { a = l.f(x)  y = l.f(a) }'
            '<domain: "l", opset_import: ["" : 17]> f (x) => (y) { t = Relu(x)  y = Neg(t) }'
        )
        model = load(proto)
        assert [node.op_type for node in model.graph] == ["Relu", "Neg", "Relu", "Neg"]

    def test_a_function_that_calls_itself(self) -> None:
        proto = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17, "l" : 1]> g (float[4] x) => (float[4] y) { y = l.f(x) }'
            '<domain: "l", opset_import: ["" : 17, "l" : 1]> f (x) => (y) { y = l.f(x) }'
        )
        with pytest.raises(ModelError, match="calls itself"):
            load(proto)

    def test_an_activation_beyond_memory(self) -> None:
        proto = text("(float[1] x) => (float[a, b] y) <int64[2] s = {10000000, 10000000}> { y = Expand(x, s) }")
        with pytest.raises(ModelError, match=r"\(Expand\) makes 'y'.*the limit is"):
            load(proto)

    def test_a_constant_beyond_the_folding_limit_stays_computed(self) -> None:
        proto = text("(float[1] x) => (float[1000, 1000] y) <int64[2] s = {1000, 1000}> { z = ConstantOfShape(s)  y = Add(x, z) }")
        assert [node.op_type for node in load(proto).graph] == ["Add"]
        assert [node.op_type for node in load(proto, limits=Limits(folded_bytes=1000)).graph] == ["ConstantOfShape", "Add"]
