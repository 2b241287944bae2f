"""Runs an artifact for another CPU: its own example program, compiled for that CPU, under qemu's user-mode emulation.

The instructions are the device's own, and so are its C library's; how long it takes says nothing of the device.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.frontend.tensors import TensorInfo
from gatewright.hw.device import Processor
from gatewright.targets import toolchain
from gatewright.targets.base import Array, Artifact, Executor, Feeds, Mode, TargetContext

from .executor import stored, traced
from .portability import cxx_for, qemu_cpu, qemu_for, require_emulable, sysroot

FLAGS = ("-std=c++17", "-O1")


class EmulatedExecutor(Executor):
    """One process per run, which takes all samples.

    Raises ToolMissing where qemu or the compiler is not installed, UnsupportedError where qemu lacks the device's instructions.
    """

    mode: Mode = "emulate"

    def __init__(
        self, artifact: Artifact, device: Processor, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], threads: int,
        context: TargetContext,
    ) -> None:  # fmt: skip
        self.inputs, self.outputs = inputs, outputs
        self._described: Mapping[str, Any] = artifact.manifest["target"]
        self.per_sample = bool(self._described["per_sample"])
        self._artifact, self._threads, self._context = artifact.path.resolve(), threads, context
        self._what = f"emulating {artifact.manifest['model']['name']} on {device.name}"
        qemu = qemu_for(device).require(self._what)
        require_emulable(device)
        program = _program(artifact, device, self._what, context)
        self._log = program.with_name(f"{program.name}-run.log")
        # qemu's CPU, where it finds the loader and libc, and where those find the model's library.
        self._command = [
            qemu, "-cpu", qemu_cpu(device), "-L", sysroot(device), "-E", f"LD_LIBRARY_PATH={self._artifact}", program,
        ]  # fmt: skip

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        return self._run(feeds, trace=False)

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """The values that the kernels store, as ``CpuExecutor`` gives them."""
        return self._run(feeds, trace=True)

    def _run(self, feeds: Feeds, *, trace: bool) -> dict[str, Array]:
        shapes = self._described["shapes"]
        batch = int(self._described["batch"]) if self.per_sample else 1
        samples = next((array.shape[0] for array in feeds.values()), 1) if self.per_sample else 1
        runs = -(-samples // batch)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            given = [folder / f"in{i}" for i in range(len(self.inputs))]
            results = [folder / f"out{i}" for i in range(len(self.outputs))]
            for info, path in zip(self.inputs, given, strict=True):
                array = np.asarray(feeds[info.name]).astype(stored(info.dtype))
                if self.per_sample:
                    array = np.concatenate([array, np.repeat(array[-1:], runs * batch - samples, axis=0)])
                path.write_bytes(array.tobytes())
            watched = ["--trace", folder / "trace"] if trace else []
            constants = self._artifact / self._described["constants_file"]
            words = [*self._command, "--threads", str(self._threads), *watched, constants, *given, *results]
            toolchain.run(words, cwd=folder, log=self._log, what=self._what, time_limit_s=self._context.time_limit_s)
            found = self._traced((folder / "trace").read_bytes(), runs, samples) if trace else {}
            for info, path in zip(self.outputs, results, strict=True):
                shape = shapes[info.name]
                array = np.frombuffer(path.read_bytes(), stored(info.dtype)).reshape(runs * shape[0] if self.per_sample else -1, *shape[1:])
                found[info.name] = (array[:samples] if self.per_sample else array.reshape(shape)).astype(info.dtype)
        return found

    def _traced(self, data: bytes, runs: int, samples: int) -> dict[str, Array]:
        """The trace file of all runs, one kernel's result after the other, by ONNX name."""
        pieces: dict[str, list[Array]] = {}
        start = 0
        for _ in range(runs):
            for call in self._described["calls"]:
                end = start + int(np.prod(call["shape"], dtype=np.int64)) * np.dtype(call["dtype"]).itemsize
                for name, array in traced(call, data[start:end]).items():
                    pieces.setdefault(name, []).append(array)
                start = end
        whole = {name: np.concatenate(found) if found[0].ndim else found[0] for name, found in pieces.items()}
        return {name: array[:samples] for name, array in whole.items()} if self.per_sample else whole


def _program(artifact: Artifact, device: Processor, what: str, context: TargetContext) -> Path:
    """The example as an executable for the device, made on first use and kept in the cache by the content that it is made from."""
    compiler, path, described = cxx_for(device).require(what), artifact.path.resolve(), artifact.manifest["target"]
    parts = [*(f"{name} {digest}" for name, digest in sorted(artifact.manifest["files"].items())), str(compiler), *FLAGS]
    folder = context.cache_dir / "cpu-emulators"
    program = folder / hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if program.is_file():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{program.name}.{os.getpid()}.tmp"
    try:
        toolchain.run(
            [compiler, *FLAGS, "-I", path, path / "example" / "main.cpp", path / described["library"], "-o", unfinished],
            cwd=folder, log=program.with_suffix(".log"), what=f"compiling the program for {what}", time_limit_s=context.time_limit_s,
        )  # fmt: skip
        os.replace(unfinished, program)
    finally:
        unfinished.unlink(missing_ok=True)
    return program
