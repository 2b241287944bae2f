"""Folders that hold a model and what it points to, and files of data: ``FOLDERS`` and ``DATA`` write each into a folder of its own.

What lies outside of the folder, beside it, is ``secret``: whoever opens it has been led out.
"""

# ruff: noqa: E501 (a file a line)

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import seeds
from onnx import TensorProto, parser

from gatewright.frontend import coded
from gatewright.frontend.load import load

SECRET = "secret"
Writer = Callable[[Path], None]


def _external(location: str | bytes, *, kind: int = TensorProto.FLOAT, twice: bool = False, **fields: str) -> bytes:
    proto = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[1,40] x) => (float[1,50] y) { y = MatMul(x, w) }')
    tensor = proto.graph.initializer.add(name="w", data_type=kind, dims=[40, 50], data_location=TensorProto.EXTERNAL)
    named = location if isinstance(location, str) else "LOCATION"
    for key, value in [("location", named), *([("location", named)] if twice else []), *fields.items()]:
        tensor.external_data.add(key=key, value=value)
    data = bytes(proto.SerializeToString())
    # Text that is no UTF-8 has to be put in behind protobuf's back; it has the same length.
    return data if isinstance(location, str) else data.replace(b"LOCATION", location)


def _folder(location: str | bytes, prepare: Writer = lambda folder: None, **fields: str) -> Writer:
    def write(folder: Path) -> None:
        prepare(folder)
        (folder / "model.onnx").write_bytes(_external(location, **fields))  # type: ignore[arg-type]

    return write


def _whole(folder: Path) -> None:
    (folder / "w.bin").write_bytes(bytes(8000))


