"""The design as a program: compiled with g++ from the artifact's own C++, run in a process of its own, fed through pipes.

A crash of the design (an assertion in a header, a stack overflow) ends that process and becomes ToolFailed here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.errors import ToolFailed
from gatewright.progress import Progress
from gatewright.targets import toolchain
from gatewright.targets.worker import MEMORY_BYTES, Worker

from .backends import BACKENDS
from .network import Array, Port

FLAGS = ("-std=c++17", "-O1", "-w", "-pthread", "-fno-strict-aliasing")
"""-O1: -O2 compiles half as long again and the design runs no faster; -w: the vendor's headers are not ours to mend."""

SAMPLES_PER_PROCESS = 4
"""A further process is started for every so many samples, as far as jobs go."""
_KEY_FILES = ("emulator.cpp", "traced.cpp", "drive.h", "vectors.npz", "firmware/", "emulation/")


def compiler_identity(logs: Path) -> str:
    """The compiler, its version and target: part of what an emulator is made from."""
    gxx = toolchain.GXX.require("the emulation of an hls design")
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "gxx-version.log"
    lines = toolchain.run([gxx, "--version"], cwd=logs, log=log, what="asking for the compiler's version", time_limit_s=60)
    return f"{lines.splitlines()[0]} {platform.machine()}"


def key_of(files: Mapping[str, str], compiler: str) -> str:
    """Content address of an emulator: every file that it is made from or verified with, the compiler and its flags."""
    parts = [f"{name} {digest}" for name, digest in sorted(files.items()) if name.startswith(_KEY_FILES)]
    return hashlib.sha256("\n".join([*parts, compiler, *FLAGS]).encode()).hexdigest()


def compile_emulator(source: Path, program: Path, *, traced: bool, time_limit_s: float, progress: Progress) -> float:
    """g++ on the artifact in ``source``; ``program`` appears whole or not at all. Returns the seconds it took."""
    gxx = toolchain.GXX.require("the emulation of an hls design")
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f".{program.name}.{os.getpid()}.tmp")
    macro = ["-DGATEWRIGHT_TRACE"] if traced else []
    include = [f"-I{folder}" for folder in includes(source)]
    command: list[str | Path] = [gxx, *FLAGS, *macro, *include, source / "emulator.cpp", "-o", unfinished]
    started = time.monotonic()
    try:
        toolchain.run(
            command, cwd=program.parent, log=program.with_suffix(".log"), what="compiling the emulator with g++", time_limit_s=time_limit_s,
            memory_limit_bytes=MEMORY_BYTES, progress=progress,
        )  # fmt: skip
        os.replace(unfinished, program)
    finally:
        unfinished.unlink(missing_ok=True)
    return time.monotonic() - started


def includes(source: Path) -> list[Path]:
    """The folders that g++ looks for headers in: the artifact's own, the types' and those that take the vendor's place."""
    tool = json.loads((source / "network.json").read_text(encoding="utf-8"))["tool"]
    return [source, source / "firmware", *(source / name for name in BACKENDS[tool].includes)]


class Emulator:
    """One or more processes of a compiled design; samples are dealt out among them. ``close`` ends them."""

    def __init__(
        self, program: Path, source: Path, inputs: Sequence[int], outputs: Sequence[int], *, jobs: int, stall_limit_s: float
    ) -> None:
        """``inputs`` and ``outputs``: elements per sample of each; ``stall_limit_s``: how long one sample may take."""
        self._program, self._source, self._jobs, self._stall_limit_s = program, source, jobs, stall_limit_s
        self._taken, self._given = sum(inputs), list(outputs)
        self._workers: list[Worker] = []

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """float64 [n, elements] per input → float64 [n, elements] per output."""
        samples = arrays[0].shape[0]
        block = np.concatenate([np.asarray(a, np.float64).reshape(samples, -1) for a in arrays], axis=1)
        if block.shape[1] != self._taken:
            raise ToolFailed(f"the emulator takes {self._taken} values per sample, got {block.shape[1]}")
        wanted = max(1, min(self._jobs, samples // SAMPLES_PER_PROCESS))
        while len(self._workers) < wanted:
            # The design reads its weights from ./weights, relative to where it runs.
            self._workers.append(Worker([self._program], self._source / "firmware", "the emulator", self._stall_limit_s))
        parts = np.array_split(block, wanted)
        with ThreadPoolExecutor(wanted) as pool:
            found = np.concatenate(list(pool.map(self._run_on, self._workers, parts)))
        return [np.ascontiguousarray(part) for part in np.split(found, np.cumsum(self._given)[:-1], axis=1)]

    def _run_on(self, worker: Worker, part: Array) -> Array:
        answer = worker.exchange(np.ascontiguousarray(part).tobytes(), part.shape[0] * sum(self._given) * 8)
        return np.frombuffer(answer, np.float64).reshape(part.shape[0], -1)

    def close(self) -> None:
        """End the processes. Calling it twice is harmless."""
        for worker in self._workers:
            worker.close()
        self._workers.clear()


def encode(ports: Sequence[Port], values: Mapping[str, Array]) -> list[Array]:
    """ONNX integers by name → what the worker takes."""
    return [port.encode(np.asarray(values[port.value]).astype(np.int64)) for port in ports]


def decode(ports: Sequence[Port], arrays: Sequence[Array]) -> dict[str, Array]:
    """What the worker gives → ONNX integers (int64) by name."""
    return {port.value: port.decode(array) for port, array in zip(ports, arrays, strict=True)}


def traced_layers(source: Path) -> list[tuple[str, int]]:
    """Layer and elements of each tensor that the traced emulator gives, in its order."""
    interface: dict[str, Any] = json.loads((source / "interface.json").read_text(encoding="utf-8"))
    return [(entry["name"], int(entry["size"])) for entry in interface["traced"]]
