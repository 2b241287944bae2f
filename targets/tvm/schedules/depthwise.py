"""Depthwise convolution: vectors of channels, a few rows of one block of channels at a time.

There is one multiply-add per loaded element, so the input's way to the registers decides: each task copies the rows that it
needs, with their padding, into a buffer that its first-level cache holds, and sums from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..kernel import Choice
from ..machine import Machine
from .common import elementwise, fused, parallel

NEAR_BYTES = 1 << 16
"""Of the copied rows of one task: what the first-level cache and a part of the second hold."""
UNROLLED = 512
"""Multiply-adds that are written out one by one."""


@dataclass(frozen=True)
class Strip:
    """Rows of one task, and the register block that it is made of."""

    task: int
    rows: int
    columns: int

    @property
    def choice(self) -> Choice:
        return Choice("depthwise", (self.task, self.rows, self.columns))


def strips(shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dtype: str, machine: Machine) -> list[Strip]:
    """Candidates, the fastest by estimate first. ``shape``: of the sums, [N, M/b, H, W, b]; ``kernel``, ``strides``: of H and W."""
    batch, channels, high, wide, block = shape
    registers = max(1, block // machine.lanes(dtype))
    # Half of what 32 registers hold: the others take what neighbouring sums share.
    most = max(1, min(machine.vector_registers - 4, 14) // registers)
    found: dict[Strip, float] = {}
    for rows, columns in itertools.product(range(1, 5), range(1, wide + 1)):
        if rows * columns > most or rows > high:
            continue
        count = -(-high // rows)
        for parts in sorted({min(count, p) for p in (1, 2, 4, 8, 16)}):
            task = -(-count // parts) * rows
            tasks = batch * channels * -(-high // task)
            busiest = -(-tasks // machine.cores) * task * -(-wide // columns) * columns
            # Per result and tap one element, of which rows share some; too few sums do not hide the latency.
            loads = (rows - 1 + kernel[0]) / (rows * kernel[0]) if strides[0] == 1 else 1.0
            sums = math.prod(kernel) * (0.5 + 0.5 * loads) * max(1.0, 7 / (rows * columns * registers))
            copied = ((task - 1) * strides[0] + kernel[0]) * (wide * strides[1] + kernel[1])
            near = copied * block * 4 <= NEAR_BYTES
            found[Strip(task, rows, columns)] = busiest * (sums + (2.0 if near else 3.0) * copied / (task * wide))
    return sorted(found, key=lambda strip: found[strip])


@dataclass(frozen=True)
class Depthwise:
    """Blocks: "pad" (the copy) where there is one, "acc" [N, M/b, H, W, b], "out"."""

    strip: Strip
    block: int
    taps: tuple[int, ...]
    """The kernel's axes that are longer than 1."""
    dtype: str
    copied: bool
    blocked: bool
    """Whether the result is stored in the same blocks."""
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        out, acc = schedule.get_sblock("out"), schedule.get_sblock("acc")
        n, channel, high, wide, *lane = schedule.get_loops(out)
        if not self.blocked:
            channel, *lane = schedule.split(channel, [None, self.block])
        task, inside, row = schedule.split(high, [None, -(-self.strip.task // self.strip.rows), self.strip.rows])
        columns, column = schedule.split(wide, [None, self.strip.columns])
        schedule.reorder(n, channel, task, inside, columns, row, column, *lane)
        task = fused(schedule, [n, channel, task])
        parallel(schedule, task, self.work, machine)
        schedule.unroll(row)
        schedule.unroll(column)
        if self.blocked:
            schedule.vectorize(lane[0])
        schedule.compute_at(acc, columns, preserve_unit_loops=True)
        schedule.set_scope(acc, 0, "local")
        count = len(self.taps)
        if count:
            loops = schedule.get_loops(acc)
            reduced, spatial = loops[-count:], loops[-count - 3 : -count]
            schedule.reorder(*reduced, *spatial)
            if math.prod(self.taps) * self.strip.rows * self.strip.columns <= UNROLLED:
                for loop in reduced:
                    schedule.unroll(loop)
            self._registers(schedule, acc)
            self._registers(schedule, schedule.decompose_reduction(acc, reduced[0]))
        else:
            self._registers(schedule, acc)
        if self.copied:
            pad = schedule.get_sblock("pad")
            schedule.compute_at(pad, task, preserve_unit_loops=True)
            elementwise(schedule, pad, machine, self.dtype, keep=1)

    @staticmethod
    def _registers(schedule: Any, block: Any) -> None:
        *_, row, column, lane = schedule.get_loops(block)
        schedule.unroll(row)
        schedule.unroll(column)
        schedule.vectorize(lane)
