"""What schedules need to know of a CPU, derived from its ``Processor`` description."""

from __future__ import annotations

from dataclasses import dataclass

from gatewright.hw.device import Processor

_BITS = {"float64": 64, "int64": 64, "uint64": 64, "float32": 32, "int32": 32, "uint32": 32, "float16": 16, "int16": 16, "uint16": 16}

PARALLEL_WORK = 1 << 18
"""Multiply-adds below which a kernel stays on one core: they take it some 5 µs, and waking the others 1 to 9."""


@dataclass(frozen=True)
class Machine:
    """Vector width, registers, cores and caches."""

    vector_bits: int
    vector_registers: int
    cores: int
    l2_bytes: int = 1 << 19
    """Of one core."""
    memory_bytes_per_cycle: float = 4.0
    """That one core reads where all of them do."""
    isa: frozenset[str] = frozenset()
    """Features as LLVM spells them, and the architecture: "x86_64", "aarch64"."""

    @classmethod
    def of(cls, device: Processor, threads: int) -> Machine:
        bits = device.vector_bits or 128
        rate = (device.memory_bandwidth_bytes_per_s or 0) / (device.clock_hz or 1) / threads if device.clock_hz else 0
        caches = (device.l2_bytes or 1 << 19, rate or 4.0)
        architecture = (device.triple or "x86_64").split("-")[0].replace("arm64", "aarch64")
        isa = frozenset({*device.isa, architecture})
        if architecture == "aarch64":
            # NEON, on every AArch64. The schedules know no vectors of unknown length, so SVE is left unused (link.llvm_target).
            return cls(128, 32, threads, *caches, isa)
        # 32 registers with AVX-512, 16 with SSE and AVX2.
        return cls(bits, 32 if bits >= 512 else 16, threads, *caches, isa)

    @property
    def products_per_cycle(self) -> float:
        """float32 multiply-adds of one core: two vectors of 128 or 256 bits, one of 512 (what most cores sustain)."""
        return min(2 * self.lanes("float32"), 16)

    @property
    def fuses(self) -> bool:
        """Whether there are fused multiply-adds: a·b + c rounded once."""
        return bool(self.isa & {"fma", "aarch64"})

    def lanes(self, dtype: str) -> int:
        """Elements of ``dtype`` in one register."""
        return max(1, self.vector_bits // _BITS.get(dtype, 8))
