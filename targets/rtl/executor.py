"""Runs an rtl artifact: host_pre, the network (interpreted, simulated, or on a board), host_post."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gatewright.errors import GatewrightError, UsageError
from gatewright.frontend.load import load
from gatewright.frontend.model import TensorInfo
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Array, Artifact, Executor, Feeds, Mode, TargetContext

from . import files, interpret, netlist
from .host import SerialBoard
from .network import Network
from .simulate import Simulator, Source

Core = Callable[[Sequence[Array]], list[Array]]


@dataclass(frozen=True)
class Level:
    """What is simulated."""

    name: str
    waves: bool


class RtlExecutor(Executor):
    """One sample after the other is pushed through the network; the host's float edges are the reference's."""

    def __init__(self, artifact: Artifact, mode: Mode, level: Level, context: TargetContext) -> None:
        self.mode = mode
        manifest = artifact.manifest
        self.inputs, self.outputs = (
            tuple(TensorInfo(e["name"], tuple(e["shape"]), np.dtype(e["dtype"])) for e in manifest[key]) for key in ("inputs", "outputs")
        )
        self.network = files.load(artifact.path / "network.json")
        self._pre, self._post = (_host(artifact, name) for name in ("host_pre", "host_post"))
        self._core, self._close = _core(artifact, self.network, mode, level, context)

    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        return self._finish(self._through(feeds, self._core, trace=False), trace=False)

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs and every inner integer tensor; the values inside are the interpreter's, to which the design is equal."""
        return self._finish(self._through(feeds, None, trace=True), trace=True)

    def close(self) -> None:
        self._close()

    def _through(self, feeds: Feeds, core: Core | None, *, trace: bool) -> dict[str, Array]:
        values = dict(feeds)
        if self._pre is not None:
            values |= self._pre.run({info.name: values[info.name] for info in self._pre.inputs}, trace=trace)
        arrays = [np.asarray(values[port.value]).astype(np.int64).reshape(-1, port.size) for port in self.network.inputs]
        if core is not None:
            results = zip(self.network.outputs, core(arrays), strict=True)
            return values | {port.value: _typed(array, port.shape, port.dtype) for port, array in results}
        inner = interpret.evaluate(self.network, arrays)
        samples = len(arrays[0])
        for name, shape, nodes in self.network.traced:
            values[name] = np.stack([np.broadcast_to(inner[i], (samples,)) for i in nodes], axis=1).reshape(samples, *shape[1:])
        return values | {
            port.value: _typed(np.stack([np.broadcast_to(inner[i], (samples,)) for i in nodes], axis=1), port.shape, port.dtype)
            for port, nodes in zip(self.network.outputs, self.network.results, strict=True)
        }

    def _finish(self, values: dict[str, Array], *, trace: bool) -> dict[str, Array]:
        if self._post is not None:
            values |= self._post.run({info.name: values[info.name] for info in self._post.inputs}, trace=trace)
        return values if trace else {info.name: values[info.name] for info in self.outputs}


def _core(artifact: Artifact, network: Network, mode: Mode, level: Level, context: TargetContext) -> tuple[Core, Callable[[], None]]:
    """What computes the network, and what releases it."""
    if mode == "emulate":
        return lambda arrays: interpret.run(network, arrays), _nothing
    if mode == "device":
        return _board(artifact, network, context)
    name = artifact.manifest["name"]
    text = (artifact.path / "network.v").read_text(encoding="utf-8")
    waves = artifact.path / "waves.vcd" if level.waves else None
    source = Source({"network.v": text}, "network")
    if level.name == "netlist":
        source = netlist.source(text, str(artifact.manifest["target"]["family"]), context)
    simulator = Simulator(network, source, context, f"the simulator of {name} ({level.name})", waves=waves)
    return simulator.run, simulator.close


def _board(artifact: Artifact, network: Network, context: TargetContext) -> tuple[Core, Callable[[], None]]:
    if artifact.stage != "built":
        raise GatewrightError(f"{artifact.path} has no bitstream yet", hint=f"gatewright build {artifact.path}")
    if context.port is None:
        raise UsageError("a board is reached through a serial port, and none is named", hint="say --port /dev/ttyUSB0")
    target: Mapping[str, Any] = artifact.manifest["target"]
    board = SerialBoard(network.inputs, network.outputs, context.port, int(target["baud"]), str(target["identity"]))
    return board.run, board.close


def _host(artifact: Artifact, name: str) -> Reference | None:
    file = artifact.manifest["target"][name]
    return Reference(load(Path(artifact.path) / str(file), name=name)) if file else None


def _typed(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype in ("int4", "uint4") else np.dtype(dtype)
    return array.reshape(len(array), *shape[1:]).astype(kind)


def _nothing() -> None:
    return None
