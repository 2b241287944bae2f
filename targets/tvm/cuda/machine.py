"""What schedules need to know of a GPU, and how many of its threads a kernel can keep busy."""

from __future__ import annotations

from dataclasses import dataclass

from gatewright.hw.device import Processor

from ..machine import Machine

WARP = 32
SHARED_BYTES = 48 << 10
"""Static shared memory of a block, on every architecture."""
THREADS_PER_BLOCK = 1024

CLOCK_HZ = 1.7e9
"""Of a multiprocessor whose data sheet tells none: about that of all of them."""

_LIMITS = {
    # threads, blocks and bytes of shared memory of one multiprocessor
    75: (1024, 16, 64 << 10),
    80: (2048, 32, 164 << 10),
    86: (1536, 16, 100 << 10),
    87: (1536, 16, 164 << 10),
    89: (1536, 24, 100 << 10),
    90: (2048, 32, 228 << 10),
    100: (2048, 32, 228 << 10),
    103: (2048, 32, 228 << 10),
    120: (1536, 24, 100 << 10),
}
"""By compute capability: CUDA C++ Programming Guide, table Technical Specifications per Compute Capability; the same in NVIDIA's CCCL,
https://github.com/NVIDIA/cccl/blob/main/libcudacxx/include/cuda/__device/arch_traits.h."""
REGISTERS = 65536
"""32-bit registers of one multiprocessor, on every architecture of the table."""
RESERVED_BYTES = 1024
"""Shared memory that the system takes of each block, from compute capability 8.0 on."""


@dataclass(frozen=True)
class Gpu(Machine):
    """A GPU as a machine: registers hold one element, so lowerings that look for lanes find none."""

    capability: int = 80
    """10 · major + minor."""

    @classmethod
    def of_device(cls, device: Processor) -> Gpu:
        clock = device.clock_hz or CLOCK_HZ
        rate = (device.memory_bandwidth_bytes_per_s or 0) / clock / device.cores
        return cls(
            32, 255, device.cores, memory_bytes_per_cycle=rate or 4.0, isa=frozenset({"fma", "cuda"}), capability=capability(device)
        )  # fmt: skip

    def lanes(self, dtype: str) -> int:
        """More than any row has: rows are reduced by threads."""
        return 1 << 30

    @property
    def brain_floats(self) -> bool:
        """Whether tensor cores take bfloat16 and tf32."""
        return self.capability >= 80


def capability(device: Processor) -> int:
    """sm_90 → 90."""
    digits = "".join(c for c in (device.mcpu or device.name) if c.isdigit())
    return int(digits or 0)


def occupancy(found: int, threads: int, registers: int, shared_bytes: int) -> float | None:
    """Resident threads over those that a multiprocessor can hold; None for an architecture that is not in the table.

    Registers are handed out by the warp in units of 256, shared memory in units of 128 bytes (1 KB reserved for each block from 8.0 on):
    CUDA C++ Best Practices Guide, section Occupancy; ``cuda_occupancy.h``.
    """
    if found not in _LIMITS:
        return None
    most_threads, most_blocks, shared = _LIMITS[found]
    warps = -(-threads // WARP)
    of_warp = -(-max(registers, 1) * WARP // 256) * 256
    # A multiprocessor has four schedulers, each with a quarter of the registers.
    by_registers = 4 * (REGISTERS // 4 // of_warp) // warps
    taken = -(-(shared_bytes + (RESERVED_BYTES if found >= 80 else 0)) // 128) * 128
    by_shared = shared // taken if taken else most_blocks
    blocks = min(most_blocks, most_threads // (warps * WARP), by_registers, by_shared)
    return blocks * warps * WARP / most_threads
