"""The target ``tpu``: XLA's TPU compiler ahead of time, and the same program on any CPU as its emulator."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gatewright import errors
from gatewright.errors import GatewrightError, ToolFailed, ToolMissing, UnsupportedError, UsageError
from gatewright.frontend.tensors import TensorInfo
from gatewright.hw.cost import LayerCost, roofline
from gatewright.hw.device import Device, Processor
from gatewright.hw.measurement import Measurement
from gatewright.targets import toolchain
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext

from . import chips
from .chips import Mesh, Slice, one_core, ways
from .environment import HINT, LEFT_OUT, command, environment, require_jax, version_of
from .executor import XlaExecutor
from .worker import JOB, MODEL, RESULT

if TYPE_CHECKING:
    from gatewright.frontend.model import Model

LOG = "compile.log"
_NO_COMPILER = "libtpu is not installed: the portable program is made, nothing is compiled ahead of time"


@dataclass(frozen=True)
class XlaOptions:
    """Options of ``tpu:…{…}``."""

    topology: str | None = None
    """Chips per axis, such as 2x2; one chip by default."""
    mesh: Mesh | None = None
    """How several cores share the work. none: one core does it all; data: each takes its share of the samples; model: weights lie
    halved over pairs of cores, samples over the pairs. By default data over several chips, none on one."""
    batches: tuple[int, ...] = ()
    """Sizes that a program each is compiled for; a run takes the smallest that holds its samples, or the largest again and again.
    By default one sample for each group of cores that shares them."""
    precision: Literal["highest", "high", "bf16"] = "highest"
    """Of float32 products. highest: to float32's own precision, in six passes; high: three; bf16: operands rounded to bfloat16."""
    int4: Literal["packed", "int8"] = "packed"
    """How weights that fit 4 bits lie in memory: two to a byte, or one."""
    aot: Literal["auto", "none"] = "auto"
    """auto: compiled ahead of time where libtpu is installed. none: the portable program alone."""
    effort: Literal["full", "quick"] = "full"
    """Of XLA's search for fast code. quick: about a third of the time and half the code; what is computed is the same."""
    fallback: Literal["none", "auto"] = "none"
    """none: nodes without a lowering are refused. auto: they run on the host's engines, and that is told."""

    def __post_init__(self) -> None:
        if any(not 1 <= batch <= 65536 for batch in self.batches):
            raise UsageError(f"option 'batches' of target tpu is {'|'.join(map(str, self.batches))}; it takes sizes from 1 to 65536")
        if len(set(self.batches)) != len(self.batches):
            raise UsageError("option 'batches' of target tpu has a size twice")


