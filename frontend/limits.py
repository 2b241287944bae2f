"""Bounds on what a model file may hold, checked before anything is done with it: a file is hostile until proven otherwise.

``check_proto`` walks a parsed file without decoding a tensor; ``external_file`` decides whether a path that the file
names may be opened. Every refusal is a ModelError that names the limit or the rule.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
import onnx_ir as ir

from gatewright.errors import ModelError

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a model may ask for. The defaults take every real model; raise one with ``load(…, limits=Limits(nodes=10**6))``."""

    file_bytes: int = 2 * GIB
    """Of the .onnx file itself, without external data (protobuf ends at 2 GiB)."""
    weight_bytes: int = 64 * GIB
    """Of all tensors together, external data included."""
    tensor_bytes: int = 16 * GIB
    """Of one weight, or of one activation at the bound batch size."""
    folded_bytes: int = 256 * MIB
    """Of one result of constant folding; a larger one stays computed."""
    nodes: int = 200_000
    """In all graphs and subgraphs, once functions are inlined."""
    depth: int = 16
    """Of graphs within graphs (If, Loop, Scan) and of functions within functions."""
    rank: int = 32
    """Axes of one tensor (numpy ends at 64)."""


def check_proto(proto: onnx.ModelProto, limits: Limits) -> None:
    """Raises ModelError if ``proto`` breaks a limit, a name in it is no text, or a tensor lacks data or claims more than it holds."""
    _check_text(proto)
    sizes: dict[tuple[str, str, str], int] = {}
    calls: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    nodes, weights = 0, 0
    for function in proto.functions:
        key = (_domain(function.domain), function.name, function.overload)
        if key in sizes:
            raise ModelError(f"function {function.name!r} of domain {function.domain!r} is defined twice")
        inner = list(_nodes(function.node, limits))
        sizes[key] = len(inner)
        calls[key] = [(_domain(n.domain), n.op_type, n.overload) for n in inner]
        weights += sum(_check_tensor(t, limits) for n in inner for t in _tensors(n))
    expanded: dict[tuple[str, str, str], int] = {}
    for key in sizes:
        _expand(key, sizes, calls, expanded, limits, ())
    for node in _nodes(proto.graph.node, limits):
        nodes += 1 + expanded.get((_domain(node.domain), node.op_type, node.overload), 0)
        if nodes > limits.nodes:
            raise _beyond("the model has more nodes", f"{limits.nodes:,}", "nodes")
        weights += sum(_check_tensor(t, limits) for t in _tensors(node))
    for graph in _graphs(proto.graph):
        weights += sum(_check_tensor(t, limits) for t in graph.initializer)
        for sparse in graph.sparse_initializer:
            weights += _check_sparse(sparse, limits)
    if weights > limits.weight_bytes:
        raise _beyond(f"the model's weights take {weights:,} bytes", f"{limits.weight_bytes:,}", "weight_bytes")


def tensor_bytes(dtype: int, dims: list[int] | tuple[int, ...]) -> int:
    """Bytes of a tensor's values as ONNX stores them raw; strings count as nothing. Raises ModelError for an unknown type."""
    if dtype == onnx.TensorProto.STRING:
        return 0
    try:
        bits = ir.DataType(dtype).bitwidth
    except (ValueError, TypeError):
        raise ModelError(f"tensor type {dtype} is not one of ONNX's") from None
    return -(-math.prod(dims) * bits // 8)


def external_file(folder: Path, location: str) -> Path:
    """The file of external data ``location`` of a model in ``folder``. Raises ModelError unless it is a plain file inside that folder."""

    def refuse(why: str) -> ModelError:
        return ModelError(f"external data {location!r} is refused: {why}", hint="it must be a plain file in the model's own folder")

    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or "\0" in location:
        raise refuse("it names no file")
    if posix.is_absolute() or windows.is_absolute() or windows.drive or windows.root:
        raise refuse("the path is absolute")
    if ".." in posix.parts or ".." in windows.parts:
        raise refuse("the path leaves the folder through '..'")
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root / location))
    if not path.is_relative_to(root):
        raise refuse("it is a symbolic link out of the folder")
    try:
        status = os.stat(path)
    except OSError:
        raise ModelError(f"external data {location!r} of the model is missing", hint=f"it belongs in {folder}") from None
    if not stat.S_ISREG(status.st_mode):
        raise refuse("it is not a plain file")
    if status.st_nlink > 1:
        raise refuse("it has a second name (hard link), which may lie outside of the folder")
    return path


