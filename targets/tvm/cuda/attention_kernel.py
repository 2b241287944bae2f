"""The kernel of an attention: which tiles, what it costs by the estimate that also prices the separate kernels, and its text.

A block of threads has ``rows`` queries and goes through the keys ``keys`` at a time: scores, the rows' largest so far, exponentials,
their sums and their products with V, all scaled anew when a larger score comes (Milakov and Gimelshein, "Online normalizer calculation
for softmax", 2018; Dao et al., "FlashAttention", 2022). Scores never leave the chip. The text is written by hand, in
``templates/attention.cu.j2`` (ordinary units) and ``attention_tensor.cu.j2`` (tensor cores): TVM's schedules have no such loop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..export import environment
from ..machine import Machine
from .attention import Attention
from .lowering import Launch, Lowered
from .machine import SHARED_BYTES, WARP, Gpu
from .strided import Strided
from .tensor_cores import SIDE, TF32
from .tiles import KERNEL_CYCLES, Shape, product_cycles

ACROSS = 16
"""Threads that share a row of scores in the ordinary units; neighbours, so that they can shuffle."""
THREADS = 128
_NAME = "KERNEL"
"""In the text, until the kernel has one."""
_CPP = {"float16": "half", "bfloat16": "nv_bfloat16", TF32: "nvcuda::wmma::precision::tf32", "float32": "float"}
_STORED = {**_CPP, TF32: "float"}
_BYTES = {"float16": 2, "bfloat16": 2, TF32: 4, "float32": 4}
_FEATURES = {"float16": ("fp16", "mma"), "bfloat16": ("bf16", "mma"), TF32: ("mma",), "float32": ()}
_L2_BYTES_PER_CYCLE = 64.0
"""That one multiprocessor reads from the L2 cache: an assumption, like the estimate's other figures measured on no GPU."""
_EXPONENTIAL = 20.0
"""Operations of a score between the products: factor, mask, comparison, exponential, sum."""

_HELD = 112
"""Sums and scores that a thread may hold of its 255 registers; operands and addresses take the rest."""


@dataclass(frozen=True)
class Tile:
    """Of one block of threads."""

    rows: int
    keys: int
    type: str
    """What is multiplied: "float32" in the ordinary units, else on tensor cores."""

    @property
    def threads(self) -> int:
        return THREADS if self.type == "float32" else self.rows // SIDE * WARP

    @property
    def step(self) -> int:
        """Multiples to which depth and width grow."""
        return SIDE if self.type != "float32" else 4

    def depth(self, attention: Attention) -> int:
        return _whole(attention.depth, self.step)

    def width(self, attention: Attention) -> int:
        return _whole(attention.width, SIDE)

    def shared_bytes(self, attention: Attention) -> int:
        pad, size = self.padding, _BYTES[self.type]
        depth, width = self.depth(attention), self.width(attention)
        operands = self.rows * (depth + pad) + self.keys * (max(depth, width) + pad)
        shares = self.rows * (self.keys + pad)
        scores = 0 if self.type == "float32" else 4 * self.rows * (self.keys + 4)
        return size * (operands + shares) + scores

    @property
    def padding(self) -> int:
        """Elements by which a row in shared memory is longer: 16 bytes, so that lanes meet different banks."""
        return 16 // _BYTES[self.type]

    def fits(self, attention: Attention) -> bool:
        """Shared memory, and the registers that a thread needs for its part of the result and of the scores."""
        if self.type == "float32":
            held = self.rows // 8 * (self.width(attention) // ACROSS + self.keys // ACROSS)
        else:
            held = SIDE * (self.width(attention) + self.keys) // WARP
        return held <= _HELD and self.shared_bytes(attention) <= SHARED_BYTES


def tile(attention: Attention, machine: Gpu, precision: str) -> Tile | None:
    """The cheapest; None where no tile fits a block (heads of several hundred elements)."""
    ordinary = [Tile(rows, keys, "float32") for rows in (64, 32, 16, 8) for keys in (64, 32, 16)]
    tensor = [Tile(rows, keys, precision) for rows in (64, 32, 16) for keys in (64, 32, 16)]
    found = [one for one in (ordinary if precision == "float32" else tensor) if one.fits(attention)]
    return min(found, key=lambda one: cycles(one, attention, machine)) if found else None


