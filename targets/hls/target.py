"""The target ``hls``: a quantized model as an hls4ml project for AMD's, Intel's or Siemens's high-level synthesis, exact bit for bit.

check     legalize, sizing (allocate), advice      which nodes have no exact layer; does it fit, and what would
lower     legalize, sizing, project                files only; hls4ml runs in a process of its own
load      emulator (g++), vectors, executor        compiled once per content, verified against ref before it is handed out
build     build, reports                           the vendor's tools
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from gatewright.errors import DoesNotFit, GatewrightError, UnsupportedError, UnsupportedOp, UsageError
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.model import Model
from gatewright.frontend.split import Split
from gatewright.frontend.work import layer_costs
from gatewright.hw.cost import energy_j
from gatewright.hw.device import Board, Device, Part, devices
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext

from . import hosts, scripts, vectors
from .advice import would_fit
from .allocate import FILL, Objective
from .backends import BACKENDS, tools_for
from .build import build
from .legalize import legalize
from .network import Network, Shell, Tool
from .project import write_project
from .scripts import word
from .sizing import SHARING, Sized, size

DEFAULT_CLOCK_MHZ = 100.0


@dataclass(frozen=True)
class HlsOptions:
    """Options in the target's braces: ``hls:pynq-z2{tool=vitis,io=stream,reuse=4}``."""

    tool: Tool = "vitis"
    design: Literal["auto", "ip", "accelerator"] = "auto"
    """accelerator: with a DMA and the processor (Zynq) or as a kernel (Alveo), to a bitstream; ip: a core for another's design.
    auto: an accelerator where the board and the tool allow one (vitis and vivadoaccelerator)."""
    io: Literal["auto", "parallel", "stream"] = "auto"
    """parallel: every tensor in registers, for small networks; stream: pixel by pixel through FIFOs."""
    reuse: int | None = None
    """Cycles over which each layer shares its multipliers (the nearest factor that is exact); None: chosen per layer."""
    objective: Objective = "interval"
    """What the chosen factors make least, within the part: cycles between samples, cycles of one sample, or resources."""
    interval: int | None = None
    """The most cycles between samples that the chosen factors may lead to."""
    fill: float = FILL
    """Of every resource of the part, what the design may take; where that is too little the whole part is tried."""
    clock_mhz: float | None = None
    """None: the clock that designs reach on the part without effort."""

    def __post_init__(self) -> None:
        if self.reuse is not None and not 1 <= self.reuse <= 1 << 20:
            raise UsageError(f"option 'reuse' of hls is {self.reuse}; it takes 1 to {1 << 20}")
        if self.clock_mhz is not None and not 1 <= self.clock_mhz <= 2000:
            raise UsageError(f"option 'clock_mhz' of hls is {self.clock_mhz}; it takes 1 to 2000")
        if self.interval is not None and not 1 <= self.interval <= 1 << 40:
            raise UsageError(f"option 'interval' of hls is {self.interval}; it takes 1 to {1 << 40}")
        if not 0.05 <= self.fill <= 1:
            raise UsageError(f"option 'fill' of hls is {self.fill}; it takes 0.05 to 1")


