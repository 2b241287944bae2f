"""The target ``hls``: a quantized model as an hls4ml project for AMD's or Intel's high-level synthesis, exact bit for bit.

check     legalize, sizing                         which nodes have no exact layer; does it fit
lower     legalize, sizing, project                files only; hls4ml runs in a process of its own
load      emulator (g++), vectors, executor        compiled once per content, verified against ref before it is handed out
build     build                                    the vendor's tool
"""

from __future__ import annotations

import re
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
from gatewright.hw.device import Board, Device, Part
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext

from . import vectors
from .build import build
from .legalize import legalize
from .network import Network
from .project import write_project
from .sizing import Sized, size

VENDORS = {"vitis": "amd", "quartus": "intel"}
DEFAULT_PARTS = {"vitis": "xcvu13p-flga2577-2-e", "quartus": "Arria10"}
"""What the vendor's script is told where no device was named (hls4ml's own defaults)."""
DEFAULT_CLOCK_MHZ = 100.0


@dataclass(frozen=True)
class HlsOptions:
    """Options in the target's braces: ``hls:pynq-z2{tool=vitis,io=stream,reuse=4}``."""

    tool: Literal["vitis", "quartus"] = "vitis"
    io: Literal["auto", "parallel", "stream"] = "auto"
    """parallel: every tensor in registers, for small networks; stream: pixel by pixel through FIFOs."""
    reuse: int | None = None
    """Cycles over which each layer shares its multipliers (the nearest factor that is exact); None: the least that fits."""
    clock_mhz: float | None = None
    """None: the clock that designs reach on the part without effort."""

    def __post_init__(self) -> None:
        if self.reuse is not None and not 1 <= self.reuse <= 1 << 20:
            raise UsageError(f"option 'reuse' of hls is {self.reuse}; it takes 1 to {1 << 20}")
        if self.clock_mhz is not None and not 1 <= self.clock_mhz <= 2000:
            raise UsageError(f"option 'clock_mhz' of hls is {self.clock_mhz}; it takes 1 to 2000")


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
        if self.part is not None and not re.fullmatch(r"[A-Za-z0-9_.+-]+", self.part.part_number):
            raise UsageError(f"part_number of {self.part.name} is {self.part.part_number!r}, which no toolchain takes")
        if self.part is not None and self.part.vendor != VENDORS[options.tool]:
            fitting = next((tool for tool, vendor in VENDORS.items() if vendor == self.part.vendor), None)
            raise UsageError(
                f"hls{{tool={options.tool}}} takes parts of {VENDORS[options.tool]}, and {self.part.name} is {self.part.vendor}'s",
                hint=f"say tool={fitting}" if fitting else "high-level synthesis is for AMD's and Intel's parts",
            )

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
        return Check(shortfalls=sized.shortfalls, notes=(*network.notes, *host, _described(sized)), figures=self._figures(model, sized))

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        network, parts, problems = self._legalized(model)
        if problems:
            raise problems[0]
        sized = self._size(network)
        if sized.shortfalls:
            short = "; ".join(sized.shortfalls)
            raise DoesNotFit(f"{model.name} does not fit: {short}", hint="prune it, use fewer bits, or take a larger part")
        network = sized.network
        stimuli = vectors.make(parts, network, context.data, context.seed)
        log = context.cache_dir / "logs" / "hls-generate.log"
        write_project(network, stimuli, folder, log=log, time_limit_s=context.time_limit_s, progress=context.progress)
        vectors.save(stimuli, folder / "vectors.npz")
        model.save(folder / "model.onnx")
        for name, part in (("host_pre", parts.host_pre), ("host_post", parts.host_post)):
            if part is not None:
                part.save(folder / f"{name}.onnx")
        return {
            "tool": network.tool, "io": network.io, "part": network.part, "clock_ns": network.clock_ns,
            "host_pre": "host_pre.onnx" if parts.host_pre is not None else None,
            "host_post": "host_post.onnx" if parts.host_post is not None else None,
            "layers": {layer.name: layer.node for layer in network.layers},
            "notes": list(network.notes),
            "figures": {name: figure.to_json() for name, figure in self._figures(model, sized).items()},
        }  # fmt: skip

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        described = artifact.manifest["target"]
        return build(
            folder, str(described["tool"]), part=str(described["part"]), clock_ns=float(described["clock_ns"]),
            time_limit_s=context.time_limit_s, progress=context.progress,
        )  # fmt: skip

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
        part = self.part.part_number if self.part else DEFAULT_PARTS[self.options.tool]
        return replace(network, part=part, clock_ns=round(1e3 / clock_mhz, 3)), parts, problems

    def _size(self, network: Network) -> Sized:
        io = None if self.options.io == "auto" else self.options.io
        return size(network, self.part, io=io, reuse=self.options.reuse)

    def _figures(self, model: Model, sized: Sized) -> dict[str, Measurement]:
        """Estimates under the names that reports use."""
        clock_s = sized.network.clock_ns * 1e-9
        found = sized.resources.to_measurements() if sized.resources is not None else {}
        found["latency"] = Measurement(sized.latency_cycles * clock_s, "s", "estimated")
        found["throughput"] = Measurement(1 / (sized.interval_cycles * clock_s), "1/s", "estimated")
        found["energy"] = Measurement(sum(energy_j(cost) for cost in layer_costs(model)), "J", "estimated")
        return found


def _described(sized: Sized) -> str:
    factors = sorted({layer.reuse for layer in sized.network.layers})
    reuse = f"reuse factor {factors[0]}" if len(factors) == 1 else f"reuse factors {factors[0]} to {factors[-1]}"
    return f"io_{sized.network.io}, {reuse}, a sample every {sized.interval_cycles} cycles of {sized.network.clock_ns:g} ns (estimated)"
