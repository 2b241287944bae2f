"""Which steps share a kernel. No TVM here: only who reads whom, and the three roles of ``support.py``.

From the last step to the first, a step joins the kernel of its readers if all of them are in that one kernel, so a fused
value is never seen outside and the kernels can run in the order of their last steps. On top of that:

1. A kernel has at most one anchor. Behind it, only pointwise steps of the anchor's own shape, read at the same index.
2. Before an anchor, steps join only where the anchor copies its input anyway (``Copies``), since loops would recompute them
   (an order of channels is no computation); and not where they could stand behind the anchor that makes their own input.
3. A pointwise step does not join readers that are larger than it: they would compute it once per repetition.
4. A kernel has at most ``LIMIT`` steps, since expressions of values that are read twice double.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gatewright.frontend.integer import FloatStep

from .channels import reorders
from .steps import Step

LIMIT = 16

Copies = Callable[[Step, str], bool]
"""Whether an anchor copies this input into a buffer of its own before it starts."""

Alone = Callable[[Step], bool]
"""Whether a step is a group of its own (``views.py`` then makes it nothing at all)."""


@dataclass
class Group:
    """Steps of one kernel in execution order; the last one makes the kernel's output."""

    steps: list[Step] = field(default_factory=list)
    anchor: Step | None = None

    @property
    def output(self) -> Step:
        return self.steps[-1]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what the kernel reads and does not make, each once, in order."""
        made = {step.output.name for step in self.steps}
        return tuple(dict.fromkeys(name for step in self.steps for name in step.inputs if name is not None and name not in made))


def group(steps: Sequence[Step], outputs: Iterable[str], copies: Copies, alone: Alone = lambda step: False) -> list[Group]:
    """Kernels in an order in which they can run. ``outputs``: names that have to be stored whatever happens."""
    stored = set(outputs)
    readers: dict[str, list[Step]] = defaultdict(list)
    for step in steps:
        for name in step.inputs:
            if name is not None:
                readers[name].append(step)
    makers = {step.output.name: step for step in steps}
    home: dict[str, Group] = {}
    same_index: dict[str, bool] = {}
    before_anchor: dict[str, bool] = {}
    order: list[Group] = []
    for step in reversed(steps):
        name = step.output.name
        apart = name in stored or not readers[name] or alone(step) or any(alone(r) for r in readers[name])
        found = None if apart else _joinable(step, readers[name], home, same_index, before_anchor, copies)
        if found is not None and any(_before(r, before_anchor) for r in readers[name]) and _follows_anchor(step, makers, readers):
            found = None
        if found is None:
            found = Group()
            order.append(found)
            same_index[name], before_anchor[name] = True, False
        else:
            same_index[name] = _same_index(step, readers[name], same_index)
            before_anchor[name] = any(_before(r, before_anchor) for r in readers[name])
        found.steps.insert(0, step)
        if step.role == "anchor":
            found.anchor = step
        home[name] = found
    return order[::-1]


def _same_index(step: Step, readers: Iterable[Step], same_index: dict[str, bool]) -> bool:
    """Whether the kernel's loops meet this value at the very index of its output."""
    return all(r.role == "pointwise" and r.output.shape == step.output.shape and same_index[r.output.name] for r in readers)


def _before(reader: Step, before_anchor: dict[str, bool]) -> bool:
    """Whether what ``reader`` reads is computed before its kernel's anchor."""
    return reader.role == "anchor" or before_anchor[reader.output.name]


def _follows_anchor(step: Step, makers: dict[str, Step], readers: dict[str, list[Step]]) -> bool:
    """Whether an anchor makes an input of ``step``, or of the pointwise chain that leads to it, for nobody else."""
    if step.role != "pointwise":
        return False
    sources = [makers[name] for name in step.inputs if name in makers and len(readers[name]) == 1]
    same = [source for source in sources if source.output.shape == step.output.shape]
    return any(source.role == "anchor" or _follows_anchor(source, makers, readers) for source in same)


def _joinable(
    step: Step, readers: Sequence[Step], home: dict[str, Group], same_index: dict[str, bool], before_anchor: dict[str, bool], copies: Copies
) -> Group | None:
    """The kernel that ``step`` may join, by the rules at the top."""
    candidate = home[readers[0].output.name]
    if any(home[r.output.name] is not candidate for r in readers) or len(candidate.steps) >= LIMIT:
        return None
    name, size = step.output.name, math.prod(step.output.shape)
    if step.role == "anchor":
        return candidate if candidate.anchor is None and _same_index(step, readers, same_index) else None
    before = {_before(r, before_anchor) for r in readers}
    if before == {True, False} or any(r.role == "anchor" and not copies(r, name) and not _indirect(r, step) for r in readers):
        return None
    if step.role == "pointwise" and any(math.prod(r.output.shape) > size and r.role != "anchor" for r in readers):
        return None
    return candidate


def _indirect(anchor: Step, step: Step) -> bool:
    """Whether ``step`` is only another order of channels for a convolution that looks each of them up."""
    return reorders(step) and isinstance(anchor.source, FloatStep) and anchor.source.node.op_type == "Conv"
