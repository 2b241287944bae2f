"""TPU generations as XLA's compiler names them: their topologies, and what its process has to be told to compile for one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from gatewright.errors import UnsupportedError, UsageError
from gatewright.hw.device import Processor

Mesh = Literal["none", "data", "model"]
"""How cores share the work: not at all, by samples, or by samples over pairs of cores that have half of the weights each."""
MODEL_WAYS = 2

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8")
_CUBIC = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4")


@dataclass(frozen=True)
class Generation:
    """One generation. Its name is the device's, and libtpu's."""

    topologies: tuple[str, ...]
    """Slices up to 64 chips (Cloud TPU documentation, pages of the generations), and one chip of a host."""
    accelerator: str
    """The accelerator type's stem, as in v5litepod-4."""
    cores: int
    """Devices that XLA sees in a chip, each with its share of the memory."""


GENERATIONS: Mapping[str, Generation] = {
    "v2": Generation(_FLAT, "v2", 2),
    "v3": Generation(_FLAT, "v3", 2),
    "v4": Generation(_CUBIC, "v4", 2),
    "v5e": Generation(_FLAT, "v5litepod", 1),
    "v5p": Generation(_CUBIC, "v5p", 1),
    "v6e": Generation(_FLAT, "v6e", 1),
    "tpu7x": Generation(_CUBIC, "tpu7x", 2),
}


@dataclass(frozen=True)
class Slice:
    """Chips of one generation, wired as ``topology`` says."""

    generation: str
    topology: str

    @classmethod
    def of(cls, device: Processor, topology: str | None) -> Slice:
        """``topology`` None: one chip. Raises UnsupportedError listing the topologies that the generation has."""
        if device.name not in GENERATIONS:
            raise UsageError(
                f"XLA knows no TPU generation {device.name!r}", hint=f"a device file for target tpu is named {' or '.join(GENERATIONS)}"
            )
        known = GENERATIONS[device.name].topologies
        found = topology or known[0]
        if found not in known:
            raise UnsupportedError(f"tpu:{device.name} has no topology {found!r}", hint=f"it has {', '.join(known)}")
        return cls(device.name, found)

    @property
    def name(self) -> str:
        """As XLA has it: v5e:2x2."""
        return f"{self.generation}:{self.topology}"

    @property
    def chips(self) -> int:
        return math.prod(map(int, self.topology.split("x")))

    @property
    def cores(self) -> int:
        """Devices that XLA sees."""
        return self.chips * GENERATIONS[self.generation].cores

    @property
    def host_bounds(self) -> tuple[int, int, int] | None:
        """Chips of one host, where the whole is less than the usual 2×2."""
        return (1, 1, 1) if self.chips == 1 else None

    def environment(self) -> dict[str, str]:
        """What libtpu's compiler needs to believe where it runs."""
        generation = GENERATIONS[self.generation]
        return {
            "TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": f"{generation.accelerator}-{max(self.cores, 1)}",
            "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_LOG_DIR": "disabled", "TPU_MIN_LOG_LEVEL": "3",
            "TPU_STDERR_LOG_LEVEL": "3",
            # Only who drives a TPU has to be alone with it; compilations run side by side.
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }  # fmt: skip


_PCI = Path("/sys/bus/pci/devices")
_VENDOR = "0x1ae0"
_CHIPS = {
    "0x0027": ("v2", "v3"), "0x005e": ("v4",), "0x0062": ("v5p",), "0x0063": ("v5e",), "0x006f": ("v6e",), "0x0076": ("tpu7x",),
}  # fmt: skip
"""Generations by PCI device number, of Google's vendor number (as JAX tells them apart, jax/_src/hardware_utils.py)."""


def present(devices: Path = _PCI) -> tuple[str, ...]:
    """The generations that this machine's TPUs may be of; empty where it has none."""
    found: set[str] = set()
    for vendor in devices.glob("*/vendor"):
        try:
            if vendor.read_text(encoding="ascii").strip() == _VENDOR:
                found.update(_CHIPS.get(vendor.with_name("device").read_text(encoding="ascii").strip(), ()))
        except (OSError, UnicodeDecodeError):
            continue  # a device that went away, or that says nothing, is no TPU
    return tuple(sorted(found))


def ways(mesh: Mesh, cores: int) -> tuple[int, int]:
    """Over how many cores samples and weights are split."""
    if mesh == "model":
        return cores // MODEL_WAYS, MODEL_WAYS
    return (cores, 1) if mesh == "data" else (1, 1)


def one_core(device: Processor) -> Processor:
    """What one of a chip's cores has: its share of rate, bandwidth and memory."""
    count = GENERATIONS[device.name].cores
    if count == 1:
        return device
    return replace(
        device, cores=device.cores // count,
        memory_bytes=None if device.memory_bytes is None else device.memory_bytes // count,
        memory_bandwidth_bytes_per_s=None if device.memory_bandwidth_bytes_per_s is None else device.memory_bandwidth_bytes_per_s / count,
        peak_ops_per_s={dtype: rate / count for dtype, rate in device.peak_ops_per_s.items()},
    )  # fmt: skip
