"""``load``: a trained model from wherever it lies, as a canonical ``Model``.

load("model.onnx")    load("folder with external data")    load(open(…).read())    load(model_proto)
load(torch_module, example_inputs=(x,))    load(sklearn_pipeline)    load("model.tflite")    load("pipeline.joblib", trust=True)

What is not ONNX goes to the importer of its framework (``sources.py``), which also compares the result with the framework.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from gatewright.errors import ModelError

from . import coded, isolate, sources
from .canonicalize import canonicalize
from .limits import Limits, check_proto, raised
from .mapped import Bytes, Folder, map_open
from .model import Model, Step, history_of
from .shapes import bind
from .upgrade import upgrade

_STUMBLES = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError, OSError, ir.serde.SerdeError)


def load(
    source: Any,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    example_inputs: Any = None,
    limits: Limits | None = None,
    trust: bool = False,
) -> Model:
    """``source`` as a canonical model.

    ``source``: the path of an .onnx file or of a coded one (``coded.py``), a folder with one .onnx file and its external data,
    the file's bytes, an onnx.ModelProto, an onnx_ir.Model, or a model or a file of another framework (``sources.py``).
    ``example_inputs``: what the framework's model takes, to compare with it; needed for a torch.nn.Module and a JAX function.
    ``dims``: sizes of dynamic axes by name; the batch is 1 unless said. ``name``: default the file's, or the graph's.
    ``limits``: what the file may ask for. Files and bytes are read in a process of their own (``isolate.py``), objects in this one;
    ``trust=True`` reads files here as well, follows links out of their folder, and lets a file run code (a pickle, a Lambda layer).
    Raises ModelError saying what is wrong with the file, UsageError for an axis that does not exist.
    """
    limits = limits or Limits()
    if trust:
        limits = replace(limits, links=True)
    said: dict[str, Any] = {"dims": dict(dims or {}), "name": name}
    importer = sources.importer_of(source)
    if importer is not None:
        return importer(source, example_inputs, sources.Options(dims, name, limits, trust))
    if isinstance(source, str | os.PathLike):
        path = _model_file(Path(source))
        given = {"path": str(path.absolute()), **said}
        if trust or not isolate.AVAILABLE:
            return read_file(**given, limits=limits)
        work = f"{__name__}:{read_file.__name__}"
        return isolate.isolated(work, given, what=f"reading {path.name}", limits=limits, size=path.stat().st_size)
    if isinstance(source, bytes | bytearray | memoryview):
        if trust or not isolate.AVAILABLE:
            return read_bytes(memoryview(source), **said, limits=limits)
        work = f"{__name__}:{read_bytes.__name__}"
        return isolate.isolated(work, said, what="reading the given bytes", limits=limits, data=source)
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
    elif isinstance(source, ir.Model):
        proto = ir.to_proto(source.clone())
    else:
        kinds = "a path, bytes, onnx.ModelProto, onnx_ir.Model, or a model of " + ", ".join(sources.FRAMEWORKS)
        raise ModelError(f"cannot load a {type(source).__name__}", hint=kinds)
    return from_proto(proto, dims=dims, name=name, text="a model in memory", limits=limits)


def read_file(path: str, dims: Mapping[str, int], name: str | None, limits: Limits) -> Model:
    """A file and the external data beside it, in this process."""
    file = Path(path)
    with Folder(file.parent, limits) as folder:
        data = _open(file, limits)
        try:
            proto = _parse(data.data, file.name, limits)
            return from_proto(proto, folder, dims=dims, name=name or file.stem, text=file.name, limits=limits)
        except ModelError as error:
            if file.name not in error.message:
                error.message = f"{file.name}: {error.message}"
            raise


def read_bytes(data: memoryview, dims: Mapping[str, int], name: str | None, limits: Limits) -> Model:
    """A file's bytes, in this process."""
    if len(data) > limits.file_bytes:
        hint = f"raise it: {raised('file_bytes')}"
        raise ModelError(f"the model is {len(data):,} bytes, the limit is {limits.file_bytes:,}", hint=hint)
    return from_proto(_parse(data, "the given bytes", limits), dims=dims, name=name, text="a model in memory", limits=limits)


