"""From a top module to a board: its clock, the constraints, the scripts of the tools.

Everything here is text made from a Board and a few numbers; ``build.py`` runs the tools on it. A family is one entry of
``FAMILIES``: which synthesis command, which placer with which words, which constraint file, which packer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gatewright.errors import UsageError
from gatewright.hw.device import Board, Part

from . import synthesis, tools
from .tools import OpenTool
from .wrapper import LINES

DIRECT = "  wire clk = clk_in;\n  wire locked = 1'b1;"


@dataclass(frozen=True)
class Clocking:
    """How the design's clock comes from the board's."""

    hz: float
    text: str
    """Verilog that makes ``clk`` and ``locked`` from ``clk_in``."""


@dataclass(frozen=True)
class Family:
    """The tools of one family of parts, as words."""

    synthesis: str
    placer: OpenTool
    placed: str
    """The file that the placer writes."""
    packer: OpenTool
    bitstream: str
    constraints: str
    """Name of the constraint file."""
    pins: Callable[[Board, str], str]
    """Its text, for a board and a wrapper."""
    place: Callable[[Part], list[str]]
    """The placer's words for the part, the files left out."""
    pack: Callable[[Part], list[str]]
    pll: Callable[[Board, float], Clocking | None]
    """None where the board's clock cannot be turned into that one."""
    cells: str
    """Simulation models of its cells, in Yosys' share folder."""
    luts: tuple[str, ...]
    """Names of the look-up tables in the placer's utilization."""
    ffs: tuple[str, ...]
    """Of flip-flops, where they are counted apart."""
    large: tuple[str, ...] = ()
    """Further words for the placer, of a network that fills a third of such a part."""
    tidy: Callable[[Path, str], None] | None = None
    """What is done to Yosys' JSON, of the module so named, before it is placed."""


def family_of(part: Part) -> Family:
    """Raises UsageError for a part without open tools."""
    if part.family not in FAMILIES:
        raise UsageError(f"rtl has no open tools for {part.name} ({part.family})", hint="it takes boards whose part lists yosys-nextpnr")
    return FAMILIES[part.family]


def clocking(board: Board, wanted_hz: float | None) -> Clocking:
    """The design's clock: the wanted one, or the least multiple of the board's that is what the part reaches without effort."""
    if wanted_hz is None:
        factor = math.ceil(board.part.typical_clock_hz / board.clock_hz)
        wanted_hz = board.clock_hz * factor
    if math.isclose(wanted_hz, board.clock_hz, rel_tol=1e-6):
        return Clocking(board.clock_hz, DIRECT)
    found = family_of(board.part).pll(board, wanted_hz)
    if found is None:
        raise UsageError(
            f"option 'clock_mhz' of rtl is {wanted_hz / 1e6:g}, which no PLL of {board.name} makes of {board.clock_hz / 1e6:g} MHz",
            hint=f"take {board.clock_hz / 1e6:g}, or a small multiple of it",
        )
    return found


def synthesis_script(family: Family, wrapper: str) -> str:
    """For Yosys, in the folder of the sources."""
    lines = synthesis.script(("network.v", *LINES[wrapper].modules, "top.v"), family.synthesis, "top")
    return "\n".join([*lines, "tee -q -o cells.json stat -json", "write_json top.json"]) + "\n"


# ---- iCE40 ---------------------------------------------------------------------------------------------------------


def _pcf(board: Board, wrapper: str) -> str:
    return "".join(f"set_io {signal} {pin}\n" for signal, pin in _signals(board, wrapper))


def _names(wrapper: str) -> dict[str, str]:
    """Ports of the top module: the board's signals."""
    return {"clk_in": "clk", **LINES[wrapper].pins, "led": "led0"}


def _io_types(board: Board, wrapper: str) -> dict[str, str]:
    """Ports of the top module: their I/O standard. Raises UsageError for one that is no plain CMOS level."""
    found = {signal: board.io_types.get(name, "LVCMOS33") for signal, name in _names(wrapper).items()}
    odd = next((kind for kind in found.values() if not re.fullmatch(r"LVCMOS(33|25|18|15|12)", kind)), None)
    if odd is not None:
        hint = "LVCMOS33, LVCMOS25, LVCMOS18, LVCMOS15 or LVCMOS12"
        raise UsageError(f"board {board.name}: {odd!r} is no I/O standard that rtl writes", hint=hint)
    return found


def _signals(board: Board, wrapper: str) -> list[tuple[str, str]]:
    """Ports of the top module and their pins. Raises UsageError where the board's file names no such pin."""
    names = _names(wrapper)
    missing = [pin for pin in names.values() if pin not in board.pins]
    if missing:
        hint = f"wrapper {wrapper} needs the pins {', '.join(names.values())} in the board's file"
        raise UsageError(f"board {board.name} names no pin {missing[0]!r}", hint=hint)
    odd = next((pin for pin in names.values() if not re.fullmatch(r"[A-Za-z0-9_]{1,16}", board.pins[pin])), None)
    if odd is not None:
        raise UsageError(f"board {board.name}: {board.pins[odd]!r} is no pin of a package", hint="letters and digits, like 35 or B10")
    return [(signal, board.pins[pin]) for signal, pin in names.items()]


