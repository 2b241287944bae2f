"""``bench``: targets beside other engines on this machine, model by model: latency in alternating blocks, ratios, memory.

For each model and batch: what ``ref`` says of the feeds; every engine made ready and its outputs compared with that (an engine
that computes something else is not timed); then all of them by turns (``timing.py``). One engine's failure stops no other.
Ratios are another engine's latency over the target's: above 1 the target is faster. With a pipeline the targets run the
transformed model, and the others both the model as it is and the transformed one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gatewright.errors import GatewrightError, MismatchError, UnsupportedError, UsageError
from gatewright.frontend.batch import batch_reason, with_batch
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model, TensorInfo
from gatewright.frontend.reference import Reference
from gatewright.hw.device import host
from gatewright.hw.measurement import Measurement
from gatewright.progress import Progress, silent
from gatewright.targets.base import Artifact, Feeds, Target

from . import difference, engines, footprint
from .bench_report import BenchReport, BenchRow, Run
from .compare import reason_of, status_of, unique_names
from .config import config
from .driver import compile_timed, context, transform
from .engines import Outputs, Prepared
from .session import native_call
from .targetspec import canonical_text, is_here, resolve, split_targets
from .timing import Blocks, alternate, ratio

Array = NDArray[Any]

Quiet = Callable[[], AbstractContextManager[None]]

BATCHES = (1, 16)
OTHER_TOLERANCE = 1e-3
"""Of the largest magnitude: how far another engine's float outputs may be from ``ref``'s."""
OTHER_ABSOLUTE = 1e-6
"""An error that small is none whatever the magnitude: ONNX Runtime's sigmoid is a rational function that is off by 1e-7."""


def bench(
    models: Model | Sequence[Model],
    targets: str | Sequence[str] = "cpu",
    against: str | Sequence[str] = "ort",
    *,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    pipeline: str | None = None,
    data: Dataset | Mapping[str, Dataset] | None = None,
    blocks: Blocks | None = None,
    memory: bool = True,
    kernels: bool = False,
    seed: int = 0,
    quiet: Quiet = nullcontext,
    progress: Progress = silent,
) -> BenchReport:
    """Every model, in every batch, on ``targets`` (of this machine) and on the engines ``against``.

    ``threads``: of every engine; all cores by default. ``data``: what is run, and what ``pipeline`` calibrates with; without it
    the feeds are random numbers of ``seed``. ``memory``: measure each engine's peak too, in processes of their own.
    ``kernels``: time each kernel of target cpu too. ``quiet``: entered while something is timed, to hold others off.

    Raises UsageError for a name that is wrong, ToolMissing for an engine that is not installed; what fails later is one row's status.
    """
    named = unique_names([models] if isinstance(models, Model) else list(models))
    ours = [_target(text, threads) for text in (split_targets(targets) if isinstance(targets, str) else targets)]
    theirs = tuple(dict.fromkeys(split_targets(against) if isinstance(against, str) else against))
    if not named or not ours:
        raise UsageError("bench needs a model and a target")
    for batch in batches:
        if batch < 1:
            raise UsageError(f"batch is {batch}; it takes whole numbers from 1")
    others = {name: engines.other(name) for name in theirs}
    count = threads or host().cores
    run = _Bench(tuple(ours), others, count, pipeline, blocks or Blocks(), memory, kernels, seed, quiet, progress)
    rows: list[BenchRow] = []
    for model in named:
        samples = data.get(model.name) if isinstance(data, Mapping) else data
        rows += run.model_rows(model, tuple(dict.fromkeys(batches)), samples)
    return BenchReport(
        rows=tuple(rows),
        targets=tuple(canonical_text(target) for target in ours),
        against=theirs,
        threads=count,
        blocks=run.blocks,
        pipeline=pipeline,
        device=host(),
        versions={name: engine.version for name, engine in others.items()},
    )


