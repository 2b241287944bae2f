"""How the values between kernels lie in memory, and which anchors copy their input.

Convolutions make and read channels in blocks of one vector (NCHWc); pooling and elementwise kernels go along with what
they are given; everything else is row-major.
"""

from __future__ import annotations

from gatewright.frontend.integer import IntegerOp
from gatewright.frontend.queries import integer
from gatewright.frontend.windows import Window

from .fusion import Group
from .layout import ROW_MAJOR, Layout
from .machine import Machine
from .reshapes import same_channels
from .steps import Program, Step
from .views import may_join_in_place

PLANAR_CHANNELS = 4
"""Fewer output channels than this are computed row by row, with vectors along the last spatial axis."""


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


def is_convolution(step: Step) -> bool:
    return step.source.kind == "conv" if isinstance(step.source, IntegerOp) else step.source.node.op_type in ("Conv", "ConvTranspose")


def is_pooling(step: Step | None) -> bool:
    if step is None or step.source.node is None:
        return False
    return step.source.node.op_type in ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")


def channel_block(channels: int, machine: Machine) -> int:
    """Channels per block: 16 (two registers of AVX2, one of AVX-512), or half of that; 0 where neither divides."""
    lanes = max(16, machine.lanes("float32"))
    return next((b for b in (lanes, lanes // 2) if channels % b == 0), 0)


def filter_block(filters: int, groups: int, machine: Machine) -> int:
    """Output channels that a convolution sums at a time; past a group's last channel it sums zeros. 0: a row at a time.

    Blocks do not straddle groups, unless each group is one channel.
    """
    if groups == filters > 1:
        return channel_block(filters, machine)
    own = filters // groups
    if (found := channel_block(own, machine)) or own < PLANAR_CHANNELS:
        return found
    lanes = max(16, machine.lanes("float32"))
    # Half blocks waste less of a group's last block; whole ones have half as many.
    return lanes if -own % lanes < lanes // 2 else lanes // 2


def layouts(groups: list[Group], program: Program, machine: Machine) -> dict[str, Layout]:
    """Layout of each stored value; those that are absent are row-major."""
    chosen: dict[str, Layout] = {}
    outputs = {v.name for v in program.outputs}
    for one in groups:
        value = one.output.output
        if value.name in outputs or len(value.shape) < 3:
            continue
        if one.anchor is not None and is_convolution(one.anchor):
            block = filter_block(value.shape[1], _groups(one.anchor), machine)
            own = value.shape[1] // _groups(one.anchor)
            block = block if block and (own % block == 0 or own == 1) else 0
        elif may_join_in_place(one.output):
            block = _common(one, chosen)
        elif one.anchor is None or is_pooling(one.anchor):
            block = _inherited(one, chosen, program) or _wanted(one, program, machine)
        else:
            block = 0
        if block:
            chosen[value.name] = Layout(block)
    return chosen


def _groups(convolution: Step) -> int:
    return integer(convolution.node, "group", 1)


def _common(one: Group, chosen: dict[str, Layout]) -> int:
    """The block that all operands of a Concat have."""
    blocks = {chosen.get(name, ROW_MAJOR).block for name in one.inputs}
    return blocks.pop() if len(blocks) == 1 and integer(one.output.node, "axis", 0) % len(one.output.output.shape) == 1 else 0


def _wanted(one: Group, program: Program, machine: Machine) -> int:
    """The block that convolutions would like, where a kernel without loops of its own writes for them alone."""
    value = one.output.output
    readers = [step for step in program.steps if value.name in step.inputs]
    dense = one.anchor is None and all(is_convolution(step) and _groups(step) == 1 for step in readers)
    return channel_block(value.shape[1], machine) if dense and not may_join_in_place(one.output) else 0


def _inherited(one: Group, chosen: dict[str, Layout], program: Program) -> int:
    """The block of an input with as many channels, where every step keeps the channels where they are."""
    value = one.output.output
    shapes = {v.name: v.shape for v in (*program.inputs, *(s.output for s in program.steps))}
    if any(step.role == "move" and not same_channels(step, shapes.get(str(step.inputs[0]), ())) for step in one.steps):
        return 0
    for name in one.inputs:
        layout = chosen.get(name, ROW_MAJOR)
        if layout.block and shapes.get(name, ())[:2] == value.shape[:2]:
            return layout.block
    return 0