def from_proto(
    proto: onnx.ModelProto,
    folder: Folder | None = None,
    *,
    dims: Mapping[str, int] | None = None,
    name: str | None = None,
    text: str,
    limits: Limits,
    action: str = "load",
) -> Model:
    """The canonical model of a parsed file; ``proto`` is consumed. ``text`` and ``action``: what its history says of where it came from."""
    if not proto.HasField("graph"):
        raise ModelError(f"{text} holds no graph", hint="is it an ONNX file?")
    try:
        if action == "load" and sources.is_qonnx(proto):
            from .qonnx_import import from_qonnx

            return from_qonnx(proto, dims=dims or {}, name=name, text=text, limits=limits)
        return _from_proto(proto, folder, dims or {}, name, text, limits, action)
    except _STUMBLES as error:
        # What a damaged file can make onnx and onnx-ir raise; the cause is kept for --debug.
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"{text} cannot be read: {what}", hint="if ONNX Runtime runs it, this is a defect of gatewright") from error


def _from_proto(
    proto: onnx.ModelProto, folder: Folder | None, dims: Mapping[str, int], name: str | None, text: str, limits: Limits, action: str
) -> Model:
    check_proto(proto, limits)
    if not proto.graph.output:
        raise ModelError(f"{text} has no outputs", hint="export it again")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    producer = f"{proto.producer_name} {proto.producer_version}".strip()
    details: dict[str, Any] = {"opset": opset, "ir_version": proto.ir_version, "producer": producer[:100]}
    model, notes = upgrade(proto, folder, limits)
    earlier = history_of(model)
    binding = bind(model, dims)
    details["dims"] = dict(binding.sizes)
    details["batch"] = binding.batch
    notes = (*notes, *canonicalize(model, limits))
    if folder is not None and (digests := folder.digests()):
        details["external_data"] = digests
    kept = name or model.graph.name or "model"
    _strip(model)
    return Model(model, kept, (*earlier, Step(action, text, notes, details)))


def _strip(model: ir.Model) -> None:
    """Documentation and exporters' metadata say nothing about what the model computes, and may be large or private."""
    model.metadata_props.clear()
    model.doc_string = None
    for graph in model.graphs():
        graph.metadata_props.clear()
        graph.doc_string = None
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None


def _model_file(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        if len(found) != 1:
            held = ", ".join(p.name for p in found[:5]) or "none"
            raise ModelError(f"folder {path} should hold one .onnx file, it holds {held}", hint="name the file itself")
        path = found[0]
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*.onnx"))[:5] if path.parent.is_dir() else []
        raise ModelError(f"there is no file {path}", hint=f"in that folder: {', '.join(near)}" if near else None)
    if not path.is_file():
        raise ModelError(f"{path} is not a plain file")
    return path


def _open(path: Path, limits: Limits) -> Bytes:
    """The file, mapped."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > limits.file_bytes:
                hint = f"raise it: {raised('file_bytes')}"
                raise ModelError(f"{path.name} is {size:,} bytes, the limit is {limits.file_bytes:,}", hint=hint)
            return map_open(file.fileno(), str(path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from None


def _parse(data: memoryview, where: str, limits: Limits) -> onnx.ModelProto:
    if coded.is_coded(data):
        return coded.decode(data, limits, where)
    proto = onnx.ModelProto()
    hint = "export it again, as ONNX"
    try:
        proto.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{where} is not an ONNX model, or it is cut short", hint=hint) from None
    # Protobuf takes many files for an empty message with unknown fields.
    if not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{where} is not an ONNX model, or it is cut short: there is no graph in it", hint=hint)
    return proto
