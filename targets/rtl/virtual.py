"""The board without the board: the wrapper and the network clocked as one design.

Its serial line is a pseudo-terminal, so that what speaks to a real board speaks to this one unchanged, byte for byte; its SPI lines
and its AXI4-Streams are spoken to directly.
"""

from __future__ import annotations

import os
import pty
import subprocess
import tty
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext
from gatewright.targets.worker import Worker

from . import simulate
from .lines import SimulatedSpi
from .network import Array, Network
from .simulate import Source, pack, unpack
from .verilog import width
from .wrapper import BUS_BITS

DIVIDER = 8
"""Clock cycles per bit of a serial line in simulation: few, since each one is computed; the line's logic is the same for any."""
SPI_CYCLES = 12


class VirtualBoard:
    """An artifact's board in simulation. ``port`` is what a serial port's device file would be."""

    def __init__(self, folder: Path, context: TargetContext, waves: Path | None = None) -> None:
        """``folder``: an rtl artifact with wrapper uart, lowered or built."""
        program = simulate.program(_source(folder, DIVIDER), "uart.cpp", {"DIVIDER": DIVIDER}, context, "the simulated board", waves=waves)
        # The program is at the master's end; whoever opens ``port`` is at the other, which stays open here so that it never hangs up.
        self._host, self._board = pty.openpty()
        tty.setraw(self._board)
        self.port = os.ttyname(self._board)
        command = [str(program), str(waves.resolve()) if waves else "-"]
        self._process = subprocess.Popen(command, stdin=self._host, stdout=self._host, stderr=subprocess.DEVNULL, start_new_session=True)

    def close(self) -> None:
        """End it. Calling it twice is harmless."""
        if self._host >= 0:
            toolchain.kill_group(self._process)
            os.close(self._host)
            os.close(self._board)
            self._host = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def spi_line(folder: Path, context: TargetContext, waves: Path | None = None) -> SimulatedSpi:
    """The SPI lines of an artifact's board with wrapper spi."""
    source = _source(folder, None)
    program = simulate.program(source, "spi.cpp", {"DIVIDER": SPI_CYCLES}, context, "the simulated board", waves=waves)
    words: list[str | Path] = [program, str(waves.resolve()) if waves else "-"]
    return SimulatedSpi(Worker(words, program.parent, "the simulated board", context.time_limit_s))


class AxiSimulator:
    """A design between its two AXI4-Streams: arrays in, arrays out, as ``interpret.run``. One packet per call."""

    def __init__(self, folder: Path, network: Network, context: TargetContext, *, pauses: int = 0, waves: Path | None = None) -> None:
        """``pauses``: seed of random pauses of both neighbours, 0 for none."""
        self._inputs, self._outputs = network.inputs, network.outputs
        self._beats = [-(-width(ports) // BUS_BITS) for ports in (network.inputs, network.outputs)]
        files = {**_modules(folder), "top.v": (folder / "top.v").read_text(encoding="utf-8")}
        program = simulate.program(Source(files, "gatewright_stream"), "axi.cpp", {}, context, "the simulated streams", waves=waves)
        command: list[str | Path] = [program, str(pauses), str(waves.resolve()) if waves else "-"]
        self._worker = Worker(command, program.parent, "the simulated streams", context.time_limit_s)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """int64 [n, elements] per input port → int64 [n, elements] per output port."""
        samples, (sent, wanted) = len(arrays[0]), self._beats
        words = BUS_BITS // 32
        data = pack(self._inputs, arrays, sent * words).tobytes()
        head = np.array([samples * sent, samples * wanted], "<u4").tobytes()
        answer = self._worker.exchange(head + data, samples * wanted * BUS_BITS // 8)
        return unpack(self._outputs, np.frombuffer(answer, np.uint8).reshape(samples, -1))

    def close(self) -> None:
        self._worker.finish()


def _source(folder: Path, divider: int | None) -> Source:
    top = simulated((folder / "top.v").read_text(encoding="utf-8"), divider)
    return Source({**_modules(folder), "simulated.v": top}, "simulated")


def _modules(folder: Path) -> dict[str, str]:
    """The artifact's Verilog without its top module."""
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.v")) if file.name != "top.v"}


def simulated(top: str, divider: int | None) -> str:
    """The top module with its clock straight from the pin and the simulation's divider; all else is as it is synthesized."""
    lines, inside_pll = [], False
    for line in top.replace("module top ", "module simulated ").splitlines():
        if line == "  wire clk, locked;":
            line = "  wire clk = clk_in;\n  wire locked = 1'b1;"
            inside_pll = True
        elif inside_pll:
            inside_pll = line != "  );"
            continue
        lines.append(line)
    text = "\n".join(lines) + "\n"
    if divider is None:
        return text
    start = text.index(".DIVIDER(") + len(".DIVIDER(")
    return text[:start] + str(divider) + text[text.index(")", start) :]
