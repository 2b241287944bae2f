"""And-inverter graphs: the file's format, read from bytes written by hand, and a counter clocked in 64 copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gatewright.errors import GatewrightError
from gatewright.targets.rtl import vcd
from gatewright.targets.rtl.aiger import LANES, Circuit, read

# A toggle with an enable: q' = q xor e, out = q. Variables: 1 = e, 2 = q, 3 = e & ~q, 4 = ~e & q, 5 = ~3 & ~4.
TOGGLE = b"aig 5 1 1 1 3\n11\n4\n" + bytes([6 - 5, 5 - 2, 8 - 4, 4 - 3, 10 - 9, 9 - 7]) + b"i0 e\nl0 q\no0 out\nc\nwritten by hand\n"


def test_toggle(tmp_path: Path) -> None:
    (tmp_path / "t.aig").write_bytes(TOGGLE)
    graph = read(tmp_path / "t.aig")
    assert (graph.inputs, graph.latches, graph.outputs) == (("e",), ("q",), ("out",))
    circuit = Circuit(graph)
    random = np.random.default_rng(0)
    state = np.zeros(LANES, np.uint8)
    for _ in range(50):
        enable = random.integers(0, 2, LANES).astype(np.uint8)
        given = np.packbits(enable, bitorder="little").view("<u8")
        (got,) = circuit.settle(given)
        assert np.array_equal(np.unpackbits(np.array([got], "<u8").view(np.uint8), bitorder="little"), state)
        circuit.clock()
        state ^= enable


@pytest.mark.parametrize("data", [b"", b"aag 5 1 1 1 3\n", b"aig 9 1 1 1 3\n11\n4\n", TOGGLE[:20], TOGGLE.replace(b"\n11\n", b"\n11 1\n")])
def test_damaged(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.aig").write_bytes(data)
    with pytest.raises(GatewrightError, match="AIGER"):
        read(tmp_path / "t.aig")


def test_waves(tmp_path: Path) -> None:
    writer = vcd.Writer(tmp_path / "w.vcd", ("clk", "a", "d[0]", "d[2]"), clock="clk")
    for values in ([0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]):
        writer.sample(np.array(values))
    writer.close()
    head, _, body = (tmp_path / "w.vcd").read_text(encoding="utf-8").partition("$enddefinitions $end\n")
    assert "$var wire 3 # d [2:0] $end" in head
    assert body.splitlines() == ["#0", "0!", '1"', "b1x0 #", "#5", "1!", "#10", "0!", "#15", "1!", "#20", "0!", '0"', "b0x1 #", "#25", "1!"]