@dataclass
class _Bench:
    """What all models share."""

    targets: tuple[Target, ...]
    others: Mapping[str, engines.Other]
    threads: int
    pipeline: str | None
    blocks: Blocks
    memory: bool
    kernels: bool
    seed: int
    quiet: Quiet
    progress: Progress

    def model_rows(self, model: Model, batches: Sequence[int], data: Dataset | None) -> list[BenchRow]:
        variants = {False: model}
        problem: Exception | None = None
        if self.pipeline is not None:
            try:
                calibration = data or Dataset(random_feeds(model.inputs, self.seed, samples=8), name="random numbers")
                variants[True] = transform(model, self.pipeline, calibration, seed=self.seed, progress=self.progress)
            except GatewrightError as error:
                problem = error
        rows: list[BenchRow] = []
        for batch in batches:
            runs = self._runs(model, batch)
            if problem is not None:
                rows += [_failed(BenchRow(run), problem) for run in runs]
                continue
            rows += self._batch_rows(runs, variants, batch, data)
        return rows

    def _runs(self, model: Model, batch: int) -> list[Run]:
        transformed = self.pipeline is not None
        own = [Run(model.name, batch, canonical_text(target), transformed, is_target=True) for target in self.targets]
        return own + [Run(model.name, batch, name, kind) for kind in ((False, True) if transformed else (False,)) for name in self.others]

    def _batch_rows(self, runs: Sequence[Run], variants: Mapping[bool, Model], batch: int, data: Dataset | None) -> list[BenchRow]:
        """The rows of one model in one batch: made ready, judged, timed by turns, weighed."""
        rows = {run: BenchRow(run) for run in runs}
        with ExitStack() as resources:
            folder = Path(resources.enter_context(TemporaryDirectory(prefix="gatewright-bench-")))
            cases: dict[bool, _Case | Exception] = {}
            for kind, model in variants.items():
                try:
                    cases[kind] = self._case(model, batch, data, folder / f"model{int(kind)}.onnx")
                except Exception as error:  # whatever it is, it is these rows' failure and no other's
                    cases[kind] = error
            ready: dict[Run, Prepared] = {}
            for run in runs:
                self.progress(f"{run.model}, batch {batch}, on {run.engine}: making it ready")
                case = cases[run.transformed]
                try:
                    if isinstance(case, Exception):
                        raise case
                    rows[run], prepared = self._ready(rows[run], case)
                    resources.enter_context(prepared)
                    rows[run] = _judged(rows[run], case, prepared.call())
                    ready[run] = prepared
                except Exception as error:
                    rows[run] = _failed(rows[run], error)
            self._time(rows, ready)
            known = {kind: case for kind, case in cases.items() if isinstance(case, _Case)}
            if self.kernels:
                self._look_inside(rows, list(ready), known)
            if self.memory:
                self._weigh(rows, list(ready), known)
        return list(rows.values())

    def _case(self, model: Model, batch: int, data: Dataset | None, file: Path) -> _Case:
        self.progress(f"{model.name}, batch {batch}, on ref")
        sized = _sized(model, batch)
        feeds = _feeds(sized, data, self.seed)
        return _Case(sized, batch, feeds, Reference(sized).run(feeds), file)

    def _ready(self, row: BenchRow, case: _Case) -> tuple[BenchRow, Prepared]:
        run = row.run
        if not run.is_target:
            engine = self.others[run.engine]
            file = case.file_for(run.engine, engine)
            return row, engine.open(file, case.feeds, self.threads)
        target = next(target for target in self.targets if canonical_text(target) == run.engine)
        made = compile_timed(case.model, canonical_text(target), seed=self.seed, progress=self.progress)
        case.artifacts[run.engine] = made.artifact.path
        resources = ExitStack()
        executor = resources.enter_context(made.artifact.load())
        call = native_call(executor, case.feeds)
        if made.artifact.parts:
            row = replace(row, notes=(*row.notes, *made.artifact.manifest["target"]["notes"]))
        seconds = None if made.seconds is None else Measurement(made.seconds, "s", "measured")
        return replace(row, compile_time=seconds), Prepared(call, resources)

    def _time(self, rows: dict[Run, BenchRow], ready: Mapping[Run, Prepared]) -> None:
        if not ready:
            return
        first = next(iter(ready))
        what = f"{first.model}, batch {first.batch}: {len(ready)} engines by turns"
        with self.quiet():
            timings = alternate([prepared.call for prepared in ready.values()], self.blocks, progress=self.progress, what=what)
        found = dict(zip(ready, timings, strict=True))
        for run, timing in found.items():
            ratios = {other.label: ratio(their, timing) for other, their in found.items() if not other.is_target} if run.is_target else {}
            rows[run] = replace(rows[run], timing=timing, ratios=ratios)

    def _look_inside(self, rows: dict[Run, BenchRow], ready: Sequence[Run], cases: Mapping[bool, _Case]) -> None:
        """Kernels of target cpu beside what the machine reaches; a note where that cannot be had."""
        for run in ready:
            case = cases[run.transformed]
            if not run.is_target or run.engine.partition("{")[0] != "cpu":
                continue
            from gatewright.targets.tvm import peaks, profile

            self.progress(f"{run.model}, batch {run.batch}, on {run.engine}: kernels")
            try:
                with self.quiet():
                    reached = peaks.measure(self.threads, config().cache_dir)
                    found = profile.profile(Artifact.open(case.artifacts[run.engine], context()), case.model, case.feeds)
                rows[run] = replace(rows[run], kernels=tuple(kernel.to_json(reached) for kernel in found))
            except GatewrightError as error:
                rows[run] = replace(rows[run], notes=(*rows[run].notes, f"its kernels were not timed: {error.message}"))

    def _weigh(self, rows: dict[Run, BenchRow], ready: Sequence[Run], cases: Mapping[bool, _Case]) -> None:
        for run in ready:
            self.progress(f"{run.model}, batch {run.batch}, on {run.engine}: memory")
            case = cases[run.transformed]
            kind, path = ("artifact", case.artifacts[run.engine]) if run.is_target else (run.engine, case.files[run.engine])
            try:
                rows[run] = replace(rows[run], memory=footprint.measure(kind, path, case.feeds, self.threads))
            except GatewrightError as error:
                rows[run] = replace(rows[run], notes=(*rows[run].notes, f"its memory was not measured: {error.message}"))


