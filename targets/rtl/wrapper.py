"""What stands between a network and the world: its module at the top, for a serial line, for SPI, or between two AXI4-Streams.

Everything here is text made from a few numbers; the modules that it names are the plain Verilog in ``hw/rtl``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gatewright import hw

from . import verilog
from .network import Network

Wrapper = Literal["uart", "spi", "axi"]
BUS_BITS = 64
"""Width of the AXI4-Streams."""

_RTL = Path(hw.__file__).parent / "rtl"


@dataclass(frozen=True)
class Line:
    """One kind of wrapper."""

    modules: tuple[str, ...]
    """Files of ``hw/rtl`` that it is made of."""
    pins: Mapping[str, str]
    """Ports of the top module beside the clock and the LED: their pins' names in a board's file."""
    ports: str
    instance: str
    """The module that speaks to the network; what it lacks are the network's own connections."""
    cycles: int
    """Clock cycles per bit that it needs."""


LINES: dict[str, Line] = {
    "uart": Line(
        ("uart_rx.v", "uart_tx.v", "crc16.v", "frames.v", "serial.v"),
        {"uart_rx": "uart_rx", "uart_tx": "uart_tx"},
        "input wire uart_rx, output wire uart_tx",
        "serial #(.IN_BYTES({in_bytes}), .OUT_BYTES({out_bytes}), .DIVIDER({divider}), .IDENTITY(32'h{identity})) line (\n"
        "    .clk(clk), .rst(rst), .rx(uart_rx), .tx(uart_tx),",
        4,
    ),
    "spi": Line(
        ("crc16.v", "frames.v", "spi.v"),
        {"spi_sck": "spi_sck", "spi_cs": "spi_cs", "spi_mosi": "spi_mosi", "spi_miso": "spi_miso"},
        "input wire spi_sck, input wire spi_cs, input wire spi_mosi, output wire spi_miso",
        "spi #(.IN_BYTES({in_bytes}), .OUT_BYTES({out_bytes}), .IDENTITY(32'h{identity})) line (\n"
        "    .clk(clk), .rst(rst), .sck(spi_sck), .cs_n(spi_cs), .mosi(spi_mosi), .miso(spi_miso),",
        12,
    ),
}  # fmt: skip
AXI_MODULES = ("axi_stream.v",)

TOP = """\
// The network on a board: {clock}, {what}.
module top (input wire clk_in, {ports}, output wire led);
{clocking}
  // Registers start at 0: the reset ends by itself.
  reg [4:0] started = 5'd0;
  wire rst = ~started[4];
  always @(posedge clk)
    if (rst & locked) started <= started + 1'b1;
  wire in_valid, in_ready, out_valid, out_ready;
  wire [{in_top}:0] in_data;
  wire [{out_top}:0] out_data;
  {instance}
    .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
  );
  network core (
    .clk(clk), .rst(rst),
    .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data[{in_width}-1:0]),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data[{out_width}-1:0])
  );
{padding}  assign led = ~in_valid;
endmodule
"""

AXI_TOP = """\
// The network between two AXI4-Streams of {bus} bits: {in_bits} bits in, {out_bits} bits out per sample.
module gatewright_stream (
  (* X_INTERFACE_INFO = "xilinx.com:signal:clock:1.0 aclk CLK" *)
  (* X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF s_axis:m_axis, ASSOCIATED_RESET aresetn" *)
  input wire aclk,
  (* X_INTERFACE_INFO = "xilinx.com:signal:reset:1.0 aresetn RST" *)
  (* X_INTERFACE_PARAMETER = "POLARITY ACTIVE_LOW" *)
  input wire aresetn,
  input wire [{bus}-1:0] s_axis_tdata, input wire s_axis_tvalid, output wire s_axis_tready, input wire s_axis_tlast,
  output wire [{bus}-1:0] m_axis_tdata, output wire [{bus}/8-1:0] m_axis_tkeep, output wire m_axis_tvalid, input wire m_axis_tready,
  output wire m_axis_tlast
);
  wire rst = ~aresetn;
  wire in_valid, in_ready, out_valid, out_ready;
  wire [{in_bits}-1:0] in_data;
  wire [{out_bits}-1:0] out_data;
  axi_stream #(.IN_BITS({in_bits}), .OUT_BITS({out_bits}), .BUS({bus})) stream (
    .clk(aclk), .rst(rst),
    .s_axis_tdata(s_axis_tdata), .s_axis_tvalid(s_axis_tvalid), .s_axis_tready(s_axis_tready), .s_axis_tlast(s_axis_tlast),
    .m_axis_tdata(m_axis_tdata), .m_axis_tvalid(m_axis_tvalid), .m_axis_tready(m_axis_tready), .m_axis_tlast(m_axis_tlast),
    .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
  );
  network core (
    .clk(aclk), .rst(rst),
    .in_valid(in_valid), .in_ready(in_ready), .in_data(in_data),
    .out_valid(out_valid), .out_ready(out_ready), .out_data(out_data)
  );
  assign m_axis_tkeep = {{({bus}/8){{1'b1}}}};
endmodule
"""


def top(network: Network, wrapper: str, *, clock_hz: float, clocking: str, baud: int, identity: str) -> str:
    """The top module of a board with pins. ``identity``: 8 hex digits by which the host knows the bitstream."""
    line = LINES[wrapper]
    in_width, out_width = verilog.width(network.inputs), verilog.width(network.outputs)
    in_bytes, out_bytes = -(-in_width // 8), -(-out_width // 8)
    spare = out_bytes * 8 - out_width
    instance = line.instance.format(in_bytes=in_bytes, out_bytes=out_bytes, divider=round(clock_hz / baud), identity=identity)
    return TOP.format(
        clock=f"{clock_hz / 1e6:g} MHz", what=f"{wrapper} at {baud} bits per second", ports=line.ports, clocking=clocking,
        instance=instance,
        in_top=in_bytes * 8 - 1, out_top=out_bytes * 8 - 1, in_width=in_width, out_width=out_width,
        padding=f"  assign out_data[{out_bytes * 8 - 1}:{out_width}] = {spare}'d0;\n" if spare else "",
    )  # fmt: skip


def axi_top(network: Network) -> str:
    """The top module of a design between two AXI4-Streams."""
    return AXI_TOP.format(bus=BUS_BITS, in_bits=verilog.width(network.inputs), out_bits=verilog.width(network.outputs))


def modules(wrapper: str) -> dict[str, str]:
    """The plain Verilog beside the generator, by file name."""
    names: Sequence[str] = AXI_MODULES if wrapper == "axi" else LINES[wrapper].modules
    return {name: (_RTL / name).read_text(encoding="utf-8") for name in names}


def identity(network_text: str, wrapper: str, board: str) -> str:
    """8 hex digits that differ where the network, the protocol or the board does."""
    parts = [network_text, board, *modules(wrapper).values()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
