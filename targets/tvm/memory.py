"""Where the values between kernels lie: offsets in one arena, so that values that are never alive together share bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector load."""


@dataclass(frozen=True)
class Life:
    """A buffer's size, and the first and last call during which it has to keep its place."""

    name: str
    nbytes: int
    first: int
    last: int


def aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def plan(lives: Sequence[Life]) -> tuple[dict[str, int], int]:
    """Offset of each buffer, and the arena's size. The largest first, each at the lowest place that is free during its life."""
    placed: list[tuple[Life, int]] = []
    for life in sorted(lives, key=lambda one: (-one.nbytes, one.first, one.name)):
        meanwhile = [(other, start) for other, start in placed if other.first <= life.last and life.first <= other.last]
        busy = sorted((start, start + aligned(other.nbytes)) for other, start in meanwhile)
        offset = 0
        for start, end in busy:
            if offset + aligned(life.nbytes) <= start:
                break
            offset = max(offset, end)
        placed.append((life, offset))
    size = max((offset + aligned(life.nbytes) for life, offset in placed), default=0)
    return {life.name: offset for life, offset in placed}, size
