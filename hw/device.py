"""The hardware that a model can be compiled for: ``Processor`` (CPU, GPU, TPU), ``Part`` (an FPGA) and ``Board`` (one with its Part).

A device is a TOML file: shipped ones lie in ``processors/``, ``parts/`` and ``boards/`` and are named by their file's stem;
a user's own file works the same way and is named by its path. Every figure cites the data sheet and the table it is
from (``sources``); a figure that no data sheet states is left out, never guessed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from gatewright.errors import UsageError, nearest

from .schema import Range, parse_table, render_table

Kind = Literal["cpu", "gpu", "tpu", "board", "part"]
Dtype = Literal["float64", "float32", "float16", "bfloat16", "float8", "int32", "int16", "int8", "int4"]
"""Number formats that figures per operation are given for."""
MemoryLevel = Literal["sram", "dram"]

Count = Annotated[int, Range(0, 1e8)]
Positive = Annotated[int, Range(1, 1e8)]
Bytes = Annotated[int, Range(1, 1e15)]
Hertz = Annotated[float, Range(1e3, 1e11)]
Rate = Annotated[float, Range(1e3, 1e20)]
Picojoule = Annotated[float, Range(1e-6, 1e6)]

FOLDERS = ("processors", "parts", "boards")
_HOME = Path(__file__).resolve().parent
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True)
class Citation:
    """Where figures come from: which table of which document."""

    figures: tuple[str, ...]
    """Names of the device's keys that it vouches for."""
    table: str
    """The document and the table or page in it; for the host: how the figure was detected or estimated."""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Device:
    """What every device has. Read one with ``load_device``; ``to_json`` and ``from_json`` round-trip exactly."""

    kind: Kind
    name: str
    description: str = ""
    url: str = ""
    """The data sheet or the maker's page."""
    source: str = field(default="", compare=False)
    """The file it was read from: below hw/ for a shipped one, the file's own name for a user's; "host" where detected."""
    sources: tuple[Citation, ...] = ()

    kinds: ClassVar[tuple[Kind, ...]] = ()

    def __post_init__(self) -> None:
        if self.kind not in self.kinds:
            raise UsageError(f"{self.source or self.name}: kind is {self.kind!r}; a {type(self).__name__} takes {' or '.join(self.kinds)}")

    def to_json(self) -> dict[str, Any]:
        """The whole device as JSON values; keys at their defaults are left out."""
        return render_table(self)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Device:
        """The inverse of ``to_json``, called on Device: the kind decides the class. Raises UsageError on a damaged table."""
        return _parse(table, f"device {table.get('name', '')!r}")

    def cited(self, figure: str) -> Citation | None:
        """Where ``figure`` (a key's name) comes from."""
        return next((c for c in self.sources if figure in c.figures), None)


@dataclass(frozen=True, kw_only=True)
class Processor(Device):
    """A CPU, GPU or TPU. None means: not stated by its data sheet."""

    kinds: ClassVar[tuple[Kind, ...]] = ("cpu", "gpu", "tpu")

    cores: Positive
    """Physical CPU cores; streaming multiprocessors of a GPU; TensorCores of a TPU chip."""
    threads: Positive | None = None
    """Hardware threads of all cores together (CPU)."""
    clock_hz: Hertz | None = None
    """A CPU's base clock; a GPU's boost clock."""
    vector_bits: Annotated[int, Range(32, 16384)] | None = None
    """Width of the widest SIMD register that LLVM may use."""
    isa: tuple[str, ...] = ()
    """Features as LLVM spells them: "avx2", "fma", "avx512vnni", "dotprod"."""
    triple: str | None = None
    """LLVM's target triple."""
    mcpu: str | None = None
    """LLVM's name of the CPU; the compute capability, "sm_90", of an NVIDIA GPU."""
    l1d_bytes: Bytes | None = None
    """Of one core; of one multiprocessor, with its shared memory (GPU)."""
    l2_bytes: Bytes | None = None
    """Of one core where it is private, else of the whole chip (GPU)."""
    l3_bytes: Bytes | None = None
    """All that one core may use."""
    memory_bytes: Bytes | None = None
    memory_bandwidth_bytes_per_s: Rate | None = None
    peak_ops_per_s: Mapping[Dtype, Rate] = field(default_factory=dict, hash=False)
    """All cores together, dense; one multiply-accumulate is two operations."""
    op_energy_pj: Mapping[Dtype, Picojoule] = field(default_factory=dict, hash=False)
    """Of one multiply-accumulate; where it is not given, cost.py takes its cited table."""
    byte_energy_pj: Mapping[MemoryLevel, Picojoule] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Part(Device):
    """An FPGA. Block counts are the tool's: what a report of its toolchain is measured against."""

    kinds: ClassVar[tuple[Kind, ...]] = ("part",)

    vendor: Literal["amd", "intel", "lattice", "gowin"]
    family: str
    part_number: str
    """What the toolchain is told: package and speed grade included."""
    toolchains: tuple[Literal["vitis", "vivado", "quartus", "yosys-nextpnr"], ...]
    luts: Positive
    lut_inputs: Annotated[int, Range(3, 8)]
    ffs: Positive
    dsps: Count
    """DSP blocks as the toolchain counts them."""
    dsp_bits: tuple[Annotated[int, Range(4, 64)], Annotated[int, Range(4, 64)]] | None = None
    """Signed operand widths of one multiplication in one DSP block."""
    dsp_multiplications: Positive = 1
    """How many independent products of ``dsp_bits`` one block gives."""
    bram_blocks: Count
    bram_block_bits: Positive | None = None
    """Capacity of one block, parity bits included where they can hold data."""
    uram_blocks: Count = 0
    """Large memory blocks beside the block RAM: UltraRAM, SPRAM."""
    uram_block_bits: Positive | None = None
    typical_clock_hz: Hertz
    """A clock that generated designs reach without effort; a design choice of this project, not a data-sheet figure."""


