"""The design as a program: compiled with g++ from the artifact's own C++, run in a process of its own, fed through pipes.

A crash of the design (an assertion in a header, a stack overflow) ends that process and becomes ToolFailed here.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import selectors
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.errors import ToolFailed
from gatewright.progress import Progress
from gatewright.targets import toolchain

from .network import Array, Port

FLAGS = ("-std=c++17", "-O1", "-w", "-pthread", "-fno-strict-aliasing")
"""-O1: -O2 compiles half as long again and the design runs no faster; -w: the vendor's headers are not ours to mend."""

MEMORY_BYTES = 12 << 30
_STARTED_FILES = ("emulator.cpp", "traced.cpp", "vectors.npz", "firmware/")


def compiler_identity(logs: Path) -> str:
    """The compiler, its version and target: part of what an emulator is made from."""
    gxx = toolchain.GXX.require("the emulation of an hls design")
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / "gxx-version.log"
    lines = toolchain.run([gxx, "--version"], cwd=logs, log=log, what="asking for the compiler's version", time_limit_s=60)
    return f"{lines.splitlines()[0]} {platform.machine()}"


def key_of(files: Mapping[str, str], compiler: str) -> str:
    """Content address of an emulator: every file that it is made from or verified with, the compiler and its flags."""
    parts = [f"{name} {digest}" for name, digest in sorted(files.items()) if name.startswith(_STARTED_FILES)]
    return hashlib.sha256("\n".join([*parts, compiler, *FLAGS]).encode()).hexdigest()


def compile_emulator(source: Path, program: Path, *, traced: bool, time_limit_s: float, progress: Progress) -> float:
    """g++ on the artifact in ``source``; ``program`` appears whole or not at all. Returns the seconds it took."""
    gxx = toolchain.GXX.require("the emulation of an hls design")
    program.parent.mkdir(parents=True, exist_ok=True)
    unfinished = program.with_name(f".{program.name}.{os.getpid()}.tmp")
    macro = ["-DGATEWRIGHT_TRACE"] if traced else []
    include = [f"-I{folder}" for folder in (source, source / "firmware", _types(source))]
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


def _types(source: Path) -> Path:
    """The folder of the fixed-point headers that hls4ml put beside the design."""
    return next(source / "firmware" / name for name in ("ap_types", "ac_types") if (source / "firmware" / name).is_dir())


class Worker:
    """A running emulator. ``run`` takes any number of samples; ``close`` ends it."""

    def __init__(self, program: Path, source: Path, inputs: Sequence[int], outputs: Sequence[int], *, stall_limit_s: float) -> None:
        """``inputs`` and ``outputs``: elements per sample of each; ``stall_limit_s``: how long one sample may take."""
        self._inputs, self._outputs, self._stall_limit_s = list(inputs), list(outputs), stall_limit_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        # The design reads its weights from ./weights, relative to where it runs.
        self._process = subprocess.Popen(
            [program], cwd=source / "firmware", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, start_new_session=True
        )
        toolchain.limit_memory(self._process.pid, MEMORY_BYTES)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """float64 [n, elements] per input → float64 [n, elements] per output."""
        samples = arrays[0].shape[0]
        block = np.ascontiguousarray(np.concatenate([np.asarray(a, np.float64).reshape(samples, -1) for a in arrays], axis=1))
        if block.shape[1] != sum(self._inputs):
            raise ToolFailed(f"the emulator takes {sum(self._inputs)} values per sample, got {block.shape[1]}")
        writer = threading.Thread(target=self._write, args=(block.tobytes(),), daemon=True)
        writer.start()
        result = np.frombuffer(self._read(samples * sum(self._outputs) * 8), np.float64).reshape(samples, -1)
        writer.join()
        ends = np.cumsum(self._outputs)[:-1]
        return [np.ascontiguousarray(part) for part in np.split(result, ends, axis=1)]

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return  # it died: the reader sees the end of its output and says so

    def _read(self, wanted: int) -> bytes:
        assert self._process.stdout is not None
        found = bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while len(found) < wanted:
                if not selector.select(self._stall_limit_s):
                    self.close()
                    raise ToolFailed(f"the emulator gave no sample for {self._stall_limit_s:.0f} s and was stopped")
                piece = os.read(self._process.stdout.fileno(), min(wanted - len(found), 1 << 20))
                if not piece:
                    raise ToolFailed(f"the emulator stopped{self._last_words()}")
                found += piece
        return bytes(found)

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()[-toolchain.LAST_LINES :]
        code = self._process.returncode
        how = f" with signal {-code}" if code < 0 else f" with exit code {code}"
        return how + ("; its last lines:\n  " + "\n  ".join(lines) if lines else "")

    def close(self) -> None:
        """End the process. Calling it twice is harmless."""
        if not self._log.closed:
            toolchain.kill_group(self._process)
            self._log.close()


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
