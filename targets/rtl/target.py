"""The target ``rtl``: a quantized model as plain Verilog, fully unrolled, a sample every cycle, and a bitstream of it.

check     lower.attempt, pipeline, estimate       which nodes are refused; does it fit; no tool runs
lower     lower, verilog, wrapper, board, vivado  Verilog, constraints, scripts
build     build, vivado                           Yosys, nextpnr, the packer, or Vivado; judged by the clock that is reported
load      executor                                interpreter; simulated design, netlist or board; the board itself
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gatewright.errors import DoesNotFit, UnsupportedError, UnsupportedOp, UsageError, nearest
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.model import Model
from gatewright.frontend.split import Split
from gatewright.hw.device import Board, Device
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext

from . import advice, files, synthesis, tools, verilog, vivado, wrapper
from . import board as boards
from .estimate import ROUTED_CELLS, Estimate, estimate, shortfalls
from .lower import attempt, require_room
from .matrix import Strategy
from .network import Network
from .pipeline import Schedule, delays_of, schedule

Level = Literal["rtl", "netlist", "board"]

FEW = 4
"""Outputs of a layer that share sums where wires are short of: an eighth more tables, and a third less wire (int8 digits MLP)."""
LONG_WIRES = 1.7
"""What a network of that size is planned for, of its clock: wires are longer than those that the model's delays were taken from."""


@dataclass(frozen=True)
class RtlOptions:
    """Options in the target's braces: ``rtl:ulx3s-85f{clock_mhz=50}``."""

    clock_mhz: float | None = None
    """None: the board's oscillator, or the least multiple of it that the part reaches without effort."""
    margin: float = 1.0
    """Of the clock that stages are planned for: 1.3 plans for 30 % more than is asked, with more registers."""
    seeds: int = 4
    """Place and route is tried with so many seeds at most, until one meets the clock."""
    baud: int = 115_200
    """Bits per second of the serial line, or of SPI's clock."""
    wrapper: Literal["auto", "uart", "spi", "axi"] = "auto"
    """How samples reach the network: a serial line, SPI, or AXI4-Streams. auto: AXI4-Streams where the board has a DMA for them."""
    share: Literal["auto", "all", "few"] = "auto"
    """Outputs that sums are shared among: all, which takes the fewest tables; few, for short wires; auto: few where all would not
    be routed."""
    simulate: Level = "rtl"
    """What mode simulate runs unless --level says otherwise: the Verilog, the netlist that synthesis makes of it, the whole board."""

    def __post_init__(self) -> None:
        if self.clock_mhz is not None and not 0.1 <= self.clock_mhz <= 1000:
            raise UsageError(f"option 'clock_mhz' of rtl is {self.clock_mhz}; it takes 0.1 to 1000")
        if not 0.2 <= self.margin <= 5:
            raise UsageError(f"option 'margin' of rtl is {self.margin}; it takes 0.2 to 5")
        if not 1 <= self.seeds <= 100:
            raise UsageError(f"option 'seeds' of rtl is {self.seeds}; it takes 1 to 100")
        if self.baud not in (9600, 19200, 38400, 57600, 115_200, 230_400, 460_800, 921_600, 1_000_000, 2_000_000, 3_000_000):
            raise UsageError(f"option 'baud' of rtl is {self.baud}; it takes a usual speed, 9600 to 3000000")


@dataclass(frozen=True)
class Design:
    """Everything that is known of a model's circuit before it is written."""

    network: Network
    parts: Split
    schedule: Schedule
    clocking: boards.Clocking
    estimate: Estimate
    shortfalls: tuple[str, ...]


