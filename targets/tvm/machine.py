"""What schedules need to know of a CPU, derived from its ``Processor`` description."""

from __future__ import annotations

from dataclasses import dataclass, field

from gatewright.hw.device import Processor

_BITS = {"float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "float16": 16, "int16": 16, "uint16": 16}

PARALLEL_WORK = 1 << 18
"""Multiply-adds below which a kernel stays on one core: they take it some 5 µs, and waking the others 1 to 9."""


@dataclass(frozen=True)
class Machine:
    """Vector width, registers and cores."""

    vector_bits: int
    vector_registers: int
    cores: int
    isa: frozenset[str] = field(default=frozenset())
    """Features as LLVM spells them, and the architecture: "x86_64", "aarch64"."""

    @classmethod
    def of(cls, device: Processor, threads: int) -> Machine:
        bits = device.vector_bits or 128
        # 32 registers on AVX-512 and on AArch64, 16 on SSE and AVX2.
        wide = bits >= 512 or (device.triple or "").startswith(("aarch64", "arm64"))
        architecture = (device.triple or "x86_64").split("-")[0].replace("arm64", "aarch64")
        return cls(bits, 32 if wide else 16, threads, frozenset({*device.isa, architecture}))

    @property
    def fuses(self) -> bool:
        """Whether there are fused multiply-adds: a·b + c rounded once."""
        return bool(self.isa & {"fma", "aarch64"})

    def lanes(self, dtype: str) -> int:
        """Elements of ``dtype`` in one register."""
        return max(1, self.vector_bits // _BITS.get(dtype, 8))
