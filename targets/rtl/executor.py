"""Runs an rtl artifact: host_pre, the network (interpreted, simulated, or on a board), host_post."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gatewright.errors import GatewrightError, UsageError
from gatewright.frontend.load import load
from gatewright.frontend.model import TensorInfo
from gatewright.frontend.reference import Reference
from gatewright.targets.base import Array, Artifact, Executor, Feeds, Mode, TargetContext

from . import aiger, files, host, interpret, netlist
from .board import FAMILIES
from .host import Board, Line
from .lines import SerialLine, SpiDevice
from .network import Network
from .simulate import Simulator, Source
from .virtual import AxiSimulator, VirtualBoard, spi_line

Core = Callable[[Sequence[Array]], list[Array]]

_BEFORE = {"wrapper": "uart"}
"""What holds of artifacts that were made before there was a choice."""


class RtlExecutor(Executor):
    """One sample after the other is pushed through the network; the host's float edges are the reference's."""

    def __init__(self, artifact: Artifact, mode: Mode, level: str, context: TargetContext) -> None:
        """``level``: what mode simulate runs, one of ``target.LEVELS``."""
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


def _core(artifact: Artifact, network: Network, mode: Mode, level: str, context: TargetContext) -> tuple[Core, Callable[[], None]]:
    """What computes the network, and what releases it."""
    if mode == "emulate":
        return lambda arrays: interpret.run(network, arrays), _nothing
    if mode == "device":
        return _device(artifact, network, context)
    target: Mapping[str, Any] = {**_BEFORE, **artifact.manifest["target"]}
    if level == "board":
        return _simulated_board(artifact.path, network, target, context)
    what = f"the simulator of {artifact.manifest['name']} ({level})"
    text = (artifact.path / "network.v").read_text(encoding="utf-8")
    if level == "netlist":
        if target["family"] not in FAMILIES:
            raise UsageError(f"the netlist of {target['family']} is Vivado's", hint="simulate --level rtl or board")
        circuit = aiger.Circuit(aiger.read(netlist.gates(text, str(target["family"]), context)))
        gates = netlist.NetlistSimulator(network, circuit, what, waves=_waves(context, (".vcd",)))
        return gates.run, gates.close
    simulator = Simulator(network, Source({"network.v": text}, "network"), context, what, waves=_waves(context))
    return simulator.run, simulator.close


def _simulated_board(
    folder: Path, network: Network, target: Mapping[str, Any], context: TargetContext
) -> tuple[Core, Callable[[], None]]:  # fmt: skip
    waves = _waves(context)
    if target["wrapper"] == "axi":
        streams = AxiSimulator(folder, network, context, waves=waves)
        return streams.run, streams.close
    baud, identity = int(target["baud"]), str(target["identity"])
    if target["wrapper"] == "spi":
        board = Board(network.inputs, network.outputs, spi_line(folder, context, waves), baud, identity, patience_s=context.time_limit_s)
        return board.run, board.close
    virtual = VirtualBoard(folder, context, waves)
    try:
        patience_s = context.time_limit_s / host.TRIES
        board = Board(network.inputs, network.outputs, SerialLine(virtual.port, baud), baud, identity, patience_s=patience_s)
    except BaseException:
        virtual.close()
        raise

    def close() -> None:
        board.close()
        virtual.close()

    return board.run, close


def _waves(context: TargetContext, kinds: tuple[str, ...] = (".vcd", ".fst")) -> Path | None:
    """Where waves are to go. Raises UsageError for a kind of file that this level does not write."""
    if context.wave is not None and context.wave.suffix not in kinds:
        raise UsageError(f"waves cannot be written as {context.wave.name}", hint=f"name a file that ends with {' or '.join(kinds)}")
    return context.wave


def _device(artifact: Artifact, network: Network, context: TargetContext) -> tuple[Core, Callable[[], None]]:
    target: Mapping[str, Any] = {**_BEFORE, **artifact.manifest["target"]}
    if target["wrapper"] == "axi":
        hint = "copy the folder to the board and run python3 run_pynq.py there, as its README says"
        raise UsageError("a design between AXI4-Streams is run on the board itself", hint=hint)
    if artifact.stage != "built":
        raise GatewrightError(f"{artifact.path} has no bitstream yet", hint=f"gatewright build {artifact.path}")
    if context.port is None:
        spi = target["wrapper"] == "spi"
        kind, port = ("an SPI device", "/dev/spidev0.0") if spi else ("a serial port", "/dev/ttyUSB0")
        raise UsageError(f"the board is reached through {kind}, and none is named", hint=f"say --port {port}")
    baud = int(target["baud"])
    line: Line = SpiDevice(context.port, baud) if target["wrapper"] == "spi" else SerialLine(context.port, baud)
    board = Board(network.inputs, network.outputs, line, baud, str(target["identity"]))
    return board.run, board.close


def _host(artifact: Artifact, name: str) -> Reference | None:
    file = artifact.manifest["target"][name]
    return Reference(load(Path(artifact.path) / str(file), name=name)) if file else None


def _typed(array: Array, shape: tuple[int, ...], dtype: str) -> Array:
    kind = np.dtype(getattr(ml_dtypes, dtype)) if dtype in ("int4", "uint4") else np.dtype(dtype)
    return array.reshape(len(array), *shape[1:]).astype(kind)


def _nothing() -> None:
    return None
