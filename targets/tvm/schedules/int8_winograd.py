"""Winograd's convolution in integers: the loops of the float one, its products by dot-product instructions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..machine import Machine
from .int8 import copy
from .winograd import Problem, Winograd

if TYPE_CHECKING:
    from ..ops.int8_dot import Dot

TRANSFORM_CYCLES = (70, 90)
"""Of one tile and one vector of 16 channels, there and back with requantization, at 256 bits."""
REACHED = 0.8
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
    )  # fmt: skip


def direct_cycles(problem: Problem, machine: Machine, dot: Dot) -> float:
    """An estimate for the busiest core of the plain sum by ``dot``."""
    products = 9 * problem.batch * math.prod(problem.out) * problem.channels * problem.filters
    weights = 9 * (4 // dot.group) * problem.channels * problem.filters / machine.memory_bytes_per_cycle
    multiply = products / products_per_cycle(machine, dot) / REACHED
    return (max(multiply, weights) + 0.15 * min(multiply, weights)) / machine.cores


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