class RtlTarget(Target):
    """See the module's docstring."""

    name = "rtl"
    builds_on_compile = False
    simulates = True
    has_port = True
    options_type = RtlOptions
    device_kinds = ("board",)
    quantization = "fuse,quantize{bits=8,grid=pow2}"
    options: RtlOptions

    def __init__(self, device: Device | None, options: RtlOptions) -> None:
        super().__init__(device, options)
        if not isinstance(device, Board):
            raise UsageError("target rtl needs a board", hint="write rtl:BOARD, for example rtl:icebreaker")
        self.board = device
        wanted_hz = options.clock_mhz * 1e6 if options.clock_mhz else None
        self.wrapper: str = options.wrapper
        if options.wrapper == "auto":
            self.wrapper = "axi" if "axi-dma" in device.interfaces else "uart"
        if self.wrapper == "axi":
            vivado.require(device)
            # The processor beside the fabric makes the clock, and makes any.
            self.clocking = boards.Clocking(wanted_hz or device.part.typical_clock_hz, "")
            return
        boards.family_of(device.part)
        self.clocking = boards.clocking(device, wanted_hz)
        if self.clocking.hz / options.baud < wrapper.LINES[self.wrapper].cycles:
            clock = f"{self.clocking.hz / 1e6:g} MHz"
            raise UsageError(f"option 'baud' of rtl is {options.baud}, too fast for {self.wrapper} and a clock of {clock}")

    def check(self, model: Model) -> Check:
        try:
            design, problems = self._design(model)
        except UnsupportedOp as error:
            return Check(problems=(error,))
        except DoesNotFit as error:
            return Check(shortfalls=(error.message,))
        except UnsupportedError as error:
            return Check(problems=(UnsupportedOp(node=model.name, op="model", target="rtl", rule=error.message, hint=error.hint),))
        if problems:
            return Check(problems=problems)
        parts = design.parts
        host = tuple(
            f"on the host, {where} the design: {', '.join(node.op_type for node in part.graph)}"
            for where, part in (("before", parts.host_pre), ("after", parts.host_post)) if part is not None
        )  # fmt: skip
        fits = () if not design.shortfalls else (self._what_would_fit(model, design),)
        routed = self._routing(design)
        return Check(shortfalls=design.shortfalls, notes=(*parts.plan.notes, *host, *routed, *fits), figures=self._figures(design))

    def _routing(self, design: Design) -> tuple[str, ...]:
        """What is known of routing so large a network with open tools."""
        if design.shortfalls or self.wrapper == "axi" or design.estimate.cells <= ROUTED_CELLS:
            return ()
        seen = f"{ROUTED_CELLS:,} cells is the most that was seen routed: beyond, the open router may take hours or not end"
        return (f"{seen}; fewer bits or prune{{amount=…}} make it routable",)

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        context.progress(f"unrolling {model.name} into additions")
        design, problems = self._design(model)
        if problems:
            raise problems[0]
        if design.shortfalls:
            short = "".join(f"\n  {text}" for text in design.shortfalls)
            raise DoesNotFit(f"{model.name} does not fit {self.board.name}:{short}", hint=self._what_would_fit(model, design))
        text = verilog.emit(design.network, design.schedule)
        identity = wrapper.identity(text, self.wrapper, self.board.name)
        axi = self.wrapper == "axi"
        project = vivado.project(self.board, design.network, design.clocking.hz) if axi else self._open_project(design, identity)
        written = {
            "network.v": text,
            "network.json": files.dump(design.network),
            **wrapper.modules(self.wrapper),
            **project,
        }
        for name, content in written.items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
        parts = design.parts
        for name, part in (("host_pre", parts.host_pre), ("host_post", parts.host_post)):
            if part is not None:
                part.save(folder / f"{name}.onnx")
        return {
            "family": self.board.part.family, "clock_hz": design.clocking.hz, "baud": self.options.baud, "identity": identity,
            "wrapper": self.wrapper,
            "interval_cycles": 1, "latency_cycles": design.schedule.stages,
            "host_pre": "host_pre.onnx" if parts.host_pre is not None else None,
            "host_post": "host_post.onnx" if parts.host_post is not None else None,
            "layers": list(design.network.layers), "large": design.estimate.cells > ROUTED_CELLS,
            "figures": {name: figure.to_json() for name, figure in self._figures(design).items()},
        }  # fmt: skip

    def _open_project(self, design: Design, identity: str) -> dict[str, str]:
        """Files for Yosys and nextpnr, by name."""
        family, clock = boards.family_of(self.board.part), design.clocking
        top = wrapper.top(
            design.network, self.wrapper, clock_hz=clock.hz, clocking=clock.text, baud=self.options.baud, identity=identity,
        )  # fmt: skip
        return {
            **synthesis.files(family.synthesis),
            "top.v": top,
            family.constraints: family.pins(self.board, self.wrapper),
            "synth.ys": boards.synthesis_script(family, self.wrapper),
        }

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        from .build import build

        target = artifact.manifest["target"]
        if target.get("wrapper") == "axi":
            made = vivado.build(folder, float(target["clock_hz"]), context)
            return {**made, "figures": {**target["figures"], **made["figures"]}}
        added = build(folder, self.board, target, self.options.seeds, context)
        return {**added, "figures": {**target["figures"], **added["figures"]}}

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        from .executor import RtlExecutor

        level = context.level or self.options.simulate
        if level not in get_args(Level):
            raise UsageError(f"rtl has no level {level!r} of simulation", hint=nearest(level, get_args(Level), "levels"))
        return RtlExecutor(artifact, mode, level, context)

    def tool_versions(self) -> dict[str, str]:
        return tools.versions()

    def _design(self, model: Model) -> tuple[Design, tuple[UnsupportedOp, ...]]:
        reason = batch_reason(model)
        if reason is not None:
            raise UnsupportedError(f"rtl runs one sample at a time, and {reason}", hint="make every operation treat axis 0 as samples")
        require_room(with_batch(model, 1))
        design, problems = self._planned(model, near=self.options.share == "few")
        if not problems and self.options.share == "auto" and self.wrapper != "axi" and design.estimate.cells > ROUTED_CELLS:
            near, _ = self._planned(model, near=True)
            return (design if near.shortfalls else near), problems
        return design, problems

    def _planned(self, model: Model, near: bool) -> tuple[Design, tuple[UnsupportedOp, ...]]:
        """``near``: sums are shared among few outputs, and stages are planned for long wires."""
        part = self.board.part
        strategy = Strategy(negation_costs=part.family.startswith("ice40"), rows=FEW if near else None)
        network, parts, problems = attempt(with_batch(model, 1), strategy)
        if not problems and not network.outputs:
            rule = "nothing of it is left to become hardware: the host's float edges are all that it has"
            problems = (UnsupportedOp(node=model.name, op="model", target="rtl", rule=rule),)
        margin = self.options.margin * (LONG_WIRES if near else 1)
        planned = schedule(network, self.clocking.hz * margin, delays_of(part))
        found = estimate(network, planned, part, wrapped=True)
        return Design(network, parts, planned, self.clocking, found, shortfalls(found, part)), problems

    def _what_would_fit(self, model: Model, design: Design) -> str:
        return advice.what_would_fit(model, design.network, self.board, design.estimate, lambda other: self._design(other)[0].estimate)

    def _figures(self, design: Design) -> dict[str, Measurement]:
        found, clock_hz = design.estimate, design.clocking.hz
        return {
            "LUT": Measurement(float(found.cells), "LUT", "estimated"),
            "FF": Measurement(float(found.ffs), "FF", "estimated"),
            "DSP": Measurement(float(found.dsps), "DSP", "estimated"),
            "BRAM": Measurement(0.0, "BRAM", "estimated"),
            "latency": Measurement(found.cycles / clock_hz, "s", "estimated"),
            "throughput": Measurement(clock_hz, "1/s", "estimated"),
            "energy": Measurement(found.energy_j, "J", "estimated"),
        }
