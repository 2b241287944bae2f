"""What this machine reaches at best: a C program of a few loops says it, compiled and run once per machine and kept.

Multiply-adds from registers (float32, and int8 with the CPU's dot-product instruction), and bytes read per second from
buffers of several sizes: what a kernel's time is held against.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from gatewright.errors import ToolFailed
from gatewright.hw.device import Processor, host
from gatewright.targets import toolchain

SOURCE = Path(__file__).resolve().parent / "templates" / "peaks.c"
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-pthread")
_DRAM_BYTES = 256 << 20


@dataclass(frozen=True)
class Peaks:
    """Measured, of ``threads`` together."""

    threads: int
    float32_ops_per_s: float
    """A multiply-add is two operations."""
    int8_ops_per_s: float | None
    """None where there is no loop for this CPU's instructions."""
    reads: tuple[tuple[int, float], ...]
    """Bytes of all threads' buffers together, and bytes per second read from them again and again; small to large."""

    def bandwidth(self, footprint: int) -> float:
        """Bytes per second where so many bytes are read: of the smallest measured buffers that hold them."""
        return next((rate for size, rate in self.reads if footprint <= size), self.reads[-1][1])

    def operations(self, dtype: str) -> float:
        """Operations per second in a type."""
        integer = "int8" in dtype and self.int8_ops_per_s is not None
        return self.int8_ops_per_s or self.float32_ops_per_s if integer else self.float32_ops_per_s


def measure(threads: int, cache_dir: Path, *, again: bool = False) -> Peaks:
    """The figures of this machine, from the cache unless ``again``. Raises ToolMissing without a C compiler."""
    device = host()
    sizes = _sizes(device, threads)
    text = json.dumps([device.to_json(), threads, sizes, SOURCE.read_text(encoding="utf-8"), FLAGS], sort_keys=True)
    kept = cache_dir / "peaks" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
    if not again:
        try:
            return _parsed(threads, json.loads(kept.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, IndexError, AttributeError, ToolFailed):
            pass  # never measured, or what was kept is damaged: it is measured again
    found = _run(threads, sizes, kept.parent)
    peaks = _parsed(threads, found)
    kept.write_text(json.dumps(found), encoding="utf-8")
    return peaks


def _sizes(device: Processor, threads: int) -> list[int]:
    """Bytes per thread: half of the first cache, most of the second, most of a share of the third, and beyond all of them."""
    l1, l2, l3 = device.l1d_bytes or 32 << 10, device.l2_bytes or 512 << 10, device.l3_bytes or 0
    sizes = [l1 // 2, l2 * 3 // 4, l3 * 3 // 4 // threads]
    return [size & ~0xFFF for size in sizes if size >= l1 // 2] + [_DRAM_BYTES // threads]


def _run(threads: int, sizes: list[int], folder: Path) -> list[list[str]]:
    compiler = toolchain.Tool(("cc", "gcc", "clang"), "a C compiler", "install gcc").require("measuring what this machine reaches")
    folder.mkdir(parents=True, exist_ok=True)
    program, log = folder / "peaks", folder / "peaks.log"
    toolchain.run([compiler, *FLAGS, SOURCE, "-o", program], cwd=folder, log=log, what="compiling peaks.c", time_limit_s=60)
    try:
        # In this process's own session: a user who put that before others (or bound it to cores) means this measurement too.
        done = subprocess.run([program, str(threads), *map(str, sizes)], capture_output=True, text=True, timeout=120, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise ToolFailed(f"measuring what this machine reaches failed: {error}") from None
    return [line.split() for line in done.stdout.splitlines()]


def _parsed(threads: int, lines: list[list[str]]) -> Peaks:
    figures = {words[0]: float(words[1]) for words in lines if len(words) == 2}
    reads = tuple((int(words[1]) * threads, float(words[2])) for words in lines if len(words) == 3)
    if not reads or figures.get("float32", 0) <= 0 or any(rate <= 0 for _, rate in reads):
        raise ToolFailed("peaks.c printed no figures that make sense")
    return Peaks(threads, figures["float32"], figures.get("int8") or None, tuple(sorted(reads)))
