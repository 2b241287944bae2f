"""Bounds on what a model file may hold, checked before anything is done with it: a file is hostile until proven otherwise.

``check_proto`` walks a parsed file without decoding a tensor. Every refusal is a ModelError that names the limit. Which files a
model may name is decided in ``mapped.py``, what happens to one that brings down a library in ``isolate.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import onnx
import onnx_ir as ir

from gatewright.errors import ModelError, UsageError

_SHAPE_OPERANDS = {
    "Reshape": (1,), "Expand": (1,), "ConstantOfShape": (0,), "Tile": (1,), "Resize": (2, 3), "Upsample": (1,), "CenterCropPad": (1,),
    "Slice": (1, 2, 3, 4), "Squeeze": (1,), "Unsqueeze": (1,), "AffineGrid": (1,), "Col2Im": (1,),
}  # fmt: skip
_SHAPE_ARITHMETIC = frozenset(
    {"Cast", "Concat", "Slice", "Gather", "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Min", "Max", "Identity", "Squeeze", "Unsqueeze", "Mod"}
)
_LONG_SHAPE = 1 << 20
KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """What a model may ask for. The defaults take every real model.

    Raise one with ``load(…, limits=Limits(nodes=10**6))``, on the command line with ``--limits nodes=1000000,tensor_bytes=32GiB``.
    """

    file_bytes: int = 2 * GIB
    """Of the .onnx file itself, without external data (protobuf ends at 2 GiB)."""
    weight_bytes: int = 64 * GIB
    """Of all tensors together, external data included."""
    tensor_bytes: int = 16 * GIB
    """Of one weight, or of one activation at the bound batch size."""
    folded_bytes: int = 256 * MIB
    """Of one result of constant folding; a larger one stays computed."""
    folded_operations: int = 1 << 36
    """Of all constant folding; what goes beyond stays computed."""
    nodes: int = 200_000
    """In all graphs and subgraphs, once functions are inlined."""
    depth: int = 16
    """Of graphs within graphs (If, Loop, Scan) and of functions within functions."""
    rank: int = 32
    """Axes of one tensor (numpy ends at 64)."""
    attribute_bytes: int = 256 * MIB
    """Of one attribute of a node: its text, or its list of numbers or texts."""
    name_bytes: int = 64 * KIB
    """Of one name."""
    memory_bytes: int = 8 * GIB
    """That reading the file may take, mapped files apart. Held to where a process of its own reads it: not with ``trust=True``."""
    seconds: float = 600.0
    """That reading the file may take. Held to as ``memory_bytes`` is."""
    links: bool = False
    """Whether external data may be a link out of the model's folder, as in Hugging Face's cache. ``trust=True`` implies it."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, bool) and not 0 < value < 1 << 62:
                raise UsageError(f"the limit {field.name} is {value}", hint="a limit is a positive number")


def check_proto(proto: onnx.ModelProto, limits: Limits) -> None:
    """Raises ModelError if ``proto`` breaks a limit, a name in it is no text, or a tensor lacks data or claims more than it holds."""
    if len(proto.graph.node) > limits.nodes:
        raise _beyond("the model has more nodes", f"{limits.nodes:,}", "nodes")
    _check_text(proto, limits)
    _check_shape_operands(proto.graph, limits)
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
        for value in (*graph.input, *graph.value_info):
            _check_claim(value, limits)
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


def is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _check_text(proto: onnx.ModelProto, limits: Limits) -> None:
    """Protobuf gives names that are not UTF-8 as bytes, over which everything after it would stumble."""
    messages: list[tuple[Any, bool]] = [(proto, False)]
    while messages:
        message, is_note = messages.pop()
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                # Exporters keep whole programs there; they are dropped when the file is read.
                inner = field.name == "metadata_props"
                messages.extend((one, inner) for one in (value if field.is_repeated else [value]))
                continue
            many = value if field.is_repeated else [value]
            if isinstance(message, onnx.AttributeProto) and field.type != field.TYPE_ENUM:
                _check_attribute(message, many, limits)
            elif (
                field.type == field.TYPE_STRING
                and not is_note
                and field.name != "doc_string"
                and len(max(many, key=len)) > limits.name_bytes
            ):
                long = max(many, key=len)
                raise _beyond(f"{field.full_name} {long[:40]!r}… has {len(long):,} characters", f"{limits.name_bytes:,}", "name_bytes")
            if field.type == field.TYPE_STRING or field.full_name in ("onnx.AttributeProto.s", "onnx.AttributeProto.strings"):
                _require_text(field.full_name, many)


