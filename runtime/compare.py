"""``compare``: every model on every target, on one data set, judged by one metric. One row's failure stops no other.

For each model: run it on ``ref`` once (what it means), then each target; then, side by side, the latencies of those targets
that are this machine. The first model on ``ref`` is the baseline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from numpy.typing import NDArray

from gatewright.errors import DoesNotFit, GatewrightError, ToolMissing, UnsupportedError, UsageError
from gatewright.frontend import work
from gatewright.frontend.data import Dataset
from gatewright.frontend.model import Model
from gatewright.frontend.reference import Reference
from gatewright.hw.cost import roofline
from gatewright.hw.device import Processor
from gatewright.hw.measurement import Measurement, Source
from gatewright.progress import Progress, silent
from gatewright.targets.base import Artifact, Check, Executor, Target

from . import difference, partition, session
from .difference import Trace
from .driver import compile_timed
from .metrics import Metric, MetricFunction
from .metrics import metric as metric_of
from .report import Cost, ModelSummary, Recommendation, Report, Row, Status
from .targetspec import is_here, resolve, split_targets

Array = NDArray[Any]
Outputs = dict[str, Array]

LAYER_SAMPLES = 64
"""Samples of which inner tensors are compared."""


def compare(
    models: Model | Sequence[Model],
    targets: str | Sequence[str] | Mapping[str, Sequence[str]],
    data: Dataset | Mapping[str, Dataset],
    metric: str | Metric | MetricFunction | None = None,
    *,
    limit: int | None = None,
    max_drop: float = 0.01,
    cost: Cost = "latency",
    calibration: Dataset | None = None,
    rounds: int = 3,
    seed: int = 0,
    progress: Progress = silent,
) -> Report:
    """The report of ``models`` × ``targets``.

    ``targets``: for all models, or by model name; beside this machine's ``cpu`` there is always a row of ``ort``. ``data``: one
    Dataset, or one per model name where models take their inputs differently prepared. ``limit``: its first samples only.
    ``calibration``: data to quantize float models with, for targets that take only quantized ones; without it such a row is
    "unsupported". ``max_drop``, ``cost``: the recommendation is the row of lowest ``cost`` that loses at most ``max_drop``.
    ``rounds`` of latency measurements. Raises UsageError for a name that is wrong, DataError where the data does not fit the
    baseline or lacks labels that the metric needs; anything else is one row's status.
    """
    named = unique_names([models] if isinstance(models, Model) else list(models))
    texts = {model.name: _targets_of(model, targets) for model in named}
    if not named or not any(texts.values()):
        raise UsageError("compare needs a model and a target")
    bound = {text: resolve(text) for own in texts.values() for text in own}
    beside = {name: own for name in texts if (own := _beside(texts[name], bound))}
    bound |= {text: resolve(text) for own in beside.values() for text in own}
    sets = {model.name: _data_of(model, data, limit) for model in named}
    baseline_data = sets[named[0].name]
    judge = metric_of(metric, baseline_data.labels)
    judge.require(baseline_data.labels)

    texts = {name: [*own, *beside.get(name, ())] for name, own in texts.items()}
    run = _Comparison(judge, calibration, rounds, seed, progress, total=sum(map(len, texts.values())))
    rows = [row for m in named for row in run.model_rows(m, {text: bound[text] for text in texts[m.name]}, sets[m.name])]
    rows = [replace(row, asked=row.target not in beside.get(row.model, ())) for row in rows]
    return Report(
        samples=len(baseline_data),
        data_digest=baseline_data.digest,
        data_name=baseline_data.name,
        metric=judge.name,
        higher_is_better=judge.higher_is_better,
        models=tuple(_summary(model) for model in named),
        rows=tuple(rows),
        baseline_metric=run.baseline_metric,
        recommendation=recommend(rows, judge, run.baseline_metric, cost, max_drop),
    )


@dataclass
class _Comparison:
    """What rows share: the metric, and what the baseline gave."""

    metric: Metric
    calibration: Dataset | None
    rounds: int
    seed: int
    progress: Progress
    total: int
    done: int = 0
    baseline: Outputs | None = None
    baseline_metric: float | None = None
    traces: dict[str, Trace] = field(default_factory=dict)
    """By family (the file that a model came from): the trace of the family's first model, which the others' layers are compared with."""

    def model_rows(self, model: Model, targets: Mapping[str, Target], data: Dataset) -> list[Row]:
        """One row per target, in order."""
        truth = self._truth(model, data)
        with ExitStack() as executors:
            pending = [self._row(model, text, target, data, truth, executors) for text, target in targets.items()]
            return self._with_latencies(pending, data)

    def _truth(self, model: Model, data: Dataset) -> _Truth:
        """What ``model`` means on ``data``. For the first model a failure is the whole comparison's."""
        is_baseline = self.baseline is None
        try:
            self.progress(f"{model.name} on ref")
            truth = _reference(model, data, self.progress)
        except GatewrightError as error:
            if is_baseline:
                raise
            return _Truth(problem=error)
        if is_baseline:
            self.baseline = truth.outputs
            assert truth.outputs is not None
            self.baseline_metric = self.metric(truth.outputs, data.labels, truth.outputs)
        assert truth.trace is not None
        first = self.traces.setdefault(_family(model), truth.trace)
        if first is not truth.trace:
            return replace(truth, layers=difference.layers(truth.trace, first))
        # Read from a file of its own: its layers say something if it has inner tensors in common with the baseline.
        found = () if is_baseline else difference.layers(truth.trace, next(iter(self.traces.values())))
        outputs = {info.name for info in model.outputs}
        return replace(truth, layers=found) if any(layer.name not in outputs for layer in found) else truth

    def _row(self, model: Model, text: str, target: Target, data: Dataset, truth: _Truth, executors: ExitStack) -> _Pending:
        self.done += 1
        self.progress(f"{model.name} on {text}", self.done, self.total)
        row = Row(model.name, text, "ok")
        try:
            return self._ran(row, model, text, target, data, truth, executors)
        except Exception as error:  # one row's failure, whatever it is, stops no other; it is reported in the row
            # Who does not fit where, row and status say already.
            reason = re.sub(rf"^{re.escape(model.name)} does not fit[^:]*: *", "", reason_of(error))
            return _Pending(replace(row, status=status_of(error), reason=reason))

    def _ran(self, row: Row, model: Model, text: str, target: Target, data: Dataset, truth: _Truth, executors: ExitStack) -> _Pending:
        compiled = compile_timed(model, text, data=self.calibration, seed=self.seed, progress=self.progress)
        check = partition.check(compiled.model, target)
        row = _with_estimates(row, compiled.model, target, check)
        row = replace(
            row,
            artifact_size=Measurement(float(_folder_bytes(compiled.artifact)), "B", "measured"),
            build_time=None if compiled.seconds is None else Measurement(compiled.seconds, "s", "measured"),
        )
        stated = dict(target.figures(compiled.artifact))
        row = replace(row, peak_memory=stated.pop("peak_memory", row.peak_memory))
        row = replace(row, resources={**(row.resources or {}), **stated} or None)
        if check.shortfalls:
            raise DoesNotFit(f"{model.name} does not fit: {'; '.join(check.shortfalls)}")
        if compiled.model is not model:  # quantized for this target: what counts is what that model means
            truth = self._truth(compiled.model, data)
        executor = executors.enter_context(compiled.artifact.load())
        ran = session.run(executor, data, here=is_here(target), progress=self.progress, what=f"{model.name} on {text}")
        source: Source = "measured" if ran.is_device else "simulated" if executor.mode == "simulate" else "emulated"
        value = self.metric(ran.outputs, data.labels, self.baseline)
        row = replace(row, metric=Measurement(value, self.metric.unit, source), parts=ran.parts)
        row = replace(row, throughput=ran.rate) if ran.is_device else replace(row, emulation_rate=ran.rate)
        if truth.outputs is not None:
            row = self._with_errors(row, compiled.model, executor, ran.outputs, data, truth)
        return _Pending(row, executor if ran.is_device else None)

    def _with_errors(self, row: Row, model: Model, executor: Executor, outputs: Outputs, data: Dataset, truth: _Truth) -> Row:
        assert truth.outputs is not None
        exact, tolerance = difference.exact_outputs(model), difference.tolerance(model)
        against_ref = difference.output_error(outputs, truth.outputs, exact, tolerance)
        row = replace(row, error_ref=against_ref, layers=truth.layers)
        if self.baseline is not None:
            row = replace(row, error_baseline=difference.output_error(outputs, self.baseline))
        if against_ref is not None and against_ref.mismatching_samples:
            try:
                wrong = difference.mismatching(outputs, truth.outputs, exact, tolerance)
                row = replace(row, first_diverging_layer=difference.first_diverging(executor, model, data, wrong))
            except GatewrightError:
                pass  # this executor shows no inner tensors: the layer stays unknown
        return row

    def _with_latencies(self, pending: Sequence[_Pending], data: Dataset) -> list[Row]:
        """The rows, with measured latencies where the device is this machine; measured by turns, see ``session.latencies``."""
        timed = [item for item in pending if item.executor is not None]
        if not timed:
            return [item.row for item in pending]
        self.progress(f"measuring the latency of {timed[0].row.model}")
        executors = [item.executor for item in timed if item.executor is not None]
        found = iter(session.latencies(executors, [session.one_batch(executor, data) for executor in executors], rounds=self.rounds))
        return [item.row if item.executor is None else replace(item.row, latency=next(found)) for item in pending]


