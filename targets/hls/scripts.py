"""The vendor's side of an artifact: Tcl, Makefile, constraints, and README with the one command; for a board also its block design.

Whatever is put into these files is ours, a number, or was checked to be of harmless characters (``word``): a name that comes
from the model is in none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gatewright.errors import UsageError
from gatewright.hw.device import Board

from . import shell
from .backends import BACKENDS
from .network import Network

_TEMPLATES = Path(__file__).resolve().parent / "templates" / "scripts"
_WORD = re.compile(r"[A-Za-z0-9_.:+-]{1,100}")
XRT_FREQUENCY_LIMIT = 1_000_000_000


def word(text: str, what: str) -> str:
    """``text`` itself if no tool can misread it. Raises UsageError: board and part files are the user's to write."""
    if _WORD.fullmatch(text):
        return text
    raise UsageError(f"{what} is {text!r}, which no toolchain takes", hint="use letters, digits and _ . : + -")


@dataclass(frozen=True)
class _Plan:
    """Which files of templates/scripts a tool gets, and what README says of them."""

    files: Mapping[str, str]
    command: str
    needs: str
    gives: str


def files(network: Network, board: Board | None, jobs: int = 4) -> dict[str, str]:
    """Path in the artifact to text."""
    plan = _plan(network)
    # Rules of the Makefile name the board, so they come first.
    values = {**_amd_values(network), **_values(network, board, jobs)}
    written = {path: shell.filled((_TEMPLATES / name).read_text(encoding="utf-8"), values) for path, name in plan.files.items()}
    return {**written, "README.md": _readme(network, board, plan)}


def _plan(network: Network) -> _Plan:
    tool = network.tool
    if tool == "quartus":
        needs = "Intel HLS Compiler (i++, Quartus Prime Pro or Standard 19.1 to 22.4)"
        gives = "`design-fpga.prj`: the core (`components/design`), its report and Quartus's figures"
        return _Plan({"Makefile": "quartus.mk", "constraints.sdc": "constraints.sdc"}, "make", needs, gives)
    if tool == "oneapi":
        needs = "Intel oneAPI DPC++/C++ compiler 2024.0 to 2025.0 with its FPGA support package (2025.1 no longer has it)"
        gives = "`design.report.prj`: RTL and report; after `make fpga` the placed design"
        return _Plan({"Makefile": "oneapi.mk"}, "make", needs, gives)
    if tool == "catapult":
        needs = "Siemens Catapult HLS 2023.2 or later, and Vivado for the figures of AMD's parts"
        return _Plan({"build.tcl": "catapult.tcl", "Makefile": "catapult.mk"}, "make", needs, "`Catapult/design.v1`: RTL and reports")
    hls = "Vivado HLS 2019.2 or 2020.1" if tool != "vitis" else "Vitis HLS 2022.2 or later"
    common = {"build.tcl": "amd.tcl", "Makefile": "amd.mk"}
    if network.shell == "dma":
        needs = f"{hls} and the Vivado of the same release with the board's files"
        gives = "`design.bit` and `design.hwh`; copy both with `driver.py` and `host.json` to the board"
        return _Plan({**common, "block_design.tcl": "block_design.tcl"}, "make", needs, gives)
    if network.shell == "xrt":
        needs = "Vitis 2022.2 or later with the card's platform installed; on the host, XRT"
        gives = "`design.xclbin`, and `host`, the program that runs it"
        return _Plan({**common, "link.cfg": "link.cfg"}, "make", needs, gives)
    gives = "the core for Vivado's IP catalog (`design_prj/solution1/impl/ip`) and, in `reports/`, what it takes when placed alone"
    extra = {"implement.tcl": "implement.tcl", "constraints.xdc": "constraints.xdc"}
    return _Plan({**common, **extra}, "make", f"{hls} with its Vivado", gives)


def _values(network: Network, board: Board | None, jobs: int) -> dict[str, str]:
    values = {
        "PART": word(network.part, "the part's number"), "CLOCK_NS": f"{network.clock_ns:g}", "CLOCK_MHZ": f"{1e3 / network.clock_ns:g}",
        "CLOCK_HZ": f"{min(round(1e9 / network.clock_ns), XRT_FREQUENCY_LIMIT)}", "TOP": shell.TOPS[network.shell], "JOBS": str(jobs),
    }  # fmt: skip
    if network.shell != "none" and board is not None:
        name = word(board.vendor_board or "", f"vendor_board of {board.name}")
        family = word(board.part.family, "the part's family")
        values |= {"BOARD": word(board.name, "the board's name"), "VENDOR_BOARD": name, "FAMILY": family}
        values |= {"BUS": str(shell.BUS_BITS[network.shell]), "MEMORY": "HBM[0]" if "hbm" in board.interfaces else "DDR[0]"}
    return values


