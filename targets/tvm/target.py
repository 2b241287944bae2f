"""The target ``cpu``: TVM with the project's own lowering and schedules, for this machine's CPU or a described one."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gatewright import errors
from gatewright.errors import GatewrightError, ToolFailed, UnsupportedError, UnsupportedOp, UsageError
from gatewright.frontend.tensors import TensorInfo
from gatewright.hw.cost import roofline
from gatewright.hw.device import Device, Processor, host
from gatewright.hw.measurement import Measurement
from gatewright.interpreter import python
from gatewright.targets import toolchain
from gatewright.targets.base import Artifact, Check, Executor, Mode, Target, TargetContext

from .emulate import EmulatedExecutor
from .executor import CpuExecutor
from .portability import cross_prefix, is_native, linker_for, require_this_machine, unverified
from .worker import JOB, MACHINE_CODE, MODEL, RESULT

if TYPE_CHECKING:
    from gatewright.frontend.model import Model

MEMORY_LIMIT = 12 << 30
"""Address space of the compiling process, bytes. TVM's libraries take 1 GB of it, a ResNet-50 about 2."""
LOG = "compile.log"
WORKER = ("-m", "gatewright.targets.tvm.worker")
"""What the compiling process runs."""


@dataclass(frozen=True)
class CpuOptions:
    """Options of ``cpu{…}``."""

    threads: int | None = None
    """Threads that a run uses; all cores of the device by default."""
    batch: int = 1
    """Samples per native run; the last, incomplete batch of a longer feed is padded."""
    precision: Literal["fast", "strict"] = "fast"
    """strict: no algorithm whose float error exceeds that of the plain sum (no Winograd)."""
    level: Literal[0, 1, 2] = 0
    """How each kernel's algorithm and blocks are chosen. 0: by the device's description, in seconds, the same model giving the
    same bytes. 1: a handful of candidates is measured on this machine, once for each distinct shape. 2: the search goes on
    from there, where a kernel stays far below the processor's peak."""
    fallback: Literal["auto", "none"] = "auto"
    """auto: nodes without a kernel run on the next engine that takes them, and that is told. none: they are refused."""
    budget: float = 60.0
    """Seconds that levels 1 and 2 may measure for; what they do not come to is chosen as at level 0, and the artifact says so."""

    def __post_init__(self) -> None:
        if self.threads is not None and not 1 <= self.threads <= 1024:
            raise UsageError(f"option 'threads' of target cpu is {self.threads}; it takes 1 to 1024")
        if not 1 <= self.batch <= 65536:
            raise UsageError(f"option 'batch' of target cpu is {self.batch}; it takes 1 to 65536")
        if not 0 < self.budget <= 86400:
            raise UsageError(f"option 'budget' of target cpu is {self.budget:g}; it takes seconds, up to 86400")