@dataclass(frozen=True, kw_only=True)
class ProcessingSystem:
    """The hard processor beside the fabric of an FPGA."""

    cpu: str
    cores: Positive
    mcpu: str
    clock_hz: Hertz | None = None


@dataclass(frozen=True, kw_only=True)
class Board(Device):
    """A board: a Part in its package, a clock, pins."""

    kinds: ClassVar[tuple[Kind, ...]] = ("board",)

    part: Part
    """Its ``part_number`` is the one soldered on. In a TOML file: a shipped part's name, the path of a part's file, or a table."""
    clock_hz: Hertz
    """The oscillator (or the default fabric clock) that a design on it is given."""
    interfaces: tuple[str, ...] = ()
    """How data gets in and out: "axi-dma", "uart", "usb", "ethernet"."""
    pins: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Signal to package pin: "clk", "uart_tx", "uart_rx", "led0"."""
    io_types: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The I/O standard of the signals whose bank is not at 3.3 V (LVCMOS33): {"led0": "LVCMOS18"}."""
    vendor_board: str | None = None
    """The board file's name in the vendor's tool."""
    memory_bytes: Bytes | None = None
    ps: ProcessingSystem | None = None


_CLASSES: dict[Kind, type[Device]] = {"cpu": Processor, "gpu": Processor, "tpu": Processor, "part": Part, "board": Board}


def load_device(name_or_path: str | os.PathLike[str]) -> Device:
    """A shipped device by its name ("znver3"), ``host()`` by "host", or a user's own TOML file by its path.

    Raises UsageError: an unknown name with the nearest ones, a bad file with its path, the key and what that takes.
    """
    text = os.fspath(name_or_path)
    shipped = _shipped()
    if text in shipped:
        return _load_shipped(text)
    if text == "host":
        return host()
    if text.endswith(".toml") or os.sep in text or "/" in text:
        return _load_file(Path(text), Path(text).name)
    raise UsageError(f"there is no device {text!r}", hint=f"{nearest(text, shipped, 'devices')}; or give the path of a .toml file")


def devices(kind: Kind | None = None) -> tuple[Device, ...]:
    """All shipped devices (of one kind), sorted by kind and name."""
    found = [_load_shipped(name) for name in _shipped()]
    return tuple(sorted((d for d in found if kind in (None, d.kind)), key=lambda d: (d.kind, d.name)))


def host() -> Processor:
    """The CPU of this machine; see ``host.py`` for what is detected and what is estimated."""
    from .host import detect  # host.py describes a Processor, so it imports this module

    return detect()


@cache
def _shipped() -> dict[str, Path]:
    return {file.stem: file for folder in FOLDERS for file in sorted((_HOME / folder).glob("*.toml"))}


@cache
def _load_shipped(name: str) -> Device:
    file = _shipped()[name]
    return _load_file(file, file.relative_to(_HOME).as_posix())


def _load_file(file: Path, source: str) -> Device:
    table = _read(file)
    if isinstance(part := table.get("part"), str):
        table["part"] = _part_of_board(part, file)
    if isinstance(part := table.get("part"), dict):
        table["part"] = {"kind": "part", "name": f"{file.stem}-part", **part}
    device = _parse({"name": file.stem, **table}, str(file))
    return replace(device, source=source)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST_FILE:
            raise UsageError(f"device file {file} is larger than {_LARGEST_FILE} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"there is no device file {file}", hint="gatewright devices lists the shipped ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"device file {file} cannot be read: {error}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"device file {file} is not valid TOML: {error}") from None


def _part_of_board(reference: str, board: Path) -> dict[str, Any]:
    """The table of the part that ``board``'s file refers to: a shipped name, a path relative to that file, and optionally ``@number``.

    ``"xc7z020@xc7z020clg400-1"`` is the shipped part with the part number that is on this board.
    """
    name, at, number = reference.partition("@")
    own = board.parent / name if name.endswith(".toml") else None
    part = _load_file(own, own.name) if own else load_device(name)
    if not isinstance(part, Part):
        raise UsageError(f"{board}: key 'part' names {name!r}, which is a {part.kind}, not an FPGA part")
    return (replace(part, part_number=number) if at else part).to_json()


def _parse(table: Mapping[str, Any], where: str) -> Device:
    if "kind" not in table:
        raise UsageError(f"{where}: key 'kind' is missing", hint=f"it takes {' or '.join(map(repr, _CLASSES))}")
    kind = table["kind"]
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise UsageError(f"{where}: key 'kind' is {kind!r}; it takes {' or '.join(map(repr, _CLASSES))}")
    return parse_table(_CLASSES[kind], table, where)
