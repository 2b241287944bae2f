"""Tiles of products on tensor cores, in CUDA's warp matrices: 16×16 sums of 16 products, a fragment of which every lane of a
warp holds in a way that only the hardware knows.

Operands go through shared memory, rows a few words longer than the tile so that lanes meet different banks; the sums go back
through it, since what follows them needs to know which is which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tvm.s_tir import TensorIntrin
from tvm.script import from_source

from .machine import WARP
from .schedules import TensorTile, fetch, loops_of

SIDE = 16
TF32 = "tf32"
STAND_IN = "bfloat16"
"""TVM has no fragments of tf32, whose operands are floats in memory: until the text is written, theirs are of this type."""
_PADDING = {"float16": 8, "bfloat16": 8, "int8": 16, TF32: 4}
"""Elements by which a row in shared memory is longer: 16 bytes."""


def tiled(schedule: Any, tile: TensorTile, dtype: str, stores: str) -> None:
    """Blocks: "a" [b, m, k], "b" [b, k, n], "acc", and ``stores`` of its shape."""
    acc, out = schedule.get_sblock("acc"), schedule.get_sblock(stores)
    names = _registered(dtype, tile.step)
    batch, m, n, k = loops_of(schedule, acc)
    down, across = tile.rows // tile.warp_rows, tile.columns // tile.warp_columns
    mo, wm, mi, mf = schedule.split(m, [None, down, tile.warp_rows // SIDE, SIDE])
    no, wn, ni, nf = schedule.split(n, [None, across, tile.warp_columns // SIDE, SIDE])
    ko, ki, kf = schedule.split(k, [None, tile.depth // tile.step, tile.step])
    schedule.reorder(batch, mo, no, wm, wn, ko, ki, mi, ni, mf, nf, kf)
    warp = schedule.fuse(wm, wn)
    for loop, axis in ((batch, "blockIdx.z"), (mo, "blockIdx.y"), (no, "blockIdx.x"), (warp, "threadIdx.y")):
        schedule.bind(loop, axis)
    schedule.set_scope(acc, 0, "wmma.accumulator")
    _store(schedule, out, warp, no, down * across, names)
    for operand, name in enumerate(("a", "b")):
        block = schedule.get_sblock(name)
        if dtype == TF32:
            fragment = schedule.get_sblock(f"{name}_{TF32}")
            schedule.set_scope(fragment, 0, f"wmma.matrix_{name}")
            schedule.compute_at(fragment, ki)
            fetch(schedule, block, ko, [down * across, WARP])
        else:
            fetch(schedule, block, ko, [down * across, WARP])
            fragment = schedule.cache_read(acc, operand, f"wmma.matrix_{name}")
            schedule.compute_at(fragment, ki)
        schedule.storage_align(block, 0, axis=-2, factor=SIDE // 2 if dtype == TF32 else 2 * SIDE, offset=_PADDING[dtype])
        rows, columns = loops_of(schedule, fragment)[-2:]
        row_outer, row = schedule.split(rows, [None, tile.step if name == "b" else SIDE])
        column_outer, column = schedule.split(columns, [None, SIDE if name == "b" else tile.step])
        schedule.reorder(row_outer, column_outer, row, column)
        schedule.tensorize(row, names[name])
    start = schedule.decompose_reduction(acc, ko)
    schedule.tensorize(loops_of(schedule, start)[-2], names["fill"])
    schedule.tensorize(mf, names["sync"])


def _store(schedule: Any, out: Any, warp: Any, block: Any, warps: int, names: dict[str, str]) -> None:
    """Each warp's sums into shared memory; then the block's threads go on from there."""
    # Its name has the scope behind it.
    reads = [str(region.source.name).startswith("acc") for region in schedule.get(out).reads]
    sums = schedule.cache_read(out, reads.index(True), "shared")
    schedule.reverse_compute_at(sums, warp)
    rows, columns = loops_of(schedule, sums)[-2:]
    row_outer, row = schedule.split(rows, [None, SIDE])
    column_outer, column = schedule.split(columns, [None, SIDE])
    schedule.reorder(row_outer, column_outer, row, column)
    schedule.reverse_compute_at(out, block)
    flat = schedule.fuse(*loops_of(schedule, out)[-2:])
    _, own, lane = schedule.split(flat, [None, warps, WARP])
    schedule.bind(own, "threadIdx.y")
    schedule.bind(lane, "threadIdx.x")
    schedule.tensorize(row, names["store"])


_BUFFER = """
    {name} = T.match_buffer({handle}, ({rows}, {columns}), "{dtype}", align=64, offset_factor={columns}, scope="{scope}"{strides})"""
_FUNCTION = """
@T.prim_func(s_tir=True)
def f({handles}) -> None:{declared}
    with T.sblock("root"):
        T.reads({reads})
        T.writes({writes})
{body}
"""


@dataclass(frozen=True)
class _Matrix:
    """An argument of an intrinsic: a matrix in shared memory or in fragments."""

    name: str
    rows: int
    columns: int
    dtype: str
    scope: str

    def declared(self, strided: bool) -> str:
        """Where an instruction takes its place, rows may lie further apart than they are long."""
        names = f"{self.name}1 = T.int32()\n    {self.name}0 = T.int32()\n    " if strided else ""
        strides = f", strides=[{self.name}1, {self.name}0]" if strided else ""
        text = _BUFFER.format(
            name=self.name, handle=self.name.lower(), rows=self.rows, columns=self.columns, dtype=self.dtype, scope=self.scope,
            strides=strides,
        )  # fmt: skip
        return text.replace("\n    ", f"\n    {names}", 1)

    @property
    def region(self) -> str:
        return f"{self.name}[0:{self.rows}, 0:{self.columns}]"

    @property
    def fragment(self) -> str:
        """Number of the fragment among those of its buffer, counted row by row."""
        name = self.name
        row, column = f"{name}.elem_offset // {name}1 // {self.rows}", f"{name}.elem_offset % {name}1 // {self.columns}"
        return f"{row} * ({name}1 // {self.columns}) + {column}"


def _intrinsic(matrices: Sequence[_Matrix], reads: str, writes: str, meaning: str, instruction: str) -> tuple[Any, Any]:
    """What loops mean, and the instruction that does it."""
    made = []
    for body, strided in ((meaning, False), (f"        T.evaluate({instruction})", True)):
        text = _FUNCTION.format(
            handles=", ".join(f"{m.name.lower()}: T.handle" for m in matrices), declared="".join(m.declared(strided) for m in matrices),
            reads=reads, writes=writes, body=body,
        )  # fmt: skip
        made.append(from_source(text))
    return made[0], made[1]


def _copy(source: _Matrix, to: _Matrix, instruction: str) -> tuple[Any, Any]:
    element = f"{source.name}[vi, vj]"
    meaning = f"""        for i, j in T.grid({source.rows}, {source.columns}):
            with T.sblock("copy"):
                vi, vj = T.axis.remap("SS", [i, j])
                {to.name}[vi, vj] = {element if source.dtype == to.dtype else f'T.Cast("{to.dtype}", {element})'}"""
    return _intrinsic([source, to], source.region, to.region, meaning, instruction)


@cache
def _registered(dtype: str, step: int) -> dict[str, str]:
    """Names of the tensor intrinsics for operands of a type, made known to TVM."""
    total = "int32" if dtype == "int8" else "float32"
    stored, kept = ("float32", STAND_IN) if dtype == TF32 else (dtype, dtype)
    shape = f"{SIDE}, {SIDE}, {step}"
    made = {}
    for name, rows, columns in (("a", SIDE, step), ("b", step, SIDE)):
        shared, own = _Matrix("A", rows, columns, stored, "shared"), _Matrix("C", rows, columns, kept, f"wmma.matrix_{name}")
        call = f"""T.tvm_load_matrix_sync(
            C.data, {shape}, {own.fragment}, A.access_ptr("r", ptr_type="{stored}"), A1, "row_major", dtype="void")"""
        made[name] = _copy(shared, own, call)
    sums, shared = _Matrix("A", SIDE, SIDE, total, "wmma.accumulator"), _Matrix("C", SIDE, SIDE, total, "shared")
    call = f"""T.tvm_store_matrix_sync(
            A.data, {shape}, {sums.fragment}, C.access_ptr("w", ptr_type="{total}"), C1, "row_major", dtype="void")"""
    made["store"] = _copy(sums, shared, call)
    a, b = _Matrix("A", SIDE, step, kept, "wmma.matrix_a"), _Matrix("B", step, SIDE, kept, "wmma.matrix_b")
    c = _Matrix("C", SIDE, SIDE, total, "wmma.accumulator")
    zero = "T.int32(0)" if total == "int32" else "T.float32(0)"
    meaning = f"""        for i, j in T.grid({SIDE}, {SIDE}):
            with T.sblock("init"):
                vi, vj = T.axis.remap("SS", [i, j])
                C[vi, vj] = {zero}"""
    made["fill"] = _intrinsic([c], "", c.region, meaning, f'T.tvm_fill_fragment(C.data, {shape}, {c.fragment}, T.float32(0), dtype="void")')
    product = "A[vi, vk] * B[vk, vj]" if kept == total else f'T.Cast("{total}", A[vi, vk]) * T.Cast("{total}", B[vk, vj])'
    meaning = f"""        for i, j, k in T.grid({SIDE}, {SIDE}, {step}):
            with T.sblock(""):
                vi, vj, vk = T.axis.remap("SSR", [i, j, k])
                C[vi, vj] = C[vi, vj] + {product}"""
    call = f"""T.tvm_mma_sync(
            C.data, {c.fragment}, A.data, {a.fragment}, B.data, {b.fragment}, C.data, {c.fragment}, dtype="void")"""
    made["sync"] = _intrinsic([a, b, c], f"{c.region}, {a.region}, {b.region}", c.region, meaning, call)
    names = {key: f"gatewright_wmma_{key}_{dtype}_{step}" for key in made}
    for key, pair in made.items():
        TensorIntrin.register(names[key], *pair, override=True)
    return names
