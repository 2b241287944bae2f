"""A Model from one process to another: the graph as a protobuf, its weights as they lie in a file that both have.

The file: weights that were made or changed, each at a multiple of 64; the protobuf, in which a weight is named by where it lies
(as external data: here, or in the model's own folder); a JSON header; its length in 8 bytes. The receiver maps, and copies nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import onnx
import onnx_ir as ir

from gatewright.errors import ModelError

from .mapped import SAFELY, Bytes, Identity, Place, map_open, place_of, tensor_at
from .model import Model, Step

_INLINE_BYTES = 4096
_ALIGNMENT = 64
_HERE = "answer"


def send(model: Model, file: IO[bytes]) -> None:
    """Write ``model``; its graph is not to be used after."""
    graph, places = model.graph, list[Place]()
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _INLINE_BYTES or tensor.dtype == ir.DataType.STRING:
            continue
        place = _place(tensor)
        if place is None:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offset = file.tell()
            _write(tensor, file)
            place = Place(_HERE, Identity(0, 0, 0, 0), offset, file.tell() - offset)
        shape = ir.Shape(tensor.shape.numpy())
        stub = str(len(places)), place.offset, place.length, tensor.dtype
        value.const_value = ir.ExternalTensor(*stub, shape=shape, name=value.name or "")
        places.append(place)
    proto = ir.to_proto(model.ir).SerializeToString()
    start = file.tell()
    file.write(proto)
    header = {
        "proto": [start, len(proto)],
        "name": model.name,
        "history": [step.to_json() for step in model.history],
        "files": {place.path: list(vars(place.identity).values()) for place in places if place.path != _HERE},
        "places": [[place.path, place.offset, place.length] for place in places],
    }
    _finish(header, file)


def send_error(file: IO[bytes], kind: str, message: str, hint: str | None, traceback: str) -> None:
    """Write that the work ended with an error."""
    _finish({"error": kind, "message": message, "hint": hint, "traceback": traceback}, file)


def receive(descriptor: int) -> tuple[Mapping[str, Any], Model | None]:
    """The header of an answer, and its model; None where it is an error. Raises ModelError if a file has changed meanwhile."""
    answer = map_open(descriptor, _HERE)
    length = int.from_bytes(answer[-8:].tobytes(), "little")
    header: dict[str, Any] = json.loads(answer[len(answer) - 8 - length : -8].tobytes())
    if "error" in header:
        return header, None
    start, size = header["proto"]
    proto = onnx.ModelProto.FromString(answer[start : start + size].tobytes())
    model = ir.from_proto(proto)
    files = {path: _mapped(path, Identity(*identity)) for path, identity in header["files"].items()} | {_HERE: answer}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            path, offset, count = header["places"][int(os.fspath(tensor.location))]
            dims = tuple(int(d) for d in tensor.shape.numpy())
            value.const_value = tensor_at(files[path], offset, count, tensor.dtype, dims, value.name or "")
    return header, Model(model, header["name"], tuple(Step.from_json(entry) for entry in header["history"]))


def _place(tensor: ir.TensorProtocol) -> Place | None:
    return place_of(tensor.raw) if isinstance(tensor, ir.Tensor | ir.PackedTensor) and hasattr(tensor.raw, "flags") else None


def _write(tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    if hasattr(tensor, "tofile"):
        tensor.tofile(file)
    else:
        file.write(tensor.tobytes())


def _finish(header: Mapping[str, Any], file: IO[bytes]) -> None:
    text = json.dumps(header).encode()
    file.write(text + len(text).to_bytes(8, "little"))
    file.flush()


def _mapped(path: str, identity: Identity) -> Bytes:
    descriptor = os.open(path, SAFELY)
    try:
        if Identity.of(os.fstat(descriptor)) != identity:
            raise ModelError(f"{Path(path).name} has changed while the model was read", hint="load it again")
        return map_open(descriptor, path)
    finally:
        os.close(descriptor)