def _folders() -> Iterator[tuple[str, Writer]]:
    for location in (
        f"../{SECRET}", f"a/../../{SECRET}", f"./../{SECRET}", f"..\\{SECRET}", "/etc/hostname", "C:\\windows\\win.ini", "\\\\host\\share\\w",
        "//host/share/w", f"%2e%2e/{SECRET}", "~/.ssh/id_rsa", "file:///etc/hostname", "http://localhost/w", "", ".", "a", "w.bin/", "w\0.bin",
        "x" * 5000, "nothing.bin", "/dev/zero", "/proc/self/environ", f"../{SECRET}\0.bin", "$(touch harm)", "|touch harm",
    ):  # fmt: skip

        def prepare(folder: Path) -> None:
            (folder / "a").mkdir()

        yield f"external data at {location[:40]!r}", _folder(location, prepare)
    yield "external data at what is no text", _folder(b"\xff\xfe\xff\xfe\xff\xfe\xff\xfe")
    yield "a symbolic link out", _folder("w.bin", lambda folder: os.symlink(folder.parent / SECRET, folder / "w.bin"))
    yield "a symbolic link to a device", _folder("w.bin", lambda folder: os.symlink("/dev/zero", folder / "w.bin"))
    yield "a symbolic link to itself", _folder("w.bin", lambda folder: os.symlink("w.bin", folder / "w.bin"))
    yield "a linked folder", _folder(f"a/{SECRET}", lambda folder: os.symlink(folder.parent, folder / "a"))
    yield "a hard link out", _folder("w.bin", lambda folder: os.link(folder.parent / SECRET, folder / "w.bin"))
    yield "a named pipe", _folder("w.bin", lambda folder: os.mkfifo(folder / "w.bin"))
    yield "a folder", _folder("w.bin", lambda folder: (folder / "w.bin").mkdir())
    yield "an empty file", _folder("w.bin", lambda folder: (folder / "w.bin").touch())
    yield "the model itself", _folder("model.onnx")
    for fields in (
        {"offset": "1"}, {"offset": "-8"}, {"offset": "9" * 5000}, {"offset": "1e3"}, {"offset": "18446744073709551615"}, {"length": "7999"},
        {"length": "-1"}, {"length": "0"}, {"length": str(2**63)}, {"length": "x"}, {"offset": "0x10"}, {"checksum": "x" * 9999},
    ):  # fmt: skip
        text = ", ".join(f"{key} {value[:20]}" for key, value in fields.items())
        yield f"external data with {text}", _folder("w.bin", _whole, **fields)
    yield "two locations", _folder("w.bin", _whole, twice=True)  # type: ignore[arg-type]
    yield "text as external data", _folder("w.bin", _whole, kind=TensorProto.STRING)  # type: ignore[arg-type]
    yield "a type that is none as external data", _folder("w.bin", _whole, kind=99)  # type: ignore[arg-type]

    def hole(folder: Path) -> None:
        with open(folder / "w.bin", "wb") as file:
            file.truncate(1 << 40)

    yield "a file of 1 TB of holes, past its end", _folder("w.bin", hole, offset=str(1 << 41))

    def in_attribute(folder: Path) -> None:
        proto = parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 17]> g (float[4] x) => (float[4] y) { c = Constant<value = float[4] {1,2,3,4}>() y = Add(x, c) }'
        )
        tensor = proto.graph.node[0].attribute[0].t
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"../{SECRET}")
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    yield "an attribute that lies outside", in_attribute

    def in_branch(folder: Path) -> None:
        proto = seeds.models()["control"]
        branch = proto.graph.node[0].attribute[0].g
        branch.initializer.append(onnx.helper.make_tensor("w", TensorProto.FLOAT, [4], [1.0] * 4))
        branch.initializer[0].ClearField("float_data")
        branch.initializer[0].data_location = TensorProto.EXTERNAL
        branch.initializer[0].external_data.add(key="location", value=f"../{SECRET}")
        (folder / "model.onnx").write_bytes(proto.SerializeToString())

    yield "a branch whose weight lies outside", in_branch

    def two(folder: Path) -> None:
        for name in ("a.onnx", "b.onnx"):
            (folder / name).write_bytes(seeds.models()["old"].SerializeToString())

    yield "two models", two
    yield "no model", lambda folder: None
    yield "a model that is a folder", lambda folder: (folder / "model.onnx").mkdir()
    yield "a model that is a named pipe", lambda folder: os.mkfifo(folder / "model.onnx")
    yield "a model that is a link to nothing", lambda folder: os.symlink("nothing", folder / "model.onnx")
    yield "a model that is a link to a device", lambda folder: os.symlink("/dev/zero", folder / "model.onnx")
    yield from _coded()


def _coded() -> Iterator[tuple[str, Writer]]:
    weight = np.zeros((64, 64), np.float32)
    weight[::7, ::5] = 1.5
    text = '<ir_version: 10, opset_import: ["" : 21]> g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }'
    proto = parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    whole, _ = coded.encode(load(proto))
    deflated, _ = struct.unpack_from("<QQ", whole, 8)
    graph = zlib.decompress(whole[24 : 24 + deflated])
    rest = whole[24 + deflated :]

    def packed(graph: bytes, rest: bytes, claimed: int | None = None, length: int | None = None) -> bytes:
        squeezed = zlib.compress(graph, 9)
        head = struct.pack("<QQ", len(squeezed) if length is None else length, len(graph) if claimed is None else claimed)
        return coded.MAGIC + head + squeezed + rest

    def written(data: bytes) -> Writer:
        return lambda folder: void((folder / "model.gwz").write_bytes(data))

    def void(_: object) -> None:
        return None

    for end in (0, 8, 12, 24, 40, len(whole) // 2, len(whole) - 1):
        yield f"a coded model cut at {end}", written(whole[:end])
    yield "a coded model that claims 2^62", written(packed(graph, rest, claimed=2**62))
    yield "a coded model that claims less", written(packed(graph, rest, claimed=10))
    yield "a coded model of a longer graph", written(packed(graph, rest, length=2**62))
    yield "a coded model that is a bomb", written(packed(bytes(900 << 20), rest))
    yield "a coded model of noise", written(packed(os.urandom(1000), rest))
    yield "a coded model without weights", written(packed(graph, struct.pack("<I", 0)))
    yield "a coded model of 2^32 weights", written(packed(graph, struct.pack("<I", 2**32 - 1) + rest[4:]))
    yield "a coded model of weight 9", written(packed(graph, struct.pack("<II", 1, 9) + rest[8:]))
    large = onnx.ModelProto.FromString(graph)
    large.graph.initializer[0].dims[0] = 2**40
    yield "a coded weight of 2^46 values", written(packed(large.SerializeToString(), rest))
    large.graph.initializer[0].dims[0] = -64
    yield "a coded weight of negative size", written(packed(large.SerializeToString(), rest))


def _npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Writer:
    def write(folder: Path) -> None:
        with zipfile.ZipFile(folder / "data.npz", "w", compression) as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def _npy(array: object) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


def _header(text: str, data: bytes = b"") -> bytes:
    head = text.encode("latin-1") + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(head)) + head + data


