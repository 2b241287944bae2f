"""Reductions and pooling: each task makes one or a few results; the innermost axis of the result in vectors where it is wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..machine import Machine
from .common import extent, fused, parallel

VECTORS = (8, 16, 32, 64)
"""Lengths of an innermost axis that become one vector."""
OPERATION = 4
"""What an element costs, in multiply-adds of a dense kernel: nothing is reused."""


@dataclass(frozen=True)
class Reduction:
    """Blocks: "acc", shaped like the result's buffer, "out", and ``before``: blocks that "acc" reads, shaped like it."""

    axes: int
    """Reduction axes longer than 1."""
    dtype: str
    work: int
    before: tuple[str, ...] = ()
    decomposed: bool = True
    """Whether the initial value may be written by a loop of its own (not where several values are reduced together)."""

    def __call__(self, schedule: Any, machine: Machine) -> None:
        acc, out = schedule.get_sblock("acc"), schedule.get_sblock("out")
        if not schedule.get_loops(out):
            # One number: nothing to order.
            return
        *outer, inner = schedule.get_loops(out)
        same = self._shape(schedule, acc) == [extent(schedule, loop) for loop in (*outer, inner)]
        if not same or not self.axes:
            self._apart(schedule, acc, machine)
            return
        # A block of channels: one vector, in registers while it is summed.
        vector = self.decomposed and extent(schedule, inner) in VECTORS and len(outer) > 1
        if vector:
            parallel(schedule, fused(schedule, outer[:-1]), self.work * OPERATION, machine)
            position, outside = outer[-1], 2
        else:
            wide = bool(outer) and extent(schedule, inner) > 1
            position, outside = fused(schedule, outer if wide else [*outer, inner]), 1
            parallel(schedule, position, self.work * OPERATION, machine)
        for name in ("acc", *reversed(self.before)):
            schedule.compute_at(schedule.get_sblock(name), position)
        for name in (*self.before, "acc"):
            block = schedule.get_sblock(name)
            loops = schedule.get_loops(block)[outside:]
            sums = loops[-self.axes :]
            schedule.reorder(*sums, *loops[: -self.axes])
            if vector:
                schedule.set_scope(block, 0, "local")
                schedule.vectorize(schedule.get_loops(block)[-1])
            if self.decomposed:
                start = schedule.decompose_reduction(block, sums[0])
                if vector:
                    schedule.vectorize(schedule.get_loops(start)[-1])
        if vector:
            schedule.vectorize(schedule.get_loops(out)[-1])

    def _shape(self, schedule: Any, acc: Any) -> list[int]:
        loops = schedule.get_loops(acc)
        return [extent(schedule, loop) for loop in loops[: len(loops) - self.axes]]

    def _apart(self, schedule: Any, acc: Any, machine: Machine) -> None:
        """The result has other axes than the sums: both get their own loops."""
        for name in (*self.before, "acc"):
            block = schedule.get_sblock(name)
            loops = schedule.get_loops(block)
            outer = loops[: len(loops) - self.axes]
            if outer:
                parallel(schedule, fused(schedule, outer), self.work * OPERATION, machine)
            if self.axes and self.decomposed:
                schedule.decompose_reduction(block, schedule.get_loops(block)[-self.axes])
