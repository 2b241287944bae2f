"""What a network will take, before any tool runs: look-up tables, flip-flops, cycles.

Each node is counted in four-input tables as its logic says (an adder one per bit, a rounding the AND tree of its tie, a clamp one
per bit and one per three bits that it looks at), and ``PRICES`` are what synthesis makes of such a table on each family, by kind of
logic: fitted by ``bench/rtl_estimates.py`` on ten networks, which prints the error on twenty others too.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gatewright.hw.cost import BYTE_PJ
from gatewright.hw.device import Part

from .network import Network, Node
from .pipeline import Schedule, adder_width

PRICES: dict[str, dict[str, float]] = {
    "ice40": {"chain": 1.04, "choice": 0.99, "clamp": 0.27, "rounding": 0.3, "short sum": 0.9, "table": 0.93},
    "ecp5": {"chain": 0.97, "choice": 0.97, "clamp": 0.61, "rounding": 0.65, "short sum": 0.55, "table": 0.83},
    "gw": {"chain": 1.0, "choice": 1.01, "clamp": 0.63, "rounding": 0.64, "short sum": 0.98, "table": 1.25},
}
"""By the beginning of the part's family: tables after synthesis per table counted here; 1 where nothing is said."""

PLACED: dict[str, float] = {"ice40-ultraplus": 1.14, "ice40-hx": 1.14, "ecp5": 1.01, "gw1nr": 1.5, "gw2ar": 1.5}
"""Logic cells after packing per table: entering a carry chain takes cells, but on ECP5 (``synthesis.py``).
From the pruned int4 digits MLP on an iCEBreaker and a Tang Nano 9K, and the CNN on an ULX3S."""

FILL = 0.97
"""Of a part's tables that a design may take: above, the placer finds no legal or no routable placement."""

ROUTED_CELLS = 20_000
"""The largest networks that nextpnr was seen to route had 19,000 cells (in 13 minutes). Of one of 30,000, over a third of an ECP5-85,
40,000 of its 460,000 wires were still in use twice after half an hour; with sums shared among few outputs, and spread out, 5,400 were."""

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
    dsps: int
    """Multiplier blocks: Yosys takes them for products of two activations."""
    cycles: int
    """From input to output; a sample is taken every cycle."""
    energy_j: float
    """Of the additions of one sample; a figure to rank by, not one that a meter shows."""
    by_layer: dict[str, int]
    """Tables by operation."""


def estimate(network: Network, schedule: Schedule, part: Part | None, *, wrapped: bool) -> Estimate:
    """``wrapped``: with the serial interface, whose buffers hold a sample and a result."""
    family = part.family if part else ""
    prices = _prices(family)
    layers: dict[int, float] = defaultdict(float)
    adder_bits, blocks = 0, 0.0
    for node in network.nodes:
        for kind, count in _tables(network, node, family):
            layers[node.layer] += prices.get(kind, 1.0) * count
        if node.op == "add":
            adder_bits += adder_width(network, node)
        elif node.op == "multiply":
            blocks += _blocks(network, node, family)
    luts, ffs = sum(layers.values()), schedule.register_bits(network) + schedule.stages
    cells: float = luts * (PLACED.get(part.family, 1.2) if part else 1.0)
    if wrapped:
        from .verilog import width  # verilog writes what this estimates; only the ports' width is needed

        luts += WRAPPER_LUTS + width(network.outputs)
        cells += WRAPPER_LUTS + width(network.outputs)
        if part is not None and part.family.startswith("ice40"):
            cells += width(network.inputs)  # the sample's buffer: a flip-flop takes a whole logic cell where no table goes before it
        ffs += WRAPPER_LUTS // 2 + width(network.inputs) + max(32, width(network.outputs))
    by_layer = {network.layers[layer]: round(count) for layer, count in sorted(layers.items()) if count}
    moved = sum(port.size * port.bits for port in (*network.inputs, *network.outputs)) / 8
    energy = (adder_bits * ADD_PJ_PER_BIT + moved * BYTE_PJ["sram"]) * 1e-12
    return Estimate(math.ceil(luts), math.ceil(cells), ffs, math.ceil(blocks), schedule.stages, energy, by_layer)


