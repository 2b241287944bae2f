"""Which tile of a product a block of threads computes: by its shape and the GPU's multiprocessors, from a few that are known to serve.

The choice is a model of one wave after the other: what a multiprocessor takes for a tile, times how many tiles it gets. It was
made from the number of multiply-adds that a thread gets out of what it loads, and has not been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Gpu
from .schedules import TensorTile, ThreadTile


@dataclass(frozen=True)
class Shape:
    """C[batch, rows, columns] = Σ over depth."""

    batch: int
    rows: int
    columns: int
    depth: int


_THREADS = (
    # rows, columns, and of one thread: rows, columns
    (128, 128, 8, 8), (128, 64, 8, 8), (64, 128, 8, 8), (64, 64, 8, 4), (32, 128, 4, 8), (128, 32, 8, 4), (32, 64, 4, 4), (64, 32, 4, 4),
    (32, 32, 4, 2), (16, 64, 2, 4), (64, 16, 4, 2), (16, 32, 2, 2), (8, 128, 2, 4),
)  # fmt: skip
_TENSOR = ((128, 64, 32, 32), (64, 128, 32, 32), (64, 64, 32, 32), (32, 64, 16, 32), (64, 32, 32, 16), (32, 32, 16, 16),
           (16, 64, 16, 16), (64, 16, 16, 16), (16, 32, 16, 16), (16, 16, 16, 16))  # fmt: skip
"""Rows and columns of a block, and of one of its warps."""
_PARTS = (1, 2, 4, 8, 16)
KERNEL_CYCLES = 4000.0
"""What one more kernel costs: launching it, and waiting for the one before."""


def thread_tile(machine: Gpu, shape: Shape, dtype: str) -> ThreadTile:
    """For sums in the ordinary units."""
    return _thread_tile(machine, shape, dtype)[1]


def tensor_tile(machine: Gpu, shape: Shape, dtype: str) -> TensorTile:
    """For sums on tensor cores."""
    return _tensor_tile(machine, shape, dtype)[1]


def product_cycles(machine: Gpu, shape: Shape, dtype: str, core: str | None) -> float:
    """What the product is estimated to take; ``core``: what tensor cores multiply it in, None for the ordinary units."""
    return (_thread_tile(machine, shape, dtype) if core is None else _tensor_tile(machine, shape, core))[0]


def _thread_tile(machine: Gpu, shape: Shape, dtype: str) -> tuple[float, ThreadTile]:
    wide = dtype in ("float64", "int64")
    found: list[tuple[float, int, ThreadTile]] = []
    for position, (rows, columns, tm, tn) in enumerate(_THREADS):
        if wide and tm * tn > 32:
            continue
        for parts in _PARTS:
            depth = 8 if rows + columns >= 192 else 16
            if parts > 1 and shape.depth < 2 * parts * depth:
                continue
            tile = ThreadTile(rows, columns, depth, parts, tm, tn)
            # Each multiply-add needs (1/tm + 1/tn) words of shared memory, a quarter of which a cycle gives.
            rate = 128 / max(1.0, 4 * (1 / tm + 1 / tn))
            found.append((_cycles(machine, shape, rows, columns, depth, parts, rate), position, tile))
    cycles, _, best = min(found, key=lambda one: one[:2])
    return cycles, best


def _tensor_tile(machine: Gpu, shape: Shape, dtype: str) -> tuple[float, TensorTile]:
    step = 8 if dtype == "tf32" else 16
    found: list[tuple[float, int, TensorTile]] = []
    for position, (rows, columns, warp_rows, warp_columns) in enumerate(_TENSOR):
        for parts in _PARTS:
            depth = 2 * step
            if parts > 1 and shape.depth < 2 * parts * depth:
                continue
            tile = TensorTile(rows, columns, depth, parts, warp_rows, warp_columns, step)
            rate = 64 * step / max(1.0, 16 * (1 / warp_rows + 1 / warp_columns) * 2)
            found.append((_cycles(machine, shape, rows, columns, depth, parts, rate), position, tile))
    cycles, _, best = min(found, key=lambda one: one[:2])
    return cycles, best


def _cycles(machine: Gpu, shape: Shape, rows: int, columns: int, depth: int, parts: int, rate: float) -> float:
    tiles = -(-shape.rows // rows) * -(-shape.columns // columns) * shape.batch * parts
    waves = -(-tiles // machine.cores)
    steps = -(-shape.depth // (parts * depth))
    # Per step: the products, and a round trip to memory that only other blocks of the multiprocessor can hide.
    per_step = rows * columns * depth / rate + 200.0 / min(4, max(1, waves))
    combine = KERNEL_CYCLES + shape.batch * shape.rows * shape.columns * parts / (machine.cores * 8) if parts > 1 else 0.0
    return waves * (steps * per_step + 600.0) + combine
