"""Several passes over the same row (softmax, layer norm): a task runs them all while the row is in the cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..machine import Machine
from .common import extent, fused, parallel


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
