"""The design itself, clocked cycle by cycle: Yosys turns the Verilog into C++ (CXXRTL), g++ into a program.

Two levels share the harness: the Verilog as it is written, and the netlist that synthesis made of it with the vendor's cell
models. A program is made once per content and lives in the cache.
"""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext
from gatewright.targets.worker import Worker

from . import tools, verilog
from .network import Array, Network, Port

FLAGS = ("-std=c++17", "-O1", "-w", "-fno-var-tracking")
"""-O1: -O2 compiles three times as long and the design runs no faster."""
TEMPLATES = Path(__file__).parent / "templates"
MEMORY_BYTES = 12 << 30

_INCLUDES = ("include/backends/cxxrtl/runtime",)


@dataclass(frozen=True)
class Source:
    """What is simulated: Verilog files and the module at the top."""

    files: dict[str, str]
    """Text by file name."""
    top: str
    cells: str | None = None
    """Cell models in Yosys' share folder that a netlist refers to."""


def program(source: Source, main: str, context: TargetContext, what: str, *, waves: bool = False) -> Path:
    """The simulator of ``source`` with the C++ ``main`` around it, compiled on first use. Raises ToolMissing, ToolFailed."""
    gxx = toolchain.GXX.require(what)
    identity = [tools.YOSYS.version() or "", platform.machine(), str(waves), main, source.top, source.cells or "", *FLAGS]
    text = "\0".join([*identity, *(f"{name}\0{content}" for name, content in sorted(source.files.items()))])
    folder = context.cache_dir / "rtl" / hashlib.sha256(text.encode()).hexdigest()[:32]
    finished = folder / "simulator"
    if finished.exists():
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in source.files.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    (folder / "main.cpp").write_text(main, encoding="utf-8", newline="\n")
    reads = [f"read_verilog {name}" for name in source.files]
    if source.cells:
        reads.append(f"read_verilog -D NO_ICE40_DEFAULT_ASSIGNMENTS +/{source.cells}")
    level = "-g2" if waves else "-g0"
    script = [*reads, f"hierarchy -check -top {source.top}", "proc", "flatten", "opt_clean", f"write_cxxrtl -noproc {level} design.cc"]
    (folder / "simulate.ys").write_text("\n".join(script) + "\n", encoding="utf-8", newline="\n")
    tools.run(tools.YOSYS, ["-q", "-s", "simulate.ys"], cwd=folder, log=folder / "yosys.log", what=f"{what}: Yosys", context=context)
    unfinished = folder / f".simulator.{os.getpid()}.tmp"
    includes = [f"-I{tools.share() / include}" for include in _INCLUDES]
    try:
        toolchain.run(
            [gxx, *FLAGS, *includes, "main.cpp", "-o", unfinished], cwd=folder, log=folder / "g++.log", what=f"{what}: g++",
            time_limit_s=context.time_limit_s, memory_limit_bytes=MEMORY_BYTES, progress=context.progress,
        )  # fmt: skip
        os.replace(unfinished, finished)
    finally:
        unfinished.unlink(missing_ok=True)
    return finished


class Simulator:
    """A network in simulation: arrays in, arrays out, as ``interpret.run``."""

    def __init__(
        self, network: Network, source: Source, context: TargetContext, what: str, *, pauses: int = 0, waves: Path | None = None
    ) -> None:
        """``pauses``: seed of random pauses at both ends of the handshake, 0 for none. ``waves``: a VCD file to write."""
        self._inputs, self._outputs = network.inputs, network.outputs
        words = [-(-verilog.width(ports) // 32) for ports in (network.inputs, network.outputs)]
        self._words = words
        main = (TEMPLATES / "network.cpp").read_text(encoding="utf-8")
        main = main.replace("@IN_WORDS@", str(words[0])).replace("@OUT_WORDS@", str(words[1]))
        made = program(source, main, context, what, waves=waves is not None)
        arguments = [str(pauses), str(waves.resolve()) if waves else "-"]
        self._worker = Worker([made, *arguments], made.parent, what, context.time_limit_s)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """int64 [n, elements] per input port → int64 [n, elements] per output port."""
        samples = len(arrays[0])
        block = pack(self._inputs, arrays, self._words[0])
        data = np.array([samples], "<u4").tobytes() + block.tobytes()
        answer = np.frombuffer(self._worker.exchange(data, samples * self._words[1] * 4), np.uint8)
        return unpack(self._outputs, answer.reshape(samples, -1))

    def close(self) -> None:
        """End it; waves are complete then."""
        self._worker.finish()


def pack(ports: Sequence[Port], arrays: Sequence[Array], words: int) -> Array:
    """Integers [n, elements] per port → uint8 [n, 4·words], the first element in the lowest bits."""
    samples = len(arrays[0])
    bits = np.zeros((samples, words * 32), np.uint8)
    start = 0
    for port, array in zip(ports, arrays, strict=True):
        for bit in range(port.bits):
            bits[:, start + bit : start + port.size * port.bits : port.bits] = (array >> bit) & 1
        start += port.size * port.bits
    return np.packbits(bits, axis=1, bitorder="little")


def unpack(ports: Sequence[Port], data: Array) -> list[Array]:
    """The inverse: uint8 [n, bytes] → int64 [n, elements] per port."""
    bits = np.unpackbits(data, axis=1, bitorder="little").astype(np.int64)
    found, start = [], 0
    for port in ports:
        part = bits[:, start : start + port.size * port.bits].reshape(len(data), port.size, port.bits)
        weights = np.int64(1) << np.arange(port.bits, dtype=np.int64)
        if port.signed:
            weights[-1] = -weights[-1]
        found.append(part @ weights)
        start += port.size * port.bits
    return found
