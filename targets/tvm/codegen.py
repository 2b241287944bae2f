"""From steps to kernels: which run together, how their values lie in memory, and the finished TVM functions.

The result is a ``Module``: named functions, the order of their calls, and the constants that they are called with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import tvm_ffi
from tvm import s_tir, te

from gatewright.errors import GatewrightError, UnsupportedOp
from gatewright.frontend.integer import Array, IntegerOp

from . import views
from .channels import ordered
from .fusion import Group, group
from .kernel import Choice, Choose, Kernel, Policy, Schedule, first
from .layout import ROW_MAJOR, Layout
from .lazy import Lazy, compute
from .machine import Machine
from .ops import integer, lower
from .ops.rows import kept as keep
from .placement import copies_input, layouts
from .reshapes import looked_up, settled
from .schedules.common import elementwise
from .schedules.plain import Plain
from .steps import Program, Step, Value


@dataclass(frozen=True)
class Call:
    """One run of a kernel."""

    function: str
    inputs: tuple[str, ...]
    constants: tuple[int, ...]
    """Positions in the module's constants."""
    output: Value
    layout: Layout
    group: Group


@dataclass
class Module:
    """Everything that the shared library and its caller need."""

    functions: dict[str, Any] = field(default_factory=dict)
    """Scheduled TVM functions by name."""
    calls: list[Call] = field(default_factory=list)
    constants: list[Array] = field(default_factory=list)
    inner: dict[str, tuple[Value, Layout]] = field(default_factory=dict)
    """Values between the kernels, by name, in the order in which they are made."""
    views: dict[str, views.View] = field(default_factory=dict)
    """Those of them that lie in the buffer of another."""
    choices: dict[str, dict[str, Choice]] = field(default_factory=dict)
    """By function: what was chosen for each problem that its lowering put."""
    refused: dict[str, str] = field(default_factory=dict)
    """By node: what TVM refused, and what runs in its place."""


@dataclass(frozen=True)
class Graph:
    """A program's kernels before they are made: which steps share one, and how the values between them lie in memory."""

    program: Program
    machine: Machine
    groups: tuple[Group, ...]
    """Those that run, in order."""
    chosen: dict[str, Layout]
    views: dict[str, views.View]
    inner: dict[str, tuple[Value, Layout]]
    values: dict[str, Value]

    @classmethod
    def of(cls, program: Program, machine: Machine) -> Graph:
        program = ordered(settled(looked_up(program)))
        values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
        groups = group(program.steps, [v.name for v in program.outputs], copies_input, views.may_join_in_place)
        chosen = layouts(groups, program, machine)
        found, idle = views.find(groups, chosen, program)
        inner = {
            g.output.output.name: (g.output.output, chosen.get(g.output.output.name, ROW_MAJOR))
            for g in groups if g.output.output not in program.outputs
        }  # fmt: skip
        return cls(program, machine, tuple(g for g in groups if g not in idle), chosen, found, inner, values)

    def layout(self, name: str) -> Layout:
        return self.chosen.get(name, ROW_MAJOR)

    def kernel(self, one: Group, policy: Policy) -> Kernel:
        """An empty kernel for a group."""
        return Kernel(self.machine, self.layout(one.output.output.name), policy=policy, rows=one.rows.axes if one.rows else ())

    def closed(self, kernel: Kernel, result: Lazy) -> Any:
        """The store of the kernel's result."""
        layout = kernel.layout
        return compute(layout.buffer_shape(result.shape), lambda *index: result.at(*layout.to_logical(index)), "out")

    def plain(self) -> Schedule | None:
        """The schedule of a kernel whose own one TVM refused."""
        return Plain()

    def scheduled(self, kernel: Kernel, function: Any, dtype: str, name: str) -> Any:
        """What the module keeps of a kernel. Raises whatever TVM raises."""
        return scheduled(kernel, function, dtype, name)

    def lowered(self, one: Group, policy: Policy) -> tuple[Kernel, Any]:
        """The kernel of a group, and its TVM function, not yet scheduled."""
        kernel = self.kernel(one, policy)
        made: dict[str, Lazy] = {}
        kept = one.kept

        def find(name: str | None) -> Lazy | None:
            if name is None:
                return None
            if name in made:
                return made[name]
            if name in self.program.constants:
                return replace(kernel.parameter(self.program.constants[name]), few_bits=self.program.few_bits_of(name))
            return kernel.read(self.values[name], self.layout(name))

        for step in one.steps:
            inputs = [find(name) for name in step.inputs]
            make = integer.lower if isinstance(step.source, IntegerOp) else lower
            value = make(kernel, step, inputs)
            made[step.output.name] = keep(kernel, value) if step.output.name in kept else value
        out = self.closed(kernel, made[one.output.output.name])
        return kernel, te.create_prim_func([*kernel.reads.values(), *(tensor for tensor, _ in kernel.parameters), out])


def scheduled(kernel: Kernel, function: Any, dtype: str, name: str) -> Any:
    """``function`` with its loops in the order of the kernel's schedule, under the global ``name``. Raises whatever TVM raises."""
    schedule = s_tir.Schedule(function)
    if kernel.schedule is None:
        elementwise(schedule, schedule.get_sblock("out"), kernel.machine, dtype)
    else:
        kernel.schedule(schedule, kernel.machine)
    return schedule.mod["main"].with_attr("global_symbol", name)


