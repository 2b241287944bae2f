"""The CPU of this machine as a ``Processor``: what the system says of it, and estimates where it says nothing.

Linux tells most (/proc/cpuinfo, sysfs); elsewhere the ``platform`` module gives the architecture and ``os.cpu_count`` the
cores, and the rest stays None or falls back on the architecture's baseline. Each estimate is cited as one in ``sources``.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .device import Citation, Dtype, Processor

_CPUINFO_TO_LLVM = {
    "pni": "sse3", "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16", "avx_vnni": "avxvnni",
    "sse4_1": "sse4.1", "sse4_2": "sse4.2", "lahf_lm": "sahf", "bmi1": "bmi", "abm": "lzcnt", "amx_tile": "amx-tile",
    "amx_int8": "amx-int8", "amx_bf16": "amx-bf16", "asimd": "neon", "asimddp": "dotprod", "asimdhp": "fullfp16", "i8mm": "i8mm",
    "sve": "sve", "sve2": "sve2", "bf16": "bf16",
}  # fmt: skip
"""Flags of /proc/cpuinfo whose LLVM feature is spelled differently, and those of AArch64."""
_SAME_IN_LLVM = (
    "sse3", "ssse3", "cx16", "popcnt", "movbe", "xsave", "avx", "avx2", "fma", "f16c", "bmi2", "avx512f", "avx512bw", "avx512cd",
    "avx512dq", "avx512vl", "avx512vbmi",
)  # fmt: skip

_X86_LEVELS: tuple[tuple[str, frozenset[str]], ...] = (
    ("x86-64-v4", frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"})),
    ("x86-64-v3", frozenset({"avx2", "fma", "bmi2", "f16c"})),
    ("x86-64-v2", frozenset({"sse4.2", "ssse3"})),
)
"""The levels of the x86-64 psABI (section 3.1.1, "micro-architecture levels"): the features that tell them apart."""

_ARM_PARTS = {
    0xD03: "cortex-a53", 0xD08: "cortex-a72", 0xD0B: "cortex-a76", 0xD0C: "neoverse-n1", 0xD40: "neoverse-v1", 0xD49: "neoverse-n2",
}  # fmt: skip
"""Part numbers of implementer 0x41 (Arm), from each core's Technical Reference Manual, register MIDR_EL1."""

_DEFAULT_CLOCK_HZ = 2.5e9
_BANDWIDTH_PER_CORE = 10e9
_BANDWIDTH_LIMIT = 40e9


@dataclass(frozen=True)
class _Facts:
    """What the operating system says, still untranslated."""

    machine: str
    system: str
    model_name: str
    flags: frozenset[str]
    identity: tuple[str, int, int]
    """x86: vendor, family, model. AArch64: implementer, 0, part number."""
    cores: int
    threads: int
    clock_hz: float | None
    caches: Mapping[int, int]
    """Level to bytes, of data and unified caches as one core sees them."""
    memory_bytes: int | None


@cache
def detect() -> Processor:
    """The host's CPU. Never raises: what cannot be found out is None or estimated."""
    return describe(_facts())


def describe(facts: _Facts) -> Processor:
    """The Processor that ``facts`` amount to; separate from ``_facts`` so that it can be tested with other machines' facts."""
    isa = tuple(sorted(llvm_features(facts.flags)))
    clock = facts.clock_hz or _DEFAULT_CLOCK_HZ
    bits = vector_bits(facts.machine, isa)
    name = mcpu(facts.machine, facts.identity, isa)
    return Processor(
        kind="cpu",
        name="host",
        description=facts.model_name or f"an unnamed {facts.machine} CPU",
        source="host",
        cores=facts.cores,
        threads=max(facts.cores, facts.threads),
        clock_hz=clock,
        vector_bits=bits,
        isa=isa,
        triple=triple(facts.machine, facts.system),
        mcpu=name,
        l1d_bytes=facts.caches.get(1),
        l2_bytes=facts.caches.get(2),
        l3_bytes=facts.caches.get(3),
        memory_bytes=facts.memory_bytes,
        memory_bandwidth_bytes_per_s=min(_BANDWIDTH_LIMIT, _BANDWIDTH_PER_CORE * facts.cores),
        # Zen 4 runs a 512-bit multiply-add as two halves (AMD 57647, Software Optimization Guide for Family 19h Models 10h+).
        peak_ops_per_s=peak_ops(facts.cores, clock, 256 if name == "znver4" else bits, isa),
        sources=(
            Citation(("cores", "threads", "isa", "l1d_bytes", "l2_bytes", "l3_bytes", "memory_bytes"), "detected: /proc/cpuinfo and sysfs"),
            Citation(("clock_hz",), "detected: sysfs or /proc/cpuinfo" if facts.clock_hz else "estimated: a usual server clock"),
            Citation(("vector_bits", "mcpu", "triple"), "derived from the detected features and model number"),
            Citation(("peak_ops_per_s",), "estimated: cores x clock x 2 vector multiply-adds per cycle x 2"),
            Citation(("memory_bandwidth_bytes_per_s",), "estimated: 10 GB/s per core, at most 40 GB/s (two DDR4-2666 channels)"),
        ),
    )


def llvm_features(flags: Iterable[str]) -> set[str]:
    """The flags of /proc/cpuinfo that matter to generated code, as LLVM spells them."""
    return {_CPUINFO_TO_LLVM.get(flag, flag) for flag in flags if flag in _CPUINFO_TO_LLVM or flag in _SAME_IN_LLVM}


def vector_bits(machine: str, isa: Iterable[str]) -> int:
    """The widest register that code may use; 128 (SSE2, NEON) is in every 64-bit x86 and Arm CPU."""
    features = set(isa)
    if "avx512f" in features and machine in ("x86_64", "amd64"):
        return 512
    return 256 if "avx2" in features else 128


