"""From kernels to files: the shared library with its call list, and the constants beside it.

The call list is bytecode of TVM's virtual machine, one function "main" of (inputs…, constants…, outputs…, inner values…).
It is written here rather than compiled from a Relax function: every shape is static, so there is nothing to allocate or
to check at run time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from gatewright.errors import ToolFailed
from gatewright.hw.device import Processor

from .codegen import Call, Module
from .memory import ALIGNMENT, Life, aligned, plan
from .steps import Program
from .views import nbytes, resolve

LIBRARY, CONSTANTS = "model.so", "constants.bin"


@dataclass(frozen=True)
class Linked:
    """What the manifest needs to know of the files."""

    library: str
    constants_file: str
    constants: list[dict[str, Any]]
    """dtype, shape and offset of each constant, in the order of main's arguments."""
    inner: list[dict[str, Any]]
    """dtype, shape and offset in the arena of each value between kernels, in the order of main's arguments."""
    calls: list[dict[str, Any]]
    """Per kernel run: the function, and name, block and logical shape of what it writes, for traces."""
    arena_bytes: int


def llvm_target(device: Processor) -> Any:
    """TVM's target for a processor."""
    fields: dict[str, Any] = {"kind": "llvm", "mtriple": device.triple or "x86_64-unknown-linux-gnu", "num-cores": device.cores}
    if device.mcpu and device.mcpu != "generic":
        fields["mcpu"] = device.mcpu
    if device.isa:
        fields["mattr"] = [f"+{feature}" for feature in device.isa]
    return tvm.target.Target(fields)


def link(module: Module, program: Program, device: Processor, linker: str, folder: Path) -> Linked:
    """Compile the module's functions and write LIBRARY and CONSTANTS into ``folder``. ``linker``: the C compiler that links."""
    target = llvm_target(device)
    functions = tvm.IRModule({name: function.with_attr("target", target) for name, function in module.functions.items()})
    builder = relax.ExecBuilder()
    inner, arena = _emit(builder, module, program)
    library = tvm.tirx.build(functions, target=target) if module.functions else None
    # The private entry is the only way to bytecode that was not made from a Relax function.
    executable = relax.vm_build.VMExecutable(relax._ffi_api.VMLink(builder, target, library, [], {}))
    _export(executable, folder / LIBRARY, linker)
    table = _write_constants(module, folder / CONSTANTS)
    return Linked(LIBRARY, CONSTANTS, table, inner, [_described(call) for call in module.calls], arena)


def _described(call: Call) -> dict[str, Any]:
    step, grid = call.group.output, call.group.output.grid
    return {
        "function": call.function, "steps": [s.label for s in call.group.steps], "output": call.output.name, "dtype": call.output.dtype,
        "shape": list(call.output.shape), "block": call.layout.block, "float_name": step.float_name,
        "scale": None if grid is None else float(grid.scale), "zero_point": None if grid is None else int(grid.zero_point),
    }  # fmt: skip


def _emit(builder: Any, module: Module, program: Program) -> tuple[list[dict[str, Any]], int]:
    """Write "main"; returns the inner values with their places in the arena, and the arena's size in bytes."""
    inputs, outputs = [v.name for v in program.inputs], [v.name for v in program.outputs]
    offsets, size = _places(module)
    constants = len(inputs)
    values = [*outputs, *module.inner]
    registers = {name: i for i, name in enumerate(inputs)} | {name: constants + len(module.constants) + i for i, name in enumerate(values)}
    count = constants + len(module.constants) + len(values)
    with builder.function("main", num_inputs=count, param_names=[f"a{i}" for i in range(count)]):
        for call in module.calls:
            arguments = [registers[name] for name in call.inputs] + [constants + i for i in call.constants] + [registers[call.output.name]]
            builder.emit_call(call.function, [builder.r(register) for register in arguments])
        builder.emit_ret(builder.r(0))
    table = [
        {"dtype": value.dtype, "shape": list(layout.buffer_shape(value.shape)), "offset": offsets[name]}
        for name, (value, layout) in module.inner.items()
    ]
    return table, size


def _places(module: Module) -> tuple[dict[str, int], int]:
    """Offset of every inner value, and the arena's size. A buffer lives from the first write to the last read of any view of it."""
    uses: dict[str, list[int]] = {name: [] for name in module.inner}
    for position, call in enumerate(module.calls):
        for name in (*call.inputs, call.output.name):
            if name in module.inner:
                uses[resolve(name, module.views)[0]].append(position)
    lives = [Life(name, nbytes(module.inner[name][0]), min(at), max(at)) for name, at in uses.items() if at]
    owners, size = plan(lives)
    offsets = {}
    for name in module.inner:
        owner, inside = resolve(name, module.views)
        offsets[name] = owners.get(owner, 0) + inside
    return offsets, size


def _write_constants(module: Module, path: Path) -> list[dict[str, Any]]:
    """All constants one after the other, each aligned, so that the file can be mapped instead of read."""
    table, offset = [], 0
    with open(path, "wb") as file:
        for array in module.constants:
            file.write(b"\0" * (aligned(offset) - offset))
            offset = aligned(offset)
            table.append({"dtype": str(array.dtype), "shape": list(array.shape or (1,)), "offset": offset})
            file.write(array.tobytes())
            offset += array.nbytes
        file.write(b"\0" * (aligned(offset) - offset + ALIGNMENT))
    return table


def _export(executable: Any, path: Path, linker: str) -> None:
    """Link the shared library. The same code gives the same bytes: no build id, no symbols of temporary files."""
    from tvm.support import cc

    def create(output: str, objects: list[str], **options: Any) -> None:
        cc.create_shared(output, objects, options=["-Wl,--build-id=none", "-s"], cc=linker)

    create.output_format = "so"  # type: ignore[attr-defined]
    try:
        executable.export_library(str(path), fcompile=create)
    except RuntimeError as error:
        raise ToolFailed(f"linking the model's library failed: {str(error).strip().splitlines()[-1]}") from error