class HlsTarget(Target):
    """See the module's docstring."""

    name = "hls"
    builds_on_compile = False
    options_type = HlsOptions
    device_kinds = ("board", "part")
    quantization = "fuse,quantize{bits=8,grid=pow2}"
    options: HlsOptions

    def __init__(self, device: Device | None, options: HlsOptions) -> None:
        super().__init__(device, options)
        self.part = device.part if isinstance(device, Board) else device if isinstance(device, Part) else None
        if self.part is not None:
            word(self.part.part_number, f"part_number of {self.part.name}")
        backend = BACKENDS[options.tool]
        if self.part is not None and self.part.vendor not in backend.vendors:
            fitting = tools_for(self.part.vendor)
            raise UsageError(
                f"hls{{tool={options.tool}}} takes parts of {' and '.join(backend.vendors)}, and {self.part.name} is {self.part.vendor}'s",
                hint=f"say tool={fitting[0]}" if fitting else "high-level synthesis is for AMD's and Intel's parts",
            )
        self.board = device if isinstance(device, Board) else None
        self.shell = shell_for(self.board, options.tool, options.design)

    def check(self, model: Model) -> Check:
        try:
            network, parts, problems = self._legalized(model)
        except UnsupportedOp as error:
            return Check(problems=(error,))
        except UnsupportedError as error:
            return Check(problems=(UnsupportedOp(node=model.name, op="model", target="hls", rule=error.message, hint=error.hint),))
        if problems:
            return Check(problems=problems, notes=network.notes)
        sized = self._size(network)
        host = tuple(
            f"on the host, {where} the design: {', '.join(node.op_type for node in part.graph)}"
            for where, part in (("before", parts.host_pre), ("after", parts.host_post)) if part is not None
        )  # fmt: skip
        advice = (would_fit(network, self.options.tool, self._size),) if sized.shortfalls else ()
        return Check(
            shortfalls=sized.shortfalls, notes=(*network.notes, *host, *_described(sized), *self._clock_note(), *advice),
            figures=self._figures(model, sized), available=self._available(),
        )  # fmt: skip

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        network, parts, problems = self._legalized(model)
        if problems:
            raise problems[0]
        sized = self._size(network)
        if sized.shortfalls:
            short = "; ".join(sized.shortfalls)
            raise DoesNotFit(f"{model.name} does not fit: {short}", hint=would_fit(network, self.options.tool, self._size))
        network = sized.network
        stimuli = vectors.make(parts, network, context.data, context.seed)
        log = context.cache_dir / "logs" / "hls-generate.log"
        edges = {name: f"{name}.onnx" if part is not None else None for name, part in _edges(parts)}
        outputs = [info.name for info in model.outputs]
        driver = hosts.files(network, model_outputs=outputs, host_pre=edges["host_pre"], host_post=edges["host_post"])
        others = {**scripts.files(network, self.board), **driver}
        write_project(network, stimuli, folder, others, log=log, time_limit_s=context.time_limit_s, progress=context.progress)
        vectors.save(stimuli, folder / "vectors.npz")
        model.save(folder / "model.onnx")
        for name, part in _edges(parts):
            if part is not None:
                part.save(folder / f"{name}.onnx")
        return {
            "tool": network.tool, "io": network.io, "part": network.part, "clock_ns": network.clock_ns, "shell": network.shell,
            "platform": self.board.vendor_board if self.board is not None and network.shell == "xrt" else None,
            "interval_cycles": sized.interval_cycles, "latency_cycles": sized.latency_cycles, **edges,
            "layers": {layer.name: layer.node for layer in network.layers},
            "notes": list(network.notes),
            "figures": {name: figure.to_json() for name, figure in self._figures(model, sized).items()},
        }  # fmt: skip

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        return build(folder, artifact.manifest["target"], time_limit_s=context.time_limit_s, progress=context.progress)

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        if mode != "emulate":
            raise GatewrightError(f"hls has no mode {mode!r} here", hint="use emulate: the design's own C++ as a program")
        from .executor import HlsExecutor

        return HlsExecutor(artifact, context)

    def tool_versions(self) -> dict[str, str]:
        try:
            return {"hls4ml": version("hls4ml")}
        except PackageNotFoundError:
            return {}

    def _legalized(self, model: Model) -> tuple[Network, Split, tuple[UnsupportedOp, ...]]:
        reason = batch_reason(model)
        if reason is not None:
            raise UnsupportedError(f"hls runs one sample at a time, and {reason}", hint="make every operation treat axis 0 as samples")
        # The design runs one sample at a time, whatever batch the model was loaded with.
        single = model if all(info.shape[:1] == (1,) for info in model.inputs) else with_batch(model, 1)
        network, parts, problems = legalize(single, self.options.tool)
        clock_mhz = self.options.clock_mhz or (self.part.typical_clock_hz / 1e6 if self.part else DEFAULT_CLOCK_MHZ)
        part = self.part.part_number if self.part else BACKENDS[self.options.tool].default_part
        return replace(network, part=part, clock_ns=round(1e3 / clock_mhz, 3), shell=self.shell), parts, problems

    def _size(self, network: Network, part: Part | None = None) -> Sized:
        """On ``part``, or on the target's own."""
        options = self.options
        return size(
            network, part or self.part, io=None if options.io == "auto" else options.io, reuse=options.reuse,
            objective=options.objective, interval=options.interval, fill=options.fill,
        )  # fmt: skip

    def _available(self) -> dict[str, Measurement]:
        """What the part has, under the names of the figures."""
        part = self.part
        if part is None:
            return {}
        counts = {"LUT": part.luts, "FF": part.ffs, "DSP": part.dsps, "BRAM": part.bram_blocks}
        found = {name: Measurement(float(count), name, "published") for name, count in counts.items()}
        return {**found, "clock": Measurement(part.typical_clock_hz, "Hz", "estimated")}

    def _clock_note(self) -> tuple[str, ...]:
        wanted = self.options.clock_mhz
        if self.part is None or wanted is None or wanted * 1e6 <= self.part.typical_clock_hz:
            return ()
        usual = self.part.typical_clock_hz / 1e6
        return (f"{wanted:g} MHz is more than designs reach on {self.part.name} without effort ({usual:g} MHz): synthesis may miss it",)

    def _figures(self, model: Model, sized: Sized) -> dict[str, Measurement]:
        """Estimates under the names that reports use."""
        clock_s = sized.network.clock_ns * 1e-9
        found = sized.resources.to_measurements() if sized.resources is not None else {}
        found["interval"] = Measurement(float(sized.interval_cycles), "cycles", "estimated")
        found["latency_cycles"] = Measurement(float(sized.latency_cycles), "cycles", "estimated")
        found["clock"] = Measurement(1 / clock_s, "Hz", "estimated")
        found["latency"] = Measurement(sized.latency_cycles * clock_s, "s", "estimated")
        found["throughput"] = Measurement(1 / (sized.interval_cycles * clock_s), "1/s", "estimated")
        found["energy"] = Measurement(sum(energy_j(cost) for cost in layer_costs(model)), "J", "estimated")
        return found


