"""The design itself, clocked cycle by cycle: Verilator makes a program of the Verilog, or, where that is missing, Yosys (CXXRTL) and g++.

A program is made once per content and lives in the cache. Its harness (``templates/*.cpp``) is the same for both makers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from gatewright.errors import ToolMissing
from gatewright.targets import toolchain
from gatewright.targets.base import TargetContext
from gatewright.targets.worker import Worker

from . import tools, verilog
from .network import Array, Network, Port

Engine = Literal["verilator", "cxxrtl"]

FLAGS = ("-std=c++17", "-O1", "-w", "-fno-var-tracking")
"""-O1: -O2 compiles three times as long and the design runs no faster."""
TEMPLATES = Path(__file__).parent / "templates"
MEMORY_BYTES = 12 << 30

_RUNTIME = "include/backends/cxxrtl/runtime"
_TRACES = {
    None: ("verilated_vcd_c.h", "VerilatedVcdC", "0", ()),
    ".vcd": ("verilated_vcd_c.h", "VerilatedVcdC", "1", ("--trace",)),
    ".fst": ("verilated_fst_c.h", "VerilatedFstC", "1", ("--trace-fst",)),
}
"""Per kind of waves: the header, the class, whether anything is traced, Verilator's words."""


@dataclass(frozen=True)
class Source:
    """What is simulated: Verilog files and the module at the top."""

    files: dict[str, str]
    """Text by file name."""
    top: str


def engine() -> Engine:
    """The simulator that is here: Verilator (5 or later) with make, else CXXRTL, which pip and a C++ compiler suffice for."""
    release = re.match(r"Verilator (\d+)", toolchain.VERILATOR.version() or "")
    return "verilator" if release and int(release[1]) >= 5 and toolchain.MAKE.find() else "cxxrtl"


def program(
    source: Source, harness: str, numbers: Mapping[str, int], context: TargetContext, what: str, *, waves: Path | None = None,
    maker: Engine | None = None,
) -> Path:  # fmt: skip
    """The simulator of ``source`` with the ``harness`` (a template's name) around it, compiled on first use.

    ``numbers`` replace @NAME@ in the harness. ``waves``: where they will go; its suffix says which kind.
    Raises ToolMissing, ToolFailed, UsageError for waves of an unknown kind.
    """
    maker = maker or engine()
    kind = None if waves is None else waves.suffix
    if kind == ".fst" and maker == "cxxrtl":
        raise ToolMissing(f"{what}: waves in FST need Verilator", hint=f"{toolchain.VERILATOR.hint}; or name a .vcd file")
    main = (TEMPLATES / harness).read_text(encoding="utf-8")
    for name, number in numbers.items():
        main = main.replace(f"@{name}@", str(number))
    model = _model(maker, source.top, kind)
    version = tools.YOSYS.version() if maker == "cxxrtl" else toolchain.VERILATOR.version()
    identity = [maker, version or "", platform.machine(), str(kind), main, model, source.top, *FLAGS]
    text = "\0".join([*identity, *(f"{name}\0{content}" for name, content in sorted(source.files.items()))])
    folder = context.cache_dir / "rtl" / hashlib.sha256(text.encode()).hexdigest()[:32]
    finished = folder / "simulator"
    if finished.exists():
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in {**source.files, "main.cpp": main, "model.h": model}.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")
    make = _verilated if maker == "verilator" else _cxxrtl
    unfinished = folder / f".simulator.{os.getpid()}.tmp"
    try:
        make(source, folder, unfinished, kind, context, what)
        os.replace(unfinished, finished)
    finally:
        unfinished.unlink(missing_ok=True)
    return finished


def _model(maker: Engine, top: str, kind: str | None) -> str:
    """The header that gives the harness the design under one set of names."""
    text = (TEMPLATES / f"{maker}.h").read_text(encoding="utf-8")
    header, writer, traced, _ = _TRACES[kind]
    named = {"MANGLED": top.replace("_", "__"), "TRACE_HEADER": header, "TRACE_CLASS": writer, "TRACED": traced}
    for name, value in named.items():
        text = text.replace(f"@{name}@", value)
    return text


