"""How the loops of a kernel are dealt out to blocks and threads. Blocks of loops go by the names that their lowering gave; the
result is "out".

A kernel whose blocks can't share one launch is several launches, one after the other, and what lies between them a buffer in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from ..machine import Machine
from ..schedules.common import extent, fused
from .machine import WARP

THREADS = 256
_REDUCED = int(tirx.IterVar.CommReduce)
LONG = 64
"""Terms from which a sum is worth several threads where there are too few sums for all of them."""
MANY = 1 << 14
"""Sums from which each may have one thread."""


@dataclass(frozen=True)
class Tile:
    """Of C, for one block of threads; ``depth`` terms of each sum at a time in shared memory."""

    rows: int
    columns: int
    depth: int
    parts: int
    """Into which the sum is split."""


@dataclass(frozen=True)
class ThreadTile(Tile):
    thread_rows: int
    thread_columns: int


@dataclass(frozen=True)
class TensorTile(Tile):
    warp_rows: int
    warp_columns: int
    step: int
    """Terms of one instruction."""


@dataclass(frozen=True)
class Tiled:
    """Blocks: "a" and "b", the operands, "acc", the sums, and ``stores``, which has C's shape; what follows is elementwise."""

    tile: Tile
    dtype: str
    stores: str = "out"

    def __call__(self, schedule: Any, machine: Machine) -> None:
        if isinstance(self.tile, TensorTile):
            from .tensor_cores import tiled

            tiled(schedule, self.tile, self.dtype, self.stores)
        else:
            assert isinstance(self.tile, ThreadTile)
            self._threads(schedule, self.tile)
        if self.stores != "out":
            elementwise(schedule, schedule.get_sblock("out"))

    def _threads(self, schedule: Any, tile: ThreadTile) -> None:
        acc, out = schedule.get_sblock("acc"), schedule.get_sblock(self.stores)
        batch, m, n, k = loops_of(schedule, acc)
        # Two halves a thread, far apart: neighbouring threads then read neighbouring words.
        tm, tn = min(4, tile.thread_rows), min(4, tile.thread_columns)
        across, down = tile.columns // tile.thread_columns, tile.rows // tile.thread_rows
        mo, vy, ty, mi = schedule.split(m, [None, tile.thread_rows // tm, down, tm])
        no, vx, tx, ni = schedule.split(n, [None, tile.thread_columns // tn, across, tn])
        ko, ki = schedule.split(k, [None, tile.depth])
        schedule.reorder(batch, mo, no, vy, vx, ty, tx, ko, ki, mi, ni)
        for loop, axis in (
            (batch, "blockIdx.z"), (mo, "blockIdx.y"), (no, "blockIdx.x"), (vy, "vthread.y"), (vx, "vthread.x"), (ty, "threadIdx.y"),
            (tx, "threadIdx.x"),
        ):  # fmt: skip
            schedule.bind(loop, axis)
        schedule.set_scope(acc, 0, "local")
        schedule.reverse_compute_at(out, tx)
        for name in ("a", "b"):
            fetch(schedule, schedule.get_sblock(name), ko, [down, across])
        schedule.decompose_reduction(acc, ko)
        for loop in (ki, mi, ni):
            schedule.unroll(loop)


@dataclass(frozen=True)
class Shared:
    """Blocks: "acc", sums that the threads of a block share, "out", of its shape."""

    stores: str = "out"

    def __call__(self, schedule: Any, machine: Machine) -> None:
        self.share(schedule)

    def share(self, schedule: Any) -> None:
        acc, out = schedule.get_sblock("acc"), schedule.get_sblock(self.stores)
        loops = loops_of(schedule, out)
        task = fused(schedule, loops) if loops else schedule.add_unit_loop(out)
        schedule.bind(task, "blockIdx.x")
        schedule.compute_at(acc, task)
        schedule.set_scope(acc, 0, "shared")
        _share(schedule, acc, _threads_for(terms_of(schedule, acc)))
        if self.stores != "out":
            elementwise(schedule, schedule.get_sblock("out"))


@dataclass(frozen=True)
class Direct:
    """Blocks: "acc", one sum a thread, and "out"."""

    axes: int

    def __call__(self, schedule: Any, machine: Machine) -> None:
        inside(schedule, ["acc"])


@dataclass(frozen=True)
class RowPasses:
    """Blocks: passes over a row, in order, then "out". A block of threads has a row to itself; what passes leave for one another lies
    in shared memory."""

    axes: tuple[int, ...]

    def __call__(self, schedule: Any, machine: Machine) -> None:
        out = schedule.get_sblock("out")
        loops = loops_of(schedule, out)
        row = [loop for axis, loop in enumerate(loops) if axis in self.axes]
        outside = [loop for axis, loop in enumerate(loops) if axis not in self.axes]
        threads = _threads_for(math.prod(extent(schedule, loop) for loop in row))
        schedule.reorder(*outside, *row)
        task = fused(schedule, outside) if outside else schedule.add_unit_loop(row[0])
        schedule.bind(task, "blockIdx.x")
        before = [block for block in schedule.get_child_blocks(schedule.get_sblock("root")) if schedule.get(block).name_hint != "out"]
        kept = [block for block in before if _reduces(schedule, block) or _is_row(schedule, block, self.axes)]
        for block in before:
            if block not in kept:
                schedule.compute_inline(block)
        for block in reversed(kept):
            schedule.compute_at(block, task)
        for block in kept:
            schedule.set_scope(block, 0, "shared")
            if _reduces(schedule, block):
                _share(schedule, block, threads)
            else:
                _spread(schedule, block, threads, 1)
        _spread(schedule, out, threads, 1)


def loops_of(schedule: Any, block: Any) -> list[Any]:
    return list(schedule.get_loops(block))


def elementwise(schedule: Any, block: Any) -> None:
    """One element a thread."""
    loops = loops_of(schedule, block)
    flat = fused(schedule, loops) if loops else schedule.add_unit_loop(block)
    outer, inner = schedule.split(flat, [None, min(THREADS, -(-extent(schedule, flat) // WARP) * WARP)])
    schedule.bind(outer, "blockIdx.x")
    schedule.bind(inner, "threadIdx.x")


def inside(schedule: Any, names: Sequence[str]) -> None:
    """ "out", one element a thread, and the named blocks, which it reads, computed by the thread that needs them."""
    out = schedule.get_sblock("out")
    elementwise(schedule, out)
    thread = loops_of(schedule, out)[1]
    for name in reversed(names):
        block = schedule.get_sblock(name)
        schedule.compute_at(block, thread)
        schedule.set_scope(block, 0, "local")
    for name in names:
        block = schedule.get_sblock(name)
        sums = _sums(schedule, block)
        if sums and _one_result(schedule, block):
            schedule.decompose_reduction(block, sums[0])


def apart(schedule: Any) -> None:
    """Each block a launch of its own: right for every kernel."""
    for block in schedule.get_child_blocks(schedule.get_sblock("root")):
        loops, sums = loops_of(schedule, block), _sums(schedule, block)
        free = loops[: len(loops) - len(sums)]
        count = math.prod(extent(schedule, loop) for loop in free)
        terms = terms_of(schedule, block)
        if sums and terms >= LONG and count < MANY and _one_result(schedule, block):
            task = fused(schedule, free) if free else schedule.add_unit_loop(sums[0])
            schedule.bind(task, "blockIdx.x")
            _share(schedule, block, _threads_for(terms))
            continue
        flat = fused(schedule, free) if free else schedule.add_unit_loop(sums[0] if sums else block)
        outer, inner = schedule.split(flat, [None, min(THREADS, -(-count // WARP) * WARP)])
        schedule.bind(outer, "blockIdx.x")
        schedule.bind(inner, "threadIdx.x")
        if sums and _one_result(schedule, block):
            schedule.decompose_reduction(block, _sums(schedule, block)[0])


def fetch(schedule: Any, block: Any, loop: Any, threads: Sequence[int]) -> None:
    """A tile of an operand into shared memory, all threads of the block taking part."""
    # The scope first: what all threads of the block read is then fetched, and not what one of them does.
    schedule.set_scope(block, 0, "shared")
    schedule.compute_at(block, loop)
    flat = schedule.fuse(*loops_of(schedule, block)[-2:])
    _, *inner = schedule.split(flat, [None, *threads])
    for part, axis in zip(reversed(inner), "xyz", strict=False):
        schedule.bind(part, f"threadIdx.{axis}")


def _share(schedule: Any, block: Any, threads: int) -> None:
    """A sum's terms dealt out to the threads of a block."""
    terms = fused(schedule, _sums(schedule, block))
    _, thread = schedule.split(terms, [None, threads])
    schedule.bind(thread, "threadIdx.x")


def _spread(schedule: Any, block: Any, threads: int, keep: int) -> None:
    """The loops inside the first ``keep``, dealt out to threads."""
    loops = loops_of(schedule, block)[keep:]
    flat = fused(schedule, loops) if loops else schedule.add_unit_loop(block)
    _, thread = schedule.split(flat, [None, threads])
    schedule.bind(thread, "threadIdx.x")


def _sums(schedule: Any, block: Any) -> list[Any]:
    """The loops of a block's reduction; unit loops may have vanished, so they are known by the variables that they bind."""
    variables = [v for v in schedule.get(block).iter_vars if int(v.iter_type) == _REDUCED]
    loops = loops_of(schedule, block)
    return loops[len(loops) - len(variables) :] if variables else []


def terms_of(schedule: Any, block: Any) -> int:
    return math.prod(extent(schedule, loop) for loop in _sums(schedule, block))


def _reduces(schedule: Any, block: Any) -> bool:
    return any(int(v.iter_type) == _REDUCED for v in schedule.get(block).iter_vars)


def _one_result(schedule: Any, block: Any) -> bool:
    """Whether the block writes one buffer: several reduced together (a value and its position) start and end together."""
    return len(schedule.get(block).writes) == 1


def _is_row(schedule: Any, block: Any, axes: tuple[int, ...]) -> bool:
    """Whether a block makes a value for each element of a row, and not one for the row."""
    extents = [int(v.dom.extent) for v in schedule.get(block).iter_vars]
    return len(extents) > max(axes) and any(extents[axis] > 1 for axis in axes)


def _threads_for(terms: int) -> int:
    """A power of two of warps that gives each thread a few terms."""
    threads = WARP
    while threads < THREADS and threads * 4 <= terms:
        threads *= 2
    return threads
