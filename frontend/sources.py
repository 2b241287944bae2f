"""Which importer takes what: by the type of an object, by the name and the first bytes of a file. Nothing is imported to find out.

Each importer is a file of its own, ends in the same canonical ONNX, and compares it with the source framework.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from gatewright.errors import ModelError

from . import isolate
from .limits import Limits
from .model import Model


@dataclass(frozen=True)
class Options:
    """What ``load`` was told beside the source."""

    dims: Mapping[str, int] | None
    name: str | None
    limits: Limits
    trust: bool

    def named(self, path: Path) -> str:
        return self.name or path.stem

    def keywords(self) -> dict[str, Any]:
        return {"dims": self.dims, "name": self.name, "limits": self.limits}


QONNX_DOMAINS = ("qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general")


def is_qonnx(proto: onnx.ModelProto) -> bool:
    """Whether an operator of QONNX is in the graph."""
    return any(node.domain in QONNX_DOMAINS for node in proto.graph.node)


Importer = Callable[[Any, Any, Options], Model]


def importer_of(source: Any) -> Importer | None:
    """The importer for ``source``, or None where it is for the reader of ONNX to take or to refuse."""
    if isinstance(source, str | os.PathLike):
        return _of_file(Path(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return None
    packages = {base.__module__.partition(".")[0] for base in type(source).__mro__}
    found = next((importer for package, importer in _OBJECTS.items() if package in packages), None)
    # What can be called and is no framework's model is a function of arrays.
    return _jax if found is None and callable(source) and not isinstance(source, type) else found


def _of_file(path: Path) -> Importer | None:
    if path.is_dir():
        return _keras_file if (path / "saved_model.pb").is_file() else None
    return _FILES.get(path.suffix.lower()) if path.is_file() else None


def _apart(module: str, source: Any, options: Options) -> Model:
    """``read_file`` of an importer, in a process of its own unless the file is trusted; heavy imports then end with that process."""
    path = Path(source)
    given: dict[str, Any] = {"path": str(path.absolute()), "dims": dict(options.dims or {}), "name": options.name}
    work = f"{__package__}.{module}:read_file"
    if options.trust or not isolate.AVAILABLE:
        read: Callable[..., Model] = importlib.import_module(f".{module}", __package__).read_file
        return read(**given, limits=options.limits, trust=options.trust)
    return isolate.isolated(work, given, what=f"reading {path.name}", limits=options.limits, size=path.stat().st_size)


def _torch(source: Any, example_inputs: Any, options: Options) -> Model:
    from .torch_import import from_program, from_torch

    if hasattr(source, "graph_signature"):
        return from_program(source, **options.keywords())
    return from_torch(source, example_inputs, **options.keywords())


def _torch_program(source: Any, example_inputs: Any, options: Options) -> Model:
    return _apart("torch_import", source, options)


def _torch_pickle(source: Any, example_inputs: Any, options: Options) -> Model:
    from .torch_import import from_torch, unpickled

    path = Path(source)
    module = unpickled(path, options.trust)
    return from_torch(module, example_inputs, dims=options.dims, name=options.named(path), limits=options.limits)


def _keras(source: Any, example_inputs: Any, options: Options) -> Model:
    from .keras_import import from_keras

    return from_keras(source, example_inputs, **options.keywords())


def _keras_file(source: Any, example_inputs: Any, options: Options) -> Model:
    return _apart("keras_import", source, options)


def _tflite(source: Any, example_inputs: Any, options: Options) -> Model:
    return _apart("tflite_import", source, options)


def _xgboost(source: Any, example_inputs: Any, options: Options) -> Model:
    from .xgboost_import import from_xgboost

    return from_xgboost(source, example_inputs, **options.keywords())


def _lightgbm(source: Any, example_inputs: Any, options: Options) -> Model:
    from .lightgbm_import import from_lightgbm

    return from_lightgbm(source, example_inputs, **options.keywords())


def _xgboost_file(source: Any, example_inputs: Any, options: Options) -> Model:
    return _apart("xgboost_import", source, options)


def _lightgbm_file(source: Any, example_inputs: Any, options: Options) -> Model:
    return _apart("lightgbm_import", source, options)


def _jax(source: Any, example_inputs: Any, options: Options) -> Model:
    from .jax_import import from_jax

    return from_jax(source, example_inputs, **options.keywords())


def _sklearn(source: Any, example_inputs: Any, options: Options) -> Model:
    from .sklearn_import import from_sklearn

    return from_sklearn(source, example_inputs, **options.keywords())


def _pickle(source: Any, example_inputs: Any, options: Options) -> Model:
    from .sklearn_import import unpickled

    path = Path(source)
    held = unpickled(path, options.trust)
    importer = importer_of(held)
    if importer is None or isinstance(held, str | os.PathLike):
        raise ModelError(f"{path} holds a {type(held).__name__}, which is no model of {', '.join(FRAMEWORKS)}")
    return importer(held, example_inputs, Options(options.dims, options.named(path), options.limits, options.trust))


_OBJECTS: dict[str, Importer] = {"torch": _torch, "keras": _keras, "xgboost": _xgboost, "lightgbm": _lightgbm, "sklearn": _sklearn}
"""By the package that a class, or one it derives from, belongs to; the first that fits."""

_FILES: dict[str, Importer] = {
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), _pickle),
    **dict.fromkeys((".pt", ".pth"), _torch_pickle),
    ".pt2": _torch_program,
    **dict.fromkeys((".json", ".ubj"), _xgboost_file),
    ".txt": _lightgbm_file,
    **dict.fromkeys((".tflite", ".lite"), _tflite),
    **dict.fromkeys((".keras", ".h5", ".hdf5"), _keras_file),
}
"""By the end of a file's name."""

FRAMEWORKS = ("PyTorch", "Keras", "scikit-learn", "XGBoost", "LightGBM", "JAX")