def _place_ice40(part: Part) -> list[str]:
    found = re.fullmatch(r"iCE40(UP5K|HX8K|HX1K|LP8K)-([A-Z]+\d+)I?", part.part_number)
    if found is None:
        hint = "like iCE40UP5K-SG48I or iCE40HX8K-CT256"
        raise UsageError(f"{part.part_number!r} is no iCE40 part number that nextpnr-ice40 knows", hint=hint)
    return [f"--{found[1].lower()}", "--package", found[2].lower()]


def _pll_ice40(board: Board, wanted_hz: float) -> Clocking | None:
    """FPGA-TN-02052: f = in·(DIVF + 1)/(2^DIVQ·(DIVR + 1)), the oscillator at 533 to 1066 MHz, its reference at 10 to 133, f 16 to 275."""
    if not 10e6 <= board.clock_hz <= 133e6 or not 16e6 <= wanted_hz <= 275e6:
        return None
    for q in range(1, 7):
        f = round(wanted_hz * 2**q / board.clock_hz) - 1
        hz = board.clock_hz * (f + 1) / 2**q
        if 0 <= f <= 63 and 533e6 <= hz * 2**q <= 1066e6 and math.isclose(hz, wanted_hz, rel_tol=1e-3):
            low = 1 if board.clock_hz < 17e6 else 2 if board.clock_hz < 26e6 else 3
            # The clock pin of UltraPlus boards is the PLL's own pad.
            pad = board.part.family == "ice40-ultraplus"
            kind, source = ("SB_PLL40_PAD", "PACKAGEPIN") if pad else ("SB_PLL40_CORE", "REFERENCECLK")
            return Clocking(
                hz,
                "  wire clk, locked;\n"
                f'  {kind} #(.FEEDBACK_PATH("SIMPLE"), .DIVR(0), .DIVF({f}), .DIVQ({q}), .FILTER_RANGE({low})) pll (\n'
                f"    .{source}(clk_in), .PLLOUTGLOBAL(clk), .LOCK(locked), .RESETB(1'b1), .BYPASS(1'b0)\n  );",
            )
    return None


# ---- ECP5 ----------------------------------------------------------------------------------------------------------


def _lpf(board: Board, wrapper: str) -> str:
    lines = [f'FREQUENCY PORT "clk_in" {board.clock_hz / 1e6:g} MHZ;']
    kinds = _io_types(board, wrapper)
    for signal, pin in _signals(board, wrapper):
        lines += [f'LOCATE COMP "{signal}" SITE "{pin}";', f'IOBUF PORT "{signal}" IO_TYPE={kinds[signal]};']
    return "\n".join(lines) + "\n"


def _place_ecp5(part: Part) -> list[str]:
    found = re.fullmatch(r"LFE5(U|UM|UM5G)-(12|25|45|85)F-([678])(BG|MG)(\d+)[CI]", part.part_number)
    if found is None:
        raise UsageError(f"{part.part_number!r} is no ECP5 part number that nextpnr-ecp5 knows", hint="like LFE5U-25F-6BG381C")
    package = {"BG": "CABGA", "MG": "CSFBGA"}[found[4]] + found[5]
    size = f"--{found[1].lower().removeprefix('u')}{'-' if found[1] != 'U' else ''}{found[2]}k"
    # The placer's first router takes hours where carry chains fill a tenth of an 85F.
    return [size, "--package", package, "--speed", found[3], "--router", "router2"]


def _pll_ecp5(board: Board, wanted_hz: float) -> Clocking | None:
    """FPGA-TN-02200: CLKOP = in·CLKFB/CLKI with the feedback from CLKOP, the oscillator CLKOP·CLKOP_DIV at 400 to 800 MHz."""
    for divide in range(1, 9):
        feedback = round(wanted_hz * divide / board.clock_hz)
        hz = board.clock_hz * feedback / divide
        if not 1 <= feedback <= 80 or not math.isclose(hz, wanted_hz, rel_tol=1e-3) or board.clock_hz / divide < 10e6:
            continue
        for after in range(round(800e6 / hz), 0, -1):
            if 400e6 <= hz * after <= 800e6 and after <= 128:
                return Clocking(
                    hz,
                    "  wire clk, locked;\n"
                    f"  EHXPLLL #(.CLKI_DIV({divide}), .CLKFB_DIV({feedback}), .CLKOP_DIV({after}), .CLKOP_CPHASE({after - 1}),\n"
                    '    .CLKOP_FPHASE(0), .CLKOP_ENABLE("ENABLED"), .FEEDBK_PATH("CLKOP"), .PLLRST_ENA("DISABLED"),\n'
                    '    .STDBY_ENABLE("DISABLED"), .DPHASE_SOURCE("DISABLED"), .INTFB_WAKE("DISABLED"), .OUTDIVIDER_MUXA("DIVA")) pll (\n'
                    "    .CLKI(clk_in), .CLKFB(clk), .CLKOP(clk), .LOCK(locked), .RST(1'b0), .STDBY(1'b0), .ENCLKOP(1'b0),\n"
                    "    .PHASESEL0(1'b0), .PHASESEL1(1'b0), .PHASEDIR(1'b0), .PHASESTEP(1'b0), .PHASELOADREG(1'b0),\n"
                    "    .PLLWAKESYNC(1'b0)\n  );",
                )
    return None


