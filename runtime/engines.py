"""Engines that a benchmark can run: this project's own targets, and others beside them. Each with one model and one batch of feeds.

Another engine is used as its users use it: graph optimizations on, its own threads, one request at a time, float32 arithmetic.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import ModelError, ToolMissing, UnsupportedError, UsageError, nearest
from gatewright.frontend.model import Model
from gatewright.frontend.ortrun import OrtSession
from gatewright.targets.base import Feeds, target_class

Array = NDArray[Any]
Outputs = Mapping[str, Array]


@dataclass
class Prepared:
    """An engine that is ready to run: a context manager."""

    call: Callable[[], Outputs]
    """One run; the feeds are the engine's already."""
    resources: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.resources.close()


@dataclass(frozen=True)
class Other:
    """An engine that is not ours."""

    package: str
    install: str
    """The command that installs it."""
    save: Callable[[Model, Path], None]
    """Write the model into a file as the engine reads it."""
    open: Callable[[Path, Feeds, int], Prepared]
    """That file, feeds of one batch, threads."""

    @property
    def version(self) -> str:
        return version(self.package)


def other(name: str) -> Other:
    """The engine of that name. Raises UsageError with the nearest names, ToolMissing where its package is not installed."""
    if name not in OTHERS:
        raise UsageError(f"there is no engine {name!r} to bench against", hint=nearest(name, OTHERS, "engines"))
    found = OTHERS[name]
    if importlib.util.find_spec(found.package) is None:
        raise ToolMissing(f"bench --against {name} needs the package {found.package}", hint=found.install)
    return found


def _save_for_ort(model: Model, path: Path) -> None:
    # What its kernels lack is said otherwise, as the target ort says it.
    target_class("ort")(None, None).legalize(model).save(path)


def _open_ort(path: Path, feeds: Feeds, threads: int) -> Prepared:
    try:
        session = OrtSession(path, threads=threads)
    except ModelError:
        # Its rewriting of chains of 4- and 16-bit integers asks for kernels that it does not have.
        session = OrtSession(path, threads=threads, rewrite_qdq=False)
    return Prepared(session.prepared(feeds))


def _open_openvino(path: Path, feeds: Feeds, threads: int) -> Prepared:
    """One stream of ``threads`` threads. float32 is asked for: with AVX512-BF16 or AMX it computes in bfloat16 by itself."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        request = compiled.create_infer_request()
        given = {index: np.ascontiguousarray(feeds[port.any_name]) for index, port in enumerate(compiled.inputs)}
    except (RuntimeError, KeyError) as error:  # all that its C++ raises
        raise UnsupportedError(f"OpenVINO refuses the model: {' '.join(str(error).split())[:400]}") from None
    names = [port.any_name for port in compiled.outputs]

    def call() -> Outputs:
        found = request.infer(given, share_inputs=True)
        return {name: found[index] for index, name in enumerate(names)}

    return Prepared(call)


def _save(model: Model, path: Path) -> None:
    model.save(path)


OTHERS: Mapping[str, Other] = {
    "ort": Other("onnxruntime", "pip install onnxruntime", _save_for_ort, _open_ort),
    "openvino": Other("openvino", "pip install 'gatewright[openvino]', or pip install openvino", _save, _open_openvino),
}
"""By the name that ``--against`` takes."""
