"""The board without the board: the wrapper and the network clocked as one design, its serial line on a pseudo-terminal.

What speaks to a real board speaks to this one unchanged, byte for byte: ``host.SerialBoard`` opens ``port`` and finds the protocol
of ``hw/rtl/serial.v`` answered by that very Verilog.
"""

from __future__ import annotations

import os
import pty
import subprocess
import tty
from pathlib import Path
from types import TracebackType
from typing import Self

from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext

from . import simulate
from .board import MODULES
from .simulate import Source

DIVIDER = 8
"""Clock cycles per bit in simulation: few, since each one is computed; the line's logic is the same for any."""


class VirtualBoard:
    """An artifact's board in simulation. ``port`` is what a serial port's device file would be."""

    def __init__(self, folder: Path, context: TargetContext) -> None:
        """``folder``: an rtl artifact, lowered or built."""
        top = _simulated((folder / "top.v").read_text(encoding="utf-8"))
        files = {name: (folder / name).read_text(encoding="utf-8") for name in ("network.v", *MODULES)} | {"simulated.v": top}
        main = (simulate.TEMPLATES / "board.cpp").read_text(encoding="utf-8").replace("@DIVIDER@", str(DIVIDER))
        program = simulate.program(Source(files, "simulated"), main, context, "the simulated board")
        # The program is at the master's end; whoever opens ``port`` is at the other, which stays open here so that it never hangs up.
        self._host, self._board = pty.openpty()
        tty.setraw(self._board)
        self.port = os.ttyname(self._board)
        self._process = subprocess.Popen([program], stdin=self._host, stdout=self._host, stderr=subprocess.DEVNULL, start_new_session=True)

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


def _simulated(top: str) -> str:
    """The top module with its clock straight from the pin and the simulation's divider; all else is as it is synthesized."""
    lines, inside_pll = [], False
    for line in top.replace("module top ", "module simulated ").splitlines():
        if line == "  wire clk, locked;":
            line = "  wire clk = clk_in;\n  wire locked = 1'b1;"
            inside_pll = True
        elif inside_pll:
            inside_pll = not line.endswith(");") or line.lstrip().startswith(".IDIV")
            continue
        lines.append(line)
    text = "\n".join(lines) + "\n"
    start = text.index(".DIVIDER(") + len(".DIVIDER(")
    return text[:start] + str(DIVIDER) + text[text.index(")", start) :]
