"""Runs a GPU artifact on this machine's CPU: the very source that NVIDIA's compiler was given, compiled by g++ against a header that
makes CUDA's words those of a CPU (``templates/gpu_emulator.h``).

Threads of a block run up to each barrier in turn, so what the schedule says (tiles, shared memory, barriers, shuffles, the layout of
fragments) is what runs. How long it takes says nothing of a GPU. Float results differ from a GPU's by the order in which a tensor
core adds and by the last digits of exp and its like; integer ones do not differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gatewright.frontend.tensors import TensorInfo
from gatewright.targets import toolchain
from gatewright.targets.base import Array, Artifact, Executor, Feeds, Mode, TargetContext
from gatewright.targets.worker import Worker

from ..executor import stored, traced
from ..export import environment
from .build import CONSTANTS, PLAN, SOURCE

FLAGS = ("-std=c++17", "-O1", "-ftree-vectorize", "-fwrapv", "-fno-strict-aliasing", "-march=native", "-ffp-contract=fast", "-w")
"""Integers wrap, a·b + c is one operation, and bits are read as other types: as on a GPU."""
STALL_LIMIT_S = 1800.0
TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


class GpuEmulator(Executor):
    """A process that runs the kernels, one native run at a time. Raises ToolMissing where there is no C++ compiler."""

    mode: Mode = "emulate"

    def __init__(
        self, artifact: Artifact, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], context: TargetContext
    ) -> None:  # fmt: skip
        self.inputs, self.outputs = inputs, outputs
        self._described: Mapping[str, Any] = artifact.manifest["target"]
        self.per_sample = bool(self._described["per_sample"])
        self.batch = int(self._described["batch"]) if self.per_sample else None
        self._what = f"the emulator of {artifact.manifest['model']['name']}"
        self._constants = artifact.path.resolve() / CONSTANTS
        self._program = program(artifact, self._what, context)
        self._workers: dict[bool, Worker] = {}

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        return self._run(feeds, trace=False)[0]

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """The values that the kernels store, by ONNX name: what is fused into a kernel is not among them."""
        found, seen = self._run(feeds, trace=True)
        start, values = 0, {}
        for call in self._described["calls"]:
            end = start + int(np.prod(call["shape"], dtype=np.int64)) * np.dtype(call["dtype"]).itemsize
            values.update(traced(call, seen[start:end]))
            start = end
        return {**values, **found}

    def _run(self, feeds: Feeds, *, trace: bool) -> tuple[dict[str, Array], bytes]:
        shapes = self._described["shapes"]
        given = b"".join(np.ascontiguousarray(feeds[i.name].astype(stored(i.dtype))).tobytes() for i in self.inputs)
        sizes = [int(np.prod(shapes[o.name], dtype=np.int64)) * stored(o.dtype).itemsize for o in self.outputs]
        inner = sum(int(np.prod(c["shape"], dtype=np.int64)) * np.dtype(c["dtype"]).itemsize for c in self._described["calls"])
        answer = self._worker(trace).exchange(given, sum(sizes) + (inner if trace else 0))
        found, start = {}, 0
        for info, size in zip(self.outputs, sizes, strict=True):
            array = np.frombuffer(answer[start : start + size], stored(info.dtype)).reshape(shapes[info.name])
            found[info.name] = array.astype(info.dtype)
            start += size
        return found, answer[start:]

    def _worker(self, trace: bool) -> Worker:
        if trace not in self._workers:
            command: list[str | Path] = [self._program, self._constants, *(["trace"] if trace else [])]
            self._workers[trace] = Worker(command, self._program.parent, self._what, STALL_LIMIT_S)
        return self._workers[trace]

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


def program(artifact: Artifact, what: str, context: TargetContext) -> Path:
    """The emulator as a program, made on first use and kept in the cache by the content that it is made from."""
    compiler = toolchain.GXX.require(what)
    plan = json.loads((artifact.path / PLAN).read_text(encoding="utf-8"))
    source = (artifact.path / SOURCE).read_text(encoding="utf-8")
    main, header = rendered(plan, source), (TEMPLATES / "gpu_emulator.h").read_text(encoding="utf-8")
    folder = context.cache_dir / "cuda-emulators"
    found = folder / hashlib.sha256("\0".join([source, main, header, str(compiler), *FLAGS]).encode()).hexdigest()
    if found.is_file():
        return found
    work = folder / f".{found.name}.{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    for name, text in (("gatewright_gpu.h", header), (SOURCE, source), ("main.cpp", main)):
        (work / name).write_text(text, encoding="utf-8")
    toolchain.run(
        [compiler, *FLAGS, "main.cpp", "-o", "program"], cwd=work, log=found.with_suffix(".log"), what=f"compiling {what}",
        time_limit_s=context.time_limit_s,
    )  # fmt: skip
    os.replace(work / "program", found)
    for name in ("gatewright_gpu.h", SOURCE, "main.cpp"):
        (work / name).unlink()
    work.rmdir()
    return found


def rendered(plan: Mapping[str, Any], source: str) -> str:
    """The program around the kernels: its tables of values and launches."""
    heads = re.findall(r"__global__ [^(]*(?:\([^)]*\))? (\w+)\(([^)]*)\)", source)
    types = {name: [_type(parameter) for parameter in parameters.split(",")] for name, parameters in heads}
    bodies = dict(re.findall(r"(\w+)\([^)]*\) \{\n(.*?)\n\}\n", source, flags=re.DOTALL))
    kernels = list(dict.fromkeys(launch["kernel"] for launch in plan["launches"]))
    written = {launch["call"]: launch for launch in plan["launches"] if launch["last"]}
    steps = [
        {
            "launch": kernels.index(launch["kernel"]), "given": launch["values"], "grid": launch["grid"], "block": launch["block"],
            "barriers": bool(re.search(r"__sync|__shfl|wmma::", bodies[launch["kernel"]])),
            "written": launch["output"] if written[launch["call"]] is launch else -1,
        }
        for launch in plan["launches"]
    ]  # fmt: skip
    return environment().get_template("gpu_emulator.cpp.j2").render(
        values=plan["values"], launches=[{"kernel": name, "types": types[name]} for name in kernels], steps=steps,
        constant_bytes=plan["constant_bytes"], arena_bytes=plan["arena_bytes"],
    )  # fmt: skip


def _type(parameter: str) -> str:
    """``float* __restrict__ x0_ptr`` → ``float*``."""
    return parameter.split("__restrict__")[0].strip().rsplit("*", 1)[0] + "*"
