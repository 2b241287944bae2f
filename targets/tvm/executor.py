"""Runs a compiled model in this process, with TVM's runtime alone: 3 MB of library, no compiler, no import of tvm."""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import threading
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.errors import GatewrightError, ToolMissing
from gatewright.frontend.model import TensorInfo
from gatewright.targets.base import Array, Executor, Feeds, Mode

from .memory import ALIGNMENT

_SHARE_ALL_CORES = -3
"""TVM's affinity mode in which every worker may run on any of the given cores; the others pin each thread to one core,
the caller's too, where it then waits for whatever else runs there."""

_pool = threading.local()


@cache
def runtime() -> Any:
    """The tvm_ffi module with TVM's runtime library loaded. Raises ToolMissing where the package is not installed."""
    spec = importlib.util.find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ToolMissing("running a cpu artifact needs the package apache-tvm", hint="pip install apache-tvm==0.27.0.post1")
    library = Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_runtime.so"
    import tvm_ffi

    try:
        # Global, since a model's library takes TVM's functions from it.
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ToolMissing(f"TVM's runtime library cannot be loaded: {error}", hint="install apache-tvm again") from None
    return tvm_ffi


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialized array that starts at a cache line: TVM's vector stores fault on anything less."""
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    array: Array = raw[start : start + nbytes].view(kind).reshape(shape)
    return array


class CpuExecutor(Executor):
    """One loaded library. Its buffers are its own: one run at a time."""

    mode: Mode = "device"

    def __init__(
        self, folder: Path, described: Mapping[str, Any], inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], threads: int
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.per_sample = bool(described["per_sample"])
        self.batch = int(described["batch"]) if self.per_sample else None
        self._threads = threads
        self._calls = described["calls"]
        ffi = runtime()
        module = ffi.load_module(str(folder / described["library"]))
        machine = module["vm_load_executable"]()
        # Device type 1 is the CPU, device 0; allocator 2 keeps freed memory for the next run.
        machine["vm_initialization"](1, 0, 2)
        self._machine, self._main = machine, machine["main"]
        self._constants = _constants(folder / described["constants_file"], described["constants"])
        shapes = described["shapes"]
        self._feeds = {i.name: aligned_empty(tuple(shapes[i.name]), _stored(i.dtype)) for i in inputs}
        self._results = {o.name: aligned_empty(tuple(shapes[o.name]), _stored(o.dtype)) for o in outputs}
        arena = aligned_empty((int(described["arena_bytes"]),), np.uint8)
        inner = _views(arena, described["inner"])
        arrays = [*self._feeds.values(), *self._constants, *self._results.values(), *inner]
        self._arguments = [ffi.from_dlpack(array) for array in arrays]
        self._lock = threading.Lock()

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        with self._lock:
            self._run(feeds)
            return {o.name: self._results[o.name].astype(o.dtype) for o in self.outputs}

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """The values that the kernels store, by ONNX name: what is fused into a kernel is not among them.

        An integer tensor also gives what it stands for under the name of the float value that was quantized.
        """
        found: dict[str, Array] = {}
        calls = iter(self._calls)

        def watch(function: Any, symbol: str, before: bool, result: Any, *arguments: Any) -> int:
            if not before and not symbol.startswith("vm."):
                call = next(calls)
                found.update(_traced(call, np.from_dlpack(arguments[-1])))
            return 0

        with self._lock:
            self._machine["set_instrument"](runtime().convert(watch))
            try:
                self._run(feeds)
            finally:
                self._machine["set_instrument"](runtime().convert(lambda *arguments: 0))
            found.update({o.name: self._results[o.name].astype(o.dtype) for o in self.outputs})
        return found

    def _run(self, feeds: Feeds) -> None:
        for name, array in self._feeds.items():
            np.copyto(array, feeds[name], casting="unsafe")
        use_threads(self._threads)
        try:
            self._main(*self._arguments)
        except RuntimeError as error:
            raise GatewrightError(f"the compiled model failed: {str(error).strip().splitlines()[-1]}") from error

    def close(self) -> None:
        """Let go of the library and its buffers."""
        with self._lock:
            self._arguments, self._constants = [], []


def use_threads(count: int) -> None:
    """Make TVM's pool of the calling thread ``count`` threads wide: left alone it takes half of the cores for hyper-threads."""
    if getattr(_pool, "threads", None) != count:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        # The pool is never wider than this list is long.
        places = [str(cores[i % len(cores)]) for i in range(max(count, len(cores)))]
        runtime().get_global_func("runtime.config_threadpool")(_SHARE_ALL_CORES, count, places)
        _pool.threads = count


def _stored(dtype: Any) -> np.dtype[Any]:
    """How a tensor lies in memory: 4-bit integers one to a byte."""
    name = str(np.dtype(dtype))
    return np.dtype({"int4": "int8", "uint4": "uint8"}.get(name, name))


def _constants(path: Path, table: list[dict[str, Any]]) -> list[Array]:
    """The constants, mapped rather than read: processes that run the same model share them."""
    if not table:
        return []
    with open(path, "rb") as file:
        # A private writable map: DLPack refuses read-only memory; nothing is ever written, so nothing is ever copied.
        mapped = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    return _views(mapped, table)


def _views(memory: Array, table: list[dict[str, Any]]) -> list[Array]:
    """The arrays that lie in ``memory`` (bytes) by a table of dtype, shape and offset."""
    found = []
    for entry in table:
        dtype, shape, start = np.dtype(entry["dtype"]), tuple(entry["shape"]), int(entry["offset"])
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        found.append(memory[start : start + nbytes].view(dtype).reshape(shape))
    return found


def _traced(call: Mapping[str, Any], buffer: Array) -> dict[str, Array]:
    shape, block = tuple(call["shape"]), int(call["block"])
    values = np.moveaxis(buffer, -1, 2).reshape(shape) if block else buffer.reshape(shape)
    values = np.array(values, dtype=np.dtype(call["dtype"]))
    found = {str(call["output"]): values}
    if call["float_name"] is not None:
        centred = values.astype(np.int64) - int(call["zero_point"])
        found.setdefault(str(call["float_name"]), centred.astype(np.float32) * np.float32(call["scale"]))
    return found