class XlaTarget(Target):
    """``tpu:v5e``, ``tpu:v5e{topology=2x2,mesh=model}``."""

    name = "tpu"
    builds_on_compile = True
    options_type = XlaOptions
    device_kinds = ("tpu",)

    options: XlaOptions

    def __init__(self, device: Device | None, options: Any) -> None:
        super().__init__(device, options)
        self.slice = Slice.of(self.processor, self.options.topology)
        data, halves = ways(self.mesh, self.slice.cores)
        if self.mesh == "model" and self.slice.cores % 2:
            raise UnsupportedError(
                f"mesh=model needs pairs of cores; {self.slice.name} has one", hint="take a larger topology, such as 2x2"
            )
        self.groups, self.halves = data, halves
        if any(batch % data for batch in self.options.batches):
            raise UsageError(
                f"option 'batches' of target tpu is {'|'.join(map(str, self.options.batches))}: samples are split over {data} "
                f"{'pairs of cores' if halves > 1 else 'cores'}", hint=f"take multiples of {data}"
            )  # fmt: skip

    @property
    def processor(self) -> Processor:
        assert isinstance(self.device, Processor)
        return self.device

    @property
    def is_here(self) -> bool:
        return self.processor.name in chips.present()

    @property
    def mesh(self) -> Mesh:
        return self.options.mesh or ("data" if self.slice.chips > 1 else "none")

    @property
    def batches(self) -> tuple[int, ...]:
        return self.options.batches or (self.groups,)

    @property
    def falls_back(self) -> bool:
        return self.options.fallback == "auto"

    def alone(self) -> Target:
        return XlaTarget(self.device, replace(self.options, fallback="none"))

    def check(self, model: Model) -> Check:
        from gatewright.frontend.integer import plan
        from gatewright.frontend.recurrent import written_out

        from .support import problems

        model = written_out(model)
        try:
            steps = plan(model)
        except GatewrightError as error:
            return Check(shortfalls=(error.message,))
        figures, available, shortfalls = self._estimates(model)
        notes = [*steps.notes, *self._notes(model)]
        return Check(problems(steps, self._label), shortfalls, tuple(notes), figures, available)

    def legalize(self, model: Model) -> Model:
        """Recurrent nodes written out. Raises UnsupportedOp for the first node without a lowering, DoesNotFit before anything is made."""
        from gatewright.frontend.integer import plan
        from gatewright.frontend.recurrent import written_out

        from .support import problems

        model = written_out(model)
        found = problems(plan(model), self._label)
        if found:
            raise found[0] if len(found) == 1 else _all_of(found)
        shortfalls = self._estimates(model)[2]
        if shortfalls:
            raise errors.DoesNotFit(
                f"{model.name} does not fit {self._label}: {shortfalls[0]}", hint="int8 weights, or mesh=model over more chips"
            )
        return model

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        require_jax(f"compiling {model.name} for {self._label}")
        model.save(folder / MODEL)
        figures, _, _ = self._estimates(model)
        return {
            "slice": self.slice.name, "cores": self.slice.cores if self.mesh != "none" else 1, "mesh": self.mesh,
            "estimates": {name: figure.to_json() for name, figure in figures.items()}, "layers": self._layer_estimates(model),
        }  # fmt: skip

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        """Compile in a process of its own, in an environment of its own. Raises ToolFailed naming the model if that dies."""
        name = str(artifact.manifest["model"]["name"])
        compiles = self.options.aot == "auto" and version_of("libtpu") is not None
        job = {
            "name": name, "label": self._label, "batches": list(self.batches), "precision": self.options.precision,
            "int4": self.options.int4 == "packed", "mesh": self.mesh, "memory_bytes": one_core(self.processor).memory_bytes,
            "quick": self.options.effort == "quick",
            "slice": [self.slice.generation, self.slice.topology] if compiles else None,
        }  # fmt: skip
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        toolchain.run(
            command("worker", folder), cwd=folder, log=folder / LOG, what=f"compiling {name} for {self._label}",
            time_limit_s=context.time_limit_s, env={**environment("cpu"), **self.slice.environment()}, without=(*LEFT_OUT, "TPU_"),
            progress=context.progress,
        )  # fmt: skip
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ToolFailed(f"compiling {name} for {self._label} ended without a result: {error}") from None
        if "error" in result:
            kind = getattr(errors, result["error"], ToolFailed)
            known = (ToolFailed, ToolMissing, errors.ModelError, errors.DoesNotFit, UnsupportedError)
            raise (kind if kind in known else ToolFailed)(result["message"], hint=result["hint"])
        for file in (MODEL, MODEL + ".data", JOB, RESULT, LOG):
            # The programs and the weights hold all there is to run.
            (folder / file).unlink(missing_ok=True)
        reason = None if compiles else "aot=none" if self.options.aot == "none" else _NO_COMPILER
        if reason == _NO_COMPILER:
            context.progress(_NO_COMPILER)
        return {**result["built"], "ahead_of_time": compiles, "not_compiled": reason}

    def default_mode(self, artifact: Artifact) -> Mode:
        return "device" if self.is_here and version_of("libtpu") is not None else "emulate"

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        name = str(artifact.manifest["model"]["name"])
        if mode == "simulate":
            raise UnsupportedError("target tpu has no mode 'simulate'", hint="mode emulate runs the same program on the CPU")
        require_jax(f"running {name}")
        if mode == "device" and not chips.present():
            raise ToolMissing("this machine has no TPU", hint="run the artifact on a TPU host, or with mode emulate")
        if mode == "device" and version_of("libtpu") is None:
            raise ToolMissing("running on this machine's TPU needs libtpu, which is not installed", hint=HINT)
        inputs, outputs = (tuple(_info(entry) for entry in artifact.manifest[key]) for key in ("inputs", "outputs"))
        return XlaExecutor(artifact.path, name, artifact.manifest["target"], inputs, outputs, mode)

    def figures(self, artifact: Artifact) -> dict[str, Measurement]:
        """Of the first batch size, as libtpu compiled it: memory of a core, shares of the MACs by the unit that does them, collectives."""
        described = artifact.manifest["target"]
        if not described.get("ahead_of_time"):
            return {}
        bucket = described["buckets"][0]
        products = bucket["products"]
        found = {"peak_memory": Measurement(float(bucket["memory"]["total"]), "B", "synthesized")}
        for unit, count in products["by_unit"].items():
            found[f"MACs in {unit}"] = Measurement(100 * count / products["macs"], f"% {unit}", "synthesized")
        for kind, said in bucket["collectives"].items():
            found[kind] = Measurement(float(said["count"]), kind, "synthesized")
        return found

    def tool_versions(self) -> dict[str, str]:
        return {name: version_of(name) or "none" for name in ("jax", "jaxlib", "libtpu")}

    @property
    def _label(self) -> str:
        return f"tpu:{self.processor.name}"

    def _notes(self, model: Model) -> list[str]:
        found = []
        if version_of("jax") is None:
            found.append(f"JAX is not installed, so nothing can be compiled or run: {HINT}")
        elif self.options.aot == "auto" and version_of("libtpu") is None:
            found.append(f"{_NO_COMPILER} ({HINT})")
        doubles = next((v.name for n in model.graph for v in n.outputs if v.dtype is not None and v.dtype.name == "DOUBLE"), None)
        if doubles is not None:
            found.append(f"{doubles!r} is float64, which a TPU computes in pairs of float32: not to float64's full precision")
        found.append("latency and throughput are the roofline's: what starting a program takes, which no data sheet states, comes on top")
        if self.mesh != "none":
            found.append(f"the latency leaves out what {self.slice.cores} cores say to one another; the collectives are in the artifact")
        return found

    def _costs(self, model: Model) -> list[LayerCost]:
        """Of the first batch size, on one core."""
        from gatewright.frontend.batch import batch_reason, with_batch
        from gatewright.frontend.work import layer_costs

        batch = self.batches[0] // self.groups
        if batch_reason(model) is None and model.inputs[0].shape[0] != batch:
            model = with_batch(model, batch)
        return [self._share(cost) for cost in layer_costs(model)]

    def _share(self, cost: LayerCost) -> LayerCost:
        """A core's part of a layer, in the types that the options ask for."""
        rounded = self.options.precision == "bf16" and cost.dtype == "float32" and cost.macs > 0
        weights = cost.weight_bytes // 2 if rounded else cost.weight_bytes
        return replace(
            cost, dtype="bfloat16" if rounded else cost.dtype, macs=cost.macs // self.halves, weight_bytes=weights // self.halves
        )

    def _layer_estimates(self, model: Model) -> list[dict[str, Any]]:
        report = roofline(self._costs(model), one_core(self.processor))
        return [
            {"name": layer.cost.name, "op": layer.cost.op, "macs": layer.cost.macs, "latency": layer.latency.to_json(),
             "bound": layer.bound, "computed_in": layer.computed_in} for layer in report.layers
        ]  # fmt: skip

    def _estimates(self, model: Model) -> tuple[dict[str, Measurement], dict[str, Measurement], tuple[str, ...]]:
        """Figures of one run on one core, what it has of them, and what it has too little of."""
        from gatewright.frontend.work import peak_memory_bytes, weight_bytes

        core = one_core(self.processor)
        report = roofline(self._costs(model), core)
        stored = weight_bytes(model)
        needed = stored / self.halves + (peak_memory_bytes(model) - stored) * max(1, max(self.batches) // self.groups)
        figures = {"latency": report.latency, "energy": report.energy, "peak_memory": Measurement(float(needed), "B", "estimated")}
        if report.latency.value > 0:
            figures["throughput"] = Measurement(self.batches[0] / report.latency.value, "1/s", "estimated")
        if core.memory_bytes is None:
            return figures, {}, ()
        available = {"peak_memory": Measurement(float(core.memory_bytes), "B", "published")}
        short = f"memory: needs at least {needed:,.0f} bytes a core, {self.slice.name} has {core.memory_bytes:,}"
        return figures, available, (short,) if needed > core.memory_bytes else ()


def _info(entry: dict[str, Any]) -> TensorInfo:
    import ml_dtypes  # noqa: F401 (numpy learns int4 from it)
    import numpy as np

    return TensorInfo(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))


def _all_of(found: tuple[errors.UnsupportedOp, ...]) -> UnsupportedError:
    listed = "; ".join(f"{p.node} ({p.op}): {p.rule}" for p in found[:10])
    more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
    return UnsupportedError(f"{found[0].target} does not support {len(found)} nodes: {listed}{more}", hint=found[0].hint)
