"""Winograd's convolution in integers: the loops of the float one, its products by dot-product instructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..machine import Machine
from .int8 import copy
from .winograd import Plan, Problem, Winograd, candidates, plans

if TYPE_CHECKING:
    from ..ops.int8_dot import Dot

TRANSFORM_CYCLES = (70, 90)
"""Of one tile and one vector of 16 channels, there and back with requantization, at 256 bits.

With these and ``REACHED`` Winograd over direct at 64@56, 128@28, 256@14 is 0.52, 0.47, 0.46 for AVX2 (measured 0.51, 0.46, 0.45) and
1.05, 0.94, 0.92 with VNNI (measured 0.98, 0.94, 0.92), on one core of a Zen 4.
"""
MOST_SUMS = 16
"""Vectors of sums that hide the latency; with 28 of AVX-512's registers it took 1.1 to 1.25 times as long as with 14."""
REACHED = 0.88
"""Of the peak, by the plain sum: its padded copy, its requantization and its tails take the rest."""


def products_per_cycle(machine: Machine, dot: Dot) -> float:
    """Multiply-adds of one core. An instruction that does not accumulate takes an addition's slot as well, of which there are more."""
    instructions = machine.products_per_cycle / machine.lanes("float32")
    return instructions * dot.lanes * dot.group / (1 if dot.accumulates else 1.5)


def problem(batch: int, channels: int, filters: int, out: tuple[int, ...], block: int, machine: Machine, dot: Dot) -> Problem:
    """A convolution by the 16-bit instruction ``dot``."""
    there, back = (round(cycles * 256 / min(machine.vector_bits, 256)) for cycles in TRANSFORM_CYCLES)
    return Problem(
        batch, channels, filters, out, block,
        element_bytes=2, products_per_cycle=products_per_cycle(machine, dot), transforms=((2, there, back),),
        most_sums=MOST_SUMS,
    )  # fmt: skip


def direct_cycles(problem: Problem, machine: Machine, dot: Dot) -> float:
    """An estimate for the busiest core of the plain sum by ``dot``."""
    products = 9 * problem.batch * math.prod(problem.out) * problem.channels * problem.filters
    weights = 9 * (4 // dot.group) * problem.channels * problem.filters / machine.memory_bytes_per_cycle
    multiply = products / products_per_cycle(machine, dot) / REACHED
    return (max(multiply, weights) + 0.15 * min(multiply, weights)) / machine.cores


def ranked(problem: Problem, machine: Machine) -> list[Plan]:
    """The plans for a search to measure, the fastest by estimate first, of two register blocks at least where there are two."""
    found = candidates(problem, machine)
    if len({plan.positions for plan in found}) < 2:
        found += [plan for plan in plans(problem, machine) if plan.positions != found[0].positions][:1]
    return found


@dataclass(frozen=True)
class IntegerWinograd(Winograd):
    """The blocks of ``Winograd``; "data" has the channels of a tile side by side, so that the sum is one loop over words of them."""

    lanes: int
    """Of a register."""

    def _copy(self, schedule: Any, block: Any, machine: Machine) -> None:
        copy(schedule, block, machine)

    def _products(self, schedule: Any, kept: Any) -> None:
        *_, q, t, lane = schedule.get_loops(kept)
        schedule.unroll(t)
        schedule.vectorize(lane)
        acc = schedule.get_sblock("acc")
        schedule.compute_at(acc, q, preserve_unit_loops=True)
        schedule.set_scope(acc, 0, "local")
        *_, t, lane, words = schedule.get_loops(acc)
        vectors, lane = schedule.split(lane, [None, self.lanes])
        schedule.reorder(words, t, vectors, lane)
        self._registers(schedule, acc)
        # The copy of the loops that writes the initial value keeps none of their kinds.
        self._registers(schedule, schedule.decompose_reduction(acc, words))

    @staticmethod
    def _registers(schedule: Any, block: Any) -> None:
        *_, t, vectors, lane = schedule.get_loops(block)
        schedule.unroll(t)
        schedule.unroll(vectors)
        schedule.vectorize(lane)