def _check_attribute(attribute: onnx.AttributeProto, values: Any, limits: Limits) -> None:
    size = sum(map(len, values)) if isinstance(values[0], str | bytes) else 8 * len(values)
    if size > limits.attribute_bytes:
        raise _beyond(f"attribute {attribute.name[:80]!r} takes {size:,} bytes", f"{limits.attribute_bytes:,}", "attribute_bytes")


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
            _check_sparse_parts(sparse)
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


def _check_sparse_parts(sparse: onnx.SparseTensorProto) -> None:
    """onnx itself would open their external data, in whatever folder the process is in."""
    if is_external(sparse.values) or is_external(sparse.indices):
        raise ModelError(f"sparse tensor {sparse.values.name!r} lies in external data", hint="store it in the model, or as a dense tensor")


def _check_sparse(sparse: onnx.SparseTensorProto, limits: Limits) -> int:
    _check_sparse_parts(sparse)
    if sparse.indices.data_type != onnx.TensorProto.INT64 or sparse.values.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"sparse tensor {sparse.values.name!r} holds other than numbers, at indices of int64")
    dense = tensor_bytes(sparse.values.data_type, list(sparse.dims)) if all(d >= 0 for d in sparse.dims) else -1
    if not 0 <= dense <= limits.folded_bytes:
        raise _beyond(f"sparse tensor {sparse.values.name!r} has shape {list(sparse.dims)}", str(limits.folded_bytes), "folded_bytes")
    _check_tensor(sparse.values, limits)
    _check_tensor(sparse.indices, limits)
    return dense


def raised(name: str) -> str:
    """How a limit is raised, in Python and on the command line."""
    return f"limits=Limits({name}=…), --limits {name}=…"


def _check_claim(value: onnx.ValueInfoProto, limits: Limits) -> None:
    """What a file says of a value is believed by onnx's inference, which makes room for what follows from it."""
    count = math.prod(dim.dim_value for dim in value.type.tensor_type.shape.dim if dim.dim_value > 0)
    if count > limits.tensor_bytes:
        raise _beyond(f"value {value.name!r} has {count:,} elements", f"{limits.tensor_bytes:,}", "tensor_bytes")


def _check_shape_operands(graph: onnx.GraphProto, limits: Limits) -> None:
    """A shape that is computed has as many entries as the result has axes, and onnx makes room for each before anybody looks at it."""
    entries = {
        value.name: value.type.tensor_type.shape.dim[0].dim_value
        for value in (*graph.input, *graph.value_info)
        if len(value.type.tensor_type.shape.dim) == 1
    } | {tensor.name: tensor.dims[0] for tensor in graph.initializer if len(tensor.dims) == 1}
    long = {name for name, count in entries.items() if count > _LONG_SHAPE}
    for node in graph.node:
        for position in _SHAPE_OPERANDS.get(node.op_type, ()):
            name = node.input[position] if position < len(node.input) else ""
            if entries.get(name, 0) > limits.rank or name in long:
                where = f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"
                raise _beyond(f"{where}: {name!r}, which has an entry for each axis, has too many", str(limits.rank), "rank")
        if node.op_type in _SHAPE_ARITHMETIC and not long.isdisjoint(node.input):
            long.update(node.output)


def _beyond(what: str, limit: str, name: str) -> ModelError:
    return ModelError(f"{what}, the limit is {limit}", hint=f"if you trust the file, raise it: {raised(name)}")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name
