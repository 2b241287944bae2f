"""Boards with a processing system of AMD's: a Vivado project of the same Verilog, its streams on a DMA, and what Vivado says of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gatewright.errors import ToolFailed, UsageError
from gatewright.hw.device import Board
from gatewright.hw.measurement import Measurement
from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext

from . import verilog, wrapper
from .network import Network

_TEMPLATES = Path(__file__).parent / "templates"
JOBS = 4

# Names and properties: UG585 and PG082 (Zynq-7000), UG1085 and PG201 (Zynq UltraScale+).
_ZYNQ_7000 = """\
ip processing_system7 ps {}
apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 -config {
  make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"
} [get_bd_cells ps]
set_property -dict [list CONFIG.PCW_USE_M_AXI_GP0 1 CONFIG.PCW_USE_S_AXI_HP0 1 \\
  CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $clock_mhz] [get_bd_cells ps]
set clock ps/FCLK_CLK0
set reset ps/FCLK_RESET0_N
set master ps/M_AXI_GP0
set slave ps/S_AXI_HP0
set processor_clocks {ps/M_AXI_GP0_ACLK ps/S_AXI_HP0_ACLK}"""
_ZYNQ_ULTRASCALE = """\
ip zynq_ultra_ps_e ps {}
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e -config {apply_board_preset "1"} [get_bd_cells ps]
set_property -dict [list CONFIG.PSU__USE__M_AXI_GP0 1 CONFIG.PSU__USE__M_AXI_GP1 0 CONFIG.PSU__USE__S_AXI_GP2 1 \\
  CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ $clock_mhz] [get_bd_cells ps]
set clock ps/pl_clk0
set reset ps/pl_resetn0
set master ps/M_AXI_HPM0_FPD
set slave ps/S_AXI_HP0_FPD
set processor_clocks {ps/maxihpm0_fpd_aclk ps/saxihp0_fpd_aclk}"""
PROCESSORS = {"zynq-7000": _ZYNQ_7000, "zynq-ultrascale+": _ZYNQ_ULTRASCALE}
"""Tcl that makes the cell ``ps``, by the part's family."""

_ROWS = {"LUT": r"(?:Slice|CLB) LUTs", "FF": r"(?:Slice|CLB) Registers", "DSP": r"DSPs", "BRAM": r"Block RAM Tile"}
"""Rows of report_utilization, by our names."""


def require(board: Board) -> None:
    """Raises UsageError for a board that no project can be written for, or whose names are none of Vivado's."""
    if board.part.family not in PROCESSORS:
        hint = f"AXI4-Streams are for {' and '.join(PROCESSORS)}; take wrapper uart or spi"
        raise UsageError(f"rtl has no Vivado project for {board.part.name} ({board.part.family})", hint=hint)
    for what, name in (("part number", board.part.part_number), ("vendor_board", board.vendor_board or "none")):
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,80}", name):
            raise UsageError(f"board {board.name}: {name!r} is no {what} of Vivado's", hint="letters, digits and _ . : -")


def project(board: Board, network: Network, clock_hz: float) -> dict[str, str]:
    """Its files by name; ``network.v``, ``network.json`` and the wrapper's modules lie beside them."""
    beats = [-(-verilog.width(ports) // wrapper.BUS_BITS) for ports in (network.inputs, network.outputs)]
    words = {
        "PART": board.part.part_number, "BOARD_PART": board.vendor_board or "none", "CLOCK_MHZ": f"{clock_hz / 1e6:g}", "JOBS": str(JOBS),
        "BUS": str(wrapper.BUS_BITS), "PROCESSOR": PROCESSORS[board.part.family], "IN_BEATS": str(beats[0]), "OUT_BEATS": str(beats[1]),
        "SOURCES": " ".join(("network.v", *wrapper.AXI_MODULES, "top.v")),
    }  # fmt: skip
    return {
        "top.v": wrapper.axi_top(network),
        "clock.xdc": f"create_clock -period {1e9 / clock_hz:.3f} -name aclk [get_ports aclk]\n",
        "build.tcl": _filled("vivado.tcl", words),
        "README.md": _filled("vivado_readme.md", words),
        "run_pynq.py": _filled("run_pynq.py.in", {}),
    }


def build(folder: Path, clock_hz: float, context: TargetContext) -> dict[str, Any]:
    """Run Vivado in ``folder``; returns the manifest's additions. Raises ToolMissing, ToolFailed where timing is missed."""
    program = toolchain.VIVADO.require("building an rtl design for AMD parts")
    words = [str(program), "-mode", "batch", "-nojournal", "-log", "vivado.log", "-source", "build.tcl"]
    toolchain.run(
        words, cwd=folder, log=folder / "vivado.out", what="Vivado", time_limit_s=context.time_limit_s, progress=context.progress
    )  # fmt: skip
    figures = read_reports(folder, clock_hz)
    return {"bitstream": "gatewright.bit", "figures": {name: figure.to_json() for name, figure in figures.items()}}


def read_reports(folder: Path, clock_hz: float) -> dict[str, Measurement]:
    """Utilization from utilization.rpt; the clock from the slack that build.tcl prints."""
    try:
        used, said = (folder / "utilization.rpt").read_text(encoding="utf-8"), (folder / "vivado.out").read_text(encoding="utf-8")
    except OSError as error:
        raise ToolFailed(f"Vivado left no report: {error}", hint="read vivado.log") from None
    found: dict[str, Measurement] = {}
    for name, row in _ROWS.items():
        count = re.search(rf"^\|\s*{row}\*?\s*\|\s*([\d.]+)\s*\|", used, re.MULTILINE)
        if count is not None:
            found[name] = Measurement(float(count[1]), name, "synthesized")
    slack = re.search(r"^gatewright: slack (-?[\d.]+) ns$", said, re.MULTILINE)
    if slack is None:
        raise ToolFailed("Vivado did not say whether timing is met", hint="read vivado.log")
    found["fmax"] = Measurement(1 / (1 / clock_hz - float(slack[1]) * 1e-9), "Hz", "synthesized")
    return found


def _filled(template: str, words: dict[str, str]) -> str:
    text = (_TEMPLATES / template).read_text(encoding="utf-8")
    for name, value in words.items():
        text = text.replace(f"@{name}@", value)
    return text
