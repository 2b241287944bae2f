"""A model in few bytes: weights with many zeros or few distinct values as Huffman codes, the rest deflated. Exact in both directions.

sizes = save_compressed(model, "model.gwz")      # sizes.bytes, sizes.onnx_bytes, sizes.ratio
model = gatewright.load("model.gwz")             # the same digest

Third stage of Deep Compression (Han, Mao, Dally 2016, arXiv:1510.00149): what ``prune`` and ``cluster`` left of a weight is a
short list of distinct values (the codebook), for each weight that is not zero its number in there, and the zeros before it;
numbers and gaps are Huffman codes. Any model can be saved so: a tensor that gains nothing is deflated with the graph.

The file, little-endian: 8 bytes ``MAGIC``; u64, u64: bytes of the graph deflated and inflated; the graph (an ONNX protobuf whose
coded tensors have no data), deflated; u32 coded tensors; for each u32 its place among the initializers, u8 bytes of a value,
u16 values in the codebook, these values, the stream of numbers, the stream of gaps; where the values are too many for a codebook
0, u32 values, the values themselves, the stream of gaps. A gap of 255 or more is cut into 255s,
each a symbol of its own that no value follows. Nothing in the file is executed.
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from gatewright.errors import ModelError
from gatewright.files import replacing

from . import huffman
from .edit import Array
from .huffman import Reader
from .limits import Limits, tensor_bytes
from .model import Model

MAGIC = b"GWCODED\x01"
SUFFIX = ".gwz"

_ESCAPE = 255
_MOST_EXPANSION = 1 << 12
"""A byte of the file may stand for so many bytes of weights; deflate alone reaches 1,032."""
_SMALL = 1 << 20
"""Bytes that any file may expand to."""


@dataclass(frozen=True)
class CodedSize:
    """What a coded file takes."""

    bytes: int
    onnx_bytes: int
    """Of the same model as an ONNX file."""
    tensors: Mapping[str, tuple[int, int]]
    """Of each coded weight: bytes before and after."""

    @property
    def ratio(self) -> float:
        return self.onnx_bytes / self.bytes


def is_coded(data: bytes | memoryview) -> bool:
    return bytes(data[: len(MAGIC)]) == MAGIC


def save_compressed(model: Model, path: str | os.PathLike[str]) -> CodedSize:
    """Write ``path`` whole or not at all. ``gatewright.load`` reads it back: the same model, bit for bit."""
    path = Path(path)
    if not path.parent.is_dir():
        raise ModelError(f"cannot write {path}: {path.parent} is not a folder")
    data, size = encode(model)
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror}") from None
    return size


def encode(model: Model) -> tuple[bytes, CodedSize]:
    """The file's bytes. Models past protobuf's 2 GB are not for this format."""
    plain = model.to_bytes()
    data, sizes = _packed(plain, code=True)
    if sum(before for before, _ in sizes.values()) > _budget(len(data)):
        # Weights that are all alike. Deflated they take a little more, and no reader has to trust a tiny file with much memory.
        data, sizes = _packed(plain, code=False)
    return data, CodedSize(len(data), len(plain), sizes)


def _packed(plain: bytes, *, code: bool) -> tuple[bytes, dict[str, tuple[int, int]]]:
    proto = onnx.ModelProto.FromString(plain)
    coded: list[bytes] = []
    sizes: dict[str, tuple[int, int]] = {}
    for index, tensor in enumerate(proto.graph.initializer):
        raw = tensor.raw_data
        found = _tensor(raw, _width(tensor, len(raw))) if code and raw else None
        if found is not None and len(found) + 5 < len(zlib.compress(raw, 9)):
            coded.append(struct.pack("<I", index) + found)
            sizes[tensor.name] = (len(raw), len(found) + 4)
            tensor.ClearField("raw_data")
    graph = proto.SerializeToString(deterministic=True)
    deflated = zlib.compress(graph, 9)
    head = MAGIC + struct.pack("<QQ", len(deflated), len(graph))
    return b"".join([head, deflated, struct.pack("<I", len(coded)), *coded]), sizes


def _budget(size: int) -> int:
    """Bytes of weights that a file of ``size`` bytes may hold."""
    return max(_SMALL, _MOST_EXPANSION * size)


def decode(data: bytes | memoryview, limits: Limits, where: str) -> onnx.ModelProto:
    """The ONNX model of a coded file. Raises ModelError for one that is damaged, or that would take more than ``limits``."""
    reader = Reader(memoryview(data), len(MAGIC))
    deflated, inflated = reader.number("Q"), reader.number("Q")
    budget = min(limits.weight_bytes, _budget(len(data)))
    if inflated > min(limits.file_bytes, budget):
        raise ModelError(f"{where}: its graph would take {inflated:,} bytes")
    engine = zlib.decompressobj()
    try:
        graph = engine.decompress(reader.take(deflated), inflated + 1)
    except zlib.error as error:
        raise ModelError(f"{where} is damaged: {error}") from None
    if len(graph) != inflated or not engine.eof:
        raise ModelError(f"{where} is damaged: its graph has not the length that it states")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(graph)
    except Exception as error:
        raise ModelError(f"{where} is damaged: its graph is not an ONNX model") from error
    for _ in range(reader.number("I")):
        index = reader.number("I")
        if index >= len(proto.graph.initializer):
            raise ModelError(f"{where} is damaged: it codes weight {index} of {len(proto.graph.initializer)}")
        tensor = proto.graph.initializer[index]
        if tensor.HasField("raw_data") or min(tensor.dims, default=1) < 0:
            raise ModelError(f"{where} is damaged: weight {tensor.name!r} is there twice or has a negative size")
        size = tensor_bytes(tensor.data_type, list(tensor.dims))
        budget -= size
        if size > limits.tensor_bytes or budget < 0:
            raise ModelError(f"{where}: weight {tensor.name!r} would take {size:,} bytes", hint="limits=Limits(…) raises what is allowed")
        tensor.raw_data = _values(reader, size, tensor.name).tobytes()
    if reader.position != len(reader.data):
        raise ModelError(f"{where} is damaged: {len(reader.data) - reader.position} bytes are left over")
    return proto


def _tensor(raw: bytes, width: int) -> bytes | None:
    """The coded form of a tensor's bytes; None where nothing but zeros is in it, or where that would be no smaller."""
    values = np.frombuffer(raw, f"<u{width}")
    places = np.flatnonzero(values)
    book, numbers = np.unique(values[places], return_inverse=True)
    listed = len(book) > huffman.LARGEST_ALPHABET
    if not len(book) or (listed and 2 * len(places) > len(values)):
        return None
    gaps = np.diff(places, prepend=-1) - 1
    escapes = gaps // _ESCAPE
    symbols = np.full(int(escapes.sum()) + len(gaps), _ESCAPE, np.int64)
    symbols[np.cumsum(escapes + 1) - 1] = gaps % _ESCAPE
    if listed:
        head = struct.pack("<BHI", width, 0, len(places)) + values[places].tobytes()
    else:
        head = struct.pack("<BH", width, len(book)) + book.tobytes() + huffman.encode(numbers, len(book))
    return head + huffman.encode(symbols, _ESCAPE + 1)


