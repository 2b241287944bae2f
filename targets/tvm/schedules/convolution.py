"""Direct convolution over vectors of output channels: a register block of spatial positions, summed over channels and taps.

Per (channel, tap) the block loads one vector of weights and one input element per position. The block's size decides the
speed: too few positions do not hide the multiply-add's latency, too many spill (12 accumulators of 16 registers on AVX2,
up to 28 of 32 on AVX-512).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..kernel import Choice
from ..machine import Machine
from .common import elementwise, extent, fused, largest_divisor, parallel


@dataclass(frozen=True)
class Tile:
    """Positions of the last two spatial axes that one register block holds."""

    rows: int
    columns: int

    @property
    def choice(self) -> Choice:
        return Choice("direct", (self.rows, self.columns))

    @classmethod
    def candidates(cls, machine: Machine, out: Sequence[int], block: int, dtype: str) -> list[Tile]:
        """Those whose accumulators fit the registers, the fastest by estimate first."""
        per_position = max(1, -(-block // machine.lanes(dtype)))
        most = max(1, (machine.vector_registers - 4) // per_position)
        high, wide = (out[-2] if len(out) > 1 else 1), out[-1]
        found = {}
        for rows, columns in itertools.product(range(1, min(most, high) + 1), range(1, min(most, wide) + 1)):
            positions = rows * columns
            if positions > most:
                continue
            waste = -(-high // rows) * rows * -(-wide // columns) * columns / (high * wide)
            # One vector of weights serves all positions; few sums do not hide the latency, long code does not stay near.
            cost = waste * (1 + 0.5 / positions) * max(1.0, 7 / (positions * per_position)) * (1.05 if positions > 14 else 1.0)
            found[cls(rows, columns)] = cost * (1.05 if waste > 1 else 1.0)
        return sorted(found, key=lambda tile: (found[tile], tile.rows))


def near_rows(
    machine: Machine, tile: Tile, batch: int, channels: int, out: Sequence[int], kernel: Sequence[int], strides: Sequence[int], filters: int
) -> int:
    """Rows of the result for which a task should copy its padded input itself (``DirectConvolution.near``).

    That pays where the whole input is too large for the caches while all filters and some rows of the input are not.
    """
    high, wide = out
    row = 4 * channels * (wide * strides[1] + kernel[1])
    if row * high * strides[0] <= machine.l2_bytes // 4 or 4 * math.prod(kernel) * channels * filters > machine.l2_bytes // 4:
        return 0
    best, rows = math.inf, 0
    for parts in range(1, high + 1):
        task = -(-high // (parts * tile.rows)) * tile.rows
        copied, tasks = (task - 1) * strides[0] + kernel[0], batch * -(-high // task)
        cost = -(-tasks // machine.cores) * (task + copied * channels / (filters * math.prod(kernel)))
        if copied * row <= machine.l2_bytes // 8 and cost < best:
            best, rows = cost, task
    return rows


@dataclass(frozen=True)
class DirectConvolution:
    """Blocks: "acc" [N, M/b, *out, b], "out", "pad" where the input is copied, "full" where the last block is padded."""

    spatial: int
    block: int
    tile: Tile
    channel_split: int
    """The input's channel block: the sum over channels runs over blocks, then taps, then channels in a block. 0: not cut."""
    has_channel: bool
    taps: int
    """Kernel axes longer than 1."""
    dtype: str
    copied: bool
    whole: bool
    blocked: bool
    """Whether the result is stored in the same blocks."""
    work: int

    near: int
    """Rows of the result for which a task copies its input itself, all channels of it; 0: the input is copied beforehand."""

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if self.copied and not self.near:
            elementwise(schedule, schedule.get_sblock("pad"), machine, self.dtype)
        acc = schedule.get_sblock("acc")
        target = schedule.get_sblock("out" if self.whole else "full")
        loops = schedule.get_loops(target)
        if self.blocked or not self.whole:
            *lead, lane = loops
        else:
            # Row-major: [n, m, *out] → [n, m/b, *out, b]
            channel, lane = schedule.split(loops[1], [None, self.block])
            lead = [loops[0], channel, *loops[2:]]
            schedule.reorder(*lead, lane)
        position = self._tiles(schedule, target, lead, lane, machine)
        schedule.compute_at(acc, position)
        schedule.set_scope(acc, 0, "local")
        if self.near:
            pad = schedule.get_sblock("pad")
            schedule.compute_at(pad, schedule.get_loops(target)[0], preserve_unit_loops=True)
            elementwise(schedule, pad, machine, self.dtype, keep=1)
        self._sum(schedule, acc, len(schedule.get_loops(target)) - self._inner_loops())
        for loop in schedule.get_loops(target)[-self._inner_loops() : -1]:
            schedule.unroll(loop)
        if self.blocked or not self.whole:
            schedule.vectorize(schedule.get_loops(target)[-1])
        if not self.whole:
            elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)

    def _inner_loops(self) -> int:
        return 3 if self.spatial > 1 else 2

    def _tiles(self, schedule: Any, target: Any, lead: list[Any], lane: Any, machine: Machine) -> Any:
        """Cut the target's loops into blocks; returns the loop that runs over a task's blocks."""
        columns, *inner = schedule.split(lead[-1], [None, self.tile.columns])
        outer, inner = lead[:-1], [*inner, lane]
        if self.near:
            task, rows, *within = schedule.split(lead[-2], [None, self.near // self.tile.rows, self.tile.rows])
            schedule.reorder(lead[0], task, lead[1], rows, columns, *within, *inner)
            task = fused(schedule, [lead[0], task])
            parallel(schedule, task, self.work, machine)
            return columns
        if self.spatial > 1:
            rows, *within = schedule.split(lead[-2], [None, self.tile.rows])
            outer, inner = [*lead[:-2], rows], [*within, *inner]
        schedule.reorder(*outer, columns, *inner)
        parallel(schedule, fused(schedule, outer), self.work, machine)
        return columns

    def _sum(self, schedule: Any, acc: Any, outside: int) -> None:
        """Order the accumulation: channel blocks, taps, channels in a block, and innermost the register block."""
        own = schedule.get_loops(acc)[outside:]
        count = self.taps + self.has_channel
        if not count:
            return
        # Unit loops vanish in compute_at, so the axes are counted from the end.
        spatial, reduced = own[:-count], own[-count:]
        if self.has_channel:
            channel, taps = reduced[0], reduced[1:]
            if self.channel_split:
                blocks, channel = schedule.split(channel, [None, self.channel_split])
                order = [blocks, *taps, channel]
            else:
                order = [*taps, channel] if self.taps else [channel]
        else:
            order = list(reduced)
        schedule.reorder(*order, *spatial)
        self._registers(schedule, acc, len(spatial))
        # The copy of the loops that writes the initial value keeps none of their kinds.
        self._registers(schedule, schedule.decompose_reduction(acc, order[0]), len(spatial))

    @staticmethod
    def _registers(schedule: Any, block: Any, count: int) -> None:
        """The innermost ``count`` loops: positions unrolled, channels in vectors."""
        loops = schedule.get_loops(block)
        schedule.vectorize(loops[-1])
        for loop in loops[len(loops) - count : -1]:
            schedule.unroll(loop)


@dataclass(frozen=True)
class PlanarConvolution:
    """Few output channels: a row of the result at a time, vectors along it. Blocks: "acc" [N, M, *out], "out", "pad"."""

    spatial: int
    reduced: int
    dtype: str
    copied: bool
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if self.copied:
            elementwise(schedule, schedule.get_sblock("pad"), machine, self.dtype)
        acc, out = schedule.get_sblock("acc"), schedule.get_sblock("out")
        # All axes but the row itself.
        task = fused(schedule, schedule.get_loops(out)[:-1])
        parallel(schedule, task, self.work, machine)
        schedule.compute_at(acc, task)
        loops = schedule.get_loops(acc)[1:]
        if self.reduced and len(loops) > self.reduced:
            column, sums = loops[0], loops[1:]
            schedule.reorder(*sums, column)
            schedule.decompose_reduction(acc, sums[0])
        elif self.reduced:
            schedule.decompose_reduction(acc, loops[0])


@dataclass(frozen=True)
class Dots:
    """Few output channels of an input in blocks: vectors of its channels, for some columns at a time.

    Blocks: "pad" where the input is copied, "acc" and "kept" (its copy) [N, M, *out, b], "total" and "out" [N, M, *out].
    """

    block: int
    reduced: int
    dtype: str
    copied: bool
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if self.copied:
            elementwise(schedule, schedule.get_sblock("pad"), machine, self.dtype)
        out = schedule.get_sblock("out")
        *lead, wide = schedule.get_loops(out)
        columns, column = schedule.split(wide, [None, self._columns(extent(schedule, wide), machine)])
        if extent(schedule, column) > 1:
            schedule.vectorize(column)
        parallel(schedule, fused(schedule, lead), self.work, machine)
        for name in ("total", "kept", "acc"):
            block = schedule.get_sblock(name)
            schedule.compute_at(block, columns, preserve_unit_loops=True)
            schedule.set_scope(block, 0, "local")
            if name == "kept":
                self._registers(schedule, block)
        acc = schedule.get_sblock("acc")
        if not self.reduced:
            self._registers(schedule, acc)
            return
        loops = schedule.get_loops(acc)
        spatial, sums = loops[-self.reduced - 2 : -self.reduced], loops[-self.reduced :]
        schedule.reorder(*sums, *spatial)
        self._registers(schedule, acc)
        self._registers(schedule, schedule.decompose_reduction(acc, sums[0]))

    def _columns(self, wide: int, machine: Machine) -> int:
        """As many sums as the registers hold; where it divides, whole vectors of results."""
        most = max(1, (machine.vector_registers - 4) // max(1, self.block // machine.lanes(self.dtype)))
        whole = next((n for n in (16, 8, 4) if n <= most and wide % n == 0), 0)
        return whole or (largest_divisor(wide, most) if largest_divisor(wide, most) >= 4 else min(wide, most))

    @staticmethod
    def _registers(schedule: Any, block: Any) -> None:
        *_, column, lane = schedule.get_loops(block)
        schedule.unroll(column)
        schedule.vectorize(lane)
