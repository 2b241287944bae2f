"""What Yosys is told before a family's own synthesis command: each addition keeps a carry chain of its own (``hw/rtl/adders.techmap``).

On networks of additions this takes 6 to 8 % of the look-up tables off, on ECP5, iCE40 and Gowin alike. On ECP5 a chain's ends cost
cells too, a quarter of a whole network; ``adders_ecp5.techmap`` and ``free_ends`` do without them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from gatewright import hw

_ADDERS = {"synth_ecp5": "adders_ecp5.techmap"}
"""By synthesis command. Verilog that only Yosys understands: no module of the design, so no simulator may take it for one."""


def adders(command: str) -> str:
    """The name of the file that maps additions, for a family's synthesis ``command``."""
    return _ADDERS.get(command.split()[0], "adders.techmap")


def files(command: str) -> dict[str, str]:
    """What the script reads besides the design, by file name."""
    name = adders(command)
    return {name: (Path(hw.__file__).parent / "rtl" / name).read_text(encoding="utf-8")}


def steps(command: str) -> tuple[str, ...]:
    """Before the command itself, on the network."""
    return ("proc", "opt", "wreduce", "opt_clean", f"techmap -map {adders(command)}")


def script(sources: Iterable[str], command: str, top: str) -> list[str]:
    """Lines for Yosys in the folder of the sources; ``command``: the family's, for example synth_ecp5."""
    return [*(f"read_verilog {name}" for name in sources), *(f"{step} network" for step in steps(command)), f"{command} -top {top}"]


def free_ends(netlist: Path, module: str) -> None:
    """Takes the constant carry-ins and the unread carry-outs off the CCU2Cs of Yosys' JSON, whose chains need neither.

    nextpnr-ecp5 brings each of them from or to the fabric through a CCU2C more (its ``pack.cc``, ``split_carry_chain``), though a
    carry-in that is nothing to the first half (its LUT4 always 0, its sum unread) and a carry-out without a reader are no signals.
    """
    design = json.loads(netlist.read_text(encoding="utf-8"))
    cells = design["modules"][module]["cells"].values()
    read = Counter(bit for cell in cells for bits in cell["connections"].values() for bit in bits)
    read.update(bit for port in design["modules"][module]["ports"].values() for bit in port["bits"])
    for cell in cells:
        if cell["type"] != "CCU2C":
            continue
        pins = cell["connections"]
        if all(read[bit] == 1 for bit in pins.get("COUT", ())):
            pins["COUT"] = ["x"]
        lut4 = int(cell["parameters"]["INIT0"], 2) >> 12 if pins["C0"] == pins["D0"] == ["1"] else 1
        if pins["CIN"] in (["0"], ["1"]) and lut4 == 0 and all(read[bit] == 1 for bit in pins.get("S0", ())):
            pins["CIN"] = ["x"]
    netlist.write_text(json.dumps(design), encoding="utf-8")