class _Harm:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, ("touch harm",))


def _data() -> Iterator[tuple[str, Writer]]:
    good = _npy(np.zeros((4, 3), np.float32))

    def plain(name: str, content: bytes) -> Writer:
        def write(folder: Path) -> None:
            (folder / name).write_bytes(content)

        return write

    yield "a pickle in .npz", _npz({"x.npy": _npy([_Harm()])})
    yield "a pickle in .npy", plain("data.npy", _npy([_Harm()]))
    yield "a pickle called .npy", plain("data.npy", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\ntouch harm\x85R.")
    yield "a member of another folder", _npz({"../../harm.npy": good, "/tmp/harm.npy": good})
    yield "a member that is no array", _npz({"x.npy": b"hello"})
    yield (
        "a bomb",
        _npz(
            {"x.npy": _header("{'descr': '|u1', 'fortran_order': False, 'shape': (6442450944,), }", bytes(64 << 20))}, zipfile.ZIP_DEFLATED
        ),
    )
    yield "a thousand members", _npz({f"x{i}.npy": good for i in range(1000)})
    yield "members of one name", plain("data.npz", _same_names(good))
    for number, shape in enumerate(
        ("(1099511627776, 1099511627776)", "(-4, 3)", "(2305843009213693952, 8)", "(4.5,)", "'x'", "(" * 3000, "4 * [1]")
    ):
        text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"
        yield f"an array of shape {number}: {shape[:20]}", plain("data.npy", _header(text, bytes(48)))
        yield f"a packed array of shape {number}: {shape[:20]}", _npz({"x.npy": _header(text, bytes(48))})
    yield "a header that is code", plain("data.npy", _header("__import__('os').system('touch harm')"))
    yield "a type of objects", plain("data.npy", _header("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }", bytes(32)))
    yield "a header of 4 GB", plain("data.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff")
    yield "an archive cut short", plain("data.npz", _bytes(_npz({"x.npy": good}))[:-30])
    yield "an empty archive", _npz({})
    yield "an empty .npy", plain("data.npy", b"")
    yield "an empty .csv", plain("data.csv", b"")
    yield "a .csv of zeros", plain("data.csv", bytes(1000))
    yield "a .csv of formulas", plain("data.csv", b"a,b\n=cmd|' /C calc'!A0,1\n")
    yield "a .csv that is no text", plain("data.csv", b"\xff\xfe\x00\n1,2\n")


def _same_names(content: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.npy", content)
        archive.writestr("y.npy", content[:50])
    return out.getvalue().replace(b"y.npy", b"x.npy")


def _bytes(write: Writer) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        write(Path(folder))
        return next(Path(folder).iterdir()).read_bytes()


FOLDERS: dict[str, Writer] = dict(_folders())
DATA: dict[str, Writer] = dict(_data())