@dataclass(frozen=True)
class _Pending:
    """A row, and its executor if its latency is still to be measured."""

    row: Row
    executor: Executor | None = None


@dataclass(frozen=True)
class _Truth:
    """What ``ref`` says of one model."""

    outputs: Outputs | None = None
    trace: Trace | None = None
    layers: tuple[Any, ...] = field(default=())
    problem: GatewrightError | None = None


def recommend(rows: Sequence[Row], metric: Metric, baseline: float | None, cost: Cost, max_drop: float) -> Recommendation | None:
    """The cheapest row within the drop; ``ref`` is no deployment and does not count. None where no row qualifies."""
    if baseline is None:
        return None
    candidates = []
    for row in rows:
        price: Measurement | None = getattr(row, cost)
        if row.status != "ok" or not row.asked or row.metric is None or price is None or row.target.partition("{")[0] == "ref":
            continue
        drop = metric.drop(row.metric.value, baseline)
        if drop <= max_drop + 1e-12:
            candidates.append((price.value, drop, row, price))
    if not candidates:
        return None
    _, drop, row, price = min(candidates, key=lambda item: item[:2])
    seen = [(value, f"{other.model} on {other.target}", found) for value, _, other, found in candidates if found.source == "measured"]
    # A lower bound beats what a clock has read without being quicker: so both are told.
    measured = min(seen, key=lambda item: item[0])[1:] if seen and price.source != "measured" else None
    return Recommendation(row.model, row.target, cost, price, drop, max_drop, len(candidates), measured)


