"""Convolutions and matrix products by dot-product instructions: register blocks of vectors of outputs by positions.

Per word of activations the block broadcasts one word for each position and loads one vector of weights for each vector of
outputs. Products outnumber loads where both counts are large; the registers bound their product.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..machine import Machine
from .common import elementwise, extent, fused, largest_divisor, parallel

if TYPE_CHECKING:
    from ..ops.int8_dot import Dot

PANELS = (64, 32, 16, 8, 4)
LATENCY = 4
"""Cycles until an instruction's sum can be added to: fewer accumulators wait for themselves."""


@dataclass(frozen=True)
class Tile:
    """A register block: vectors of outputs (of one or several channel blocks) by positions of the last two spatial axes."""

    blocks: int
    """Channel blocks; 0: half of a block's vectors or fewer, one register."""
    rows: int
    columns: int

    @classmethod
    def ranked(cls, machine: Machine, dot: Dot, out: Sequence[int], block: int, row: int, broadcast: bool) -> list[Tile]:
        """The blocks that the registers hold, the one with the fewest cycles for the output first.

        ``row``: channel blocks that read the same input.
        """
        height, width = (out[-2] if len(out) > 1 else 1), out[-1]
        vectors = block // dot.lanes
        costs = {cls(1, 1, 1): math.inf}
        for columns in _divisors(width):
            for rows in _divisors(height):
                for blocks in (0, 1, 2, 4):
                    count = blocks * vectors if blocks else 1
                    # Beside the sums: the weights, a broadcast word, and the products where they are not added at once.
                    registers = count * columns * rows + count + (1 if dot.accumulates else 2)
                    if registers > machine.vector_registers or (blocks and row % blocks) or (not blocks and vectors == 1):
                        continue
                    products = count * columns * rows * (1 if dot.accumulates else 1.5)
                    loads = columns * rows + count if broadcast else 2 * count * columns * rows
                    cycles = max(products, 0.75 * loads, LATENCY) + 0.1 * loads
                    costs[cls(blocks, rows, columns)] = cycles / (count * columns * rows)
        # Equally good ones stay in this order: they differ by less than the estimate knows.
        return sorted(costs, key=lambda tile: round(costs[tile], 9))


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, min(number, 32) + 1) if number % d == 0]


@dataclass(frozen=True)
class DotConvolution:
    """Blocks: "acc" [N, M/b, *out, b], "out"; ``before``: copies of the input; "full" where the result's layout is another."""

    spatial: int
    block: int
    lanes: int
    """Of a register."""
    tile: Tile
    reduced: int
    """Reduction axes longer than 1."""
    before: tuple[str, ...]
    whole: bool
    dtype: str
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        for name in self.before:
            copy(schedule, schedule.get_sblock(name), machine)
        acc = schedule.get_sblock("acc")
        target = schedule.get_sblock("out" if self.whole else "full")
        position, inner = self._tiles(schedule, target, machine)
        schedule.compute_at(acc, position)
        schedule.set_scope(acc, 0, "local")
        self._sum(schedule, acc, len(schedule.get_loops(target)) - inner)
        loops = schedule.get_loops(target)
        for loop in loops[-inner:-1]:
            schedule.unroll(loop)
        schedule.vectorize(loops[-1])
        if not self.whole:
            elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)

    def _tiles(self, schedule: Any, target: Any, machine: Machine) -> tuple[Any, int]:
        """Cut the target's loops into blocks; returns the loop that runs over a task's blocks, and how many loops are in a block."""
        n, blocks, *places, lane = schedule.get_loops(target)
        outer, inner = [n], []
        if self.tile.blocks:
            blocks, within = schedule.split(blocks, [None, self.tile.blocks])
            outer.append(blocks)
            inner.append(within)
        else:
            half, lane = schedule.split(lane, [None, self.lanes])
            outer += [blocks, half]
        columns, *within = schedule.split(places[-1], [None, self.tile.columns])
        if self.spatial > 1:
            rows, *above = schedule.split(places[-2], [None, self.tile.rows])
            outer += [*places[:-2], rows]
            inner += above
        inner += [*within, lane]
        schedule.reorder(*outer, columns, *inner)
        parallel(schedule, fused(schedule, outer), self.work, machine)
        return columns, len(inner)

    def _sum(self, schedule: Any, acc: Any, outside: int) -> None:
        """Order the accumulation: channel blocks, taps, words in a block, and innermost the register block."""
        own = schedule.get_loops(acc)[outside:]
        # Unit loops vanish in compute_at, so the axes are counted from the end.
        spatial, reduced = own[: len(own) - self.reduced], own[len(own) - self.reduced :]
        lane = spatial.pop()
        lanes = [lane]
        if extent(schedule, lane) > self.lanes:
            lanes = list(schedule.split(lane, [None, self.lanes]))
        # A broadcast word meets all vectors of weights before the next one is broadcast: more would not fit the registers.
        blocks = spatial[:1] if self.tile.blocks > 1 else []
        schedule.reorder(*reduced, *spatial[len(blocks) :], *blocks, *lanes)
        count = len(spatial) + len(lanes)
        self._registers(schedule, acc, count)
        if reduced:
            # The copy of the loops that writes the initial value keeps none of their kinds.
            self._registers(schedule, schedule.decompose_reduction(acc, reduced[0]), count)

    @staticmethod
    def _registers(schedule: Any, block: Any, count: int) -> None:
        loops = schedule.get_loops(block)
        schedule.vectorize(loops[-1])
        for loop in loops[len(loops) - count : -1]:
            schedule.unroll(loop)


