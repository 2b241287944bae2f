"""What preflight counts, by hand; how far it is from synthesis is printed by bench/rtl_estimates.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from graphs import graph, scale

from gatewright.frontend.model import Model
from gatewright.hw.device import Board, load_device
from gatewright.targets.rtl.estimate import PRICES, Estimate, estimate, shortfalls
from gatewright.targets.rtl.lower import lower
from gatewright.targets.rtl.pipeline import delays_of, schedule


def estimated(model: Model, name: str) -> tuple[Estimate, Board]:
    board = load_device(name)
    assert isinstance(board, Board)
    network, _ = lower(model)
    return estimate(network, schedule(network, 25e6, delays_of(board.part)), board.part, wrapped=False), board


def sums(weight: list[list[int]]) -> Model:
    """x·w of 4-bit inputs, kept whole: additions and nothing else."""
    text = "(int8[N,3] xq) => (int16[N,2] yq) { q = Clip(xq, lo, hi) x = DequantizeLinear(q, s, z) w = DequantizeLinear(wq, s, z) "
    text += "y = MatMul(x, w) yq = QuantizeLinear(y, sy, zy) }"
    small = {"lo": np.int8(-8), "hi": np.int8(7)}
    return graph(text, wq=np.array(weight, np.int8), s=scale(0.5), z=np.int8(0), sy=scale(0.25), zy=np.int16(0), **small)


@pytest.mark.parametrize("board", ["icebreaker", "ulx3s-25f", "tang-nano-9k"])
def test_an_addition_costs_its_bits(board: str) -> None:
    """x0 + x1 + x2 takes 5 and 6 bits; the other column is wires. ECP5's chains come in pairs of bits."""
    found, device = estimated(sums([[1, 1], [1, 0], [1, 0]]), board)
    bits = {"ecp5": 6 + 1 + 6 + 1}.get(device.part.family, 5 + 6)
    assert found.luts == int(np.ceil(bits * PRICES[next(k for k in PRICES if device.part.family.startswith(k))]["chain"]))
    assert found.dsps == 0


def test_zeros_cost_nothing() -> None:
    assert estimated(sums([[1, 0], [0, 1], [0, 0]]), "icebreaker")[0].luts == 0


@pytest.mark.parametrize(("board", "blocks"), [("ulx3s-25f", 6), ("tang-nano-9k", 3), ("icebreaker", 0)])
def test_products_of_activations_take_blocks_where_yosys_does(board: str, blocks: int) -> None:
    model = graph(
        "(int8[N,6] aq, int8[N,6] bq) => (int8[N,6] yq) { a = DequantizeLinear(aq, s, z) b = DequantizeLinear(bq, s, z) "
        "y = Mul(a, b) yq = QuantizeLinear(y, s, z) }", s=scale(0.5), z=np.int8(0),
    )  # fmt: skip
    found, device = estimated(model, board)
    assert found.dsps == blocks
    assert not any("DSP" in row for row in shortfalls(found, device.part))
    assert any("DSP" in row for row in shortfalls(dataclasses.replace(found, dsps=999), device.part))