def _amd_values(network: Network) -> dict[str, str]:
    if not BACKENDS[network.tool].is_amd:
        return {}
    vitis, top = network.tool == "vitis", shell.TOPS[network.shell]
    sources = "firmware/design.cpp" if network.shell == "none" else f"firmware/design.cpp firmware/{top}.cpp"
    flow = "vitis" if network.shell == "xrt" else "vivado"
    # Vivado HLS splits arrays into at most 1024 unless told otherwise; Vitis HLS has no such option.
    solution = f"open_solution -reset solution1 -flow_target {flow}"
    if not vitis:
        solution = "open_solution -reset solution1\nconfig_array_partition -maximum_size 4096"
    catalog = f"export_design -format ip_catalog -vendor gatewright -library hls -ipname {top} -version 1.0"
    rules = {"dma": _DMA_RULES, "xrt": _XRT_RULES, "none": _IP_RULES}[network.shell]
    what = {
        "dma": "synthesis of the core, block design, bitstream", "xrt": "synthesis of the kernel, link, host program",
        "none": "synthesis of the core, then the core alone placed and routed",
    }  # fmt: skip
    goal = {"dma": "design.bit", "xrt": "design.xclbin host", "none": "reports/timing.rpt"}
    newer = "vitis-run --mode hls --tcl build.tcl, with releases before 2023.2 vitis_hls -f build.tcl"
    export = "export_design -format xo -output design.xo" if network.shell == "xrt" else catalog
    return {
        "RELEASES": "AMD Vitis HLS 2022.2 and later" if vitis else "AMD Vivado HLS 2019.2 and 2020.1",
        "COMMAND": newer if vitis else "vivado_hls -f build.tcl",
        "SOURCES": sources, "SOLUTION": solution, "EXPORT": export,
        "HLS": "$(if $(shell command -v vitis-run),vitis-run --mode hls --tcl,vitis_hls -f)" if vitis else "vivado_hls -f",
        "RULES": rules, "WHAT": what[network.shell], "GOAL": goal[network.shell],
    }  # fmt: skip


_IP_RULES = """
reports/timing.rpt: design_prj implement.tcl constraints.xdc
	vivado -mode batch -source implement.tcl"""

_DMA_RULES = """
design.bit: design_prj block_design.tcl
	vivado -mode batch -source block_design.tcl"""

_XRT_RULES = """
design.xo: design_prj

design.xclbin: design.xo link.cfg
	v++ --link --target hw --platform @VENDOR_BOARD@ --config link.cfg --save-temps design.xo -o $@

host: host.cpp host_ports.h
	$(CXX) -std=c++17 -O2 -I$(XILINX_XRT)/include host.cpp -o $@ -L$(XILINX_XRT)/lib -lxrt_coreutil -pthread"""


def _readme(network: Network, board: Board | None, plan: _Plan) -> str:
    where = board.name if board is not None else network.part
    rows = [f"| `{layer.name}` | {layer.kind} | {layer.strategy} | {layer.reuse} | {layer.types['result']} |" for layer in network.layers]
    return "\n".join([
        f"# A design for {where}, written for {network.tool}", "",
        f"Build it: `{plan.command}` here, or `gatewright build` of this folder, which also reads the reports.", "",
        f"Needs {plan.needs}. Gives {plan.gives}.", "",
        f"Part {network.part}, {network.clock_ns:g} ns, io_{network.io}. Every tensor holds integers (q − zero point) times a",
        "power of two; `testbench.cpp` compares the design with `tb_data/expected.txt`, value by value, before synthesis.", "",
        *_running(network), "",
        "| layer | kind | strategy | reuse factor | type of its result |", "|---|---|---|---|---|", *rows, "",
        "Which node of the model each layer is: `layers` in `manifest.json` (names of a model are in no script).", "",
    ])  # fmt: skip


def _running(network: Network) -> list[str]:
    if network.shell == "dma":
        return [
            "On the board (PYNQ's Linux), in the folder with the four files: `python3 driver.py --verify` runs the vectors of",
            "`tb_data/`; `python3 driver.py inputs.npz outputs.npz` runs your own samples.",
        ]
    if network.shell == "xrt":
        return ["On the host of the card: `./host design.xclbin --verify`, or `./host design.xclbin inputs.i32 outputs.i32`."]
    return ["It is a core for a design of your own: inputs and outputs as `firmware/design.h` declares them."]
