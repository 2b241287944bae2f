"""From a scheduled TVM function to CUDA C++: its launches, their grids, and what each is given.

TVM's passes run as for any GPU; nothing here needs one, nor NVIDIA's compiler.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.prim.expr import FloatImm
from tvm.s_tir.stmt import SBlock, SBlockRealize
from tvm.tirx.build import codegen_build, split_host_device_mods

from gatewright.errors import ToolFailed

from ..lazy import dtype_of
from ..ops.int8_dot import register_operators
from .machine import SHARED_BYTES, THREADS_PER_BLOCK, Gpu
from .tensor_cores import TF32

HEADER = "gatewright_gpu.h"
"""What the kernels include: one of that name stands beside the compiler for GPUs, another beside the emulator's."""
_AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
_FRAGMENT_OF_TF32 = re.compile(r"(nvcuda::wmma::matrix_[ab], 16, 16, 8, )\w+")
"""Eight products at a time are those of tf32 alone; see ``tensor_cores.STAND_IN``."""
_PASSES = {"tirx.UnrollLoop": {"auto_max_step": 0, "explicit_unroll": False}}


@dataclass(frozen=True)
class Launch:
    """One kernel of a function."""

    kernel: str
    arguments: tuple[str, ...]
    """Names of the function's buffers: "x0", "p0", "w0", "out"."""
    grid: tuple[int, int, int]
    block: tuple[int, int, int]

    @property
    def threads(self) -> int:
        return self.block[0] * self.block[1] * self.block[2]


