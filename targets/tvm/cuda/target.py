"""The target ``cuda``: TVM with the project's own lowering and schedules, for NVIDIA's GPUs; it needs none to compile or to emulate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gatewright import errors
from gatewright.errors import DoesNotFit, GatewrightError, ToolFailed, UnsupportedError, UsageError
from gatewright.frontend.tensors import TensorInfo
from gatewright.hw.cost import roofline
from gatewright.hw.device import Device, Processor
from gatewright.hw.measurement import Measurement
from gatewright.interpreter import python
from gatewright.targets import toolchain
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext

from ..target import LOG, MEMORY_LIMIT, all_of
from ..worker import JOB, MODEL, RESULT
from .machine import capability

if TYPE_CHECKING:
    from gatewright.frontend.model import Model

WORKER = ("-m", "gatewright.targets.tvm.cuda.build")
LAUNCH_S = 2e-6
"""What a kernel takes at the least, in a graph or not: an assumption of the estimate, measured on no GPU."""
OLDEST = 75
"""The first architecture whose tensor cores take bytes."""


@dataclass(frozen=True)
class CudaOptions:
    """Options of ``cuda:…{…}``."""

    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """What float32 products and convolutions multiply in; sums stay float32. All but float32 run on tensor cores, and round their
    operands: to 10 bits behind the point (tf32, and float16, whose range is smaller), or 7 (bfloat16)."""
    attention: Literal["auto", "fused", "separate"] = "auto"
    """Whether softmax(Q·Kᵀ·s + mask)·V is one kernel that keeps its scores on the chip. auto: where that is estimated to be quicker;
    fused: wherever it is recognised and a tile fits; separate: nowhere. The manifest tells each one's estimates."""
    batch: int = 1
    """Samples per native run; the last, incomplete batch of a longer feed is padded."""
    graph: bool = True
    """On a GPU: capture a run's launches once as a CUDA graph, and launch that."""
    cublas: Literal["auto", "never"] = "auto"
    """auto: on a GPU where cuBLAS is installed, a product that nothing is fused to runs by whichever of it and our kernel is timed quicker
    when the artifact is loaded. never: our kernels alone."""
    fallback: Literal["auto", "none"] = "auto"
    """auto: nodes without a kernel run on the next engine that takes them, and that is told. none: they are refused."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 65536:
            raise UsageError(f"option 'batch' of target cuda is {self.batch}; it takes 1 to 65536")


class CudaTarget(Target):
    """``cuda:sm_90``, ``cuda:sm_80{precision=float16}``."""

    name = "cuda"
    builds_on_compile = True
    options_type = CudaOptions
    device_kinds = ("gpu",)

    options: CudaOptions

    def __init__(self, device: Device | None, options: Any) -> None:
        super().__init__(device, options)
        found = capability(self.processor)
        if found < OLDEST:
            raise UnsupportedError(f"target cuda compiles for sm_{OLDEST} and later; {self.processor.name} is {self.processor.mcpu}")
        if self.options.precision in ("bfloat16", "tf32") and found < 80:
            raise UnsupportedError(
                f"tensor cores of sm_{found} do not take {self.options.precision}", hint="precision=float16, or sm_80 and later"
            )

    @property
    def processor(self) -> Processor:
        assert isinstance(self.device, Processor)
        return self.device

    @property
    def falls_back(self) -> bool:
        return self.options.fallback == "auto"

    def alone(self) -> Target:
        return CudaTarget(self.device, replace(self.options, fallback="none", batch=1))

    def check(self, model: Model) -> Check:
        from gatewright.frontend.integer import plan
        from gatewright.frontend.recurrent import written_out
        from gatewright.frontend.work import layer_costs, peak_memory_bytes

        from ..support import problems

        model = written_out(model)
        try:
            steps = plan(model)
        except GatewrightError as error:
            return Check(shortfalls=(error.message,))
        costs, needs = roofline(layer_costs(model), self.processor), peak_memory_bytes(model)
        # The roofline knows no launches, and small models are little else.
        latency = replace(costs.latency, value=costs.latency.value + LAUNCH_S * len(steps.steps))
        figures = {"latency": latency, "energy": costs.energy, "peak_memory": Measurement(float(needs), "B", "estimated")}
        return Check(problems(steps, self._label), self._shortfalls(needs), notes=steps.notes, figures=figures)

    def _shortfalls(self, needs: int) -> tuple[str, ...]:
        has = self.processor.memory_bytes
        return () if has is None or needs <= has else (f"memory: needs {needs:,} B, {self.processor.name} has {has:,} B",)

    def legalize(self, model: Model) -> Model:
        """The model for ``batch`` samples, recurrent nodes written out. Raises UnsupportedOp for the first node without a kernel."""
        from gatewright.frontend.batch import batch_reason, with_batch
        from gatewright.frontend.integer import plan
        from gatewright.frontend.recurrent import written_out
        from gatewright.frontend.work import peak_memory_bytes

        from ..support import problems

        if self.options.batch > 1 and batch_reason(model) is None:
            model = with_batch(model, self.options.batch)
        model = written_out(model)
        found = problems(plan(model), self._label)
        if found:
            raise found[0] if len(found) == 1 else all_of(found)
        if short := self._shortfalls(peak_memory_bytes(model)):
            raise DoesNotFit(f"{model.name} does not fit {self._label}: {short[0]}", hint="take a smaller batch, or quantize the model")
        return model

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        from gatewright.frontend.batch import batch_reason

        model.save(folder / MODEL)
        per_sample = batch_reason(model) is None
        shapes = {info.name: list(info.shape) for info in (*model.inputs, *model.outputs)}
        return {"per_sample": per_sample, "batch": model.inputs[0].shape[0] if per_sample else 1, "shapes": shapes}

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        """Compile in a process of its own. Raises ToolFailed naming the model, and what was being compiled, if that dies."""
        from .toolkit import Toolkit

        name = str(artifact.manifest["model"]["name"])
        what = f"compiling {name} for {self._label}"
        Toolkit.found(what)
        job = {"name": name, "device": self.processor.to_json(), "precision": self.options.precision, "attention": self.options.attention}
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        toolchain.run(
            python(*WORKER, folder), cwd=folder, log=folder / LOG, what=what, time_limit_s=context.time_limit_s,
            memory_limit_bytes=MEMORY_LIMIT, progress=context.progress,
        )  # fmt: skip
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ToolFailed(f"{what} ended without a result: {error}") from None
        if "error" in result:
            kind = getattr(errors, result["error"])
            known = (ToolFailed, errors.ToolMissing, errors.ModelError, UnsupportedError)
            raise (kind if kind in known else ToolFailed)(f"{name}: {result['message']}", hint=result["hint"])
        for file in (MODEL, MODEL + ".data", JOB, RESULT, LOG):
            (folder / file).unlink(missing_ok=True)
        built = dict(result["built"])
        return {**built, "figures": {name: figure.to_json() for name, figure in _figures(built).items()}}

    def figures(self, artifact: Artifact) -> dict[str, Measurement]:
        return _figures(artifact.manifest["target"])

    def default_mode(self, artifact: Artifact) -> Mode:
        from .driver import has_gpu

        return "device" if has_gpu() else "emulate"

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        inputs, outputs = (tuple(_info(entry) for entry in artifact.manifest[key]) for key in ("inputs", "outputs"))
        if mode == "emulate":
            from .emulator import GpuEmulator

            return GpuEmulator(artifact, inputs, outputs, context)
        if mode == "device":
            from .driver import GpuExecutor

            precision = None if self.options.cublas == "never" else self.options.precision
            return GpuExecutor(artifact, inputs, outputs, graph=self.options.graph, cublas=precision)
        raise UnsupportedError(f"a cuda artifact has no mode {mode!r}", hint="emulate, or device where there is a GPU")

    def tool_versions(self) -> dict[str, str]:
        from .toolkit import Toolkit

        found = Toolkit.installed()
        return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")} | {"cuda": found.version if found else "none"}

    @property
    def _label(self) -> str:
        return f"cuda:{self.processor.name}"


def _figures(built: Mapping[str, Any]) -> dict[str, Measurement]:
    """What ptxas says of the kernels together, and the memory that a run takes; ``resources`` in the manifest has each kernel."""
    kernels = list(built["resources"].values())
    found = {"peak_memory": Measurement(float(built["device_bytes"]), "B", "estimated")}
    if kernels:
        most = {key: float(max(own[key] for own in kernels)) for key in ("registers", "shared_bytes")}
        found |= {
            "kernels": Measurement(float(len(kernels)), "kernels", "synthesized"),
            "kernels that spill": Measurement(float(sum(own["spilled_bytes"] > 0 for own in kernels)), "spilling", "synthesized"),
            "registers of a thread": Measurement(most["registers"], "registers", "synthesized"),
            "shared memory of a block": Measurement(most["shared_bytes"] / 1024, "KiB shared", "synthesized"),
        }
        if told := built.get("attention"):
            fused = sum("one kernel," in line for line in told)
            found["attentions in one kernel"] = Measurement(float(fused), f"of {len(told)} attentions fused", "synthesized")
        resident = sorted(own["occupancy"] for own in kernels if own["occupancy"] is not None)
        if resident:
            found["occupancy, median"] = Measurement(100 * resident[len(resident) // 2], "% occupied", "estimated")
    return found


def _info(entry: dict[str, Any]) -> TensorInfo:
    return TensorInfo(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))
