"""Pieces that schedules share: elementwise loops, tile sizes, and the parallel outer loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..machine import PARALLEL_WORK, Machine

ELEMENTWISE_WORK = 1 << 16
"""Elements from which an elementwise loop is worth several cores."""


def extent(schedule: Any, loop: Any) -> int:
    return int(schedule.get(loop).extent)


def fused(schedule: Any, loops: Sequence[Any]) -> Any:
    """One loop over all of ``loops``, which are nested directly in one another."""
    return loops[0] if len(loops) == 1 else schedule.fuse(*loops)


def elementwise(schedule: Any, block: Any, machine: Machine, dtype: str, *, keep: int = 0) -> None:
    """Loops without a reduction: the innermost axis in vectors, what is outside over the cores.

    ``keep``: leading loops that belong to somebody else and stay as they are.
    """
    loops = schedule.get_loops(block)[keep:]
    if not loops:
        return
    total = math.prod(extent(schedule, loop) for loop in loops)
    inner = extent(schedule, loops[-1])
    lanes = machine.lanes(dtype)
    if inner % lanes and inner < 4 * lanes:
        # A narrow innermost axis: vectors run over the flattened index instead.
        whole = fused(schedule, loops)
        if total % lanes == 0:
            outer, vector = schedule.split(whole, [None, lanes])
            schedule.vectorize(vector)
        else:
            outer = whole
        if not keep and total >= ELEMENTWISE_WORK:
            if outer is whole:
                outer, _ = schedule.split(whole, [None, max(1, total // (4 * machine.cores))])
            schedule.parallel(outer)
        return
    rest = list(loops[:-1])
    if inner % lanes == 0:
        outer, vector = schedule.split(loops[-1], [None, lanes])
        schedule.vectorize(vector)
        if extent(schedule, outer) > 1:
            rest.append(outer)
    if not keep and rest and total >= ELEMENTWISE_WORK:
        schedule.parallel(fused(schedule, rest))


def parallel(schedule: Any, loop: Any, work: int, machine: Machine) -> None:
    """Run ``loop`` on all cores where the kernel's ``work`` is worth waking them."""
    if work >= PARALLEL_WORK and machine.cores > 1 and extent(schedule, loop) > 1:
        schedule.parallel(loop)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit``."""
    return next(d for d in range(min(number, max(limit, 1)), 0, -1) if number % d == 0)
