"""Loops as they come, for kernels that have no schedule of their own or whose schedule TVM refused: right, and not fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..machine import PARALLEL_WORK, Machine
from .common import extent, fused

_DATA_PARALLEL = 0
"""TVM's number for an axis whose steps do not depend on one another."""


@dataclass(frozen=True)
class Plain:
    """Every block of the kernel one after the other, its outer data-parallel loops over the cores where they are many steps."""

    def __call__(self, schedule: Any, machine: Machine) -> None:
        for block in schedule.get_child_blocks(schedule.get_sblock("root")):
            loops = schedule.get_loops(block)
            kinds = [int(axis.iter_type) for axis in schedule.get(block).iter_vars]
            if machine.cores == 1 or len(kinds) != len(loops):
                continue
            count = next((i for i, kind in enumerate(kinds) if kind != _DATA_PARALLEL), len(kinds))
            steps = 1
            for loop in loops:
                steps *= extent(schedule, loop)
            outer = loops[: min(count, len(loops) - 1)]
            if outer and steps >= PARALLEL_WORK:
                schedule.parallel(fused(schedule, outer))