@dataclass
class _Case:
    """One model in one batch: what it is fed, what it should say, and the files that engines read."""

    model: Model
    batch: int
    feeds: Feeds
    truth: Outputs
    file: Path
    files: dict[str, Path] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)

    def file_for(self, name: str, engine: engines.Other) -> Path:
        path = self.file.with_name(f"{self.file.stem}_{name}.onnx")
        engine.save(self.model, path)
        self.files[name] = path
        return path


def random_feeds(infos: Sequence[TensorInfo], seed: int, samples: int | None = None) -> dict[str, Array]:
    """Floats from 0 to 1, 8-bit integers over their whole range, wider ones from 0 to 99 (they are often indices), by ``seed``.

    ``samples``: the length of axis 0; by default as the model has it.
    """
    rng = np.random.default_rng(seed)

    def numbers(info: TensorInfo) -> Array:
        shape = info.shape if samples is None or not info.shape else (samples, *info.shape[1:])
        if info.dtype.kind in "iu":
            limits = np.iinfo(info.dtype)
            low, high = (limits.min, limits.max) if info.dtype.itemsize == 1 else (0, 99)
            return rng.integers(low, high, shape, endpoint=True).astype(info.dtype)
        if info.dtype.kind == "b":
            return rng.integers(0, 2, shape).astype(bool)
        return rng.uniform(0, 1, shape).astype(info.dtype)

    return {info.name: numbers(info) for info in infos}


def _sized(model: Model, batch: int) -> Model:
    """The model in that batch. Raises UnsupportedError where its samples depend on one another."""
    own = model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape else None
    if own == batch:
        return model
    reason = batch_reason(model)
    if reason is not None:
        raise UnsupportedError(f"{model.name} has no batch {batch}: {reason}", hint=f"it runs with batch {own or 1}: --batch {own or 1}")
    return with_batch(model, batch)


def _feeds(model: Model, data: Dataset | None, seed: int) -> dict[str, Array]:
    if data is None:
        return random_feeds(model.inputs, seed)
    size = model.inputs[0].shape[0] if model.inputs[0].shape else 1
    feeds = data.take(min(size, len(data))).feeds(model.inputs)
    return {name: np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) for name, array in feeds.items()}


def _judged(row: BenchRow, case: _Case, outputs: Outputs) -> BenchRow:
    """The row with its error. Raises MismatchError where the engine computes something else than the model says."""
    quantized = difference.exact_outputs(case.model)
    exact, tolerance = (quantized, difference.tolerance(case.model)) if row.run.is_target else ((), OTHER_TOLERANCE)
    error = difference.output_error(outputs, case.truth, exact, tolerance)
    if error is None or set(outputs) != set(case.truth):
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items())
        raise MismatchError(f"its outputs are not the model's: {shapes}")
    if not np.isfinite(error.max_abs):
        raise MismatchError(f"its results are not numbers where the model's are, in {error.mismatching_samples} of {case.batch} samples")
    magnitude = max(float(np.max(np.abs(array.astype(np.float64)), initial=0.0)) for array in case.truth.values())
    row = replace(row, error=error, relative_error=error.max_abs / magnitude if magnitude else error.max_abs)
    # Another engine's integer kernels go through float32: they are a step off here and there, and none of that is an error of theirs.
    lenient = not row.run.is_target and any(node.op_type == "QuantizeLinear" for node in case.model.graph)
    if error.mismatching_samples and not lenient and (row.run.is_target or error.max_abs > OTHER_ABSOLUTE):
        raise MismatchError(
            f"its results are wrong in {error.mismatching_samples} of {case.batch} samples: off by {error.max_abs:.3g} at most, "
            f"where the largest value is {magnitude:.3g}",
            hint="it was not timed; please report it",
        )
    return row


def _failed(row: BenchRow, error: Exception) -> BenchRow:
    return replace(row, status=status_of(error), reason=reason_of(error))


def _target(text: str, threads: int | None) -> Target:
    target = resolve(text)
    own_batch = getattr(target.options, "batch", 1)
    if own_batch != 1:
        raise UsageError(f"{text!r} sets a batch", hint=f"leave it out and give bench --batch {own_batch}")
    if not is_here(target):
        raise UsageError(f"bench measures on this machine; {text!r} is for another device", hint="gatewright check says what it would cost")
    if target.name == "ort" or not target.builds_on_compile:
        raise UsageError(f"{text!r} is no target to bench", hint="cpu with its options; other engines go behind --against")
    return _with_threads(target, threads) if threads is not None else target


def _with_threads(target: Target, threads: int) -> Target:
    if not hasattr(target.options, "threads") or target.options.threads is not None:
        return target
    return type(target)(target.device, dataclasses.replace(target.options, threads=threads))
