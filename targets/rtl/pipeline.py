"""Where registers go: a delay per node, from a model of the part's logic, and the least number of stages that meets the clock.

The delays are coarse on purpose (a level of logic with its routing, a carry per bit); what holds is the place-and-route
report. ``bench/rtl_estimates.py`` prints how far the two are apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gatewright.hw.device import Part

from .matrix import adder_bits
from .network import Network, Node


@dataclass(frozen=True)
class Delays:
    """Nanoseconds of a part's fabric, routing included, as nextpnr reports them for unrolled designs that fill half of it."""

    level: float
    """One look-up table and the wires to it."""
    carry: float
    """One bit of a carry chain."""
    chain: float
    """Into a carry chain and out of it again, beyond a level."""
    register: float
    """Clock to output, setup, and the wire from the register."""


DELAYS: dict[str, Delays] = {
    "ice40-ultraplus": Delays(level=3.2, carry=0.28, chain=0.9, register=3.2),
    "ice40-hx": Delays(level=1.4, carry=0.13, chain=0.4, register=1.6),
    "ecp5": Delays(level=1.3, carry=0.04, chain=0.9, register=1.5),
    "gw1nr": Delays(level=2.2, carry=0.06, chain=1.0, register=2.0),
    "gw2ar": Delays(level=1.4, carry=0.06, chain=0.7, register=1.4),
}
"""By the part's family."""
OTHER = Delays(level=1.5, carry=0.06, chain=0.8, register=1.5)

MARGIN = 0.85
"""Of the period that is planned with: the longest of many paths is worse than the model's."""


@dataclass(frozen=True)
class Schedule:
    """Stage of every node, 0 the first; a value is in a register from its stage's end on."""

    stage: tuple[int, ...]
    stages: int
    """Registers in series from input to output: the latency in cycles."""
    period_ns: float
    """Of the slowest stage, by the model, its register included."""

    def last_use(self, network: Network) -> list[int]:
        """Per node the last stage that reads it; outputs are read in the stage after the last."""
        last = list(self.stage)
        for index, node in enumerate(network.nodes):
            for argument in node.args:
                last[argument] = max(last[argument], self.stage[index])
        for nodes in network.results:
            for node_index in nodes:
                last[node_index] = self.stages
        return last

    def register_bits(self, network: Network) -> int:
        """Flip-flops of the pipeline, the valid bits apart."""
        last = self.last_use(network)
        return sum(
            node.bits * (last[index] - self.stage[index]) for index, node in enumerate(network.nodes) if node.op != "constant"
        )  # fmt: skip


def delays_of(part: Part | None) -> Delays:
    return DELAYS.get(part.family, OTHER) if part else OTHER


def schedule(network: Network, clock_hz: float, delays: Delays) -> Schedule:
    """The fewest stages that meet ``clock_hz`` by the model, then the work spread evenly over them."""
    times = [_delay(network, node, delays) for node in network.nodes]
    budget = 1e9 / clock_hz * MARGIN - delays.register
    least = max(times, default=0.0)
    stage, count = _staged(network, times, max(budget, least))
    low, high = least, max(budget, least)
    while high - low > 0.05:
        middle = (low + high) / 2
        trial, trial_count = _staged(network, times, middle)
        if trial_count == count:
            high, stage = middle, trial
        else:
            low = middle
    return Schedule(tuple(stage), count, (high + delays.register) / MARGIN)


def _staged(network: Network, times: list[float], budget: float) -> tuple[list[int], int]:
    """As early as possible: a node starts a new stage where it would end after ``budget``."""
    stage: list[int] = []
    arrival: list[float] = []
    for node, time in zip(network.nodes, times, strict=True):
        first = max((stage[a] for a in node.args), default=0)
        start = max((arrival[a] for a in node.args if stage[a] == first), default=0.0)
        if start > 0 and start + time > budget + 1e-9:
            first, start = first + 1, 0.0
        stage.append(first)
        arrival.append(start + time)
    last = max((stage[node] for nodes in network.results for node in nodes), default=0)
    return stage, last + 1


def adder_width(network: Network, node: Node) -> int:
    """Full adders of an ``add``."""
    a, b = (network.nodes[i] for i in node.args)
    i, j, sign = node.params
    below = a if i == 0 else b
    return adder_bits(node.lo, node.hi, (below.lo, below.hi), i, j, sign)


def _delay(network: Network, node: Node, delays: Delays) -> float:
    match node.op:
        case "input" | "constant":
            return 0.0
        case "add":
            width = adder_width(network, node)
            return delays.level + delays.chain + delays.carry * width if width else 0.0
        case "multiply":
            a, b = sorted(network.nodes[i].bits for i in node.args)
            return (delays.level + delays.chain) * (1 + math.ceil(math.log2(a + 1))) + delays.carry * (a + b)
        case "maximum" | "at_least":
            width = max(network.nodes[i].bits for i in node.args)
            return 2 * delays.level + delays.chain + delays.carry * width
        case "settle":
            return delays.level * _levels(node.params[0])
        case "clip":
            return delays.level * (1 + _levels(network.nodes[node.args[0]].bits - node.bits + 1))
        case "table":
            return delays.level * max(1, network.nodes[node.args[0]].bits - 3)
        case "select":
            return delays.level


def _levels(inputs: int) -> int:
    """Levels of four-input tables of a function of many inputs that is an AND or an OR."""
    return max(1, math.ceil(math.log(max(inputs, 2), 4)))
