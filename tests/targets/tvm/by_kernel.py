"""A model run kernel by kernel in this process, for a machine and by a policy of the test's own."""

from __future__ import annotations

import tvm
from graphs import Array

from gatewright.frontend.model import Model
from gatewright.hw.device import Processor
from gatewright.targets.tvm import codegen
from gatewright.targets.tvm.kernel import Policy
from gatewright.targets.tvm.link import llvm_target
from gatewright.targets.tvm.machine import Machine
from gatewright.targets.tvm.steps import program

MACHINE = Machine(256, 16, 2)
"""Blocks as for AVX2; LLVM makes of them what this machine can run."""


def run(
    model: Model, policy: Policy, feeds: dict[str, Array], machine: Machine = MACHINE, device: Processor | None = None
) -> tuple[Array, set[str]]:
    """The model's result "y" and the algorithms that were used. Fails where TVM refuses a schedule.

    ``device``: what LLVM may use; None: what every x86-64 has.
    """
    steps = program(model)
    made = codegen.generate(codegen.Graph.of(steps, machine), policy, lambda text: None)
    assert not made.refused
    plain = {"kind": "llvm", "mtriple": "x86_64-unknown-linux-gnu", "num-cores": 2}
    target = tvm.target.Target(plain) if device is None else llvm_target(device)
    library = tvm.tirx.build(tvm.IRModule({name: f.with_attr("target", target) for name, f in made.functions.items()}), target=target)
    values = {name: tvm.runtime.tensor(array) for name, array in feeds.items()}
    for call in made.calls:
        values[call.output.name] = tvm.runtime.empty(call.layout.buffer_shape(call.output.shape), call.output.dtype)
        constants = [tvm.runtime.tensor(made.constants[i]) for i in call.constants]
        library[call.function](*(values[name] for name in call.inputs), *constants, values[call.output.name])
    return values["y"].numpy(), {choice.algorithm for asked in made.choices.values() for choice in asked.values()}