# ---- Gowin ---------------------------------------------------------------------------------------------------------


def _cst(board: Board, wrapper: str) -> str:
    lines, kinds = [], _io_types(board, wrapper)
    for signal, pin in _signals(board, wrapper):
        lines += [f'IO_LOC "{signal}" {pin};', f'IO_PORT "{signal}" IO_TYPE={kinds[signal]};']
    return "\n".join(lines) + "\n"


_GOWIN = {"gw1nr": "GW1N-9C", "gw2ar": "GW2A-18C"}


def _place_gowin(part: Part) -> list[str]:
    return ["--device", part.part_number, "--vopt", f"family={_GOWIN[part.family]}"]


def _pll_gowin(board: Board, wanted_hz: float) -> Clocking | None:
    """UG286: f = in·(FBDIV + 1)/(IDIV + 1), the oscillator f·ODIV at 400 to 1200 MHz (GW1NR, C6) or 500 to 1250 MHz (GW2AR, C8)."""
    low, high, device = (400e6, 1200e6, "GW1NR-9C") if board.part.family == "gw1nr" else (500e6, 1250e6, "GW2AR-18C")
    for divide in range(1, 10):
        feedback = round(wanted_hz * divide / board.clock_hz)
        hz = board.clock_hz * feedback / divide
        if not 1 <= feedback <= 64 or not math.isclose(hz, wanted_hz, rel_tol=1e-3) or board.clock_hz / divide < 3e6:
            continue
        for after in (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128):
            if low <= hz * after <= high:
                return Clocking(
                    hz,
                    "  wire clk, locked;\n"
                    f'  rPLL #(.FCLKIN("{board.clock_hz / 1e6:g}"), .DEVICE("{device}"),\n'
                    f"    .IDIV_SEL({divide - 1}), .FBDIV_SEL({feedback - 1}), .ODIV_SEL({after})) pll (\n"
                    "    .CLKIN(clk_in), .CLKFB(1'b0), .CLKOUT(clk), .LOCK(locked), .RESET(1'b0), .RESET_P(1'b0),\n"
                    "    .FBDSEL(6'b0), .IDSEL(6'b0), .ODSEL(6'b0), .PSDA(4'b0), .DUTYDA(4'b0), .FDLY(4'b0)\n  );",
                )
    return None


def _ice40() -> Family:
    return Family(
        synthesis="synth_ice40", placer=tools.NEXTPNR_ICE40, placed="--asc top.asc", packer=tools.ICEPACK, bitstream="top.bin",
        constraints="top.pcf", pins=_pcf, place=_place_ice40, pack=lambda part: ["top.asc", "top.bin"], pll=_pll_ice40,
        cells="ice40/cells_sim.v", luts=("ICESTORM_LC",), ffs=(),
    )  # fmt: skip


def _gowin() -> Family:
    return Family(
        synthesis="synth_gowin", placer=tools.NEXTPNR_GOWIN, placed="--write placed.json", packer=tools.GOWIN_PACK, bitstream="top.fs",
        constraints="top.cst", pins=_cst, place=_place_gowin, pack=lambda part: ["-d", _GOWIN[part.family], "-o", "top.fs", "placed.json"],
        pll=_pll_gowin, cells="gowin/cells_sim.v", luts=("LUT4", "ALU"), ffs=("DFF",),
    )  # fmt: skip


FAMILIES: dict[str, Family] = {
    "ice40-ultraplus": _ice40(),
    "ice40-hx": _ice40(),
    "ecp5": Family(
        synthesis="synth_ecp5", placer=tools.NEXTPNR_ECP5, placed="--textcfg top.config", packer=tools.ECPPACK, bitstream="top.bit",
        constraints="top.lpf", pins=_lpf, place=_place_ecp5, pack=lambda part: ["--compress", "top.config", "top.bit"], pll=_pll_ecp5,
        cells="ecp5/cells_sim.v", luts=("TRELLIS_COMB",), ffs=("TRELLIS_FF",), tidy=synthesis.free_ends,
        # Spread out, for there are the more wires the more room it takes; and no limit on the tries for a chain, whose default
        # overflows beyond 46,000 cells (cells² in 32 bits) and becomes the least there is.
        large=("--placer-heap-beta", "0.5", "--placer-heap-cell-placement-timeout", "0"),
    ),
    "gw1nr": _gowin(),
    "gw2ar": _gowin(),
}  # fmt: skip


def constraint_words(family: Family) -> list[str]:
    """How the placer is told the constraint file."""
    if family.constraints.endswith(".cst"):
        return ["--vopt", f"cst={family.constraints}"]
    return [f"--{family.constraints.partition('.')[2]}", family.constraints]
