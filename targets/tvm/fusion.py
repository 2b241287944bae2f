"""Which steps share a kernel. No TVM here: only who reads whom, and the three roles of ``support.py``.

From the last step to the first, a step joins the kernel of its readers if all of them are in that one kernel, so a fused
value is never seen outside and the kernels can run in the order of their last steps. On top of that:

1. A kernel has at most one anchor. Behind it, only pointwise steps of the anchor's own shape, read at the same index.
2. Before an anchor, steps join only where the anchor copies its input anyway (``Copies``), since loops would recompute them
   (an order of channels is no computation); and not where they could stand behind the anchor that makes their own input.
3. A pointwise step does not join readers that are larger than it: they would compute it once per repetition.
4. Reductions along the same axes, with what is pointwise between, before and behind them, are passes over a row of one kernel
   (a spelled out layer normalization): such a kernel has ``rows`` and may have several anchors.
5. A kernel has at most ``LIMIT`` steps, since expressions of values that are read twice double.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from gatewright.frontend.queries import reduce_axes, shape_of

from .channels import reorders
from .reshapes import adds_units, is_float
from .steps import Step

NESTED = (
    "Celu", "Cosh", "Elu", "Erf", "Exp", "Gelu", "Mish", "Selu", "Sigmoid", "Sinh", "Softplus", "Swish", "Tanh",
)  # fmt: skip
DEEPEST = 2
"""Of such functions one of another's value in a kernel: to prove bounds TVM's generator puts a value that is computed once into each of
its uses again, and a third function takes it minutes."""
LIMIT = 16

Copies = Callable[[Step, str], bool]
"""Whether an anchor copies this input into a buffer of its own before it starts."""

Alone = Callable[[Step], bool]
"""Whether a step is a group of its own (``views.py`` then makes it nothing at all)."""


_REDUCTIONS = frozenset({"ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSumSquare", "ReduceL1", "ReduceL2"})
MANY_ROWS = 8
"""Rows from which cores have enough of them; fewer are worth a kernel that runs row by row only where they are short."""
SHORT = 1 << 14
"""Elements of all rows together."""


@dataclass(frozen=True)
class Rows:
    """The shape of a tensor and the axes along which its rows are reduced."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def reduced(self) -> tuple[int, ...]:
        return tuple(1 if axis in self.axes else n for axis, n in enumerate(self.shape))

    @property
    def worth(self) -> bool:
        return math.prod(self.reduced) >= MANY_ROWS or math.prod(self.shape) <= SHORT

    def hold(self, steps: Iterable[Step]) -> bool:
        """Whether each of the steps has a value for each element or for each row."""
        return all(step.role != "move" and step.output.shape in (self.shape, self.reduced) for step in steps)


@dataclass
class Group:
    """Steps of one kernel in execution order; the last one makes the kernel's output."""

    steps: list[Step] = field(default_factory=list)
    anchor: Step | None = None
    rows: Rows | None = None
    """Where its steps are passes over rows."""

    @property
    def kept(self) -> frozenset[str]:
        """Of a kernel with rows, the values that a later pass needs: read more than once, or by every element of a row."""
        if self.rows is None:
            return frozenset()
        reads = [(name, step) for step in self.steps for name in step.inputs]
        count = Counter(name for name, _ in reads)
        whole = {name for name, step in reads if step.output.shape == self.rows.shape}
        found = (s.output for s in self.steps[:-1])
        return frozenset(v.name for v in found if count[v.name] > 1 or (v.shape == self.rows.reduced and v.name in whole))

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
    apart = {step.output.name for step in steps if alone(step) or _is_view(step, makers, stored)}
    home: dict[str, Group] = {}
    depth: dict[str, int] = {}
    same_index: dict[str, bool] = {}
    before_anchor: dict[str, bool] = {}
    order: list[Group] = []
    for step in reversed(steps):
        name = step.output.name
        single = name in stored or not readers[name] or name in apart or any(r.output.name in apart for r in readers[name])
        own = is_float(step, *NESTED)
        behind = max((depth[r.output.name] for r in readers[name]), default=0)
        found = (
            None
            if single or (own and behind >= DEEPEST)
            else _joinable(step, readers[name], home, same_index, before_anchor, copies, makers)
        )
        if found is not None and any(_before(r, before_anchor) for r in readers[name]) and _follows_anchor(step, makers, readers):
            # What has one value for each row follows a reduction of the same kernel.
            found = found if found.rows is not None and step.output.shape == found.rows.reduced else None
        if found is None:
            found = Group()
            order.append(found)
            same_index[name], before_anchor[name] = True, False
        else:
            same_index[name] = _same_index(step, readers[name], same_index)
            before_anchor[name] = any(_before(r, before_anchor) for r in readers[name])
        depth[name] = own + (behind if len(found.steps) else 0)
        found.steps.insert(0, step)
        if step.role == "anchor":
            found.anchor = step
        home[name] = found
    return order[::-1]


