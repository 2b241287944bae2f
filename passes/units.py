"""Units of channels and which of them are tied: a union-find whose classes may be frozen, for a reason."""

from __future__ import annotations

import numpy as np

from .rewrite import Array

FROZEN = 0
"""The unit of what cannot be removed; the class of every frozen one."""


class Units:
    """Union-find; a class may be frozen, for a reason."""

    def __init__(self) -> None:
        self._parent: list[int] = [FROZEN]
        self._reasons: dict[int, str] = {}
        """Of frozen classes, by root."""

    def fresh(self, count: int) -> Array:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def find(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = self._parent[self._parent[unit]]
            unit = self._parent[unit]
        return unit

    def roots(self, units: Array) -> Array:
        """The class of each unit; 0 for all that are frozen."""
        found = [self.find(int(u)) for u in units]
        return np.asarray([FROZEN if r in self._reasons else r for r in found], np.int64)

    def unite(self, first: Array, second: Array, by: str) -> None:
        """``by`` says who ties them, for the reason where one side cannot move."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            low, high = sorted((self.find(a), self.find(b)))
            if low == FROZEN and high != FROZEN:
                self._reasons.setdefault(high, f"{by} ties it to an axis of fixed size")
            elif low != high:
                self._parent[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons.pop(high))

    def freeze(self, units: Array, reason: str) -> None:
        for unit in units.tolist():
            root = self.find(unit)
            if root != FROZEN:
                self._reasons.setdefault(root, reason)

    def reason(self, units: Array) -> str:
        """Why these are frozen."""
        return next((self._reasons[r] for u in units.tolist() if (r := self.find(u)) in self._reasons), "its size is fixed")
