"""Several passes over the same values: ``Rows`` where the result has the rows' shape (softmax, layer norm) and a task runs all
passes while its row is in the cache, ``Passes`` where it has not (group norm) and one pass ends before the next begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ..machine import Machine
from .common import elementwise, extent, fused, parallel


@dataclass(frozen=True)
class Rows:
    """Blocks: ``stages`` in order, "out". A row is all positions along ``axes``."""

    axes: tuple[int, ...]
    stages: tuple[str, ...]
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        out = schedule.get_sblock("out")
        loops = schedule.get_loops(out)
        inside = [loop for axis, loop in enumerate(loops) if axis in self.axes]
        outside = [loop for axis, loop in enumerate(loops) if axis not in self.axes]
        if outside:
            schedule.reorder(*outside, *inside)
            task = fused(schedule, outside)
        else:
            task = schedule.add_unit_loop(loops[0])
        parallel(schedule, task, self.work, machine)
        for name in reversed(self.stages):
            schedule.compute_at(schedule.get_sblock(name), task)
        lanes = machine.lanes("float32")
        last = schedule.get_loops(out)[-1]
        if extent(schedule, last) % lanes == 0:
            _, vector = schedule.split(last, [None, lanes])
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
