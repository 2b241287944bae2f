"""From kernels to files: one shared library with a C interface, which needs no TVM, the constants beside it, and an example.

The library is linked from the kernels' object, the tables of ``model.c`` (generated) and ``templates/runner.c``, which calls the
kernels in order. Every shape is static, so there is nothing to allocate or to check at run time.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from gatewright.errors import ToolFailed
from gatewright.hw.device import Processor

from .codegen import Call, Module
from .export import CONSTANTS, Interface, files
from .memory import ALIGNMENT, Life, aligned, plan
from .steps import Program
from .views import nbytes, resolve

TEMPLATES = Path(__file__).resolve().parent / "templates"
STAMP_BYTES = 32
"""The SHA-256 at the end of the file of constants: a library refuses the constants of another one."""
COMPILE = ("-std=c11", "-O2", "-fPIC", "-g0")
LINK = ("-shared", "-pthread", "-Wl,--build-id=none", "-Wl,-z,defs", "-Wl,-z,noexecstack", "-s")
"""The same code gives the same bytes: no build id, no symbols of temporary files."""


@dataclass(frozen=True)
class Job:
    """What is to be linked, besides the kernels."""

    name: str
    """The model's."""
    batch: int
    per_sample: bool
    threads: int
    linker: str
    """The C compiler for the device."""
    cross: str | None = None
    """The first part of its name where it is one for another architecture: "aarch64-linux-gnu"."""
    flags: tuple[str, ...] = ()
    """More for it: sanitizers, in tests."""


@dataclass(frozen=True)
class Linked:
    """What the manifest needs to know of the files."""

    library: str
    prefix: str
    """Of the library's C functions."""
    constants_file: str
    calls: list[dict[str, Any]]
    """Per kernel run: the function, and name, block and logical shape of what it writes, for traces."""
    arena_bytes: int


def llvm_target(device: Processor) -> Any:
    """TVM's target for a processor. SVE is off where there is some (``enabled``): the schedules are made for NEON's registers."""
    fields: dict[str, Any] = {"kind": "llvm", "mtriple": device.triple or "x86_64-unknown-linux-gnu", "num-cores": device.cores}
    if device.mcpu and device.mcpu != "generic":
        fields["mcpu"] = device.mcpu
    if device.isa:
        fields["mattr"] = [f"{'+' if feature in enabled(device) else '-'}{feature}" for feature in device.isa]
    return tvm.target.Target(fields)


def enabled(device: Processor) -> list[str]:
    """The device's features that code for it may use."""
    return [feature for feature in device.isa if not feature.startswith("sve")]


def link(module: Module, program: Program, device: Processor, job: Job, folder: Path) -> Linked:
    """Compile the module's functions, and write library, header, constants and example into ``folder``."""
    interface = Interface.of(job.name, program.inputs, program.outputs, job.batch)
    stamp, size, offsets = write_constants(module, folder / CONSTANTS)
    values, arena = _values(module, program, offsets)
    target = llvm_target(device)
    functions = tvm.IRModule({name: function.with_attr("target", target) for name, function in module.functions.items()})
    calls = [described_call(call) for call in module.calls]
    described = {
        "threads": job.threads, "batch": job.batch, "per_sample": job.per_sample, "arena_bytes": arena, "calls": calls,
    }  # fmt: skip
    tables = interface.render(
        "model.c.j2", kernels=list(module.functions), features=enabled(device), stamp=list(stamp), constant_bytes=size, arena_bytes=arena,
        threads=job.threads, output_first=len(program.inputs) + len(module.constants), **_tables(module, program, values),
    )  # fmt: skip
    arch = (device.triple or "").split("-")[0]
    texts = files(interface, described, device.description or device.name, arch, job.cross)
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8", newline="\n")
    with tempfile.TemporaryDirectory() as scratch:
        sources = Path(scratch)
        if module.functions:
            tvm.tirx.build(functions, target=target).write_to_file(str(sources / "kernels.o"), "o")
        for name, text in ((interface.header, texts[interface.header]), ("model.c", tables)):
            (sources / name).write_text(text, encoding="utf-8")
        (sources / "runner.h").write_bytes((TEMPLATES / "runner.h").read_bytes())
        (sources / "runner.o").write_bytes(_runner(job.linker, job.flags))
        _export(interface, job, sources)
        (folder / interface.library).write_bytes((sources / interface.library).read_bytes())
    return Linked(interface.library, interface.prefix, CONSTANTS, calls, arena)


def described_call(call: Call) -> dict[str, Any]:
    step, grid = call.group.output, call.group.output.grid
    return {
        "function": call.function, "steps": [s.label for s in call.group.steps], "output": call.output.name, "dtype": call.output.dtype,
        "shape": list(call.output.shape), "block": call.layout.block, "float_name": step.float_name,
        "scale": None if grid is None else float(grid.scale), "zero_point": None if grid is None else int(grid.zero_point),
    }  # fmt: skip


