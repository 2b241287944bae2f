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
    extents = [extent(schedule, loop) for loop in loops]
    lanes = machine.lanes(dtype)
    inner = _flat(extents, lanes)
    rest, last = list(loops[:-inner]), fused(schedule, loops[-inner:])
    length = math.prod(extents[-inner:])
    if length % lanes == 0:
        outer, vector = schedule.split(last, [None, lanes])
        schedule.vectorize(vector)
        if length > lanes:
            rest.append(outer)
    elif length < 4 * lanes:
        # LLVM cuts a vector of any length into those that there are.
        schedule.vectorize(last)
    if not keep and rest and math.prod(extents) >= ELEMENTWISE_WORK:
        schedule.parallel(fused(schedule, rest))


def _flat(extents: Sequence[int], lanes: int) -> int:
    """Innermost axes to run over as one, so that vectors fill it: two at most, since of three TVM no longer sees that they adjoin."""
    if extents[-1] % lanes and extents[-1] < 4 * lanes and len(extents) > 1 and extents[-2] * extents[-1] % lanes == 0:
        return 2
    return 1


def parallel(schedule: Any, loop: Any, work: int, machine: Machine) -> None:
    """Run ``loop`` on all cores where the kernel's ``work`` is worth waking them."""
    if work >= PARALLEL_WORK and machine.cores > 1 and extent(schedule, loop) > 1:
        schedule.parallel(loop)


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` up to ``limit``."""
    return next(d for d in range(min(number, max(limit, 1)), 0, -1) if number % d == 0)
