"""How a tensor lies in memory: row-major, or with its channels in vector-wide blocks (NCHWc).

Operators are written in logical indices (N, C, H, W). A Layout translates them into the indices of the buffer, so that
one definition of an operator serves every layout, and an elementwise chain over blocked tensors becomes a blocked loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from .lazy import simplify

Index = tuple[Any, ...]


@dataclass(frozen=True)
class Layout:
    """``block`` 0: row-major. Else axis 1 (channels) is cut: logical [N, C, *spatial] → buffer [N, C/block, *spatial, block]."""

    block: int = 0

    def buffer_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The buffer's shape for a tensor of logical ``shape``; C is a multiple of the block."""
        if not self.block:
            return tuple(shape)
        return (shape[0], shape[1] // self.block, *shape[2:], self.block)

    def to_buffer(self, index: Index) -> Index:
        """Logical index → index into the buffer."""
        if not self.block:
            return index
        channel = index[1]
        return (
            index[0], simplify(tirx.floordiv(channel, self.block)), *index[2:], simplify(tirx.floormod(channel, self.block)),
        )  # fmt: skip

    def to_logical(self, index: Index) -> Index:
        """Index into the buffer → logical index."""
        if not self.block:
            return index
        return (index[0], simplify(index[1] * self.block + index[-1]), *index[2:-1])


ROW_MAJOR = Layout()