def _reference(model: Model, data: Dataset, progress: Progress) -> _Truth:
    from gatewright.targets.ref.target import RefExecutor

    with RefExecutor(model) as executor:
        outputs = session.run(executor, data, progress=progress, what=f"{model.name} on ref").outputs
        samples = difference.trace_samples(model, LAYER_SAMPLES) if executor.per_sample else len(data)
        trace = difference.reference_trace(model, data.take(samples).feeds(executor.inputs))
    return _Truth(outputs, trace)


def _with_estimates(row: Row, model: Model, target: Target, check: Check) -> Row:
    """The target's own figures; for a processor the roofline's where it gives none."""
    figures = dict(check.figures)
    latency, throughput = figures.pop("latency", None), figures.pop("throughput", None)
    energy, memory = figures.pop("energy", None), figures.pop("peak_memory", None)
    # What a change would bring (latency_int8, latency_threads_1) is for ``check`` to say; a comparison is of what is there.
    figures = {name: figure for name, figure in figures.items() if not name.startswith("latency_")}
    if isinstance(target.device, Processor):
        bound = roofline(work.layer_costs(model), target.device)
        latency, energy = latency or bound.latency, energy or bound.energy
    if memory is None and not (target.device and target.device.kind in ("board", "part")):
        memory = Measurement(float(work.peak_memory_bytes(model)), "B", "estimated")
    return replace(
        row, latency=latency, throughput=throughput, energy=energy, peak_memory=memory, resources=figures or None, notes=check.notes
    )


