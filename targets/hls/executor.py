"""Runs an hls artifact in emulation: host_pre, the compiled design, host_post. Nothing is handed out unverified."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gatewright.errors import GatewrightError
from gatewright.frontend.integer import plan
from gatewright.frontend.load import load
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference, compute, dequantize
from gatewright.frontend.split import Split, is_movement, split
from gatewright.targets.base import Array, Artifact, Executor, Feeds, TargetContext

from . import emulator, vectors
from .network import Port, ports


class HlsExecutor(Executor):
    """An emulator of the plain design, and one of the traced design once a trace is asked for."""

    def __init__(self, artifact: Artifact, context: TargetContext) -> None:
        self._artifact, self._context = artifact, context
        # Absolute: the compiler and the emulator run in folders of their own.
        self._source = artifact.path.resolve()
        network = json.loads((self._source / "network.json").read_text(encoding="utf-8"))
        self._inputs, self._outputs, self._traced = (ports(network[key]) for key in ("inputs", "outputs", "traced"))
        self.model = load(self._source / "model.onnx", name=str(artifact.manifest["model"]["name"]))
        self.inputs, self.outputs = self.model.inputs, self.model.outputs
        self._pre, self._post = self._host("host_pre"), self._host("host_post")
        self._emulators: dict[bool, emulator.Emulator] = {}
        self._folder = context.cache_dir.resolve() / "hls" / self._key()
        self._verify()

    # ---- running ------------------------------------------------------------------------------------------------

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        values = dict(feeds)
        if self._pre is not None:
            values |= self._pre.run({info.name: values[info.name] for info in self._pre.inputs})
        values |= self._core(values)
        return self._finish(values)

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs, every inner integer tensor that a layer gives, and the float values that those stand for."""
        values = dict(feeds)
        if self._pre is not None:
            values |= self._pre.run({info.name: values[info.name] for info in self._pre.inputs}, trace=True)
        values |= self._typed(self._run_traced(values), (*self._traced, *self._outputs))
        floats = {}
        for op in self._parts.plan.integer_ops:
            if is_movement(op) and op.output not in values and op.operands[0].name in values:
                # Movement is wires in the design: there is no layer to look at.
                values[op.output] = compute(op, [values[op.operands[0].name]])[0].astype(op.grid.dtype.numpy())
            if op.output in values:
                floats[op.float_name] = dequantize(values[op.output].astype(np.int64), op.grid)
        result = self._post.run({i.name: values[i.name] for i in self._post.inputs}, trace=True) if self._post is not None else {}
        return {**floats, **values, **result}

    def close(self) -> None:
        for running in self._emulators.values():
            running.close()
        self._emulators.clear()

    def _core(self, values: Mapping[str, Array]) -> dict[str, Array]:
        found = emulator.decode(self._outputs, self._emulator(False).run(emulator.encode(self._inputs, values)))
        return self._typed(found, self._outputs)

    def _finish(self, values: dict[str, Array]) -> dict[str, Array]:
        if self._post is not None:
            values |= self._post.run({info.name: values[info.name] for info in self._post.inputs})
        return {info.name: values[info.name] for info in self.outputs}

    def _typed(self, values: Mapping[str, Array], of: tuple[Port, ...]) -> dict[str, Array]:
        return {port.value: values[port.value].astype(ir.DataType[port.dtype.upper()].numpy()) for port in of}

    def _run_traced(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Inner tensors and outputs of the traced design, as int64 by name."""
        arrays = self._emulator(True).run(emulator.encode(self._inputs, values))[len(self._outputs) :]
        by_layer = dict(zip((name for name, _ in emulator.traced_layers(self._source)), arrays, strict=True))
        wanted = (*self._traced, *self._outputs)
        lost = sorted(port.layer for port in wanted if port.layer not in by_layer)
        if lost:
            raise GatewrightError(
                f"{self.model.name}: hls4ml wrote no code for the layers {', '.join(lost)}, which it has no template of for this tool",
                hint="take another tool, hls:BOARD{tool=vitis}",
            )
        return emulator.decode(wanted, [by_layer[port.layer] for port in wanted])

    def _emulator(self, traced: bool) -> emulator.Emulator:
        if traced not in self._emulators:
            program = self._folder / ("traced" if traced else "emulator")
            limit = self._context.time_limit_s
            if not program.exists():
                emulator.compile_emulator(self._source, program, traced=traced, time_limit_s=limit, progress=self._context.progress)
            sizes = [port.size for port in self._outputs]
            if traced:
                sizes += [size for _, size in emulator.traced_layers(self._source)]
            inputs = [port.size for port in self._inputs]
            jobs = self._context.jobs
            self._emulators[traced] = emulator.Emulator(program, self._source, inputs, sizes, jobs=jobs, stall_limit_s=limit)
        return self._emulators[traced]

    # ---- before it is handed out --------------------------------------------------------------------------------

    def _verify(self) -> None:
        """Compare with ref on the artifact's vectors, once per content. Raises MismatchError naming the first layer that differs."""
        mark = self._folder / "verified"
        if mark.exists():
            return
        stimuli, expected = vectors.load(self._source / "vectors.npz")
        self._context.progress(f"verifying {self.model.name} on {len(next(iter(stimuli.values())))} samples")
        try:
            got = emulator.decode(self._outputs, self._emulator(False).run(emulator.encode(self._inputs, stimuli)))
            if vectors.differs(got, expected):
                inner = self._run_traced(stimuli)
                raise vectors.blame(self._parts, inner, vectors.reference(self._parts, self._inputs, stimuli, trace=True), self.model.name)
        except BaseException:
            self.close()
            raise
        unfinished = mark.with_name(f".verified.{os.getpid()}")
        unfinished.touch()
        os.replace(unfinished, mark)

    def _key(self) -> str:
        self._context.cache_dir.mkdir(parents=True, exist_ok=True)
        return emulator.key_of(self._artifact.manifest["files"], emulator.compiler_identity(self._context.cache_dir / "logs"))

    @cached_property
    def _parts(self) -> Split:
        return split(self.model, plan(self.model), "hls")[0]

    def _host(self, name: str) -> Reference | None:
        file: Any = self._artifact.manifest["target"][name]
        return Reference(_host_model(self._source / str(file), name)) if file else None


def _host_model(path: Path, name: str) -> Model:
    return load(path, name=name)
