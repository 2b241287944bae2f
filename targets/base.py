"""What every target gives: check, legalize, lower, build, load; and what comes out of it: an Artifact, an Executor.

Read next: ``ref/`` (the smallest target), then ``hls/`` (one with files, tools and an emulator). Targets do not import
one another; what two of them need lies here or in ``frontend/``.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import DataError, GatewrightError, UnsupportedOp, UsageError, nearest
from gatewright.hw.device import Device
from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress, silent
from gatewright.spec import construct

if TYPE_CHECKING:
    # Running an artifact needs neither: they bring the libraries that read ONNX.
    from gatewright.frontend.data import Dataset
    from gatewright.frontend.model import Model, TensorInfo

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Mode = Literal["emulate", "simulate", "device"]
Stage = Literal["lowered", "built"]

TARGETS: dict[str, str] = {
    "ref": "gatewright.targets.ref.target:RefTarget",
    "ort": "gatewright.targets.ort.target:OrtTarget",
    "cpu": "gatewright.targets.tvm.target:CpuTarget",
    "cuda": "gatewright.targets.tvm.cuda.target:CudaTarget",
    "hls": "gatewright.targets.hls.target:HlsTarget",
    "rtl": "gatewright.targets.rtl.target:RtlTarget",
    "tpu": "gatewright.targets.xla.target:XlaTarget",
}
"""Target name to the class that implements it, imported on first use."""


def target_class(name: str) -> type[Target]:
    """The class behind a target's name. Raises UsageError with the nearest names."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}", hint=nearest(name, TARGETS, "targets"))
    module, _, attribute = TARGETS[name].partition(":")
    found: type[Target] = getattr(import_module(module), attribute)
    return found


@dataclass(frozen=True)
class TargetContext:
    """What a target may use: where its caches live, how long and how wide it may work, whom to tell."""

    cache_dir: Path
    """A folder that is kept; content-addressed entries below it are the target's own."""
    jobs: int = 1
    """Processes or threads that a build may use."""
    time_limit_s: float = 1800.0
    """For one outside tool."""
    data: Dataset | None = None
    """Samples to calibrate or to verify a conversion with."""
    seed: int = 0
    progress: Progress = silent
    port: str | None = None
    """The serial port that a board is at, for mode device."""
    level: str | None = None
    """What of the design mode simulate runs, by the target's own words; None: what the target's options say."""
    wave: Path | None = None
    """The file that mode simulate writes every signal's course to; its suffix says in which format."""


@dataclass(frozen=True)
class Check:
    """What ``check`` found, before anything was built."""

    problems: tuple[UnsupportedOp, ...] = ()
    """Every node that the target refuses, not only the first."""
    shortfalls: tuple[str, ...] = ()
    """Every resource of which the device has too little, in words: "DSP: needs 310, xc7z020 has 220"."""
    notes: tuple[str, ...] = ()
    """What will be done differently from what the model says, or what the user may want to know."""
    figures: Mapping[str, Measurement] = field(default_factory=dict)
    """Estimates: latency, throughput, energy, memory, resources by name."""
    available: Mapping[str, Measurement] = field(default_factory=dict)
    """What the device has of those of the figures that it limits, under the same names."""

    @property
    def ok(self) -> bool:
        return not self.problems and not self.shortfalls