def mcpu(machine: str, identity: tuple[str, int, int], isa: Iterable[str]) -> str:
    """LLVM's CPU name: exact where the model is known and has the features of that name, else the psABI level, else "generic".

    A hypervisor may mask features of a known model (AVX-512 most often), and code for the masked ones would crash: so a
    name is used only if what tells it from its predecessor is present.
    """
    features = set(isa)
    if machine in ("aarch64", "arm64"):
        return _ARM_PARTS.get(identity[2], "generic") if identity[0] == "0x41" else "generic"
    if machine not in ("x86_64", "amd64"):
        return "generic"
    level = next((name for name, needed in _X86_LEVELS if needed <= features), "x86-64")
    vendor, family, _ = identity
    if vendor == "AuthenticAMD" and level in ("x86-64-v3", "x86-64-v4"):
        if family == 0x1A and "avx512vnni" in features and level == "x86-64-v4":
            return "znver5"
        if family == 0x19:
            return "znver4" if {"avx512vnni", "avx512bf16"} <= features and level == "x86-64-v4" else "znver3"
        if family == 0x17:
            return "znver2" if identity[2] >= 0x30 else "znver1"
    if vendor == "GenuineIntel" and level == "x86-64-v4":
        if {"amx-int8", "avx512fp16"} <= features:
            return "sapphirerapids"
        return "cascadelake" if "avx512vnni" in features else "skylake-avx512"
    return level


def triple(machine: str, system: str) -> str:
    """LLVM's target triple of the host."""
    arch = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return {"Darwin": f"{'arm64' if arch == 'aarch64' else arch}-apple-darwin", "Windows": f"{arch}-pc-windows-msvc"}.get(
        system, f"{arch}-unknown-linux-gnu"
    )


def peak_ops(cores: int, clock_hz: float, bits: int, isa: Iterable[str]) -> dict[Dtype, float]:
    """An upper bound, as most server cores of the last ten years have it: two vector multiply-adds per cycle, two operations each.

    int8 without a dot-product instruction is int16 multiply-add (twice the float32 rate), with one (VNNI, dotprod) four times.
    """
    float32 = cores * clock_hz * 2 * (bits // 32) * 2
    dot = {"avx512vnni", "avxvnni", "dotprod"} & set(isa)
    return {"float64": float32 / 2, "float32": float32, "int32": float32 / 2, "int16": float32 * 2, "int8": float32 * (4 if dot else 2)}


def _facts() -> _Facts:
    machine = platform.machine().lower()
    entries = _cpuinfo(_text(Path("/proc/cpuinfo")))
    first = entries[0] if entries else {}
    threads = _usable_threads()
    return _Facts(
        machine=machine,
        system=platform.system(),
        model_name=first.get("model name") or platform.processor() or machine,
        flags=frozenset((first.get("flags") or first.get("Features") or "").split()),
        identity=_identity(first),
        cores=min(_physical_cores(entries), threads),
        threads=threads,
        clock_hz=_clock(first),
        caches=_caches(Path("/sys/devices/system/cpu/cpu0/cache")),
        memory_bytes=_memory(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpuinfo(text: str) -> list[dict[str, str]]:
    """One table per logical CPU."""
    blocks = [dict(re.findall(r"^([^:\n]+?)[ \t]*:[ \t]*(.*)$", block, flags=re.M)) for block in text.split("\n\n")]
    return [block for block in blocks if "processor" in block]


def _identity(entry: Mapping[str, str]) -> tuple[str, int, int]:
    try:
        if "CPU part" in entry:
            return entry.get("CPU implementer", ""), 0, int(entry["CPU part"], 16)
        return entry.get("vendor_id", ""), int(entry.get("cpu family", "0")), int(entry.get("model", "0"))
    except ValueError:
        return "", 0, 0


def _usable_threads() -> int:
    """Logical CPUs that this process may run on (a container or taskset may allow fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _physical_cores(entries: list[dict[str, str]]) -> int:
    """Distinct (socket, core) pairs; without such entries every logical CPU counts as a core."""
    pairs = {(e["physical id"], e["core id"]) for e in entries if "physical id" in e and "core id" in e}
    return len(pairs) or len(entries) or os.cpu_count() or 1


def _clock(entry: Mapping[str, str]) -> float | None:
    """A clock in Hz that is the same at every call, or None: it is part of the device, and so of every cache key.

    The maximum that sysfs states; else the one in the model's name ("@ 2.60GHz"); else x86's BogoMIPS, which are twice the
    time stamp counter's rate. "cpu MHz" is not used: it is the clock of this very moment.
    """
    maximum = _text(Path("/sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq")).strip()
    if maximum.isdigit() and int(maximum) > 100_000:
        return int(maximum) * 1e3
    if named := re.search(r"@ (\d+\.\d+)GHz", entry.get("model name", "")):
        return float(named[1]) * 1e9
    bogomips = re.fullmatch(r"\d+\.\d+", entry.get("bogomips", "")) if "cpu family" in entry else None
    return round(float(bogomips[0]) / 2, -2) * 1e6 if bogomips and float(bogomips[0]) > 1000 else None


def _caches(folder: Path) -> dict[int, int]:
    sizes: dict[int, int] = {}
    for index in sorted(folder.glob("index*")):
        level, size = _text(index / "level").strip(), re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size").strip())
        if level.isdigit() and size and _text(index / "type").strip() != "Instruction":
            sizes[int(level)] = int(size[1]) * {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[size[2]]
    return sizes


def _memory() -> int | None:
    """Main memory in whole GiB (what the kernel keeps for itself varies from boot to boot)."""
    try:
        return max(1, round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)) * 2**30
    except (ValueError, OSError, AttributeError):
        return None