class CpuTarget(Target):
    """``cpu``, ``cpu:znver3``, ``cpu{threads=1}``."""

    name = "cpu"
    builds_on_compile = True
    options_type = CpuOptions
    device_kinds = ("cpu",)

    options: CpuOptions

    def __init__(self, device: Device | None, options: Any) -> None:
        super().__init__(device if device is not None else host(), options)

    @property
    def processor(self) -> Processor:
        assert isinstance(self.device, Processor)
        return self.device

    @property
    def threads(self) -> int:
        """Of a run on the device."""
        return self.options.threads or self.processor.cores

    @property
    def falls_back(self) -> bool:
        return self.options.fallback == "auto"

    def alone(self) -> Target:
        return CpuTarget(self.device, replace(self.options, fallback="none", batch=1))

    # What analyses a model is imported where that is done: running an artifact needs none of it.

    def check(self, model: Model) -> Check:
        from gatewright.frontend.integer import plan
        from gatewright.frontend.work import layer_costs, peak_memory_bytes
        from gatewright.frontend.written import written_out

        from .predict import latency, notes, predict
        from .support import problems

        model = written_out(model, self._written)
        try:
            steps = plan(model)
        except GatewrightError as error:
            return Check(shortfalls=(error.message,))
        strict = self.options.precision == "strict"
        figures = {
            "latency": latency(model, self.processor, self.threads, strict=strict),
            "energy": roofline(layer_costs(model), self.processor).energy,
            "peak_memory": Measurement(float(peak_memory_bytes(model)), "B", "estimated"),
        }
        predictions = predict(model, self.processor, self.threads, strict=strict)
        figures |= {prediction.name: prediction.latency for prediction in predictions}
        warnings = tuple(filter(None, (unverified(self.processor),)))
        return Check(problems(steps, self._label), notes=(*steps.notes, *warnings, *notes(predictions)), figures=figures)

    def legalize(self, model: Model) -> Model:
        """The model for ``batch`` samples, recurrent nodes written out. Raises UnsupportedOp for the first node without a kernel."""
        from gatewright.frontend.batch import batch_reason, with_batch
        from gatewright.frontend.integer import plan
        from gatewright.frontend.written import written_out

        from .support import problems

        if self.options.level:
            self._require_measurable()
        if self.options.batch > 1 and batch_reason(model) is None:
            model = with_batch(model, self.options.batch)
        model = written_out(model, self._written)
        found = problems(plan(model), self._label)
        if found:
            raise found[0] if len(found) == 1 else all_of(found)
        return model

    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        from gatewright.frontend.batch import batch_reason

        model.save(folder / MODEL)
        per_sample = batch_reason(model) is None
        shapes = {info.name: list(info.shape) for info in (*model.inputs, *model.outputs)}
        return {"per_sample": per_sample, "batch": model.inputs[0].shape[0] if per_sample else 1, "shapes": shapes}

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        """Compile in a process of its own. Raises ToolFailed naming the model, and what was being compiled, if that dies, and
        UnsupportedOp for a node whose kernel TVM cannot make."""
        name = str(artifact.manifest["model"]["name"])
        linker = linker_for(self.processor).require(f"compiling {name} for {self._label}")
        job = self.job(name, str(linker), context)
        try:
            self._compile(job, folder, context)
        except ToolFailed:
            if not _died_in_machine_code(folder / LOG):
                raise
            # LLVM had all kernels in hand when it died: built one by one, the one that kills it is found and made plainly.
            context.progress(f"compiling {name} for {self._label}: machine code failed, looking for the kernel")
            self._compile({**job, "careful": True}, folder, context)
        try:
            result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ToolFailed(f"compiling {name} for {self._label} ended without a result: {error}") from None
        if "refused" in result:
            raise UnsupportedOp(target=self._label, **result["refused"])
        if "error" in result:
            kind = getattr(errors, result["error"])
            raise (kind if kind in (ToolFailed, errors.ToolMissing, errors.ModelError) else ToolFailed)(
                f"{name}: {result['message']}", hint=result["hint"]
            )
        for file in (MODEL, MODEL + ".data", JOB, RESULT, LOG):
            # The library holds all there is to run; these would double the artifact.
            (folder / file).unlink(missing_ok=True)
        return {**result["built"], "unverified": unverified(self.processor)}

    def _compile(self, job: dict[str, Any], folder: Path, context: TargetContext) -> None:
        (folder / JOB).write_text(json.dumps(job), encoding="utf-8")
        toolchain.run(
            python(*WORKER, folder), cwd=folder, log=folder / LOG,
            what=f"compiling {job['name']} for {self._label}", time_limit_s=context.time_limit_s, memory_limit_bytes=MEMORY_LIMIT,
            progress=context.progress,
        )  # fmt: skip

    def job(self, name: str, linker: str, context: TargetContext) -> dict[str, Any]:
        """What the compiling process is told."""
        return {
            "name": name, "device": self.processor.to_json(), "threads": self.threads, "strict": self.options.precision == "strict",
            "linker": linker, "cross": cross_prefix(self.processor), "level": self.options.level, "budget": self.options.budget,
            "tuning": str(context.cache_dir / "tuning"), "jobs": context.jobs, "careful": False,
        }  # fmt: skip

    def default_mode(self, artifact: Artifact) -> Mode:
        return "device" if is_native(self.processor) else "emulate"

    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        emulated = mode == "emulate" and self.processor.source != "host"
        if mode != "device" and not emulated:
            raise UnsupportedError(f"an artifact for this machine's CPU has no mode {mode!r}: it runs on it", hint="load it without a mode")
        if not emulated:
            require_this_machine(self.processor)
        described = artifact.manifest["target"]
        inputs, outputs = (tuple(_info(entry) for entry in artifact.manifest[key]) for key in ("inputs", "outputs"))
        # This machine may have fewer cores than the device that the code is for; more threads than cores wait for one another.
        threads = self.options.threads or min(self.threads, host().cores)
        if emulated:
            return EmulatedExecutor(artifact, self.processor, inputs, outputs, threads, context)
        return CpuExecutor(artifact.path, described, inputs, outputs, threads)

    def tool_versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("apache-tvm", "apache-tvm-ffi")}

    @property
    def _written(self) -> frozenset[str]:
        """What is written out: some only where no other engine, which has kernels for them, takes over."""
        from gatewright.frontend.written import ALONE, ALWAYS

        return frozenset(ALWAYS if self.falls_back else ALWAYS | ALONE)

    @property
    def _label(self) -> str:
        return "cpu" if self.processor.source == "host" else f"cpu:{self.processor.name}"

    def _require_measurable(self) -> None:
        """Raises UnsupportedError where this machine cannot run what it would have to measure."""
        try:
            require_this_machine(self.processor)
        except UnsupportedError as error:
            raise UnsupportedError(
                f"option 'level={self.options.level}' measures kernels, which only the device itself can: {error.message}",
                hint="take level=0, or compile on a machine of that kind",
            ) from None


def _died_in_machine_code(log: Path) -> bool:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(line.startswith(MACHINE_CODE) for line in lines)


def _info(entry: dict[str, Any]) -> TensorInfo:
    import numpy as np

    return TensorInfo(entry["name"], tuple(entry["shape"]), np.dtype(entry["dtype"]))


def all_of(found: tuple[errors.UnsupportedOp, ...]) -> UnsupportedError:
    listed = "; ".join(f"{p.node} ({p.op}): {p.rule}" for p in found[:10])
    more = f"; and {len(found) - 10} more" if len(found) > 10 else ""
    return UnsupportedError(f"{found[0].target} does not support {len(found)} nodes: {listed}{more}", hint=found[0].hint)
