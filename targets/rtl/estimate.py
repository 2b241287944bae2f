"""What a network will take, before any tool runs: look-up tables, flip-flops, cycles.

Each node is priced in four-input tables as its logic says (an adder one per bit, a rounding the AND tree of its tie, a clamp one
per bit and one per three bits that it looks at), and ``FACTORS`` are what synthesis makes of such a sum on each family:
fitted by ``bench/rtl_estimates.py``, which prints the error too.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from gatewright.hw.cost import BYTE_PJ
from gatewright.hw.device import Part

from .network import Network, Node
from .pipeline import Schedule, adder_width

FACTORS: dict[str, float] = {"ice40-ultraplus": 0.95, "ice40-hx": 0.95, "ecp5": 0.95, "gw1nr": 0.95, "gw2ar": 0.95}
"""By the part's family: tables after synthesis."""

PLACED: dict[str, float] = {"ice40-ultraplus": 1.21, "ice40-hx": 1.21, "ecp5": 1.74, "gw1nr": 1.5, "gw2ar": 1.5}
"""Logic cells after placement per table: entering and leaving a carry chain takes cells, and on ECP5 chains come in pairs of bits.
From the pruned int4 digits MLP on an iCEBreaker, an ULX3S and a Tang Nano 9K."""

FILL = 0.97
"""Of a part's tables that a design may take: above, the placer finds no legal or no routable placement."""

WRAPPER_LUTS = 180
"""The serial interface, its buffers left out."""
ADD_PJ_PER_BIT = 0.1 / 32
"""Horowitz (ISSCC 2014, figure 1.1.9): a 32-bit addition is 0.1 pJ in 45 nm."""


@dataclass(frozen=True)
class Estimate:
    """Of the network alone, or with its serial interface."""

    luts: int
    """As synthesis counts them."""
    cells: int
    """What of the part's tables the placer fills: chains and lone flip-flops included."""
    ffs: int
    cycles: int
    """From input to output; a sample is taken every cycle."""
    energy_j: float
    """Of the additions of one sample; a figure to rank by, not one that a meter shows."""
    by_layer: dict[str, int]
    """Tables by operation."""


def estimate(network: Network, schedule: Schedule, part: Part | None, *, wrapped: bool) -> Estimate:
    """``wrapped``: with the serial interface, whose buffers hold a sample and a result."""
    factor = FACTORS.get(part.family, 1.0) if part else 1.0
    layers: Counter[int] = Counter()
    adder_bits = 0
    for node in network.nodes:
        layers[node.layer] += _luts(network, node)
        if node.op == "add":
            adder_bits += adder_width(network, node)
    luts, ffs = factor * sum(layers.values()), schedule.register_bits(network) + schedule.stages
    cells = luts * (PLACED.get(part.family, 1.2) if part else 1.0)
    if wrapped:
        from .verilog import width  # verilog writes what this estimates; only the ports' width is needed

        luts += WRAPPER_LUTS + width(network.outputs)
        cells += WRAPPER_LUTS + width(network.outputs)
        if part is not None and part.family.startswith("ice40"):
            cells += width(network.inputs)  # the sample's buffer: a flip-flop takes a whole logic cell where no table goes before it
        ffs += WRAPPER_LUTS // 2 + width(network.inputs) + max(32, width(network.outputs))
    by_layer = {network.layers[layer]: round(factor * count) for layer, count in sorted(layers.items()) if count}
    moved = sum(port.size * port.bits for port in (*network.inputs, *network.outputs)) / 8
    energy = (adder_bits * ADD_PJ_PER_BIT + moved * BYTE_PJ["sram"]) * 1e-12
    return Estimate(math.ceil(luts), math.ceil(cells), ffs, schedule.stages, energy, by_layer)


def shortfalls(found: Estimate, part: Part) -> tuple[str, ...]:
    """What ``part`` has too little of, in words. A flip-flop shares its cell with the table before it; one without a table takes a cell."""
    rows = []
    if found.cells > part.luts * FILL:
        rows.append(f"LUT: needs about {found.cells}, {part.name} has {part.luts}, of which {FILL:.0%} can be used")
    if found.ffs > part.ffs * FILL:
        rows.append(f"FF: needs about {found.ffs}, {part.name} has {part.ffs}, of which {FILL:.0%} can be used")
    return tuple(rows)


def _luts(network: Network, node: Node) -> int:
    match node.op:
        case "input" | "constant":
            return 0
        case "add":
            return adder_width(network, node)
        case "multiply":
            a, b = (network.nodes[i].bits for i in node.args)
            return a * b
        case "maximum":
            return 2 * node.bits
        case "at_least":
            return max(network.nodes[i].bits for i in node.args)
        case "select":
            return node.bits
        case "settle":
            return 1 + math.ceil((node.params[0] - 1) / 3)
        case "clip":
            source = network.nodes[node.args[0]]
            return node.bits + math.ceil(max(0, source.bits - node.bits) / 3)
        case "table":
            # A function of n bits takes about 2^(n - 4)·(1 + 1/2 + …) tables; neighbours that are alike are merged.
            return math.ceil(node.bits * max(1.0, len(node.params) / 16 * 0.8))


def tables_by_kind(network: Network, family: str) -> dict[str, float]:
    return {}