@dataclass(frozen=True)
class _Slot:
    """A tensor that kernels are given: where it lies, and what they check of it."""

    place: str
    """INPUT, CONSTANT, OUTPUT or INNER."""
    shape: tuple[int, ...]
    dtype: str
    offset: int = 0


def _values(module: Module, program: Program, offsets: Sequence[int]) -> tuple[list[_Slot], int]:
    """All tensors in the runner's order, and the arena's size in bytes."""
    places, size = _places(module)
    slots = [_Slot("INPUT", v.shape, v.dtype) for v in program.inputs]
    slots += [_Slot("CONSTANT", a.shape or (1,), str(a.dtype), o) for a, o in zip(module.constants, offsets, strict=True)]
    slots += [_Slot("OUTPUT", v.shape, v.dtype) for v in program.outputs]
    slots += [
        _Slot("INNER", tuple(layout.buffer_shape(value.shape)), value.dtype, places[name]) for name, (value, layout) in module.inner.items()
    ]
    return slots, size


def _tables(module: Module, program: Program, slots: Sequence[_Slot]) -> dict[str, Any]:
    """The rows of ``model.c``: values, distinct shapes, and calls with the values that they are given, the written one last."""
    shapes = list(dict.fromkeys(slot.shape for slot in slots))
    position = {shape: i for i, shape in enumerate(shapes)}
    rows = []
    for slot in slots:
        dtype = tvm_ffi.dtype(slot.dtype)
        nbytes_of = -(-dtype.bits // 8)
        for extent in slot.shape:
            nbytes_of *= extent
        rows.append({
            "place": slot.place, "offset": slot.offset, "nbytes": nbytes_of, "rank": len(slot.shape), "code": int(dtype.type_code),
            "bits": dtype.bits, "shape": position[slot.shape],
        })  # fmt: skip
    constants = len(program.inputs)
    names = [*(v.name for v in program.outputs), *module.inner]
    registers = {v.name: i for i, v in enumerate(program.inputs)} | {n: constants + len(module.constants) + i for i, n in enumerate(names)}
    calls, first = [], 0
    for call in module.calls:
        arguments = [registers[name] for name in call.inputs] + [constants + i for i in call.constants] + [registers[call.output.name]]
        calls.append({"function": call.function, "first": first, "count": len(arguments), "arguments": arguments})
        first += len(arguments)
    return {"values": rows, "shapes": shapes, "calls": calls}


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


def write_constants(module: Module, path: Path) -> tuple[bytes, int, list[int]]:
    """All constants one after the other, each aligned, so that the file can be mapped instead of read, and a stamp of their content.

    Returns the stamp, the file's size and the offset of each constant.
    """
    offsets, offset, sha = [], 0, hashlib.sha256()
    with open(path, "wb") as file:

        def write(data: bytes) -> None:
            file.write(data)
            sha.update(data)

        for array in module.constants:
            write(b"\0" * (aligned(offset) - offset))
            offset = aligned(offset)
            offsets.append(offset)
            write(array.tobytes())
            offset += array.nbytes
        # Vector loads may reach past the last constant.
        write(b"\0" * (aligned(offset) - offset + ALIGNMENT))
        stamp = sha.digest()
        file.write(stamp)
    return stamp, aligned(offset) + ALIGNMENT + STAMP_BYTES, offsets


@cache
def _runner(compiler: str, flags: tuple[str, ...]) -> bytes:
    """``runner.c`` as an object; the same for every model."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("runner.c", "runner.h"):
            (Path(scratch) / name).write_bytes((TEMPLATES / name).read_bytes())
        _compile([compiler, *COMPILE, *flags, "-c", "runner.c", "-o", "runner.o"], Path(scratch), "compiling the runner")
        return (Path(scratch) / "runner.o").read_bytes()


def _export(interface: Interface, job: Job, sources: Path) -> None:
    """Link the shared library in ``sources``. Only the functions of the header are visible, so that a program may load several."""
    (sources / "exports").write_text(f"{{ global: {interface.prefix}_*; local: *; }};\n", encoding="ascii")
    objects = [name for name in ("kernels.o", "runner.o") if (sources / name).exists()]
    command = [
        job.linker, *COMPILE, *LINK, *job.flags, "model.c", *objects, "-o", interface.library,
        f"-Wl,-soname,{interface.library}", "-Wl,--version-script=exports", "-lm",
    ]  # fmt: skip
    _compile(command, sources, "linking the model's library")


def _compile(command: Sequence[str], folder: Path, what: str) -> None:
    """Run the C compiler in ``folder``, where all its files are: what it writes knows no other path."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ToolFailed(f"{what} failed: {last}")