def external_tensor(tensor: onnx.TensorProto, folder: Path) -> ir.ExternalTensor:
    """The tensor, memory-mapped when it is read. Raises ModelError if its file does not hold it whole."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    path = external_file(folder, location)
    needed = tensor_bytes(tensor.data_type, list(tensor.dims))
    try:
        offset = int(fields.get("offset", "0"))
        length = int(fields.get("length", str(needed)))
    except ValueError:
        raise ModelError(f"tensor {tensor.name!r}: offset or length of its external data is no number") from None
    size = path.stat().st_size
    if offset < 0 or length != needed or offset + length > size:
        held = f"its external data says {length:,} at {offset:,} of {location!r}, which has {size:,}"
        raise ModelError(f"tensor {tensor.name!r} needs {needed:,} bytes, {held}", hint="the model and its data do not belong together")
    dtype, shape = ir.DataType(tensor.data_type), ir.Shape(list(tensor.dims))
    return ir.ExternalTensor(location, offset, length, dtype, shape=shape, name=tensor.name, base_dir=os.path.realpath(folder))


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _check_text(proto: onnx.ModelProto) -> None:
    """Protobuf gives names that are not UTF-8 as bytes, over which everything after it would stumble."""
    messages: list[Any] = [proto]
    while messages:
        for field, value in messages.pop().ListFields():
            if field.type == field.TYPE_MESSAGE:
                messages.extend(value if field.is_repeated else [value])
            elif field.type == field.TYPE_STRING or field.full_name in ("onnx.AttributeProto.s", "onnx.AttributeProto.strings"):
                _require_text(field.full_name, value if field.is_repeated else [value])


def _require_text(what: str, items: Iterable[str | bytes]) -> None:
    for item in items:
        if isinstance(item, bytes):
            try:
                item.decode("utf-8")
            except UnicodeDecodeError:
                raise ModelError(f"{what} is no text: {item[:40]!r}", hint="the file is damaged") from None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and every graph inside it. Its depth is bounded by ``_nodes`` before this is called."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _nodes(nodes: Any, limits: Limits, depth: int = 1) -> Iterator[onnx.NodeProto]:
    if depth > limits.depth:
        raise _beyond("graphs lie deeper within one another", str(limits.depth), "depth")
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(inner.node, limits, depth + 1)


def _tensors(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for sparse in (*([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []), *attribute.sparse_tensors):
            yield sparse.values
            yield sparse.indices


def _expand(
    key: tuple[str, str, str],
    sizes: dict[tuple[str, str, str], int],
    calls: dict[tuple[str, str, str], list[tuple[str, str, str]]],
    expanded: dict[tuple[str, str, str], int],
    limits: Limits,
    above: tuple[tuple[str, str, str], ...],
) -> int:
    """Nodes of a function with every function that it calls inlined."""
    if key in above:
        raise ModelError(f"function {key[1]!r} calls itself")
    if len(above) >= limits.depth:
        raise _beyond("functions call one another deeper", str(limits.depth), "depth")
    if key not in expanded:
        inner = (_expand(c, sizes, calls, expanded, limits, (*above, key)) for c in calls[key] if c in sizes)
        expanded[key] = sizes[key] + sum(inner)
    return expanded[key]


def _check_tensor(tensor: onnx.TensorProto, limits: Limits) -> int:
    """Bytes of the tensor's values, after checking that they are there."""
    dims, name = list(tensor.dims), tensor.name
    if any(d < 0 for d in dims):
        raise ModelError(f"tensor {name!r} has a negative dimension: {dims}")
    if len(dims) > limits.rank:
        raise _beyond(f"tensor {name!r} has {len(dims)} axes", str(limits.rank), "rank")
    size, count = tensor_bytes(tensor.data_type, dims), math.prod(dims)
    if max(size, count) > limits.tensor_bytes:
        raise _beyond(f"tensor {name!r} takes {max(size, count):,} bytes", f"{limits.tensor_bytes:,}", "tensor_bytes")
    if tensor.HasField("segment"):
        raise ModelError(f"tensor {name!r} is stored in segments, which ONNX gave up")
    if is_external(tensor):
        return size
    types = onnx.TensorProto
    if tensor.HasField("raw_data"):
        held, needed = len(tensor.raw_data), size
        if tensor.data_type == types.STRING:
            raise ModelError(f"tensor {name!r} holds strings as raw data")
    elif tensor.data_type == types.STRING:
        held, needed = len(tensor.string_data), count
    elif tensor.data_type in (types.FLOAT, types.COMPLEX64):
        held, needed = len(tensor.float_data), count * (2 if tensor.data_type == types.COMPLEX64 else 1)
    elif tensor.data_type in (types.DOUBLE, types.COMPLEX128):
        held, needed = len(tensor.double_data), count * (2 if tensor.data_type == types.COMPLEX128 else 1)
    elif tensor.data_type == types.INT64:
        held, needed = len(tensor.int64_data), count
    elif tensor.data_type in (types.UINT64, types.UINT32):
        held, needed = len(tensor.uint64_data), count
    else:
        # Types below 8 bits share an entry: 8 // bits values in each.
        held, needed = len(tensor.int32_data), -(-count // max(1, 8 // ir.DataType(tensor.data_type).bitwidth))
    if held != needed:
        what = "bytes" if tensor.HasField("raw_data") else "values"
        raise ModelError(f"tensor {name!r} of shape {dims} holds {held:,} {what}, it needs {needed:,}", hint="the file is damaged")
    return size


def _check_sparse(sparse: onnx.SparseTensorProto, limits: Limits) -> int:
    dense = tensor_bytes(sparse.values.data_type, list(sparse.dims)) if all(d >= 0 for d in sparse.dims) else -1
    if not 0 <= dense <= limits.folded_bytes:
        raise _beyond(f"sparse tensor {sparse.values.name!r} has shape {list(sparse.dims)}", str(limits.folded_bytes), "folded_bytes")
    _check_tensor(sparse.values, limits)
    _check_tensor(sparse.indices, limits)
    return dense


def _beyond(what: str, limit: str, name: str) -> ModelError:
    return ModelError(f"{what}, the limit is {limit}", hint=f"if you trust the file, raise it: limits=Limits({name}=…)")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