def _summary(model: Model) -> ModelSummary:
    costs = work.layer_costs(model)
    batch = model.inputs[0].shape[0] if model.inputs and model.inputs[0].shape and Reference(model).per_sample else 1
    return ModelSummary(
        model.name,
        model.digest,
        macs=sum(layer.macs for layer in costs) // max(1, batch),
        weight_bytes=work.weight_bytes(model),
        nonzero_weights=work.nonzero_share(model),
        history=tuple(step.text for step in model.history),
    )


def _family(model: Model) -> str:
    """Where a model came from: transformed models belong to the file that they were made of."""
    return model.history[0].text if model.history else model.name


def _targets_of(model: Model, targets: str | Sequence[str] | Mapping[str, Sequence[str]]) -> list[str]:
    if isinstance(targets, Mapping):
        if model.name not in targets:
            raise UsageError(
                f"there are no targets for model {model.name!r}", hint=f"targets are given for {', '.join(map(repr, targets))}"
            )
        return list(targets[model.name])
    return split_targets(targets) if isinstance(targets, str) else list(targets)


def _beside(texts: Sequence[str], bound: Mapping[str, Target]) -> list[str]:
    """``ort``, where a target is this machine's CPU: whoever thinks of deploying there would use ONNX Runtime otherwise."""
    here = any(bound[text].name == "cpu" and is_here(bound[text]) for text in texts)
    return ["ort"] if here and not any(bound[text].name == "ort" for text in texts) else []


def _data_of(model: Model, data: Dataset | Mapping[str, Dataset], limit: int | None) -> Dataset:
    if isinstance(data, Mapping):
        if model.name not in data:
            raise UsageError(f"there is no data for model {model.name!r}", hint=f"data is given for {', '.join(map(repr, data))}")
        data = data[model.name]
    if limit is not None and limit < 1:
        raise UsageError(f"limit is {limit}; it takes a whole number from 1")
    return data if limit is None else data.take(limit)


def unique_names(models: Sequence[Model]) -> list[Model]:
    """Models under different names: a second "digits" becomes "digits-2"."""
    named: list[Model] = []
    taken: set[str] = set()
    for model in models:
        name, number = model.name, 2
        while name in taken:
            name, number = f"{model.name}-{number}", number + 1
        taken.add(name)
        named.append(model if name == model.name else model.renamed(name))
    return named


def status_of(error: Exception) -> Status:
    if isinstance(error, DoesNotFit):
        return "does_not_fit"
    if isinstance(error, UnsupportedError):
        return "unsupported"
    return "tool_missing" if isinstance(error, ToolMissing) else "failed"


def reason_of(error: Exception) -> str:
    """One line: of a tool's output the message has the first and the last lines."""
    text = str(error) if isinstance(error, GatewrightError) else f"{type(error).__name__}: {error}".removesuffix(": ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines) if len(lines) <= 3 else f"{lines[0]} … {lines[-2]}; {lines[-1]}"


def _folder_bytes(artifact: Artifact) -> int:
    return sum((artifact.path / name).stat().st_size for name in artifact.manifest["files"])
