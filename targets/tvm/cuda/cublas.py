"""NVIDIA's matrix products (cuBLAS), where that library is installed on a machine with a GPU and is quicker than our kernel there.

``plain_products`` says at compile time which calls are a product and nothing else; ``Cublas`` runs one. Which of the two runs, the driver
decides by timing both (``driver.py``). Nothing of cuBLAS is part of an artifact.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gatewright.errors import GatewrightError
from gatewright.frontend.integer import Array

from ..reshapes import is_float
from .toolkit import package

if TYPE_CHECKING:
    from ..codegen import Call, Module
    from ..steps import Program

LIBRARIES = ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll")
_FLOAT, _PLAIN, _TRANSPOSED, _DEFAULT = 0, 0, 1, -1
"""CUDA_R_32F, CUBLAS_OP_N, CUBLAS_OP_T, CUBLAS_GEMM_DEFAULT."""
COMPUTE = {"float32": 68, "float16": 74, "bfloat16": 75, "tf32": 77}
"""cublasComputeType_t: CUBLAS_COMPUTE_32F, and its FAST_16F, FAST_16BF and FAST_TF32, by the target's precision."""
WORKSPACE_BYTES = 32 << 20
"""What cuBLAS wants on the largest GPUs; given by us, it allocates nothing while launches are captured."""


@dataclass(frozen=True)
class Gemm:
    """C[e, m, n] = Σ_k A[e, m, k]·B[e, k, n], all row-major. Operands are arguments of the call's function."""

    a: str
    b: str
    batch: int
    rows: int
    columns: int
    depth: int
    row_of_b: int
    """Elements from one row of B, as it is stored, to the next."""
    transposed: bool
    """B is stored as [n, k]."""

    def described(self, call: int, values: dict[str, int]) -> dict[str, Any]:
        """For the plan: operands as positions among its values."""
        return {**asdict(self), "call": call, "a": values[self.a], "b": values[self.b], "out": values["out"]}


def plain_products(module: Module, program: Program) -> dict[int, Gemm]:
    """By position of the call."""
    found = {position: _plain(call, module, program) for position, call in enumerate(module.calls)}
    return {position: gemm for position, gemm in found.items() if gemm is not None}


def _plain(call: Call, module: Module, program: Program) -> Gemm | None:
    step = call.group.output
    if len(call.group.steps) != 1 or not is_float(step, "MatMul") or step.output.dtype != "float32":
        return None
    a, b = step.inputs[:2]
    shapes = {v.name: v.shape for v in (*program.inputs, *(s.output for s in program.steps))}
    if a not in shapes or len(shapes[a]) < 2:
        return None
    left = shapes[a]
    if b in program.constants:
        weight, stored = program.constants[b], [module.constants[i] for i in call.constants]
        if weight.ndim != 2 or len(stored) != 1:
            return None
        return _by_constant(left, weight, stored[0])
    right = shapes.get(str(b), ())
    if len(right) < 2 or a == b or left[:-2] != right[:-2]:
        return None
    batch, rows = (math.prod(left[:-2]), left[-2])
    return Gemm("x0", "x1", batch, rows, right[-1], left[-1], right[-1], False)


def _by_constant(left: Sequence[int], weight: Array, stored: Array) -> Gemm | None:
    """The kernel's constant is the weight grown to whole tiles, or the transposed weight: which, it says itself."""
    depth, columns = weight.shape
    for transposed, own in ((False, weight), (True, weight.T)):
        fits = stored.ndim == 2 and stored.shape[0] >= own.shape[0] and stored.shape[1] >= own.shape[1]
        if fits and np.array_equal(stored[: own.shape[0], : own.shape[1]], own):
            return Gemm("x0", "p0", 1, math.prod(left[:-1]), columns, depth, stored.shape[1], transposed)
    return None


class Cublas:
    """The library with a handle for one stream. ``memory``: address of WORKSPACE_BYTES on the GPU."""

    def __init__(self, library: ctypes.CDLL, stream: ctypes.c_void_p, memory: int) -> None:
        self._library, self._handle = library, ctypes.c_void_p()
        self._one, self._zero = ctypes.c_float(1), ctypes.c_float(0)
        self._call("cublasCreate_v2", ctypes.byref(self._handle))
        self._call("cublasSetStream_v2", self._handle, stream)
        self._call("cublasSetWorkspace_v2", self._handle, ctypes.c_void_p(memory), ctypes.c_size_t(WORKSPACE_BYTES))

    def multiply(self, gemm: dict[str, Any], a: int, b: int, out: int, precision: str) -> None:
        """``gemm`` as ``Gemm.described`` has it; addresses on the GPU.

        cuBLAS takes matrices column by column, so what lies row by row it sees transposed: Cᵀ = Bᵀ·Aᵀ."""
        rows, columns, depth = gemm["rows"], gemm["columns"], gemm["depth"]
        self._call(
            "cublasGemmStridedBatchedEx", self._handle, _TRANSPOSED if gemm["transposed"] else _PLAIN, _PLAIN, columns, rows, depth,
            ctypes.byref(self._one),
            ctypes.c_void_p(b), _FLOAT, gemm["row_of_b"], ctypes.c_longlong(depth * columns),
            ctypes.c_void_p(a), _FLOAT, depth, ctypes.c_longlong(rows * depth),
            ctypes.byref(self._zero),
            ctypes.c_void_p(out), _FLOAT, columns, ctypes.c_longlong(rows * columns),
            gemm["batch"], COMPUTE[precision], _DEFAULT,
        )  # fmt: skip

    def close(self) -> None:
        self._call("cublasDestroy_v2", self._handle)

    def _call(self, name: str, *arguments: Any) -> None:
        if code := int(getattr(self._library, name)(*arguments)):
            raise GatewrightError(f"cuBLAS refuses {name}: status {code}", hint="cuda:…{cublas=never} runs our own kernels alone")


def library() -> ctypes.CDLL | None:
    """cuBLAS of NVIDIA's package, else the system's; None where there is neither."""
    folder = package("cublas")
    for path in [*(() if folder is None else sorted((folder / "lib").glob("libcublas.so.*"))), *LIBRARIES]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None
