"""Values that need no kernel: a Reshape of a row-major value is the same bytes, a Concat is where its operands are written.

A view is a name for a stretch of another value's buffer. Concats nest: in a densely connected network every feature map is
a stretch of the last one's buffer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gatewright.frontend.integer import IntegerOp
from gatewright.frontend.queries import integer

from .fusion import Group
from .layout import ROW_MAJOR, Layout
from .memory import ALIGNMENT
from .reshapes import RESHAPES, same_channels
from .steps import Program, Step, Value


@dataclass(frozen=True)
class View:
    """``nbytes`` from ``offset`` on of the buffer that holds ``of`` (which may be a view itself)."""

    of: str
    offset: int


def nbytes(value: Value) -> int:
    """Of a value's buffer, in every layout."""
    return math.prod(value.shape) * np.dtype(value.dtype).itemsize


def may_join_in_place(step: Step) -> bool:
    """Whether the step is a Concat whose operands, written side by side, are its result."""
    if isinstance(step.source, IntegerOp):
        concat = step.source.kind == "concat" and _plain_join(step.source)
    else:
        concat = step.source.node.op_type == "Concat"
    shape = step.output.shape
    return concat and math.prod(shape[: integer(step.node, "axis", 0) % len(shape)]) == 1


def find(groups: list[Group], chosen: dict[str, Layout], program: Program) -> tuple[dict[str, View], list[Group]]:
    """The views by name, and the groups that are then nothing to run."""
    finder = _Finder(chosen, program, groups)
    idle = [one for one in groups if len(one.steps) == 1 and finder.take(one.output)]
    return finder.views, idle


class _Finder:
    def __init__(self, chosen: dict[str, Layout], program: Program, groups: list[Group]) -> None:
        self.chosen = chosen
        self.outputs = {v.name for v in program.outputs}
        self.stored = {one.output.output.name: one.output.output for one in groups}
        self.views: dict[str, View] = {}

    def take(self, step: Step) -> bool:
        """Turn ``step`` into views if its operands and its result allow it."""
        result = step.output
        if result.name in self.outputs:
            # The caller gets a tensor of its own.
            return False
        op = step.source.kind if isinstance(step.source, IntegerOp) else step.source.node.op_type
        return self._reshape(step) if op in RESHAPES else may_join_in_place(step) and self._concat(step)

    def _reshape(self, step: Step) -> bool:
        name = step.inputs[0]
        if name is None or not self._inner(name):
            return False
        blocks = self._layout(name) == self._layout(step.output.name) and same_channels(step, self.stored[name].shape)
        if not blocks and not (self._is_row_major(name) and self._is_row_major(step.output.name)):
            return False
        self.views[step.output.name] = View(name, 0)
        return True

    def _concat(self, step: Step) -> bool:
        """Each operand may be written to one place only, and has to begin at a cache line."""
        result, layout = step.output, self._layout(step.output.name)
        axis = integer(step.node, "axis", 0) % len(result.shape)
        names = [name for name in step.inputs if name is not None]
        if len(set(names)) != len(names):
            return False
        offset, found = 0, {}
        for name in names:
            free = self._inner(name) and name not in self.views and self._layout(name) == layout
            if not free or offset % ALIGNMENT or (layout.block and axis != 1):
                return False
            found[name] = View(result.name, offset)
            offset += nbytes(self.stored[name])
        self.views.update(found)
        return True

    def _inner(self, name: str) -> bool:
        return name in self.stored and name not in self.outputs

    def _is_row_major(self, name: str) -> bool:
        """Blocks of a value with one position per channel (a global pool's) are row-major too."""
        return not self._layout(name).block or math.prod(self.stored[name].shape[2:]) == 1

    def _layout(self, name: str) -> Layout:
        return self.chosen.get(name, ROW_MAJOR)


def _plain_join(op: IntegerOp) -> bool:
    """Whether joining changes no integer: equal grids, and bounds that clamp nothing."""
    return all(o.grid.same_as(op.grid) and o.lo >= op.lo and o.hi <= op.hi and o.constant is None for o in op.operands)


def resolve(name: str, views: dict[str, View]) -> tuple[str, int]:
    """The value that owns the buffer, and the offset in it, bytes."""
    offset = 0
    while name in views:
        offset += views[name].offset
        name = views[name].of
    return name, offset
