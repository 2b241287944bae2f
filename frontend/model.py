"""``Model``: an ONNX graph with a name, a content digest and the history of what was done to it.

A Model is never edited in place. A pass takes ``model.copy_ir()`` (weights are shared, not copied), edits that, and
returns ``model.with_ir(edited, step)``. The history travels inside the saved ONNX file, so that a model written by
``gatewright transform`` still says how it was quantized when it is loaded again.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnx_ir as ir

from gatewright.errors import ModelError
from gatewright.files import replacing

from .tensors import TensorInfo as TensorInfo

HISTORY_KEY = "gatewright.history"

INSIDE_BYTES = 500_000_000
"""Weights up to this many bytes lie inside the protobuf, which takes memory twice over while it is written."""


@dataclass(frozen=True)
class Step:
    """One entry of a model's history: what was done, as text that replays it, and what came of it."""

    action: str
    """"load", "pass", or the name of an importer."""
    text: str
    """For a pass its pipeline text, ``quantize{bits=8}``; for a load the source file's name."""
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: versions, dataset digest, seed, input preparation."""

    def to_json(self) -> dict[str, Any]:
        return {"action": self.action, "text": self.text, "notes": list(self.notes), "details": dict(self.details)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Step:
        return cls(str(entry["action"]), str(entry["text"]), tuple(map(str, entry.get("notes", ()))), dict(entry.get("details", {})))


@dataclass(frozen=True)
class Model:
    """A canonical ONNX model: see ``canonicalize.py`` for what canonical means."""

    ir: ir.Model
    name: str
    history: tuple[Step, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the graph and every weight; names of files, metadata and history do not enter."""
        return _digest(self.ir)

    @property
    def graph(self) -> onnx_ir.Graph:
        return self.ir.graph

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        initializers = self.graph.initializers
        return tuple(tensor_info(value) for value in self.graph.inputs if value.name not in initializers)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(tensor_info(value) for value in self.graph.outputs)

    def copy_ir(self) -> onnx_ir.Model:
        """A copy to edit: new nodes and values, the same weight tensors."""
        return self.ir.clone()

    def with_ir(self, edited: onnx_ir.Model, step: Step | None = None, *, name: str | None = None) -> Model:
        return Model(edited, name or self.name, (*self.history, step) if step else self.history)

    def renamed(self, name: str) -> Model:
        return Model(self.ir, name, self.history)

    def to_bytes(self) -> bytes:
        """The ONNX protobuf, history included, weights inside (mapped ones too)."""
        model = self._with_metadata()
        ir.external_data.load_to_model(model)
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` whole or not at all; weights past 0.5 GB go beside it as ``<name>.data`` (protobuf ends at 2 GB).

        Where a data file of that name lies already, it may be the weights of the model that ``path`` still is: the new ones
        get a number in their name, and the old file stays. Raises ModelError where the folder cannot be written.
        """
        path = Path(path)
        if not path.parent.is_dir():
            raise ModelError(f"cannot write {path}: {path.parent} is not a folder")
        weight_bytes = sum(v.const_value.nbytes for v in self.graph.initializers.values() if v.const_value is not None)
        try:
            with replacing(path) as file:
                file.write(self.to_bytes() if weight_bytes <= INSIDE_BYTES else self._beside(path))
        except OSError as error:
            raise ModelError(f"cannot write {path}: {error.strerror}") from None

    def _beside(self, path: Path) -> bytes:
        """The ONNX protobuf without the weights, which are written beside ``path`` first."""
        names = (f"{path.name}.{n}.data" if n else f"{path.name}.data" for n in itertools.count())
        external = next(name for name in names if not (path.parent / name).exists())
        # onnx-ir streams each tensor to the data file, so the weights are never held twice.
        model = ir.external_data.unload_from_model(self._with_metadata(), path.parent, external)
        return bytes(ir.to_proto(model).SerializeToString(deterministic=True))

    def _with_metadata(self) -> onnx_ir.Model:
        model = self.ir.clone()
        model.metadata_props[HISTORY_KEY] = json.dumps([step.to_json() for step in self.history], sort_keys=True)
        model.graph.name = self.name
        return model


def tensor_info(value: ir.Value) -> TensorInfo:
    """Name, static shape and dtype of a value of a canonical graph."""
    if value.shape is None or value.dtype is None or not value.shape.is_static():
        raise ModelError(f"value {value.name!r} has no static shape: {value.shape}", hint="bind its axes with dims=")
    return TensorInfo(value.name or "", tuple(int(d) for d in value.shape.numpy()), np.dtype(value.dtype.numpy()))


def history_of(model: ir.Model) -> tuple[Step, ...]:
    """The history that an earlier ``save`` left in the file; a damaged one counts as none (the file is not trusted)."""
    try:
        return tuple(Step.from_json(entry) for entry in json.loads(model.metadata_props.get(HISTORY_KEY, "[]")))
    except (ValueError, KeyError, TypeError, AttributeError):
        return ()


def _digest(model: ir.Model) -> str:
    sha = hashlib.sha256()

    def text(*parts: object) -> None:
        sha.update(json.dumps(parts, default=str, separators=(",", ":")).encode() + b"\n")

    def tensor(array: Any) -> None:
        text("tensor", str(array.dtype), [int(d) for d in array.shape])
        if array.dtype == ir.DataType.STRING:
            text([item.hex() if isinstance(item, bytes) else str(item) for item in array.string_data()])
        else:
            sha.update(array.tobytes())

    def graph(g: ir.Graph) -> None:
        for value in (*g.inputs, *g.outputs):
            text("value", value.name, str(value.dtype), str(value.shape))
        for name in sorted(g.initializers):
            text("initializer", name)
            if (weight := g.initializers[name].const_value) is not None:
                tensor(weight)
        for node in g:
            inputs, outputs = [v.name if v else "" for v in node.inputs], [v.name for v in node.outputs]
            text("node", node.domain, node.op_type, node.overload, inputs, outputs)
            for key in sorted(node.attributes):
                attribute = node.attributes[key]
                text("attribute", key, attribute.type.name)
                if attribute.type == ir.AttributeType.GRAPH:
                    graph(attribute.as_graph())
                elif attribute.type == ir.AttributeType.GRAPHS:
                    for inner in attribute.as_graphs():
                        graph(inner)
                elif attribute.type == ir.AttributeType.TENSOR:
                    tensor(attribute.as_tensor())
                else:
                    text(attribute.value)

    text("opsets", sorted(model.opset_imports.items()))
    graph(model.graph)
    return sha.hexdigest()
