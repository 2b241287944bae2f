"""The compiling process: ``python -m gatewright.targets.tvm.cuda.build FOLDER``, for the reasons that the CPU's worker gives.

FOLDER holds ``model.onnx`` and ``job.json``; written are ``kernels.cu``, ``kernels.ptx``, ``kernels.cubin``, the constants and
``plan.json``: which kernel is launched with which buffers, in order.
"""

from __future__ import annotations

import json
import math
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..worker import JOB, MODEL, RESULT

if TYPE_CHECKING:
    from gatewright.hw.device import Processor

    from ..codegen import Module
    from ..steps import Program
    from .lowering import Lowered

SOURCE, PTX, CUBIN, CONSTANTS, PLAN = "kernels.cu", "kernels.ptx", "kernels.cubin", "constants.bin", "plan.json"
INPUT, CONSTANT, OUTPUT, INNER = range(4)
"""Where a value lies."""


def main(folder: Path) -> int:
    """Compile; an error that a user can act on goes into RESULT, any other ends the process."""
    import tvm_ffi  # noqa: F401 (its handler of signals is to be replaced)

    from gatewright.errors import GatewrightError

    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    try:
        result: dict[str, Any] = {"built": build(folder)}
    except GatewrightError as error:
        result = {"error": type(error).__name__, "message": error.message, "hint": error.hint}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    return 0


def build(folder: Path) -> dict[str, Any]:
    """The files for ``model.onnx`` on the GPU of the job; returns what the manifest says of them."""
    from gatewright.frontend.batch import batch_reason
    from gatewright.frontend.mapped import reopened
    from gatewright.frontend.model import Model
    from gatewright.hw.device import Device, Processor

    from ..codegen import generate
    from ..kernel import Policy
    from ..steps import program
    from .codegen import GpuGraph
    from .machine import Gpu
    from .products import Products
    from .toolkit import Toolkit

    job = json.loads((folder / JOB).read_text(encoding="utf-8"))
    device = Device.from_json(job["device"])
    assert isinstance(device, Processor)
    toolkit = Toolkit.found(f"compiling {job['name']} for {device.name}")
    model = Model(reopened(folder / MODEL), job["name"])
    steps, machine = program(model), Gpu.of_device(device)
    graph = GpuGraph.on(steps, machine, Products(job["precision"]), job["attention"])
    module = generate(graph, Policy(), tell)
    described = write(module, steps, folder)
    tell(f"assembling {len(described['functions'])} functions for {device.mcpu}")
    resources = toolkit.assemble(folder, f"sm_{machine.capability}", sorted(needed(module)))
    per_sample = batch_reason(model) is None
    return {
        **described, "resources": _resources(described.pop("launches"), resources, device), "toolkit": toolkit.version,
        "per_sample": per_sample, "notes": [f"kernel of {node}: {what}" for node, what in module.refused.items()],
        "attention": list(graph.notes),
    }  # fmt: skip


def needed(module: Module) -> set[str]:
    """Parts of the header that the kernels want."""
    return {feature for function in module.functions.values() for feature in function.features}


def write(module: Module, program: Program, folder: Path) -> dict[str, Any]:
    """Source, constants and plan."""
    from ..link import described_call, write_constants

    _, size, offsets = write_constants(module, folder / CONSTANTS)
    functions: dict[str, Lowered] = module.functions
    texts = [lowered.text for lowered in functions.values()]
    (folder / SOURCE).write_text('#include "gatewright_gpu.h"\n' + "\n".join(texts), encoding="utf-8", newline="\n")
    plan = _plan(module, program, offsets, size)
    (folder / PLAN).write_text(json.dumps(plan, indent=1), encoding="utf-8", newline="\n")
    ports = sum(v["nbytes"] for v in plan["values"] if v["place"] in (INPUT, OUTPUT))
    return {
        "calls": [described_call(call) for call in module.calls], "arena_bytes": plan["arena_bytes"],
        "device_bytes": size + plan["arena_bytes"] + ports, "functions": list(functions), "launches": plan["launches"],
        "features": sorted(needed(module)), "kernels_run": len(plan["launches"]),
    }  # fmt: skip