def generate(graph: Graph, policy: Policy, tell: Callable[[str], None], plainly: Mapping[str, str] = {}) -> Module:
    """Kernels for all groups; ``tell`` hears which one is being made.

    A kernel that TVM refuses to make or to schedule is made again, each time more plainly (``_Generator``), and the module
    says so; those of the nodes in ``plainly`` are plain from the start, for the reason given there. Raises UnsupportedOp for
    the step whose kernel cannot be made at all.
    """
    generator = _Generator(graph, policy, tell, plainly)
    for one in graph.groups:
        generator.add(one)
    return generator.module


def names(one: Group) -> str:
    """Of a group, for people: its anchor's node, or its last one."""
    step: Step = one.anchor or one.output
    return step.label


def refusal(one: Group, why: str) -> UnsupportedOp:
    """That a kernel cannot be made, by the node that it is of."""
    source = (one.anchor or one.output).source
    node = source.node if not isinstance(source, IntegerOp) else source.node or source.nodes[-1]
    assert node is not None
    return UnsupportedOp(node=node.name or "", op=node.op_type, target="cpu", rule=why, hint="run it on ref or ort")


def first_line(error: BaseException) -> str:
    """What TVM says last; what comes before is its own stack."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


class _Generator:
    """Makes one kernel after the other. Where TVM refuses, in this order: the analytic choice, plain loops, a kernel for each step."""

    def __init__(self, graph: Graph, policy: Policy, tell: Callable[[str], None], plainly: Mapping[str, str]) -> None:
        self._graph, self._policy, self._tell, self._plainly = graph, policy, tell, plainly
        self._seen: dict[Any, list[tuple[Any, Any, str]]] = {}
        self._positions: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self.module = Module(inner=dict(graph.inner), views=graph.views)

    def add(self, one: Group) -> None:
        self._tell(f"kernel of {names(one)}")
        try:
            kernel, name = self._made(one)
        except GatewrightError:
            raise
        except Exception as error:  # TVM raises many types; whatever it is, the user needs to know at which node
            if len(one.steps) == 1:
                raise refusal(one, f"TVM cannot make a kernel of it: {first_line(error)}") from error
            self._split(one, first_line(error))
            return
        constants = tuple(self._position(array) for _, array in kernel.parameters)
        self.module.calls.append(Call(name, tuple(kernel.reads), constants, one.output.output, kernel.layout, one))

    def _split(self, one: Group, why: str) -> None:
        self.module.refused[names(one)] = f"its {len(one.steps)} steps run one by one: {why}"
        for step in one.steps:
            if step is not one.output:
                self.module.inner[step.output.name] = (step.output, self._graph.layout(step.output.name))
            self.add(Group([step], step if step.role == "anchor" else None))

    def _made(self, one: Group) -> tuple[Kernel, str]:
        """The kernel and its function's name. Raises whatever TVM raises where even plain loops are refused."""
        if why := self._plainly.get(names(one)):
            return self._plain(*self._graph.lowered(one, replace(self._policy, choose=first)), one, why)
        refusal: Exception | None = None
        plain: tuple[Kernel, Any] | None = None
        for choose in dict.fromkeys((self._policy.choose, first)):
            asked: dict[str, Choice] = {}
            try:
                kernel, function = plain = self._graph.lowered(one, replace(self._policy, choose=partial(_recorded, choose, asked)))
                return kernel, self._shared(kernel, function, one, asked)
            except GatewrightError:
                raise
            except Exception as error:
                refusal = error
        assert refusal is not None
        if plain is None:
            raise refusal
        return self._plain(*plain, one, first_line(refusal))

    def _plain(self, kernel: Kernel, function: Any, one: Group, why: str) -> tuple[Kernel, str]:
        kernel.schedule = self._graph.plain()
        name = self._shared(kernel, function, one, {})
        self.module.refused[names(one)] = f"it runs in plain loops: {why}"
        return kernel, name

    def _shared(self, kernel: Kernel, function: Any, one: Group, asked: dict[str, Choice]) -> str:
        """The name of the scheduled function; equal functions with equal schedules are one, if what they read are inputs alike."""
        key = (tvm_ffi.structural_hash(function), kernel.schedule, len(kernel.reads))
        for other, other_schedule, name in self._seen.setdefault(key, []):
            if other_schedule == kernel.schedule and tvm_ffi.structural_equal(function, other):
                return name
        name = f"k{len(self.module.functions)}_{one.anchor.operator if one.anchor else one.output.operator}"
        self.module.functions[name] = self._graph.scheduled(kernel, function, one.output.output.dtype, name)
        self.module.choices[name] = asked
        self._seen[key].append((function, kernel.schedule, name))
        return name

    def _position(self, array: Array) -> int:
        """In the module's constants; equal arrays are one."""
        array = np.ascontiguousarray(array)
        key = (str(array.dtype), array.shape, hashlib.sha256(array.tobytes()).digest())
        if key not in self._positions:
            self._positions[key] = len(self.module.constants)
            self.module.constants.append(array)
        return self._positions[key]


def _recorded(choose: Choose, asked: dict[str, Choice], problem: str, candidates: Sequence[Choice]) -> Choice:
    asked[problem] = choose(problem, candidates)
    return asked[problem]
