"""Several passes over the same values: ``Rows`` where the result has the rows' shape (softmax, layer norm) and a task runs all
passes while its row is in the cache, ``Passes`` where it has not (group norm) and one pass ends before the next begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tvm import tirx

from ..machine import Machine
from .common import elementwise, extent, fused, parallel, vector_length

Kind = Literal["lanes", "sum", "row", "one"]
"""lanes  partial results of a reduction, side by side in the last axis
sum    a reduction to one result for each row
row    as many values as the row
one    a value for each row"""


@dataclass(frozen=True)
class Stage:
    """A block of the kernel before its result."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Rows:
    """Blocks: ``stages`` in order, "out". A row is all positions along ``axes``; where the last axis is not among them, rows lie
    across vectors of it."""

    axes: tuple[int, ...]
    stages: tuple[Stage, ...]
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        out = schedule.get_sblock("out")
        loops = schedule.get_loops(out)
        lanes = machine.lanes("float32")
        inside = [loop for axis, loop in enumerate(loops) if axis in self.axes]
        outside = [loop for axis, loop in enumerate(loops) if axis not in self.axes]
        across = 0 if len(loops) - 1 in self.axes else vector_length(extent(schedule, loops[-1]), 4 * lanes)
        if across > 1:
            outer, lane = schedule.split(outside.pop(), [None, across])
            outside.append(outer)
            inside.append(lane)
        if outside:
            schedule.reorder(*outside, *inside)
            task = fused(schedule, outside)
        else:
            task = schedule.add_unit_loop(loops[0])
        parallel(schedule, task, self.work, machine)
        for stage in reversed(self.stages):
            schedule.compute_at(schedule.get_sblock(stage.name), task)
        for stage in self.stages:
            self._order(schedule, stage, across > 1, lanes)
        self._vectors(schedule, out, across > 1, lanes)

    def _order(self, schedule: Any, stage: Stage, across: bool, lanes: int) -> None:
        block = schedule.get_sblock(stage.name)
        loops = schedule.get_loops(block)[1:]
        # Unit loops vanish in compute_at: what is left is the row's own axes, then the sums.
        count = sum(variable.iter_type == tirx.IterVar.CommReduce for variable in schedule.get(block).iter_vars)
        rest, sums = loops[: len(loops) - count], loops[len(loops) - count :]
        if stage.kind == "row":
            self._vectors(schedule, block, across, lanes)
        elif rest and (stage.kind == "lanes" or across):
            if sums:
                schedule.reorder(*sums, *rest)
                schedule.vectorize(rest[-1])
                start = schedule.decompose_reduction(block, sums[0])
                schedule.vectorize(schedule.get_loops(start)[-1])
            else:
                schedule.vectorize(rest[-1])

    def _vectors(self, schedule: Any, block: Any, across: bool, lanes: int) -> None:
        """The last axis in vectors."""
        last = schedule.get_loops(block)[-1]
        if across:
            schedule.vectorize(last)
            return
        length = vector_length(extent(schedule, last), lanes)
        if length > 1 and len(schedule.get_loops(block)) > 1:
            _, vector = schedule.split(last, [None, length])
            schedule.vectorize(vector)


@dataclass(frozen=True)
class Passes:
    """Blocks: ``stages``, each a reduction, in order; "out"."""

    stages: tuple[str, ...]
    dtype: str
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        for name in self.stages:
            block = schedule.get_sblock(name)
            loops = schedule.get_loops(block)
            summed = [variable.iter_type == tirx.IterVar.CommReduce for variable in schedule.get(block).iter_vars]
            rows = [loop for loop, inside in zip(loops, summed, strict=True) if not inside]
            if rows:
                schedule.reorder(*rows, *(loop for loop, inside in zip(loops, summed, strict=True) if inside))
                parallel(schedule, fused(schedule, rows), self.work, machine)
        elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)