def cycles(one: Tile, attention: Attention, machine: Gpu) -> float:
    """By the model of ``tiles.py``: blocks in waves, each step's products and its round trip to memory."""
    tiles = -(-attention.rows // one.rows)
    waves = -(-attention.entries * tiles // machine.cores)
    bounds = [_bounds(i, one, attention, attention.band) for i in range(tiles)] if attention.band else [(0, attention.keys)]
    keys = sum(end - begin for begin, end in bounds) / len(bounds)
    depth, width = one.depth(attention), one.width(attention)
    if one.type == "float32":
        # Four terms of a sum come in one word of 16 bytes.
        tm, tn, tc = one.rows // 8, one.keys // ACROSS, width // ACROSS
        first, second = (128 / max(1.0, 2 * (1 / tm + 1 / n)) for n in (tn, tc))
    else:
        fragment = 8 if one.type == TF32 else SIDE
        first, second = (64 * fragment / max(1.0, 32 * (1 / SIDE + 1 / n)) * min(1.0, one.rows / 64) for n in (one.keys, width))
    scores = one.rows * one.keys
    loaded = 4 * one.keys * (attention.depth + attention.width) / _L2_BYTES_PER_CYCLE
    per_step = scores * (depth / first + width / second + _EXPONENTIAL / 128) + loaded + 200.0 / min(4, max(1, waves)) + 100.0
    return waves * (math.ceil(keys / one.keys) * per_step + 600.0)


def separate_cycles(attention: Attention, machine: Gpu, core: str | None) -> float:
    """Of two products, a softmax and the scores' way through memory, twice there and back; two more kernels to wait for.

    Copies that make the operands contiguous are left out: they may be part of other kernels."""
    a = attention
    products = (Shape(a.entries, a.rows, a.keys, a.depth), Shape(a.entries, a.rows, a.width, a.keys))
    total = sum(product_cycles(machine, shape, "float32", core) for shape in products)
    softmax = a.entries * a.rows * a.keys * _EXPONENTIAL / (128 * machine.cores) + 600.0
    moved = 4 * 4 * a.entries * a.rows * a.keys / (machine.memory_bytes_per_cycle * machine.cores)
    return total + softmax + moved + 2 * KERNEL_CYCLES


@dataclass(frozen=True)
class FusedAttention:
    """The schedule of such a kernel, which TVM does not see."""

    grid: tuple[int, int, int]
    threads: int
    arguments: tuple[str, ...]
    type: str

    def __call__(self, schedule: object, machine: Machine) -> None:
        raise TypeError("an attention's text is its schedule")

    def lowered(self, text: str, name: str) -> Lowered:
        kernel = f"{name}_kernel"
        launch = Launch(kernel, self.arguments, self.grid, (self.threads, 1, 1))
        return Lowered(text.replace(_NAME, kernel), (launch,), (), frozenset(_FEATURES[self.type]))


def schedule(one: Tile, attention: Attention, arguments: Sequence[str]) -> FusedAttention:
    # All in the grid's first axis: the others count to 65,535.
    return FusedAttention(
        (-(-attention.rows // one.rows) * attention.entries, 1, 1), one.threads, tuple(dict.fromkeys(arguments)), one.type
    )


def text(one: Tile, attention: Attention, names: dict[str, str]) -> str:
    """CUDA C++; ``names``: the kernel's parameter for each value."""
    operands = {"q": attention.q, "k": attention.k, "v": attention.v, "result": attention.result}
    if attention.mask is not None:
        operands["mask"] = attention.mask
    behind, ahead = attention.band or (attention.rows + attention.keys,) * 2
    template = "attention.cu.j2" if one.type == "float32" else "attention_tensor.cu.j2"
    return environment().get_template(template).render(
        name=_NAME, given=[name for name in dict.fromkeys(names.values()) if name != "out"],
        tile=one, blocks=-(-attention.rows // one.rows),
        rows=attention.rows, keys=attention.keys, depth=attention.depth, width=attention.width, behind=behind, ahead=ahead,
        padded_depth=one.depth(attention), padded_width=one.width(attention), masked=attention.mask is not None,
        entry={key: _entry(own) for key, own in operands.items()}, at={key: names[own.name] + "_ptr" for key, own in operands.items()},
        strides={key: own.strides[-2:] for key, own in operands.items()}, scale=repr(float(attention.scale)), across=ACROSS,
        type=_CPP[one.type], stored=_STORED[one.type], side=SIDE, fragment=8 if one.type == TF32 else SIDE,
    )  # fmt: skip


def _bounds(i: int, one: Tile, attention: Attention, band: tuple[int, int]) -> tuple[int, int]:
    """The keys that the i-th tile of rows goes through."""
    begin = max(0, i * one.rows - band[0]) // one.keys * one.keys
    return begin, max(begin, min(attention.keys, (i + 1) * one.rows + band[1]))


def _entry(operand: Strided) -> str:
    """Where a batch entry begins, in C++."""
    terms, inner = [str(operand.offset)], 1
    for extent, stride in zip(reversed(operand.shape[:-2]), reversed(operand.strides[:-2]), strict=True):
        if extent > 1 and stride:
            terms.append(f"entry / {inner} % {extent} * {stride}")
        inner *= extent
    return " + ".join(terms)


def _whole(length: int, step: int) -> int:
    return -(-length // step) * step