def _is_view(step: Step, makers: dict[str, Step], stored: set[str]) -> bool:
    """Whether ``step`` is a Reshape of unit axes of what a kernel stores: ``views.py`` makes it nothing at all."""
    maker = makers.get(str(step.inputs[0]))
    return maker is not None and maker.role != "move" and step.output.name not in stored and adds_units(step, maker.output.shape)


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
    step: Step, readers: Sequence[Step], home: dict[str, Group], same_index: dict[str, bool], before_anchor: dict[str, bool],
    copies: Copies, makers: dict[str, Step],
) -> Group | None:  # fmt: skip
    """The kernel that ``step`` may join, by the rules at the top."""
    candidate = home[readers[0].output.name]
    if any(home[r.output.name] is not candidate for r in readers) or len(candidate.steps) >= LIMIT:
        return None
    name, size = step.output.name, math.prod(step.output.shape)
    if _joins_rows(step, candidate, makers):
        return candidate
    if candidate.rows is not None:
        return None
    if step.role == "anchor":
        return candidate if candidate.anchor is None and _same_index(step, readers, same_index) else None
    before = {_before(r, before_anchor) for r in readers}
    if before == {True, False} or any(r.role == "anchor" and not copies(r, name) and not _indirect(r, step) for r in readers):
        return None
    if step.role == "pointwise" and any(math.prod(r.output.shape) > size and r.role != "anchor" for r in readers):
        return None
    return candidate


def _joins_rows(step: Step, candidate: Group, makers: dict[str, Step]) -> bool:
    """Whether ``step`` is a pass, or part of one, of a kernel that runs over rows, or that then does."""
    if candidate.rows is not None:
        own = _reduces(step, makers)
        return (own == candidate.rows or (own is None and step.role == "pointwise")) and candidate.rows.hold([step])
    rows = _reduces(step, makers) or _row_value(step, makers)
    if rows is None or not rows.worth or candidate.anchor is not None:
        return False
    if not rows.hold(candidate.steps) or all(s.output.shape != rows.shape for s in candidate.steps):
        return False
    candidate.rows = rows
    return True


def _reduces(step: Step, makers: dict[str, Step]) -> Rows | None:
    """Of a reduction that keeps its axes."""
    if not is_float(step, *_REDUCTIONS) or not step.output.dtype.startswith("float"):
        return None
    maker, source = makers.get(str(step.inputs[0])), step.node.inputs[0]
    if maker is not None:
        shape = maker.output.shape
    elif source is not None and source.name == step.inputs[0]:
        shape = shape_of(source)
    else:
        return None
    axes = reduce_axes(step.node, len(shape))
    rows = Rows(shape, axes or ())
    return rows if axes and rows.reduced == step.output.shape != rows.shape else None


def _row_value(step: Step, makers: dict[str, Step]) -> Rows | None:
    """Of a pointwise step on what a reduction left of each row."""
    if step.role != "pointwise":
        return None
    for name in step.inputs:
        maker = makers.get(str(name))
        if maker is not None and maker.output.shape == step.output.shape and (rows := _reduces(maker, makers) or _row_value(maker, makers)):
            return rows
    return None


def _indirect(anchor: Step, step: Step) -> bool:
    """Whether ``step`` is only another order of channels for a convolution that looks each of them up."""
    return reorders(step) and is_float(anchor, "Conv")
