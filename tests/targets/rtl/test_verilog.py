"""The text: deterministic, with no name of the model in it, and held to a golden file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
from graphs import Array, graph, scale

from gatewright.errors import UsageError
from gatewright.frontend.model import Model
from gatewright.hw.device import Board, load_device
from gatewright.targets.rtl import board as boards
from gatewright.targets.rtl import verilog, wrapper
from gatewright.targets.rtl.lower import attempt
from gatewright.targets.rtl.pipeline import DELAYS, Schedule, schedule
from gatewright.targets.rtl.simulate import pack, unpack

HOSTILE = 'always; end\nmodule */ `include "/etc/passwd" $finish //'


def small(**arrays: Array) -> Model:
    text = (
        "(int8[N,4] xq) => (int8[N,2] yq) { x = DequantizeLinear(xq, s, z) w = DequantizeLinear(wq, s, z) "
        "h = MatMul(x, w) r = Relu(h) hq = QuantizeLinear(r, s, zu) hd = DequantizeLinear(hq, s, zu) t = Tanh(hd) "
        "yq = QuantizeLinear(t, s, z) }"
    )
    weight = np.array([[3, -5], [0, 7], [-1, 2], [4, -4]], np.int8)
    return graph(text, wq=weight, s=scale(0.25), z=np.int8(0), zu=np.uint8(0), **arrays)


def text_of(model: Model, clock_hz: float) -> tuple[str, Schedule]:
    network, _, problems = attempt(model)
    assert not problems
    planned = schedule(network, clock_hz, DELAYS["ice40-ultraplus"])
    return verilog.emit(network, planned), planned


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("rtl/small.v", text_of(small(), 60e6)[0])


def test_same_bytes() -> None:
    assert text_of(small(), 12e6)[0] == text_of(small(), 12e6)[0]


def test_a_faster_clock_takes_more_stages() -> None:
    assert text_of(small(), 100e6)[1].stages > text_of(small(), 5e6)[1].stages == 1


def test_no_name_of_the_model_reaches_the_text() -> None:
    model = small()
    for node in model.graph:
        node.name = HOSTILE + str(node.name)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = HOSTILE + str(value.name)
    text = text_of(model, 60e6)[0]
    assert text == text_of(small(), 60e6)[0]
    words = set(re.findall(r"[A-Za-z_]\w*", re.sub(r"//.*|\d*'h[0-9a-f]+", "", text)))
    known = {  # every other word is a wire that was numbered here
        "module", "network", "clk", "rst", "in_valid", "in_ready", "in_data", "out_valid", "out_ready", "out_data", "valid", "enable",
        "input", "output", "wire", "reg", "assign", "always", "posedge", "if", "else", "begin", "end", "case", "default", "endcase",
        "endmodule", "d0", "signed",
    }  # fmt: skip
    assert all(word in known or re.fullmatch(r"L\d+_\d+(_r\d+|_c)?", word) for word in words), words - known


def test_layer_of_a_wire() -> None:
    assert verilog.layer_of("core.L3_120") == 3
    assert verilog.layer_of("core.L12_7_r2") == 12
    assert verilog.layer_of("line.state") is None


def test_pack_and_unpack_are_inverse() -> None:
    network, _, _ = attempt(small())
    x = np.random.default_rng(0).integers(-128, 128, (9, 4))
    (back,) = unpack(network.inputs, pack(network.inputs, [x], 1))
    assert np.array_equal(back, x)


@pytest.mark.parametrize("name", ["icebreaker", "ice40-hx8k", "ulx3s-25f", "ulx3s-85f", "orangecrab", "tang-nano-9k", "tang-nano-20k"])
def test_board_files(name: str) -> None:
    board = load_device(name)
    assert isinstance(board, Board)
    family, clock = boards.family_of(board.part), boards.clocking(board, None)
    network, _, _ = attempt(small())
    top = wrapper.top(network, "uart", clock_hz=clock.hz, clocking=clock.text, baud=115200, identity="0123abcd")
    assert "in_data[32-1:0]" in top
    assert f".DIVIDER({round(clock.hz / 115200)})" in top
    assert all(board.pins[pin] in family.pins(board, "uart") for pin in ("clk", "uart_rx", "uart_tx"))
    if "spi" in board.interfaces:
        assert all(board.pins[pin] in family.pins(board, "spi") for pin in ("spi_sck", "spi_cs", "spi_mosi", "spi_miso"))
    else:
        with pytest.raises(UsageError, match="names no pin 'spi_sck'"):
            family.pins(board, "spi")
    assert family.place(board.part)
    assert clock.hz >= board.part.typical_clock_hz * 0.999
    doubled = boards.clocking(board, 2 * board.clock_hz)
    assert doubled.hz == pytest.approx(2 * board.clock_hz)
    assert "pll" in doubled.text


def test_pins_of_a_bank_at_another_voltage() -> None:
    board = load_device("tang-nano-9k")
    assert isinstance(board, Board)
    family = boards.family_of(board.part)
    lines = family.pins(board, "uart").splitlines()
    assert 'IO_PORT "led" IO_TYPE=LVCMOS18;' in lines
    assert 'IO_PORT "uart_tx" IO_TYPE=LVCMOS33;' in lines
    odd = dataclasses.replace(board, io_types={"led0": 'LVCMOS33; "x'})
    with pytest.raises(UsageError, match="is no I/O standard"):
        family.pins(odd, "uart")
