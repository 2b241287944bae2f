"""Winograd convolution: input transform, batched matrix products, output transform, in chunks of tiles that stay in a core's cache."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..kernel import Choice
from ..machine import Machine
from .common import elementwise, fused, parallel

OUTER_CACHE_BYTES_PER_CYCLE = 10.0
"""That a core reads of a cache shared with others."""
BARRIER_CYCLES = 5000
TRANSFORM_CYCLES = {2: (60, 50), 4: (220, 200)}
"""By m: of one tile and one vector of 16 channels, there and back; counted from the instructions, 32 bytes a cycle."""


@dataclass(frozen=True)
class Problem:
    """What is convolved, as far as the time depends on it."""

    batch: int
    channels: int
    filters: int
    out: tuple[int, ...]
    block: int
    """Filters of one register block."""
    element_bytes: int = 4
    """Of a transformed input or weight."""
    products_per_cycle: float = 0.0
    """Multiply-adds of one core; 0: the machine's in float32."""
    transforms: tuple[tuple[int, int, int], ...] = tuple((m, *cycles) for m, cycles in TRANSFORM_CYCLES.items())
    """m, and the cycles of the transforms there and back, for each tile size that may be used."""

    most_sums: int = 64
    """Vectors of sums in a register block, where fewer than there are registers for is better."""

    def rate(self, machine: Machine) -> float:
        return self.products_per_cycle or machine.products_per_cycle


