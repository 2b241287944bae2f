"""Runs a compiled model in this process: its own library and ctypes. Neither TVM nor any other runtime is loaded."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.errors import GatewrightError
from gatewright.frontend.tensors import TensorInfo
from gatewright.targets.base import Array, Executor, Feeds, Mode

from .memory import ALIGNMENT

_Watch = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64)
"""Hears which kernel ran and what it wrote: context, number, address, bytes."""


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """An uninitialized array that starts at a cache line: the library copies any other."""
    kind = np.dtype(dtype)
    nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    array: Array = raw[start : start + nbytes].view(kind).reshape(shape)
    return array


class Library:
    """The C functions of a model's library, and one instance that they made. Raises GatewrightError if it cannot be made."""

    def __init__(self, folder: Path, described: Mapping[str, Any], threads: int) -> None:
        prefix = described["prefix"]
        try:
            self._library = ctypes.CDLL(str((folder / described["library"]).resolve()))
        except OSError as error:
            raise GatewrightError(f"the model's library cannot be loaded: {error}", hint="compile the model again") from None
        self._text = self._function(f"{prefix}_text", ctypes.c_char_p, ctypes.c_int)
        create = self._function(
            f"{prefix}_create", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(ctypes.c_void_p)
        )  # fmt: skip
        self._run = self._function(f"{prefix}_run", ctypes.c_int, *[ctypes.c_void_p] * 3)
        self._watched = self._function(f"{prefix}_run_watched", ctypes.c_int, *[ctypes.c_void_p] * 3, _Watch, ctypes.c_void_p)
        self._destroy = self._function(f"{prefix}_destroy", None, ctypes.c_void_p)
        made = ctypes.c_void_p()
        self._check(create(str(folder / described["constants_file"]).encode(), threads, ctypes.byref(made)))
        self._instance: ctypes.c_void_p | None = made

    def run(self, inputs: ctypes.Array[ctypes.c_void_p], outputs: ctypes.Array[ctypes.c_void_p]) -> None:
        """One run on arrays of addresses; releases Python's lock meanwhile."""
        if status := self._run(self._instance, inputs, outputs):
            self._check(status)

    def run_watched(self, inputs: Any, outputs: Any, watch: Callable[[int, int, int], None]) -> None:
        """As ``run``; ``watch`` hears of each kernel its number, and address and size of what it wrote."""
        heard = _Watch(lambda context, call, written, nbytes: watch(call, written, nbytes))
        self._check(self._watched(self._instance, inputs, outputs, heard, None))

    def close(self) -> None:
        """End its threads and release its memory. The code stays loaded, as no one can tell who else uses it."""
        if self._instance is not None:
            self._destroy(self._instance)
            self._instance = None

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise GatewrightError(f"the model's library lacks its function {name}", hint="compile the model again") from None
        function.restype, function.argtypes = result, arguments
        return function

    def _check(self, status: int) -> None:
        if status:
            raise GatewrightError(f"the compiled model failed: {self._text(status).decode()}")


class CpuExecutor(Executor):
    """One loaded library. Its buffers are its own: one run at a time."""

    mode: Mode = "device"

    def __init__(
        self, folder: Path, described: Mapping[str, Any], inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], threads: int
    ) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.per_sample = bool(described["per_sample"])
        self.batch = int(described["batch"]) if self.per_sample else None
        self._calls = described["calls"]
        self._library = Library(folder, described, threads)
        shapes = described["shapes"]
        self._feeds = {i.name: aligned_empty(tuple(shapes[i.name]), stored(i.dtype)) for i in inputs}
        self._results = {o.name: aligned_empty(tuple(shapes[o.name]), stored(o.dtype)) for o in outputs}
        self._read, self._written = (_addresses(arrays.values()) for arrays in (self._feeds, self._results))
        self._lock = threading.Lock()

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        with self._lock:
            self._copy_in(feeds)
            self._library.run(self._read, self._written)
            return self._copies_out()

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """The values that the kernels store, by ONNX name: what is fused into a kernel is not among them.

        An integer tensor also gives what it stands for under the name of the float value that was quantized.
        """
        found: dict[str, Array] = {}

        def watch(number: int, address: int, nbytes: int) -> None:
            found.update(traced(self._calls[number], ctypes.string_at(address, nbytes)))

        with self._lock:
            self._copy_in(feeds)
            self._library.run_watched(self._read, self._written, watch)
            found.update(self._copies_out())
        return found

    def watch_native(self, feeds: Feeds, watch: Callable[[int, int, int], None]) -> float:
        """One run; ``watch`` hears of each kernel, when it has ended, its number, and address and size of what it wrote.

        Returns when it began, by time.perf_counter.
        """
        with self._lock:
            self._copy_in(feeds)
            began = time.perf_counter()
            self._library.run_watched(self._read, self._written, watch)
        return began

    def _copy_in(self, feeds: Feeds) -> None:
        for name, array in self._feeds.items():
            np.copyto(array, feeds[name], casting="unsafe")

    def _copies_out(self) -> dict[str, Array]:
        return {o.name: self._results[o.name].astype(o.dtype) for o in self.outputs}

    def close(self) -> None:
        """Let go of the instance, its threads and its memory."""
        with self._lock:
            self._library.close()


def _addresses(arrays: Any) -> ctypes.Array[ctypes.c_void_p]:
    """The struct of pointers that the C functions take; of one element where there are no arrays."""
    pointers = [array.ctypes.data for array in arrays]
    return (ctypes.c_void_p * max(1, len(pointers)))(*pointers)


def stored(dtype: Any) -> np.dtype[Any]:
    """How a tensor lies in memory: 4-bit integers one to a byte."""
    name = str(np.dtype(dtype))
    return np.dtype({"int4": "int8", "uint4": "uint8"}.get(name, name))


def traced(call: Mapping[str, Any], data: bytes) -> dict[str, Array]:
    """What a kernel wrote, by ONNX names. ``call``: its entry in the manifest."""
    shape, block = tuple(call["shape"]), int(call["block"])
    buffer = np.frombuffer(data, np.dtype(call["dtype"]))
    if block:
        buffer = np.moveaxis(buffer.reshape(shape[0], shape[1] // block, *shape[2:], block), -1, 2)
    values = np.array(buffer.reshape(shape))
    found = {str(call["output"]): values}
    if call["float_name"] is not None:
        centred = values.astype(np.int64) - int(call["zero_point"])
        found.setdefault(str(call["float_name"]), centred.astype(np.float32) * np.float32(call["scale"]))
    return found