class Target(ABC):
    """One way to run models. An instance is bound to a device and to the options given in the target's braces."""

    name: ClassVar[str]
    builds_on_compile: ClassVar[bool]
    """True where the compiler is a library (ref, ort, cpu): ``compile`` ends built. False: ``compile`` writes files only."""
    options_type: ClassVar[type]
    """A frozen dataclass; each field is an option, its defaults the target's defaults."""
    simulates: ClassVar[bool] = False
    """True where mode simulate runs the design itself, cycle by cycle."""
    has_port: ClassVar[bool] = False
    """True where mode device speaks to a board through the port that the user names."""
    device_kinds: ClassVar[tuple[str, ...]] = ()
    """Kinds of Device that it takes: "cpu", "gpu", "tpu", "board", "part". Empty: runs on the host, whatever that is."""
    quantization: ClassVar[str | None] = None
    """The pipeline that a float model goes through where the user gives data; set by targets that take only quantized models."""

    def __init__(self, device: Device | None, options: Any) -> None:
        self.device = device
        self.options = options

    @property
    def is_here(self) -> bool:
        """Whether what it runs on is this machine: only then is what a clock says a measurement of its device."""
        return self.device is None or self.device.source == "host"

    @property
    def falls_back(self) -> bool:
        """True where other engines may run the nodes that it refuses (runtime/partition.py); only where ``builds_on_compile``."""
        return False

    def alone(self) -> Target:
        """The same target for one part of a model: it does not fall back, and takes the part's samples as they are."""
        return self

    @abstractmethod
    def check(self, model: Model) -> Check:
        """Supported? Fits? With figures. Takes seconds, runs no tool, and does not raise for a model that it refuses."""

    def legalize(self, model: Model) -> Model:
        """The model rewritten into what ``lower`` takes; its meaning is unchanged. Raises UnsupportedOp."""
        return model

    @abstractmethod
    def lower(self, model: Model, folder: Path, context: TargetContext) -> dict[str, Any]:
        """Write the artifact's files into the empty ``folder`` (no outside tool runs) and return the manifest's ``target`` part.

        The same model, options and device give the same bytes. Raises UnsupportedOp or DoesNotFit before writing.
        """

    def build(self, artifact: Artifact, folder: Path, context: TargetContext) -> dict[str, Any]:
        """Run the target's tools on a lowered artifact. ``folder`` is a copy of it to work in.

        Returns additions to the manifest's ``target`` part.
        """
        return {}

    @abstractmethod
    def load(self, artifact: Artifact, mode: Mode, context: TargetContext) -> Executor:
        """An executor of a finished artifact. Raises GatewrightError if it has no such mode."""

    def figures(self, artifact: Artifact) -> Mapping[str, Measurement]:
        """What a finished artifact states of itself, by name: "peak_memory", and resources. Empty where its compiler tells nothing."""
        return {}

    def default_mode(self, artifact: Artifact) -> Mode:
        """The real device where it is this machine, else emulation."""
        return "emulate"

    def tool_versions(self) -> dict[str, str]:
        """Versions of the libraries and tools that shape the artifact; part of the cache key."""
        return {}


class Executor(ABC):
    """Runs a model. Use it as a context manager, or call ``close``.

    ``batch`` is the number of samples that one native run takes: None where any number is taken, else ``run`` slices
    the feeds along axis 0, pads the last slice by repeating its last sample, and cuts the outputs. A model whose
    outputs are not per-sample (``per_sample`` False) takes exactly its own shapes.
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    batch: int | None = None
    per_sample: bool = True
    mode: Mode = "emulate"

    @abstractmethod
    def run_native(self, feeds: Feeds) -> dict[str, Array]:
        """One run; feeds have been checked, and have ``batch`` samples unless ``batch`` is None."""

    def trace_native(self, feeds: Feeds) -> dict[str, Array]:
        """Like ``run_native``, with inner tensors under their ONNX names besides the outputs."""
        raise GatewrightError(f"{type(self).__name__} cannot show inner tensors")

    @property
    def saturations(self) -> dict[str, int]:
        """Values clamped at each integer tensor's bounds in the last run, by ONNX name; empty where nothing is counted."""
        return {}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs by name for any number of samples. ``feeds``: one array per input, axis 0 the samples."""
        return self._sliced(feeds, self.run_native)

    def trace(self, feeds: Feeds) -> dict[str, Array]:
        """Outputs and inner tensors by ONNX name."""
        return self._sliced(feeds, self.trace_native)

    def close(self) -> None:  # noqa: B027 (an executor without resources has nothing to release)
        """Release processes and libraries."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sliced(self, feeds: Feeds, native: Callable[[Feeds], dict[str, Array]]) -> dict[str, Array]:
        feeds, samples = self._checked(feeds)
        step = self.batch
        if step is None or samples is None or samples == step:
            return native(feeds)
        pieces: list[dict[str, Array]] = []
        for start in range(0, samples, step):
            part = {name: array[start : start + step] for name, array in feeds.items()}
            short = step - min(step, samples - start)
            if short:
                part = {name: np.concatenate([array, np.repeat(array[-1:], short, axis=0)]) for name, array in part.items()}
            result = native(part)
            pieces.append({name: array[: step - short] for name, array in result.items()} if short else result)
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]} if pieces else {}

    def _checked(self, feeds: Feeds) -> tuple[dict[str, Array], int | None]:
        """Feeds in the model's order and the number of samples; a shape or dtype that does not fit is a DataError showing both."""
        wanted = {info.name: info for info in self.inputs}
        if set(feeds) != set(wanted):
            raise DataError(f"the model takes {', '.join(map(str, self.inputs))}; got arrays named {', '.join(sorted(feeds)) or 'nothing'}")
        counts = set()
        for name, info in wanted.items():
            array = feeds[name]
            if array.dtype != info.dtype:
                hint = "cast it, or describe the data with Input(dtype=…, scale=…)"
                raise DataError(f"input {name!r} takes {info.dtype}, got {array.dtype}", hint=hint)
            fits = array.shape == info.shape or (
                self.per_sample and array.ndim == len(info.shape) > 0 and array.shape[1:] == info.shape[1:] and array.shape[0] > 0
            )
            if not fits:
                free = "N, " + ", ".join(map(str, info.shape[1:])) if self.per_sample and info.shape else ", ".join(map(str, info.shape))
                hint = "describe the data with Input(reshape=…, layout=…)"
                raise DataError(f"input {name!r} takes shape [{free}], got {list(array.shape)}", hint=hint)
            if array.ndim:
                counts.add(array.shape[0])
        if not self.per_sample:
            return {name: feeds[name] for name in wanted}, None
        if len(counts) > 1:
            raise DataError(f"the inputs have different numbers of samples: {sorted(counts)}")
        return {name: np.ascontiguousarray(feeds[name]) for name in wanted}, (counts.pop() if counts else None)


