"""What a .keras or .h5 file holds, looked at before Keras opens it: layers that run code or read files, links out, and sizes."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gatewright.errors import ModelError

from . import archives
from .importing import need, trusted
from .limits import Limits, raised

_CONFIG_BYTES = 256 << 20
_DEPTH = 200
_MODULES = ("keras", "keras.layers", "keras.models", "keras.initializers", "keras.activations", "keras.constraints", "keras.regularizers",
            "keras.optimizers", "keras.optimizers.schedules", "keras.losses", "keras.metrics", "keras.src.models", "keras.src.layers",
            "keras.quantizers", "keras.dtype_policies")  # fmt: skip
_CODE = {"Lambda", "__lambda__", "function", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "__typespec__", "CompositeTensor"}
"""Layers that run what the file or another file says."""
_READERS = {"StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization"}
"""Layers whose configuration may name a file."""


def check(path: Path, limits: Limits, trust: bool) -> None:
    """Raises ModelError unless the file is what Keras writes, and without code of its own or trusted."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start[:2] == b"PK":
        held = archives.entries(path, limits)
        if not {"config.json", "metadata.json"} <= set(held):
            raise ModelError(f"{path.name} is no file of Keras 3: it holds {', '.join(list(held)[:5])}", hint="save it with model.save(…)")
        config = archives.member(path, "config.json", _CONFIG_BYTES)
        if "model.weights.h5" in held:
            _check_hdf5(path.name, io.BytesIO(archives.member(path, "model.weights.h5", limits.weight_bytes)), limits)
    elif start == b"\x89HDF\r\n\x1a\n":
        config = _check_hdf5(path.name, path, limits) or b""
        if not config:
            raise ModelError(
                f"{path.name} holds weights without a model", hint="save the model, not its weights: model.save('model.keras')"
            )
    else:
        raise ModelError(f"{path.name} is no Keras file, or it is cut short", hint="save it with model.save('model.keras')")
    try:
        found = json.loads(config)
    except (ValueError, RecursionError):
        raise ModelError(f"the configuration in {path.name} is no JSON", hint="the file is damaged") from None
    for what in _suspicious(found):
        trusted(trust, path.name, what)


def _suspicious(config: Any) -> Iterator[str]:
    """Whatever in a configuration makes Keras run code, import modules or open files."""
    waiting: list[tuple[Any, int]] = [(config, 0)]
    while waiting:
        item, depth = waiting.pop()
        if depth > _DEPTH:
            raise ModelError(f"its configuration is nested deeper than {_DEPTH} levels", hint="the file is damaged or made to do that")
        if isinstance(item, dict):
            name, module = item.get("class_name"), item.get("module")
            label = item.get("config", {}).get("name", "") if isinstance(item.get("config"), dict) else ""
            where = f"layer {label!r} ({name})" if label else f"{name!r}"
            if isinstance(name, str):
                if name.rpartition(">")[2] in _CODE:
                    yield f"{where} runs code that comes with the file"
                if name.rpartition(">")[2] in _READERS:
                    yield f"{where} may read other files"
                if ">" in name and not name.startswith(("keras>", "Keras>")):
                    yield f"{where} is a custom object"
            if (
                isinstance(module, str)
                and module not in _MODULES
                and not module.startswith(("keras.src.models.", "keras.src.layers.", "keras.src.ops."))
            ):
                yield f"{where} comes from module {module!r}, which Keras would import"
            waiting.extend((value, depth + 1) for value in item.values())
        elif isinstance(item, list):
            waiting.extend((value, depth + 1) for value in item)


def _check_hdf5(label: str, source: Any, limits: Limits) -> bytes | None:
    """The model's configuration, if the file has one, after a walk over every link: none leaves the file, and all arrays fit the limits."""
    h5py = need("h5py", "keras", label)
    total = 0
    try:
        with h5py.File(source, "r") as file:
            waiting, seen = [("/", file)], 0
            while waiting:
                place, group = waiting.pop()
                for name in group:
                    seen += 1
                    if seen > limits.nodes or place.count("/") > _DEPTH:
                        raise ModelError(f"{label} holds more groups than {limits.nodes:,}, or nests them too deep")
                    link = group.get(name, getlink=True)
                    if not isinstance(link, h5py.HardLink):
                        raise ModelError(f"{label}: {place}{name} is a link to another place", hint="weights must lie in the file itself")
                    item = group[name]
                    if isinstance(item, h5py.Dataset):
                        if item.external or item.is_virtual:
                            raise ModelError(f"{label}: {place}{name} lies in another file", hint="weights must lie in the file itself")
                        total += item.nbytes
                    else:
                        waiting.append((f"{place}{name}/", item))
                if total > limits.weight_bytes:
                    raise ModelError(f"{label} holds more than {limits.weight_bytes:,} bytes", hint=f"raise it: {raised('weight_bytes')}")
            config = file.attrs.get("model_config")
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise ModelError(f"{label} cannot be read as HDF5: {' '.join(str(error).split())[:200]}", hint="the file is damaged") from None
    return config.encode() if isinstance(config, str) else config
