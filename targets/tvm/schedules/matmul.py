"""Matrix product against panels of packed columns: a register block of a few rows by one panel, summed over k.

Per k step the block loads one panel row and one element of each of its rows: ``rows × width / lanes`` multiply-adds on as
many registers, which have to be enough to hide the latency and few enough not to spill.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..machine import Machine
from .common import elementwise, fused, parallel

UNROLL = 4
"""Steps of k in one pass of the inner loop."""


@dataclass(frozen=True)
class PackedMatmul:
    """Blocks: "acc" (the sums), "out"; "left" and "pack" where the operands are copied, "full" where panels are wider than the result."""

    lead: tuple[int, ...]
    """Axes before the columns, rows last."""
    panels: int
    tile: int
    """Rows of a register block."""
    width: int
    """Columns of one."""
    depth: int
    dtype: str
    copied: bool
    packs: bool
    whole: bool
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        for name, present in (("left", self.copied), ("pack", self.packs)):
            if present:
                elementwise(schedule, schedule.get_sblock(name), machine, self.dtype)
        acc = schedule.get_sblock("acc")
        target = schedule.get_sblock("out" if self.whole else "full")
        loops = schedule.get_loops(target)
        # A panel of an operand of its own for every batch: a block stays within one batch.
        batch, lead = (self.lead[:-1], self.lead[-1:]) if self.packs else ((), self.lead)
        tile = min(self.tile, math.prod(lead))
        row = fused(schedule, loops[len(batch) : len(self.lead)])
        if self.whole:
            panel, column = schedule.split(loops[-1], [None, self.width])
        else:
            panel, column = loops[-2:]
        outer, inner = schedule.split(row, [None, tile])
        schedule.reorder(*loops[: len(batch)], panel, outer, inner, column)
        parallel(schedule, schedule.fuse(*loops[: len(batch)], panel, outer), self.work, machine)
        position = schedule.get_loops(target)[0]
        schedule.compute_at(acc, position)
        schedule.set_scope(acc, 0, "local")
        self._block(schedule, target, tile)
        if self.depth > 1:
            *spatial, k = schedule.get_loops(acc)[1:]
            parts = [k]
            if self.depth % UNROLL == 0 and self.depth > UNROLL:
                parts = list(schedule.split(k, [None, UNROLL]))
                schedule.unroll(parts[1])
            schedule.reorder(*parts, *spatial)
            self._block(schedule, acc, tile)
            # The copy of the loops that writes the initial value keeps none of their kinds.
            self._block(schedule, schedule.decompose_reduction(acc, parts[0]), tile)
        else:
            self._block(schedule, acc, tile)
        if not self.whole:
            elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)

    def _block(self, schedule: Any, block: Any, tile: int) -> None:
        """Columns in vectors, rows unrolled, so that the block lives in registers."""
        loops = schedule.get_loops(block)
        if self.width > 1:
            schedule.vectorize(loops[-1])
        if tile > 1:
            schedule.unroll(loops[-2])


@dataclass(frozen=True)
class GroupedMatmul:
    """Few rows against panels of integers with a scale for each group of k: a group is summed in registers, then scaled and added.

    Blocks: "sums" (of a group), "totals" (of a row's inputs in a group, where integers are ``shifted``), "acc", "out"; "left" where the
    rows are copied, "full" where panels are wider than the result.
    """

    lead: tuple[int, ...]
    panels: int
    width: int
    group: int
    count: int
    """Groups."""
    dtype: str
    copied: bool
    shifted: bool
    whole: bool
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if self.copied:
            elementwise(schedule, schedule.get_sblock("left"), machine, self.dtype)
        acc, sums = schedule.get_sblock("acc"), schedule.get_sblock("sums")
        target = schedule.get_sblock("out" if self.whole else "full")
        loops = schedule.get_loops(target)
        row = fused(schedule, loops[: len(self.lead)])
        panel, column = schedule.split(loops[-1], [None, self.width]) if self.whole else loops[-2:]
        schedule.reorder(panel, row, column)
        parallel(schedule, schedule.fuse(panel, row), self.work, machine)
        position = schedule.get_loops(target)[0]
        schedule.compute_at(acc, position)
        schedule.set_scope(acc, 0, "local")
        schedule.vectorize(schedule.get_loops(target)[-1])
        if self.count > 1:
            *spatial, group = schedule.get_loops(acc)[1:]
            schedule.reorder(group, *spatial)
            schedule.compute_at(sums, group)
        else:
            schedule.compute_at(sums, position)
        schedule.set_scope(sums, 0, "local")
        before = 2 if self.count > 1 else 1
        *spatial, k = schedule.get_loops(sums)[before:]
        outer, inner = schedule.split(k, [None, UNROLL])
        schedule.unroll(inner)
        schedule.reorder(outer, inner, *spatial)
        schedule.vectorize(spatial[-1])
        schedule.vectorize(schedule.get_loops(schedule.decompose_reduction(sums, outer))[-1])
        schedule.vectorize(schedule.get_loops(acc)[-1])
        if self.count > 1:
            schedule.vectorize(schedule.get_loops(schedule.decompose_reduction(acc, schedule.get_loops(acc)[1]))[-1])
        if not self.whole:
            elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)
