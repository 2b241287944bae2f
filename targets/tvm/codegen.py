"""From steps to kernels: which run together, how their values lie in memory, and the finished TVM functions.

The result is a ``Module``: named functions, the order of their calls, and the constants that they are called with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm_ffi
from tvm import s_tir, te

from gatewright.errors import GatewrightError, ToolFailed
from gatewright.frontend.integer import Array, IntegerOp

from . import views
from .channels import ordered
from .fusion import Group, group
from .kernel import Kernel, Policy
from .layout import ROW_MAJOR, Layout
from .lazy import Lazy, compute
from .machine import Machine
from .ops import integer, lower
from .placement import copies_input, layouts
from .schedules.common import elementwise
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


def generate(program: Program, machine: Machine, policy: Policy, tell: Callable[[str], None]) -> Module:
    """Kernels for all steps; ``tell`` hears which one is being made.

    Raises ToolFailed naming the step whose kernel TVM refuses to build.
    """
    program = ordered(program)
    values = {v.name: v for v in (*program.inputs, *(s.output for s in program.steps))}
    groups = group(program.steps, [v.name for v in program.outputs], copies_input, views.may_join_in_place)
    chosen = layouts(groups, program, machine)
    module = Module()
    module.views, idle = views.find(groups, chosen, program)
    module.inner = {
        g.output.output.name: (g.output.output, chosen.get(g.output.output.name, ROW_MAJOR))
        for g in groups if g.output.output not in program.outputs
    }  # fmt: skip
    seen: dict[Any, list[tuple[Any, Any, str]]] = {}
    positions: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    for one in (g for g in groups if g not in idle):
        tell(f"kernel of {_names(one)}")
        kernel = Kernel(machine, chosen.get(one.output.output.name, ROW_MAJOR), policy=policy)
        try:
            function = _function(kernel, one, values, chosen, program)
        except GatewrightError:
            raise
        except Exception as error:  # TVM raises many types; whatever it is, the user needs to know at which node
            raise ToolFailed(f"TVM cannot make a kernel of {_names(one)}: {_first_line(error)}") from error
        name = _shared(function, kernel, one, seen, module)
        constants = tuple(_position(array, positions, module) for _, array in kernel.parameters)
        module.calls.append(Call(name, tuple(kernel.reads), constants, one.output.output, kernel.layout, one))
    return module


def _function(kernel: Kernel, one: Group, values: dict[str, Value], chosen: dict[str, Layout], program: Program) -> Any:
    """The TVM function of one group, not yet scheduled."""
    made: dict[str, Lazy] = {}

    def find(name: str | None) -> Lazy | None:
        if name is None:
            return None
        if name in made:
            return made[name]
        if name in program.constants:
            return kernel.parameter(program.constants[name])
        return kernel.read(values[name], chosen.get(name, ROW_MAJOR))

    for step in one.steps:
        inputs = [find(name) for name in step.inputs]
        make = integer.lower if isinstance(step.source, IntegerOp) else lower
        made[step.output.name] = make(kernel, step, inputs)
    result, layout = made[one.output.output.name], kernel.layout
    shape = layout.buffer_shape(result.shape)
    out = compute(shape, lambda *index: result.at(*layout.to_logical(index)), "out")
    return te.create_prim_func([*kernel.reads.values(), *(tensor for tensor, _ in kernel.parameters), out])


def _shared(function: Any, kernel: Kernel, one: Group, seen: dict[Any, list[tuple[Any, Any, str]]], module: Module) -> str:
    """The name of a scheduled function; equal functions with equal schedules are one."""
    key = (tvm_ffi.structural_hash(function), kernel.schedule)
    for other, other_schedule, name in seen.setdefault(key, []):
        if other_schedule == kernel.schedule and tvm_ffi.structural_equal(function, other):
            return name
    name = f"k{len(module.functions)}_{one.anchor.operator if one.anchor else one.output.operator}"
    schedule = s_tir.Schedule(function)
    try:
        if kernel.schedule is None:
            elementwise(schedule, schedule.get_sblock("out"), kernel.machine, one.output.output.dtype)
        else:
            kernel.schedule(schedule, kernel.machine)
    except Exception as error:  # a schedule error names TVM's loops, which say nothing to a user
        raise ToolFailed(f"TVM cannot schedule the kernel of {_names(one)}: {_first_line(error)}") from error
    module.functions[name] = schedule.mod["main"].with_attr("global_symbol", name)
    seen[key].append((function, kernel.schedule, name))
    return name


def _position(array: Array, positions: dict[tuple[str, tuple[int, ...], bytes], int], module: Module) -> int:
    key = (str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
    if key not in positions:
        positions[key] = len(module.constants)
        module.constants.append(np.ascontiguousarray(array))
    return positions[key]


def _names(one: Group) -> str:
    step: Step = one.anchor or one.output
    return step.label


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
