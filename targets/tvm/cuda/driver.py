"""Runs an artifact on a GPU of this machine, through NVIDIA's driver library alone: neither TVM nor a CUDA toolkit is needed.

The driver takes the machine code that was made for the device; on a newer GPU it compiles the PTX beside it. With ``graph`` the
launches of a run are captured once and then launched as one. Where cuBLAS is installed, products that it computes quicker are its.
"""

from __future__ import annotations

import ctypes
import json
import threading
from functools import cache
from typing import Any

import numpy as np

from gatewright.errors import GatewrightError, ToolMissing
from gatewright.frontend.tensors import TensorInfo
from gatewright.targets.base import Array, Artifact, Executor, Feeds, Mode

from ..executor import stored, traced
from . import cublas as nvidia
from .build import CONSTANT, CONSTANTS, CUBIN, INNER, INPUT, OUTPUT, PLAN, PTX

_NO_BINARY = 209
"""CUDA_ERROR_NO_BINARY_FOR_GPU."""
_CAPTURE_RELAXED = 2
_SLACK = 256
"""Vector loads may reach past the last element of a buffer."""
_TRIALS = 20
"""Runs of a kernel, and of cuBLAS in its place, of which the mean decides."""
LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


class Driver:
    """NVIDIA's driver library; a call that fails raises GatewrightError in the driver's words."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def status(self, name: str, *arguments: Any) -> int:
        return int(getattr(self._library, name)(*arguments))

    def __call__(self, name: str, *arguments: Any) -> None:
        if code := self.status(name, *arguments):
            said = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(said))
            raise GatewrightError(f"the GPU's driver refuses {name}: {(said.value or b'').decode() or code}")


@cache
def driver() -> Driver | None:
    """The driver, started; None where there is none or it has no GPU."""
    for name in LIBRARIES:
        try:
            found = Driver(ctypes.CDLL(name))
        except OSError:
            continue
        count = ctypes.c_int()
        if not found.status("cuInit", 0) and not found.status("cuDeviceGetCount", ctypes.byref(count)) and count.value:
            return found
    return None


def has_gpu() -> bool:
    """Whether this machine has a GPU that CUDA knows."""
    return driver() is not None


class GpuExecutor(Executor):
    """One loaded module with buffers of its own: one run at a time. Raises ToolMissing where there is no GPU."""

    mode: Mode = "device"

    def __init__(
        self, artifact: Artifact, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], *, graph: bool, cublas: str | None = None
    ) -> None:  # fmt: skip
        """``cublas``: the precision of its products; None: it is not used."""
        found = driver()
        if found is None:
            raise ToolMissing("there is no NVIDIA GPU here, or no driver for it", hint="load the artifact with mode emulate")
        self._call = found
        self.inputs, self.outputs = inputs, outputs
        described = artifact.manifest["target"]
        self.per_sample = bool(described["per_sample"])
        self.batch = int(described["batch"]) if self.per_sample else None
        self._shapes, self._calls = described["shapes"], described["calls"]
        self._plan = json.loads((artifact.path / PLAN).read_text(encoding="utf-8"))
        self._lock = threading.Lock()
        self._context, self._module, self._stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._buffers: list[ctypes.c_uint64] = []
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self._device = device
        self._call("cuCtxSetCurrent", self._context)
        self._load_module(artifact)
        self._call("cuStreamCreate", ctypes.byref(self._stream), 1)
        self._place((artifact.path / CONSTANTS).read_bytes())
        self.cublas_refused: str | None = None
        """Why cuBLAS is not used though it is installed."""
        self._precision, self._cublas = cublas, self._library() if cublas else None
        self._work: list[dict[str, Any]] = self._chosen()
        """What a run launches, in order: kernels, and products of cuBLAS (those have "rows")."""
        self._graph = self._captured() if graph else None

    @property
    def by_cublas(self) -> tuple[int, ...]:
        """The calls that cuBLAS computes."""
        return tuple(item["call"] for item in self._work if "rows" in item)

    def _load_module(self, artifact: Artifact) -> None:
        code = (artifact.path / CUBIN).read_bytes()
        if status := self._call.status("cuModuleLoadData", ctypes.byref(self._module), code):
            if status != _NO_BINARY:
                self._call("cuModuleLoadData", ctypes.byref(self._module), code)
            self._call("cuModuleLoadData", ctypes.byref(self._module), (artifact.path / PTX).read_bytes() + b"\0")

    def _place(self, constants: bytes) -> None:
        """Memory for every value, and the constants in theirs."""
        values = self._plan["values"]
        held, arena = self._memory(self._plan["constant_bytes"]), self._memory(self._plan["arena_bytes"])
        if constants:
            self._call("cuMemcpyHtoD_v2", held, constants, ctypes.c_size_t(len(constants)))
        self._places = []
        for value in values:
            if value["place"] in (INPUT, OUTPUT):
                self._places.append(self._memory(value["nbytes"]).value)
            else:
                self._places.append({CONSTANT: held, INNER: arena}[value["place"]].value + value["offset"])
        self._named = {v["name"]: (i, v["nbytes"]) for i, v in enumerate(values) if v.get("name")}
        self._functions: dict[str, ctypes.c_void_p] = {}
        for launch in self._plan["launches"]:
            if launch["kernel"] not in self._functions:
                found = ctypes.c_void_p()
                self._call("cuModuleGetFunction", ctypes.byref(found), self._module, launch["kernel"].encode())
                self._functions[launch["kernel"]] = found

    def _memory(self, nbytes: int) -> ctypes.c_uint64:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(nbytes + _SLACK))
        self._buffers.append(address)
        return address

    def _library(self) -> nvidia.Cublas | None:
        """cuBLAS, if it is installed and the model has products for it."""
        found = nvidia.library() if self._plan.get("gemms") else None
        if found is None:
            return None
        try:
            return nvidia.Cublas(found, self._stream, int(self._memory(nvidia.WORKSPACE_BYTES).value))
        except GatewrightError as error:
            # Of another version than the driver, say. Our own kernels need it for nothing.
            self.cublas_refused = error.message
            return None

    def _chosen(self) -> list[dict[str, Any]]:
        """The plan's launches, products of cuBLAS in the place of those that take longer. Equal products are timed once."""
        launches, quicker = self._plan["launches"], {}
        known: dict[str, bool] = {}
        for gemm in self._plan.get("gemms", ()) if self._cublas is not None else ():
            own = [launch for launch in launches if launch["call"] == gemm["call"]]
            key = json.dumps([{k: v for k, v in gemm.items() if k not in ("call", "a", "b", "out")}, [o["kernel"] for o in own]])
            if key not in known:
                known[key] = self._seconds([gemm], _TRIALS) < self._seconds(own, _TRIALS)
            if known[key]:
                quicker[gemm["call"]] = {**gemm, "output": gemm["out"], "last": True}
        kept = [launch for launch in launches if launch["call"] not in quicker]
        return sorted([*kept, *quicker.values()], key=lambda item: int(item["call"]))

    def _launch(self, launch: dict[str, Any]) -> None:
        if "rows" in launch:
            assert self._cublas is not None
            assert self._precision is not None
            a, b, out = (self._places[launch[key]] for key in ("a", "b", "out"))
            self._cublas.multiply(launch, a, b, out, self._precision)
            return
        given = [ctypes.c_uint64(self._places[i]) for i in launch["values"]]
        pointers = (ctypes.c_void_p * max(1, len(given)))(*(ctypes.addressof(g) for g in given))
        self._call(
            "cuLaunchKernel", self._functions[launch["kernel"]], *(ctypes.c_uint(n) for n in (*launch["grid"], *launch["block"], 0)),
            self._stream, pointers, None,
        )  # fmt: skip

    def _captured(self) -> ctypes.c_void_p:
        """The launches of a run as one executable graph."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, _CAPTURE_RELAXED)
        for launch in self._work:
            self._launch(launch)
        self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_ulonglong(0))
        self._call("cuGraphDestroy", graph)
        return made

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        with self._lock:
            self._call("cuCtxSetCurrent", self._context)
            self._copy_in(feeds)
            if self._graph is not None:
                self._call("cuGraphLaunch", self._graph, self._stream)
            else:
                for launch in self._work:
                    self._launch(launch)
            self._call("cuStreamSynchronize", self._stream)
            return self._copies_out()

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """The values that the kernels store, by ONNX name: what is fused into a kernel is not among them."""
        found: dict[str, Array] = {}
        with self._lock:
            self._call("cuCtxSetCurrent", self._context)
            self._copy_in(feeds)
            for launch in self._work:
                self._launch(launch)
                if launch["last"]:
                    self._call("cuStreamSynchronize", self._stream)
                    call, place = self._calls[launch["call"]], launch["output"]
                    data = self._read(self._places[place], self._plan["values"][place]["nbytes"])
                    found.update(traced(call, data.tobytes()))
            found.update(self._copies_out())
        return found

    def time_native(self, repeats: int) -> float:
        """Seconds of one run on the GPU, inputs and outputs left where they are: the mean of ``repeats`` runs in a row."""
        with self._lock:
            self._call("cuCtxSetCurrent", self._context)
            return self._seconds(self._work if self._graph is None else None, repeats)

    def _seconds(self, work: list[dict[str, Any]] | None, repeats: int) -> float:
        """Of ``work`` on the GPU, the mean of several in a row behind one that is not counted; None: of the graph."""
        events = [ctypes.c_void_p() for _ in range(2)]
        for event in events:
            self._call("cuEventCreate", ctypes.byref(event), 0)
        for number in range(repeats + 1):
            if number == 1:
                self._call("cuEventRecord", events[0], self._stream)
            if work is None:
                self._call("cuGraphLaunch", self._graph, self._stream)
            else:
                for launch in work:
                    self._launch(launch)
        self._call("cuEventRecord", events[1], self._stream)
        self._call("cuEventSynchronize", events[1])
        milliseconds = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        return float(milliseconds.value) / 1000 / repeats

    def _copy_in(self, feeds: Feeds) -> None:
        for info in self.inputs:
            array = np.ascontiguousarray(feeds[info.name].astype(stored(info.dtype)))
            place, _ = self._named[info.name]
            to, data = ctypes.c_uint64(self._places[place]), ctypes.c_void_p(array.ctypes.data)
            self._call("cuMemcpyHtoD_v2", to, data, ctypes.c_size_t(array.nbytes))

    def _copies_out(self) -> dict[str, Array]:
        found = {}
        for info in self.outputs:
            place, nbytes = self._named[info.name]
            data = self._read(self._places[place], nbytes)
            found[info.name] = data.view(stored(info.dtype)).reshape(self._shapes[info.name]).astype(info.dtype)
        return found

    def _read(self, address: int, nbytes: int) -> Array:
        data = np.empty(nbytes, np.uint8)
        self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(data.ctypes.data), ctypes.c_uint64(address), ctypes.c_size_t(nbytes))
        return data

    def close(self) -> None:
        """Give the GPU's memory back. Calling it twice is harmless."""
        with self._lock:
            if not self._buffers:
                return
            self._call("cuCtxSetCurrent", self._context)
            for address in self._buffers:
                self._call("cuMemFree_v2", address)
            self._buffers.clear()
            if self._graph is not None:
                self._call("cuGraphExecDestroy", self._graph)
            if self._cublas is not None:
                self._cublas.close()
            self._call("cuStreamDestroy_v2", self._stream)
            self._call("cuModuleUnload", self._module)
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)