def _described(sized: Sized) -> tuple[str, ...]:
    """The choices that were made, in words."""
    network = sized.network
    factors = sorted({layer.reuse for layer in network.layers if layer.kind in SHARING}) or [1]
    reuse = f"reuse factor {factors[0]}" if len(factors) == 1 else f"reuse factors {factors[0]} to {factors[-1]}"
    constant = sum(layer.strategy == "latency" for layer in network.layers if layer.kind in SHARING)
    all_ = sum(layer.kind in SHARING for layer in network.layers)
    accumulators = [layer.types["accum"].width for layer in network.layers if "accum" in layer.types]
    widths = f"; accumulators of {min(accumulators)} to {max(accumulators)} bits, as intervals prove" if accumulators else ""
    uncounted = "what stands around it is not counted"
    around = {"none": "an IP core", "dma": f"an accelerator behind AXI DMA ({uncounted})", "xrt": f"a kernel for XRT ({uncounted})"}
    return (
        f"{around[network.shell]}, io_{network.io}, {reuse} (strategy latency in {constant} of {all_} layers){widths}",
        f"a sample every {sized.interval_cycles} cycles of {network.clock_ns:g} ns, {sized.latency_cycles} from in to out (estimated)",
    )


def shell_for(board: Board | None, tool: Tool, design: str) -> Shell:
    """What stands between the design and the board. Raises UsageError where an accelerator is asked for that cannot be made."""
    possible: Shell = "none"
    if board is not None and tool in ("vitis", "vivadoaccelerator"):
        possible = "dma" if "axi-dma" in board.interfaces else "xrt" if "xrt" in board.interfaces and tool == "vitis" else "none"
    wanted = design == "accelerator" or (design == "auto" and tool == "vivadoaccelerator")
    if tool == "vivadoaccelerator" and design == "ip":
        raise UsageError("tool=vivadoaccelerator makes accelerators", hint="for an IP core say tool=vivado")
    if wanted and possible == "none":
        fitting = ", ".join(d.name for d in devices("board") if isinstance(d, Board) and {"axi-dma", "xrt"} & set(d.interfaces))
        where = board.name if board is not None else "no board"
        hint = f"boards with one: {fitting} (Alveo with tool=vitis); design=ip makes a core with tool=vitis or vivado"
        raise UsageError(f"tool={tool} has no accelerator design for {where}", hint=hint)
    return "none" if design == "ip" else possible


def _edges(parts: Split) -> tuple[tuple[str, Model | None], ...]:
    return ("host_pre", parts.host_pre), ("host_post", parts.host_post)