@dataclass(frozen=True)
class Artifact:
    """A folder with ``manifest.json`` and the files it lists. Opens without the model, and without the target's compiler.

    manifest: {"schema": 1, "name", "stage", "target_text", "target_name", "options", "device" (whole, as JSON, or null),
    "model": {"name", "digest", "history"}, "inputs", "outputs", "versions", "files": {relative path: SHA-256},
    "target": what the target's ``lower`` and ``build`` returned}; where several engines share the model, "parts" as well, each
    an artifact of its own in "folder" (see ``parts.py``).
    """

    path: Path
    manifest: Mapping[str, Any]
    context: TargetContext

    @classmethod
    def open(cls, path: str | Path, context: TargetContext) -> Artifact:
        """The artifact in ``path``. Raises GatewrightError if it is none, or if a file is missing or was changed."""
        path = Path(path)
        try:
            manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            what = "it has no manifest.json" if path.is_dir() or not path.exists() else "that is a folder"
            raise GatewrightError(
                f"{path} is not an artifact: {what}", hint="make one with gatewright compile MODEL -t TARGET -o DIR"
            ) from None
        except (ValueError, OSError) as error:
            raise GatewrightError(f"{path / 'manifest.json'} cannot be read: {error}", hint="compile the model again") from None
        if not isinstance(manifest, dict) or manifest.get("schema") != 1:
            raise GatewrightError(f"{path / 'manifest.json'} is not a gatewright manifest of schema 1", hint="compile the model again")
        artifact = cls(path, manifest, context)
        artifact.verify()
        return artifact

    def verify(self) -> None:
        """Raises GatewrightError naming the first file whose SHA-256 is not the manifest's."""
        for name, expected in self.manifest["files"].items():
            file = self.path / name
            if Path(name).is_absolute() or ".." in Path(name).parts or not file.is_file():
                raise GatewrightError(f"artifact {self.path} lacks its file {name!r}", hint="compile the model again")
            with open(file, "rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                    what = f"file {name!r} of artifact {self.path} was changed after it was made"
                    raise GatewrightError(what, hint="compile the model again")

    @property
    def target_text(self) -> str:
        """The target as the user would type it: ``hls:pynq-z2{tool=vitis}``."""
        return str(self.manifest["target_text"])

    @property
    def stage(self) -> Stage:
        return "built" if self.manifest["stage"] == "built" else "lowered"

    @property
    def parts(self) -> Sequence[Mapping[str, Any]]:
        """Of a model that several engines share: for each part, in order, what the manifest says of it; else nothing."""
        return tuple(self.manifest.get("parts", ()))

    def target(self) -> Target:
        """The target that made it, bound to the device and options of the manifest."""
        kind = target_class(str(self.manifest["target_name"]))
        device = self.manifest["device"]
        return kind(Device.from_json(device) if device else None, construct(kind.options_type, kind.name, self.manifest["options"]))

    def load(self, mode: Mode | None = None) -> Executor:
        """An executor. Without ``mode``: the real device if it is this machine, else emulation."""
        target = self.target()
        if self.parts:
            from .parts import PartsExecutor

            return PartsExecutor(self, mode or target.default_mode(self))
        return target.load(self, mode or target.default_mode(self), self.context)
