"""What a SavedModel's folder holds, looked at before TensorFlow opens it: "a SavedModel is a program" (its own words on security).

Its graph and functions may hold operators that read and write files, open sockets or call Python; what runs while it is loaded are
the initializers of its tables. Neither is let in without trust.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gatewright.errors import ModelError

from .importing import need, trusted
from .limits import Limits, raised

_SAVING = {
    "SaveV2",
    "RestoreV2",
    "MergeV2Checkpoints",
    "ShardedFilename",
    "ShardedFilespec",
    "Save",
    "Restore",
    "SaveSlices",
    "RestoreSlice",
}
"""Operators of the functions that write and read checkpoints, which TensorFlow puts into every SavedModel and nobody calls here."""
_HARMFUL = ("File", "Queue", "Reader", "Dataset", "Iterator", "Summary", "PyFunc", "Socket", "Rpc", "Debug", "Print", "Load", "Remote",
            "Session", "Glob", "Directory", "Assert", "Dump", "Write", "Server", "Temporary", "LookupTable", "HashTable", "Custom",
            "BigQuery", "Bigtable", "Barrier", "Stage", "DecodeWav", "DecodeJpeg", "DecodePng", "DecodeGif", "DecodeImage", "DecodeBmp",
            "Compile", "Xla", "Tpu", "TPU", "Infeed", "Outfeed", "Collective", "Nccl", "Send", "Recv", "Conditional", "Execut")  # fmt: skip
"""Parts of the names of operators that do more than compute."""
_INNOCENT = {"ReadVariableOp", "AssignVariableOp", "VarIsInitializedOp", "TensorListSetItem", "ResourceGather", "Assert"}


def check(folder: Path, limits: Limits, trust: bool) -> None:
    """Raises ModelError for links, files past the limits, a graph that cannot be parsed, and operators that touch files unless trusted."""
    total = 0
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place) / name
            if path.is_symlink():
                raise ModelError(f"{path.relative_to(folder)} in {folder.name} is a symbolic link", hint="copy what it points to")
            total += path.stat().st_size if path.is_file() else 0
    if total > limits.weight_bytes:
        raise ModelError(
            f"{folder.name} holds {total:,} bytes, the limit is {limits.weight_bytes:,}", hint=f"raise it: {raised('weight_bytes')}"
        )
    file = folder / "saved_model.pb"
    if file.stat().st_size > limits.file_bytes:
        raise ModelError(f"saved_model.pb is {file.stat().st_size:,} bytes, the limit is {limits.file_bytes:,}")
    protocol = need("tensorflow.core.protobuf.saved_model_pb2", "keras", folder.name)
    parsed = protocol.SavedModel()
    try:
        parsed.ParseFromString(file.read_bytes())
    except Exception as error:
        raise ModelError(f"{file} is no SavedModel, or it is cut short", hint="export it again") from error
    for graph in parsed.meta_graphs:
        _check_graph(folder.name, graph, limits, trust)


def _check_graph(label: str, graph: Any, limits: Limits, trust: bool) -> None:
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
    if len(nodes) > limits.nodes:
        raise ModelError(f"{label} has more nodes, the limit is {limits.nodes:,}", hint=f"raise it: {raised('nodes')}")
    for node in nodes:
        if node.op not in _SAVING | _INNOCENT and any(part in node.op for part in _HARMFUL):
            trusted(trust, label, f"its node {node.name!r} ({node.op}) may do more than compute")
    for item in graph.object_graph_def.nodes:
        kind = item.WhichOneof("kind")
        if kind in ("resource", "asset"):
            trusted(trust, label, f"it has {'a resource' if kind == 'resource' else 'an asset'}, whose initializer runs when it is loaded")