def _plan(module: Module, program: Program, offsets: list[int], constant_bytes: int) -> dict[str, Any]:
    """Every launch of a run. Values: inputs, constants, outputs, then inner ones by their place in the arena."""
    from ..memory import Life
    from ..memory import plan as place
    from ..steps import Value
    from ..views import nbytes, resolve
    from .cublas import plain_products

    values = [{"place": INPUT, "offset": 0, "nbytes": nbytes(v), "name": v.name} for v in program.inputs]
    values += [{"place": CONSTANT, "offset": o, "nbytes": a.nbytes} for a, o in zip(module.constants, offsets, strict=True)]
    values += [{"place": OUTPUT, "offset": 0, "nbytes": nbytes(v), "name": v.name} for v in program.outputs]
    uses: dict[str, list[int]] = {name: [] for name in module.inner}
    sizes = {name: nbytes(value) for name, (value, _) in module.inner.items()}
    for position, call in enumerate(module.calls):
        for name in (*call.inputs, call.output.name):
            if name in module.inner:
                uses[resolve(name, module.views)[0]].append(position)
        for buffer in module.functions[call.function].workspaces:
            name = _workspace(position, buffer.name)
            sizes[name], uses[name] = nbytes(Value(name, buffer.shape, buffer.dtype)), [position]
    owners, arena = place([Life(name, sizes[name], min(at), max(at)) for name, at in uses.items() if at])
    known = {v["name"]: i for i, v in enumerate(values) if "name" in v}
    for name in [*module.inner, *(n for n in sizes if n not in module.inner)]:
        owner, inside = resolve(name, module.views)
        known[name] = len(values)
        values.append({"place": INNER, "offset": owners.get(owner, 0) + inside, "nbytes": sizes[name]})
    first = len(program.inputs)
    launches, gemms, products = [], [], plain_products(module, program)
    for position, call in enumerate(module.calls):
        lowered: Lowered = module.functions[call.function]
        given = {f"x{i}": known[name] for i, name in enumerate(call.inputs)}
        given |= {f"p{i}": first + constant for i, constant in enumerate(call.constants)} | {"out": known[call.output.name]}
        given |= {buffer.name: known[_workspace(position, buffer.name)] for buffer in lowered.workspaces}
        if position in products:
            gemms.append(products[position].described(position, given))
        for number, launch in enumerate(lowered.launches):
            launches.append({
                "kernel": launch.kernel, "call": position, "grid": launch.grid, "block": launch.block,
                "values": [given[name] for name in launch.arguments], "output": given["out"], "last": number == len(lowered.launches) - 1,
            })  # fmt: skip
    return {"values": values, "constant_bytes": constant_bytes, "arena_bytes": arena, "launches": launches, "gemms": gemms}


def _workspace(position: int, name: str) -> str:
    return f"\0{position} {name}"


def _resources(launches: list[dict[str, Any]], found: dict[str, dict[str, int]], device: Processor) -> dict[str, Any]:
    """By kernel: threads, and what ptxas says; with the share of a multiprocessor's threads that can be resident."""
    from .machine import capability, occupancy

    kernels: dict[str, Any] = {}
    for launch in launches:
        own, threads = found.get(launch["kernel"], {}), math.prod(launch["block"])
        resident = occupancy(capability(device), threads, own.get("registers", 0), own.get("shared_bytes", 0))
        kernels[launch["kernel"]] = {"threads": threads, "blocks": math.prod(launch["grid"]), **own, "occupancy": resident}
    return kernels


def tell(what: str) -> None:
    print(what, flush=True)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]
    sys.exit(main(Path(sys.argv[1])))