@dataclass(frozen=True)
class PlaneConvolution:
    """Vectors of positions. Blocks: "words", "acc" and "full" [N, M, *rows, vectors, lanes], "out"."""

    spatial: int
    lanes: int
    reduced: int
    filters: int
    """Per group."""
    dtype: str
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        copy(schedule, schedule.get_sblock("words"), machine)
        acc, target = schedule.get_sblock("acc"), schedule.get_sblock("full")
        n, filters, *rows, vectors, lane = schedule.get_loops(target)
        most = machine.vector_registers * 3 // 4
        own = largest_divisor(self.filters, most)
        beside = largest_divisor(extent(schedule, vectors), max(1, most // own))
        above = largest_divisor(extent(schedule, rows[-1]), max(1, most // (own * beside))) if rows else 1
        outer, inner = [n], []
        for loop, size in ((filters, own), *((row, above if row is rows[-1] else 1) for row in rows), (vectors, beside)):
            first, second = schedule.split(loop, [None, size])
            outer.append(first)
            inner.append(second)
        schedule.reorder(*outer, *inner, lane)
        *tasks, position = outer
        parallel(schedule, fused(schedule, tasks), self.work, machine)
        schedule.compute_at(acc, position)
        schedule.set_scope(acc, 0, "local")
        loops = schedule.get_loops(acc)[2:]
        spatial, reduced = loops[: len(loops) - self.reduced], loops[len(loops) - self.reduced :]
        schedule.reorder(*reduced, *spatial)
        DotConvolution._registers(schedule, acc, len(spatial))
        if reduced:
            DotConvolution._registers(schedule, schedule.decompose_reduction(acc, reduced[0]), len(spatial))
        for loop in schedule.get_loops(target)[2:-1]:
            schedule.unroll(loop)
        schedule.vectorize(schedule.get_loops(target)[-1])
        elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)


def copy(schedule: Any, block: Any, machine: Machine) -> None:
    """A padded copy: a row a task, its elements in order; LLVM makes vectors of what TVM's conditions allow."""
    loops = schedule.get_loops(block)
    total = math.prod(extent(schedule, loop) for loop in loops)
    last = extent(schedule, loops[-1])
    if last in (8, 16) and len(loops) > 3:
        schedule.vectorize(loops[-1])
    if total >= 1 << 15 and len(loops) > 3 and machine.cores > 1:
        schedule.parallel(fused(schedule, loops[:3]))


@dataclass(frozen=True)
class DotMatmul:
    """Blocks: "acc" [*lead, N/width, width], "out"; "left" where the rows are copied, "full" where panels are wider than the result."""

    lead: tuple[int, ...]
    """Axes before the columns, rows last."""
    panels: int
    width: int
    words: int
    """Steps of the sum."""
    lanes: int
    accumulates: bool
    copied: bool
    whole: bool
    dtype: str
    work: int

    @staticmethod
    def panel_width(rows: int, columns: int, machine: Machine, dot: Dot) -> int:
        """Columns per panel: wide where there is one row, whose columns are all the parallelism within a core."""
        widest = (4 if rows < 4 or machine.vector_registers >= 32 else 2) * dot.lanes
        fitting = [w for w in PANELS if dot.lanes <= w <= max(widest, dot.lanes)]
        if rows >= 4:
            # Two vectors of columns by as many rows as the registers hold.
            fitting = [w for w in fitting if w <= 2 * dot.lanes] or fitting
        return next((w for w in fitting if columns % w == 0), next((w for w in reversed(fitting) if w >= columns), fitting[0]))

    def _tile(self, machine: Machine) -> tuple[int, int, int]:
        """Rows, rows per register block, and how many axes those are of: all, or the last where a block would end amid others."""
        most = max(1, (machine.vector_registers - 4) // (self.width // self.lanes))

        def tile(rows: int) -> int:
            found = largest_divisor(rows, most)
            return min(rows, most) if found < 4 <= rows else found

        rows, last = math.prod(self.lead), self.lead[-1] if self.lead else 1
        several = sum(n > 1 for n in self.lead[:-1]) > 1
        aligned = rows == last or last % tile(rows) == 0 or (tile(rows) % last == 0 and not several)
        return (rows, tile(rows), len(self.lead)) if aligned else (last, tile(last), 1)

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if self.copied:
            elementwise(schedule, schedule.get_sblock("left"), machine, "int8")
        acc = schedule.get_sblock("acc")
        target = schedule.get_sblock("out" if self.whole else "full")
        loops = schedule.get_loops(target)
        rows, tile, joined = self._tile(machine)
        vectors = self.width // self.lanes
        before = [fused(schedule, loops[: len(self.lead) - joined])] if joined < len(self.lead) else []
        row = fused(schedule, loops[len(self.lead) - joined : len(self.lead)])
        if self.whole:
            panel, column = schedule.split(loops[-1], [None, self.width])
        else:
            panel, column = loops[-2:]
        outer, inner = schedule.split(row, [None, tile])
        schedule.reorder(panel, *before, outer, inner, column)
        parallel(schedule, schedule.fuse(panel, *before, outer), self.work, machine)
        position = schedule.get_loops(target)[0]
        schedule.compute_at(acc, position)
        schedule.set_scope(acc, 0, "local")
        for loop in schedule.get_loops(target)[1:-1]:
            schedule.unroll(loop)
        schedule.vectorize(schedule.get_loops(target)[-1])
        own = schedule.get_loops(acc)[1:]
        reduced = [own.pop()] if self.words > 1 else []
        lane = own.pop()
        lanes = list(schedule.split(lane, [None, self.lanes])) if vectors > 1 else [lane]
        if self.words > 1:
            reduced = list(schedule.split(reduced[0], [None, 4])) if self.words % 4 == 0 and self.words > 4 else reduced
            if len(reduced) > 1 and rows == 1:
                schedule.unroll(reduced[1])
        schedule.reorder(*reduced, *own, *lanes)
        count = len(own) + len(lanes)
        DotConvolution._registers(schedule, acc, count)
        if reduced:
            DotConvolution._registers(schedule, schedule.decompose_reduction(acc, reduced[0]), count)
        if not self.whole:
            elementwise(schedule, schedule.get_sblock("out"), machine, self.dtype)