def _values(reader: Reader, size: int, name: str) -> Array:
    """The values of a coded tensor of ``size`` bytes, as unsigned integers."""
    width, count = reader.number("B"), reader.number("H")
    if width not in (1, 2, 4, 8) or size % width or count > huffman.LARGEST_ALPHABET:
        raise ModelError(f"the coded model is damaged: weight {name!r} has {count} values of {width} bytes in {size}")
    length = size // width
    if count:
        book = np.frombuffer(reader.take(count * width), f"<u{width}")
        found = book[huffman.decode(reader, length, count)]
    else:
        found = np.frombuffer(reader.take(reader.number("I") * width), f"<u{width}")
    symbols = huffman.decode(reader, length + length // _ESCAPE + 1, _ESCAPE + 1)
    followed = symbols < _ESCAPE
    places = np.cumsum(symbols + followed)[followed] - 1
    if len(places) != len(found) or (len(places) and places[-1] >= length):
        raise ModelError(f"the coded model is damaged: the values of weight {name!r} do not lie within it")
    values = np.zeros(length, f"<u{width}")
    values[places] = found
    return values


def _width(tensor: onnx.TensorProto, size: int) -> int:
    """Bytes of one value; values of 4 bits are taken two at a time."""
    count = math.prod(tensor.dims)
    return size // count if count and size in (count, 2 * count, 4 * count, 8 * count) else 1
