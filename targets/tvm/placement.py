"""How the values between kernels lie in memory, and which anchors copy their input.

Convolutions make and read channels in blocks of one vector (NCHWc); pooling and elementwise kernels go along with what
they are given; everything else is row-major.
"""

from __future__ import annotations

import math

from gatewright.frontend.integer import IntegerOp
from gatewright.frontend.windows import Window

from .fusion import Group
from .layout import ROW_MAJOR, Layout
from .machine import Machine
from .steps import Program, Step


def copies_input(step: Step, name: str) -> bool:
    """Whether the anchor ``step`` copies its input ``name`` before it starts, so that what makes it can be fused into the copy."""
    if step.inputs[0] != name or step.inputs.count(name) != 1:
        return False
    if isinstance(step.source, IntegerOp):
        return step.source.kind in ("conv", "matmul")
    node = step.source.node
    if node.op_type == "Conv":
        return Window.of(node).padded
    return node.op_type == "ConvTranspose"


def is_convolution(step: Step | None) -> bool:
    if step is None:
        return False
    return step.source.kind == "conv" if isinstance(step.source, IntegerOp) else step.source.node.op_type in ("Conv", "ConvTranspose")


def is_pooling(step: Step | None) -> bool:
    if step is None or step.source.node is None:
        return False
    return step.source.node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


def channel_block(channels: int, lanes: int) -> int:
    """Channels per block: one register of float32, or half of one; 0 where neither divides."""
    return next((b for b in (lanes, lanes // 2) if b >= 4 and channels % b == 0), 0)


def layouts(groups: list[Group], program: Program, machine: Machine) -> dict[str, Layout]:
    """Layout of each stored value; those that are absent are row-major."""
    chosen: dict[str, Layout] = {}
    outputs = {v.name for v in program.outputs}
    # AVX2's blocks are two registers wide: 16 channels.
    lanes = max(16, machine.lanes("float32"))
    for one in groups:
        value = one.output.output
        if value.name in outputs or len(value.shape) < 3 or math.prod(value.shape[2:]) == 1:
            continue
        if is_convolution(one.anchor):
            block = channel_block(value.shape[1], lanes)
        elif one.anchor is None or is_pooling(one.anchor):
            block = _inherited(one, chosen, program)
        else:
            block = 0
        if block:
            chosen[value.name] = Layout(block)
    return chosen


def _inherited(one: Group, chosen: dict[str, Layout], program: Program) -> int:
    """The block of an input with as many channels, where every step keeps the channels where they are."""
    value = one.output.output
    if any(step.role == "move" for step in one.steps):
        return 0
    shapes = {v.name: v.shape for v in (*program.inputs, *(s.output for s in program.steps))}
    for name in one.inputs:
        layout = chosen.get(name, ROW_MAJOR)
        if layout.block and shapes.get(name, ())[:2] == value.shape[:2]:
            return layout.block
    return 0
