"""Which part of a quantized model becomes hardware (targets hls and rtl): the integers between the float edges, which run on the host.

    graph inputs → host_pre (QuantizeLinear, leading movement) → core (integer) → host_post (DequantizeLinear, Softmax, …) → graph outputs

A float node in the middle has no place in such a design and is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gatewright.errors import UnsupportedError, UnsupportedOp

from .extract import captured, submodel
from .integer import FloatStep, IntegerOp, Plan
from .model import Model

Step = IntegerOp | FloatStep

MOVEMENT = frozenset({"Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze"})
"""Ops that only reorder values: in the design they are an order of wires."""

HOST_KINDS = frozenset({"softmax"})
"""Integer operations that end on the host: they divide."""


@dataclass(frozen=True)
class Split:
    """The steps of a plan, dealt out."""

    model: Model
    plan: Plan
    pre: tuple[Step, ...]
    core: tuple[Step, ...]
    post: tuple[Step, ...]

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Integer values that enter the core, in order of first use."""
        made = {name for step in self.core for name in written(step)}
        read = dict.fromkeys(name for step in self.core for name in self._variable_reads(step))
        return tuple(name for name in read if name not in made)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Values of the core that the host or the user reads, in order of computation."""
        wanted = {value.name for value in self.model.graph.outputs} | {name for step in self.post for name in reads(step)}
        return tuple(name for step in self.core for name in written(step) if name in wanted)

    @cached_property
    def host_pre(self) -> Model | None:
        """The sub-model from the graph's inputs to everything that the core and host_post read of it; None where that is nothing."""
        made = [name for step in self.pre for name in written(step)]
        ends = {value.name for value in self.model.graph.outputs}
        wanted = set(self.inputs) | {name for step in self.post for name in self._variable_reads(step)} | ends
        outputs = [name for name in made if name in wanted]
        return submodel(self.model, [i.name for i in self.model.inputs], outputs, "host_pre") if outputs else None

    @cached_property
    def host_post(self) -> Model | None:
        """The sub-model from the core's outputs to the graph's; None where the core's outputs are the graph's."""
        ends = [value.name or "" for value in self.model.graph.outputs]
        made = {name for step in self.post for name in written(step)}
        outputs = [name for name in ends if name in made]
        if not outputs:
            return None
        read = dict.fromkeys(name for step in self.post for name in self._variable_reads(step))
        return submodel(self.model, [name for name in read if name not in made], outputs, "host_post")

    @cached_property
    def core_model(self) -> Model:
        """The integer part as a model of its own: what the design must equal."""
        return submodel(self.model, list(self.inputs), list(self.outputs), "core")

    def _variable_reads(self, step: Step) -> list[str]:
        constants = self.model.graph.initializers
        return [name for name in reads(step) if name not in constants]


def reads(step: Step) -> list[str]:
    """Names of the values that a step reads, constants included."""
    if isinstance(step, IntegerOp):
        return [operand.name for operand in step.operands]
    return [*(value.name or "" for value in step.node.inputs if value is not None), *captured(step.node)]


def written(step: Step) -> list[str]:
    """Names of the values that a step makes."""
    return [step.output] if isinstance(step, IntegerOp) else [value.name for value in step.node.outputs if value.name]


def split(model: Model, plan: Plan, target: str) -> tuple[Split, tuple[UnsupportedOp, ...]]:
    """The parts, and every node that stands in the way. Raises UnsupportedError for a model without integer operations."""
    if not plan.is_quantized:
        raise UnsupportedError(
            f"{target} takes quantized models and {model.name!r} is float",
            hint="quantize it: transform with fuse,quantize{bits=8,grid=pow2}, or give data= and it is done for you",
        )
    part: dict[int, str] = {}
    maker = {name: index for index, step in enumerate(plan.steps) for name in written(step)}

    def parts_read(step: Step) -> set[str]:
        return {part[maker[name]] for name in reads(step) if name in maker}

    for index, step in enumerate(plan.steps):
        found = parts_read(step)
        hardware = isinstance(step, IntegerOp) and step.kind not in HOST_KINDS
        if not found & {"core", "post"}:
            part[index] = "core" if hardware and not is_movement(step) else "pre"
        elif "post" in found:
            part[index] = "post"
        else:
            part[index] = "core" if hardware or is_movement(step) else "post"
    readers: dict[int, list[int]] = {index: [] for index in part}
    for index, step in enumerate(plan.steps):
        for name in reads(step):
            if name in maker:
                readers[maker[name]].append(index)
    for index in reversed(range(len(plan.steps))):
        step = plan.steps[index]
        if part[index] == "core" and is_movement(step) and all(part[reader] == "post" for reader in readers[index]):
            part[index] = "post"
    problems = tuple(_in_the_middle(plan.steps, part, readers, target))
    dealt = {name: tuple(step for index, step in enumerate(plan.steps) if part[index] == name) for name in ("pre", "core", "post")}
    return Split(model, plan, dealt["pre"], dealt["core"], dealt["post"]), problems


def is_movement(step: Step) -> bool:
    """True for a step that reorders integers and leaves every one as it is."""
    if isinstance(step, FloatStep):
        source = step.node.inputs[0] if step.node.inputs else None
        return step.node.op_type in MOVEMENT and source is not None and source.dtype is not None and source.dtype.is_integer()
    source_grid = step.operands[0].grid
    return (
        step.kind == "requantize" and step.node is not None and step.node.op_type in MOVEMENT and step.grid.same_as(source_grid)
        and step.lo <= step.operands[0].lo and step.hi >= step.operands[0].hi
    )  # fmt: skip


def _in_the_middle(steps: tuple[Step, ...], part: dict[int, str], readers: dict[int, list[int]], target: str) -> list[UnsupportedOp]:
    """Host steps after the core that integer operations still depend on."""
    leads_back: set[int] = set()

    def wants_hardware(index: int) -> bool:
        step = steps[index]
        return index in leads_back or (isinstance(step, IntegerOp) and step.kind not in HOST_KINDS and not is_movement(step))

    for index in reversed(range(len(steps))):
        if part[index] == "post" and any(wants_hardware(reader) for reader in readers[index]):
            leads_back.add(index)
    problems = []
    for index in sorted(leads_back):
        step = steps[index]
        if isinstance(step, IntegerOp):
            rule = f"{step.kind} runs on the host, and integer layers follow it"
            problems.append(UnsupportedOp(node=step.name, op=step.op, target=target, rule=rule, hint="keep it as the last layer"))
        elif step.node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Clip", *MOVEMENT):
            problems.append(
                UnsupportedOp(
                    node=step.node.name or "", op=step.node.op_type, target=target, rule="it is computed in float between quantized layers",
                    hint="leave it out of the model, or quantize it with a form that has an integer meaning (see the quantize pass)",
                )
            )  # fmt: skip
    return problems