@dataclass(frozen=True)
class Plan:
    """One way to run it."""

    m: int
    """Results per tile and axis: 2 or 4."""
    rows: int
    """Rows of tiles that are transformed, multiplied and transformed back together."""
    positions: int
    """Tiles of one register block."""
    shared: bool
    """True: all inputs are transformed first and the cores share out the filters, each of which is then read once.
    False: the cores share out the tiles and keep what they transform to themselves; every one reads all filters."""

    @property
    def choice(self) -> Choice:
        return Choice(f"winograd{self.m} by {'filters' if self.shared else 'tiles'}", (self.rows, self.positions))

    @classmethod
    def of(cls, choice: Choice) -> Plan:
        """The inverse of ``choice``."""
        rows, positions = choice.blocks
        return cls(4 if choice.algorithm.startswith("winograd4") else 2, rows, positions, choice.algorithm.endswith("filters"))

    def cycles(self, problem: Problem, machine: Machine) -> float:
        """An estimate for the busiest core."""
        points = (self.m + 2) ** 2
        high, wide = (-(-extent // self.m) for extent in problem.out)
        parts, blocks = -(-high // self.rows), -(-self.rows * wide // self.positions)
        chunks, filter_blocks = problem.batch * parts, problem.filters // problem.block
        tasks = chunks * (filter_blocks if self.shared else 1)
        share = -(-tasks // machine.cores) / tasks
        tiles = chunks * blocks * self.positions
        products = points * tiles * problem.channels * problem.filters * share
        # One vector of weights is loaded for the block's positions, and few sums do not hide the latency.
        sums = self.positions * max(1, problem.block // machine.lanes("float32"))
        multiply = products / problem.rate(machine) * (1 + 0.5 / self.positions) * max(1.0, 7 / sums)
        there, back = next(cycles for m, *cycles in problem.transforms if m == self.m)
        even = 1 / min(machine.cores, max(tasks, 1))
        transforms = tiles / 16 * (there * problem.channels * (even if self.shared else share) + back * problem.filters * share)
        weights, data = (problem.element_bytes * points * problem.channels * n for n in (problem.filters, tiles))
        outer = OUTER_CACHE_BYTES_PER_CYCLE
        if self.shared:
            reading = weights * share / machine.memory_bytes_per_cycle
            reading += data * filter_blocks * share / outer if data > machine.l2_bytes else 0.0
            # The cores wait for one another, and fetch what the others transformed.
            transforms += BARRIER_CYCLES + (2 if data > machine.l2_bytes else 1) * data / machine.cores / outer
        else:
            # One core has it from memory, the others from the cache that they share.
            reading = weights / machine.cores * (1 / machine.memory_bytes_per_cycle + (machine.cores - 1) / outer)
            reading += max(0.0, chunks * share - 1) * weights / outer if weights > machine.l2_bytes // 2 else 0.0
            reading += 2 * data * share / outer if data / chunks > machine.l2_bytes // 2 else 0.0
        return max(multiply, reading) + 0.15 * min(multiply, reading) + transforms


def plans(problem: Problem, machine: Machine) -> list[Plan]:
    """All that are worth a thought, the fastest by estimate first."""
    most = max(1, min(machine.vector_registers - 4, problem.most_sums) // max(1, problem.block // machine.lanes("float32")))
    found = []
    for m, *_ in problem.transforms:
        high, wide = (-(-extent // m) for extent in problem.out)
        for rows in sorted({-(-high // parts) for parts in range(1, high + 1)}):
            for positions in range(min(4, rows * wide), min(most, rows * wide) + 1):
                found += [Plan(m, rows, positions, shared) for shared in (False, True)]
    return sorted(found, key=lambda plan: plan.cycles(problem, machine))


def candidates(problem: Problem, machine: Machine) -> list[Plan]:
    """The estimated best of each kind, and what comes close to the best of all: for a search to measure."""
    ranked = plans(problem, machine)
    kinds = list({(plan.m, plan.shared): plan for plan in reversed(ranked)}.values())
    near = [plan for plan in ranked[:3] if plan not in kinds]
    return sorted([*kinds, *near], key=lambda plan: plan.cycles(problem, machine))


def direct_cycles(problem: Problem, machine: Machine) -> float:
    """The same for the plain sum."""
    products = 9 * problem.batch * math.prod(problem.out) * problem.channels * problem.filters
    weights = 36 * problem.channels * problem.filters / machine.memory_bytes_per_cycle
    multiply = products / machine.products_per_cycle / 0.95
    return (max(multiply, weights) + 0.15 * min(multiply, weights)) / machine.cores


@dataclass(frozen=True)
class Winograd:
    """Blocks, in the order of ``ops/winograd.py``: "copy" where the input is copied, "tile", "half", "data" (the transformed input),
    "acc", "kept" (the products), "upright", "result", "out"."""

    m: int
    rows: int
    wide: int
    parts: int
    block: int
    inner: int
    shared: bool
    copied: bool
    blocked: bool
    """Whether the result is stored in the blocks that it is summed in."""
    work: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if self.copied:
            self._copy(schedule, schedule.get_sblock("copy"), machine)
        out = schedule.get_sblock("out")
        loops = schedule.get_loops(out)
        if self.blocked:
            n, b, oy, ox, lane = loops
        else:
            n, c, oy, ox = loops
            b, lane = schedule.split(c, [None, self.block])
        part, row, y = schedule.split(oy, [self.parts, self.rows, self.m])
        column, x = schedule.split(ox, [self.wide, self.m])
        if self.shared:
            schedule.reorder(b, n, part, row, column, y, x, lane)
            b = schedule.fuse(b, n, part)
            parallel(schedule, b, self.work, machine)
        else:
            schedule.reorder(n, part, b, row, column, y, x, lane)
            task = fused(schedule, [n, part])
            parallel(schedule, task, self.work, machine)
        schedule.unroll(y)
        schedule.unroll(x)
        if self.blocked:
            schedule.vectorize(lane)
        self._back(schedule, column, y)
        kept = schedule.get_sblock("kept")
        schedule.compute_at(kept, b, preserve_unit_loops=True)
        self._products(schedule, kept)
        data = schedule.get_sblock("data")
        if self.shared:
            self._transform(schedule, data, 0, machine)
        else:
            schedule.compute_at(data, task, preserve_unit_loops=True)
            self._transform(schedule, data, 1, machine)

    def _copy(self, schedule: Any, block: Any, machine: Machine) -> None:
        elementwise(schedule, block, machine, "float32")

    def _back(self, schedule: Any, column: Any, y: Any) -> None:
        for name in ("result", "upright"):
            block = schedule.get_sblock(name)
            schedule.compute_at(block, column, preserve_unit_loops=True)
            schedule.set_scope(block, 0, "local")
            *_, first, second, lane = schedule.get_loops(block)
            schedule.unroll(first)
            schedule.unroll(second)
            schedule.vectorize(lane)

    def _products(self, schedule: Any, kept: Any) -> None:
        *_, q, t, lane = schedule.get_loops(kept)
        schedule.unroll(t)
        schedule.vectorize(lane)
        acc = schedule.get_sblock("acc")
        schedule.compute_at(acc, q, preserve_unit_loops=True)
        schedule.set_scope(acc, 0, "local")
        *_, t, lane, c = schedule.get_loops(acc)
        c, within = schedule.split(c, [None, self.inner])
        schedule.reorder(c, within, t, lane)
        schedule.unroll(t)
        schedule.vectorize(lane)
        init = schedule.decompose_reduction(acc, c)
        *_, t, lane = schedule.get_loops(init)
        schedule.unroll(t)
        schedule.vectorize(lane)

    def _transform(self, schedule: Any, data: Any, keep: int, machine: Machine) -> None:
        *outer, u, v, q, c, t, lane = schedule.get_loops(data)
        outer = outer[keep:]
        schedule.reorder(*outer, q, c, t, u, v, lane)
        schedule.unroll(u)
        schedule.unroll(v)
        schedule.vectorize(lane)
        for name in ("half", "tile"):
            block = schedule.get_sblock(name)
            schedule.compute_at(block, t, preserve_unit_loops=True)
            schedule.set_scope(block, 0, "local")
            *_, first, second, lane = schedule.get_loops(block)
            schedule.unroll(first)
            schedule.unroll(second)
            schedule.vectorize(lane)
        if not keep:
            parallel(schedule, fused(schedule, [*outer, q, c]), self.work, machine)
