"""The synthesized network as a design to simulate: Yosys' netlist of the part's own cells, with the vendor's models of them."""

from __future__ import annotations

import hashlib
import os

from gatewright.targets.base import TargetContext

from . import tools
from .board import FAMILIES
from .simulate import Source


def source(text: str, family: str, context: TargetContext) -> Source:
    """``text``: the network's Verilog. The netlist is made once per content and kept."""
    chosen = FAMILIES[family]
    key = hashlib.sha256("\0".join([text, chosen.synthesis, tools.YOSYS.version() or ""]).encode()).hexdigest()[:32]
    folder = context.cache_dir / "rtl" / f"netlist-{key}"
    finished = folder / "netlist.v"
    if not finished.exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "network.v").write_text(text, encoding="utf-8", newline="\n")
        script = f"read_verilog network.v\n{chosen.synthesis} -top network\nwrite_verilog -noattr -noexpr netlist.part.v\n"
        (folder / "netlist.ys").write_text(script, encoding="utf-8", newline="\n")
        tools.run(
            tools.YOSYS, ["-q", "-l", "yosys.log", "-s", "netlist.ys"], cwd=folder, log=folder / "yosys.out",
            what="synthesizing the netlist", context=context,
        )  # fmt: skip
        os.replace(folder / "netlist.part.v", finished)
    return Source({"netlist.v": finished.read_text(encoding="utf-8")}, "network", cells=chosen.cells)