def shortfalls(found: Estimate, part: Part) -> tuple[str, ...]:
    """What ``part`` has too little of, in words. A flip-flop shares its cell with the table before it; one without a table takes a cell."""
    rows = []
    if found.cells > part.luts * FILL:
        rows.append(f"LUT: needs about {found.cells}, {part.name} has {part.luts}, of which {FILL:.0%} can be used")
    if found.ffs > part.ffs * FILL:
        rows.append(f"FF: needs about {found.ffs}, {part.name} has {part.ffs}, of which {FILL:.0%} can be used")
    if found.dsps > part.dsps:
        rows.append(f"DSP: needs {found.dsps} for products of activations, {part.name} has {part.dsps}")
    return tuple(rows)


def tables_by_kind(network: Network, family: str) -> dict[str, float]:
    """Tables before ``PRICES``, by kind of logic."""
    found: dict[str, float] = defaultdict(float)
    for node in network.nodes:
        for kind, count in _tables(network, node, family):
            found[kind] += count
    return dict(found)


def _prices(family: str) -> dict[str, float]:
    return next((prices for start, prices in PRICES.items() if family.startswith(start)), {})


def _tables(network: Network, node: Node, family: str) -> Iterator[tuple[str, float]]:
    """Kind of logic and tables of it."""
    sources = [network.nodes[i] for i in node.args]
    match node.op:
        case "input" | "constant":
            pass
        case "add":
            yield from _chain(adder_width(network, node), family)
        case "multiply":
            if not _blocks(network, node, family):
                yield "product", sources[0].bits * sources[1].bits
        case "maximum":
            yield from _chain(max(source.bits + (not source.signed) for source in sources), family)
            yield "choice", node.bits
        case "at_least":
            yield from _chain(max(source.bits + (not source.signed) for source in sources), family)
        case "select":
            yield "choice", node.bits
        case "settle":
            yield "rounding", 1 + math.ceil((node.params[0] - 1) / 3)
        case "clip":
            yield "clamp", node.bits + math.ceil(max(0, sources[0].bits - node.bits) / 3)
        case "table":
            yield "table", _table(node)


def _chain(bits: int, family: str) -> Iterator[tuple[str, float]]:
    """A sum of so many bits. Short ones become plain tables; ECP5's chains come in pairs of bits, with a table for the lowest bit."""
    shortest = 4 if family == "ecp5" else 2
    if bits > shortest:
        yield "chain", bits + bits % 2 + 1 if family == "ecp5" else bits
    elif bits:
        yield "short sum", (0, 1, 2, 4, 6)[bits]


def _blocks(network: Network, node: Node, family: str) -> float:
    """Blocks of 18×18 bits that Yosys takes for a product: ECP5 from 2 bits each and 9 of the product on, Gowin from 4 bits each,
    where up to 9 bits two products share one. 0: it is made of tables."""
    a, b = (source.bits + (not source.signed) for source in (network.nodes[i] for i in node.args))
    if family == "ecp5":
        return float(min(a, b) >= 2 and a + b >= 9)
    if family.startswith("gw"):
        return 0.0 if min(a, b) < 4 else 0.5 if max(a, b) <= 9 else 1.0
    return 0.0


def _table(node: Node) -> float:
    """Tables of a function by cases: per bit of the result the different blocks of 16 entries, and the choices between them."""
    first, *values = node.params
    entries = 1 << max(4, (len(values) - 1).bit_length())
    start = first % entries  # by address, as the logic sees it
    found = np.array(values, np.int64)
    column = np.resize(found[-1:], entries)
    column[(start + np.arange(len(found))) % entries] = found
    total = 0
    for bit in range(node.bits):
        blocks = [block.tobytes() for block in ((column >> bit) & 1).astype(np.uint8).reshape(-1, 16)]
        total += len({block for block in blocks if len(set(block)) > 1})
        while len(blocks) > 1:
            pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
            total += len({(a, b) for a, b in pairs if a != b})
            blocks = [a if a == b else a + b for a, b in pairs]
    return float(total)