def _cxxrtl(source: Source, folder: Path, out: Path, kind: str | None, context: TargetContext, what: str) -> None:
    gxx = toolchain.GXX.require(what)
    reads = [f"read_verilog {name}" for name in source.files]
    level = "-g2" if kind else "-g0"
    script = [*reads, f"hierarchy -check -top {source.top}", "proc", "flatten", "opt_clean", f"write_cxxrtl -noproc {level} design.cc"]
    (folder / "simulate.ys").write_text("\n".join(script) + "\n", encoding="utf-8", newline="\n")
    tools.run(tools.YOSYS, ["-q", "-s", "simulate.ys"], cwd=folder, log=folder / "yosys.log", what=f"{what}: Yosys", context=context)
    toolchain.run(
        [gxx, *FLAGS, f"-I{tools.share() / _RUNTIME}", "main.cpp", "-o", out], cwd=folder, log=folder / "g++.log", what=f"{what}: g++",
        time_limit_s=context.time_limit_s, memory_limit_bytes=MEMORY_BYTES, progress=context.progress,
    )  # fmt: skip


def _verilated(source: Source, folder: Path, out: Path, kind: str | None, context: TargetContext, what: str) -> None:
    verilator, make = toolchain.VERILATOR.require(what), toolchain.MAKE.require(what)
    objects = folder / f"objects.{os.getpid()}"
    words = [
        "--cc", "--exe", "--top-module", source.top, "--prefix", "Vdesign", "--Mdir", objects.name, "-Wno-lint", "-Wno-style",
        "--x-assign", "unique", "--x-initial", "unique", *_TRACES[kind][3], "-CFLAGS", "-I.. -w", *source.files, "main.cpp",
        "-o", "simulator",
    ]  # fmt: skip
    try:
        toolchain.run(
            [verilator, *words], cwd=folder, log=folder / "verilator.log", what=f"{what}: Verilator",
            time_limit_s=context.time_limit_s, progress=context.progress,
        )  # fmt: skip
        toolchain.run(
            [make, "-f", "Vdesign.mk", f"-j{context.jobs}", "OPT_FAST=-O1", "OPT_SLOW=-O0", "OPT_GLOBAL=-O0", "simulator"],
            cwd=objects, log=folder / "make.log", what=f"{what}: make", time_limit_s=context.time_limit_s,
            memory_limit_bytes=MEMORY_BYTES, progress=context.progress,
        )  # fmt: skip
        os.replace(objects / "simulator", out)
    finally:
        shutil.rmtree(objects, ignore_errors=True)


class Simulator:
    """A network in simulation: arrays in, arrays out, as ``interpret.run``."""

    def __init__(
        self, network: Network, source: Source, context: TargetContext, what: str, *, pauses: int = 0, waves: Path | None = None,
        maker: Engine | None = None,
    ) -> None:  # fmt: skip
        """``pauses``: seed of random pauses at both ends of the handshake, 0 for none. ``waves``: a .vcd or .fst file to write."""
        self._inputs, self._outputs = network.inputs, network.outputs
        words = [-(-verilog.width(ports) // 32) for ports in (network.inputs, network.outputs)]
        self._words = words
        numbers = {"IN_WORDS": words[0], "OUT_WORDS": words[1]}
        made = program(source, "network.cpp", numbers, context, what, waves=waves, maker=maker)
        arguments = [str(pauses), str(waves.resolve()) if waves else "-"]
        self._worker = Worker([made, *arguments], made.parent, what, context.time_limit_s)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """int64 [n, elements] per input port → int64 [n, elements] per output port."""
        samples = len(arrays[0])
        block = pack(self._inputs, arrays, self._words[0])
        data = np.array([samples], "<u4").tobytes() + block.tobytes()
        answer = np.frombuffer(self._worker.exchange(data, samples * self._words[1] * 4), np.uint8)
        return unpack(self._outputs, answer.reshape(samples, -1))

    def close(self) -> None:
        """End it; waves are complete then."""
        self._worker.finish()


def pack(ports: Sequence[Port], arrays: Sequence[Array], words: int) -> Array:
    """Integers [n, elements] per port → uint8 [n, 4·words], the first element in the lowest bits."""
    samples = len(arrays[0])
    bits = np.zeros((samples, words * 32), np.uint8)
    start = 0
    for port, array in zip(ports, arrays, strict=True):
        for bit in range(port.bits):
            bits[:, start + bit : start + port.size * port.bits : port.bits] = (array >> bit) & 1
        start += port.size * port.bits
    return np.packbits(bits, axis=1, bitorder="little")


def unpack(ports: Sequence[Port], data: Array) -> list[Array]:
    """The inverse: uint8 [n, bytes] → int64 [n, elements] per port."""
    bits = np.unpackbits(data, axis=1, bitorder="little").astype(np.int64)
    found, start = [], 0
    for port in ports:
        part = bits[:, start : start + port.size * port.bits].reshape(len(data), port.size, port.bits)
        weights = np.int64(1) << np.arange(port.bits, dtype=np.int64)
        if port.signed:
            weights[-1] = -weights[-1]
        found.append(part @ weights)
        start += port.size * port.bits
    return found