@dataclass(frozen=True)
class Buffer:
    """Memory between a function's launches."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Lowered:
    """A function as CUDA C++."""

    text: str
    """Its kernels, without includes."""
    launches: tuple[Launch, ...]
    workspaces: tuple[Buffer, ...]
    features: frozenset[str]
    """What the header has to bring: "fp16", "bf16", "mma"."""


def gpu_target(machine: Gpu) -> Any:
    return tvm.target.Target({
        "kind": "cuda", "arch": f"sm_{machine.capability}", "max_num_threads": THREADS_PER_BLOCK, "thread_warp_size": 32,
        "max_threads_per_block": THREADS_PER_BLOCK, "max_shared_memory_per_block": SHARED_BYTES, "host": {"kind": "llvm"},
    })  # fmt: skip


def lowered(function: Any, machine: Gpu, name: str, *, shares: bool = True) -> Lowered:
    """``function``, scheduled and bound to threads, as CUDA C++. ``shares``: buffers of different types may share their bytes.

    Raises whatever TVM raises, and ToolFailed past the limits of a block."""
    _register()
    function, workspaces = _with_workspaces(function)
    target = gpu_target(machine)
    module = tvm.IRModule({name: function.with_attr("global_symbol", name)})
    with tvm.transform.PassContext(config={**_PASSES, "tirx.disable_storage_rewrite": not shares}):
        module = tirx.transform.BindTarget(target)(module)
        pipeline, _, finish = tirx.get_tir_pipeline("s_tir")
        host, devices = split_host_device_mods(pipeline(module))
        if len(devices) != 1:
            raise ToolFailed(f"kernel {name} does not run on the GPU: no thread is bound")
        ((at, device),) = devices.items()
        device = _exact(finish()(device))
        source = str(codegen_build(device, at).inspect_source())
    launches = _launches(host, device)
    _require_no_loops(host, name)
    for launch in launches:
        if launch.threads > THREADS_PER_BLOCK or max(launch.grid[1:]) > 65535:
            raise ToolFailed(f"kernel {launch.kernel} wants {launch.threads} threads in blocks {launch.grid}: more than a GPU has")
    start = source.index('extern "C"')
    text = _FRAGMENT_OF_TF32.sub(r"\1nvcuda::wmma::precision::tf32", _without_declarations(source[start:]))
    if TF32 in text and "precision::tf32" not in text:
        raise ToolFailed(f"kernel {name}: products in tf32 outside tensor cores would be rounded to another type")
    if (shared := _shared_bytes(text)) > SHARED_BYTES:
        raise ToolFailed(f"kernel {name} wants {shared} bytes of shared memory, a block has {SHARED_BYTES}")
    return Lowered(text, launches, workspaces, frozenset(source[:start].split("// needs:")[1].split("\n")[0].split()))


def _exact(device: Any) -> Any:
    """Float64 constants by their bits: TVM writes them as decimals with 15 digits behind the point."""

    def bits(value: Any) -> Any:
        if str(value.ty) != "float64":
            return value
        return tirx.call_pure_extern("float64", "__longlong_as_double", tirx.const(int(np.float64(value.value).view(np.int64)), "int64"))

    return tvm.IRModule({name: f.with_body(tvm_ffi.structural_map(f.body, [(FloatImm, bits)])) for name, f in device.functions.items()})


@cache
def _register() -> None:
    """What TVM asks for while it generates CUDA C++: the first lines, a compiler (none: the text is all we want), own operators."""
    register_operators()

    def header(tags: Any) -> str:
        return f"// needs: {' '.join(sorted(str(tag) for tag in tags))}\n"

    def keep(code: str, target: Any = None) -> str:
        return code

    for name, function in (("tirx.intrinsics.cuda.header_generator", header), ("tvm_callback_cuda_compile", keep)):
        tvm_ffi.register_global_func(name, function, override=True)

    def fused(call: Any) -> Any:
        return tirx.call_pure_extern(dtype_of(call), "fmaf" if dtype_of(call) == "float32" else "fma", *call.args)

    tirx.register_intrin_lowering("gatewright.fma", target="cuda", f=fused, level=99)


def _with_workspaces(function: Any) -> tuple[Any, tuple[Buffer, ...]]:
    """What lies in memory between launches becomes arguments of the function, so that we choose where."""
    root = function.body.block
    inner = [buffer for buffer in root.alloc_buffers if buffer.scope() == "global"]
    if not inner:
        return function, ()
    block = SBlock(
        root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init,
        [buffer for buffer in root.alloc_buffers if buffer.scope() != "global"], root.match_buffers, root.annotations,
    )  # fmt: skip
    body = SBlockRealize(function.body.iter_values, function.body.predicate, block)
    found = tuple(Buffer(str(b.name), tuple(int(n) for n in b.shape), str(b.dtype)) for b in inner)
    return tirx.PrimFunc([*function.params, *inner], body, function.ret_type, function.attrs), found


def _require_no_loops(host: Any, name: str) -> None:
    """Raises ToolFailed where a part of the kernel was left to the host."""
    stores: list[Any] = []
    for function in host.functions.values():
        tvm_ffi.structural_walk(function, [(tirx.BufferStore, stores.append)])
    if stores:
        raise ToolFailed(f"kernel {name}: part of it is bound to no thread")


def _launches(host: Any, device: Any) -> tuple[Launch, ...]:
    """In the order in which the host's function makes them."""
    arguments = {str(variable.name_hint): [_buffer(p) for p in f.params] for variable, f in device.functions.items()}
    found: list[Launch] = []

    def visit(call: Any) -> None:
        if getattr(call.op, "name", "") != "tirx.call_ffi_kernel":
            return
        kernel = str(call.args[0].value)
        axes = [str(axis) for axis in call.attrs.launch_params]
        extents = dict(zip(axes, (int(n) for n in call.args[len(call.args) - len(axes) :]), strict=True))
        if set(axes) - set(_AXES):
            raise ToolFailed(f"kernel {kernel} wants {', '.join(sorted(set(axes) - set(_AXES)))} at its launch")
        sizes = [extents.get(axis, 1) for axis in _AXES]
        found.append(Launch(kernel, tuple(arguments[kernel]), (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5])))

    for function in host.functions.values():
        tvm_ffi.structural_walk(function, [(tvm.ir.Call, visit)], order="pre")
    return tuple(found)


def _buffer(parameter: Any) -> str:
    return str(parameter.name).removesuffix("_ptr")


def _without_declarations(text: str) -> str:
    """TVM declares each kernel before it defines it."""
    return re.sub(r'^extern "C" __global__ [^{;]*;\n', "", text, flags=re.MULTILINE)


_SIZES = {
    "float": 4, "int": 4, "uint": 4, "half": 2, "nv_bfloat16": 2, "__nv_bfloat16": 2, "double": 8, "int64_t": 8, "uint64_t": 8,
    "signed char": 1, "int8_t": 1, "uint8_t": 1, "uchar": 1, "bool": 1, "char": 1, "short": 2, "ushort": 2, "int16_t": 2, "uint16_t": 2,
}  # fmt: skip


def _shared_bytes(text: str) -> int:
    """The most that a kernel declares."""
    most = 0
    for kernel in text.split('extern "C"'):
        found = re.findall(r"__shared__ (?:alignas\(\d+\) )?([\w ]+?) \w+\[(\d+)\];", kernel)
        most = max(most, sum(_SIZES.get(kind, 8) * int(count) for kind, count in found))
    return most
