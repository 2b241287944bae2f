"""What a benchmark found: rows, ratios and their geometric means; as JSON (the contract for scripts), tables, or one HTML file.

JSON, schema 1::

    {"schema": 1, "device": {…}, "threads": N, "pipeline": TEXT or null, "versions": {"gatewright", engine: version},
     "blocks": {"runs", "dropped", "pause_s", "rounds"}, "targets": […], "against": […],
     "rows": [{"model", "batch", "engine", "is_target", "transformed", "status", "reason", "latency": FIGURE, "low": FIGURE,
               "high": FIGURE (its quartiles), "runs": how many counted, "throughput": FIGURE,
               "error": {"max_abs", "relative", "mismatching_samples", "top1_changed"} or null (against ``ref`` on the model it ran),
               "ratios": {engine: {"value", "low", "high"}} (its latency over this row's: above 1 this row is faster),
               "peak_memory": FIGURE, "baseline_memory": FIGURE, "compile_time": FIGURE, "notes": […],
               "kernels": [{"function", "op", "steps": nodes, "shape", "dtype", "seconds", "macs", "bytes", "operations_per_s",
                            "bytes_per_s", "share" (of the measured roofline)}] (where asked for)}],
     "means": [{"target", "batch", "against", "value", "models", "worst", "worst_model"}]}

FIGURE is ``{"value", "unit", "source"}`` or null. ``status`` is ok, unsupported, does_not_fit, tool_missing or failed. In
``ratios`` and ``means`` an engine on the transformed model is called "ort (transformed)".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gatewright
from gatewright.hw.device import Processor
from gatewright.hw.measurement import Measurement

from .atomic import write_file
from .footprint import Footprint
from .report import OutputError, Status, shorten, show
from .timing import Blocks, Ratio, Timing, geometric_mean

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Run:
    """One engine on one model in one batch."""

    model: str
    batch: int
    engine: str
    transformed: bool = False
    """It ran the model that the pipeline made."""
    is_target: bool = False
    """One of ours, not an engine to compare with."""

    @property
    def label(self) -> str:
        """How a ratio calls it."""
        return f"{self.engine} (transformed)" if self.transformed and not self.is_target else self.engine


@dataclass(frozen=True)
class BenchRow:
    """What is known of one run."""

    run: Run
    status: Status = "ok"
    reason: str | None = None
    timing: Timing | None = None
    error: OutputError | None = None
    """Against ``ref`` on the model that it ran."""
    relative_error: float | None = None
    """The largest error over the largest value."""
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    """Of a target: the other engines' latencies over its own, by label."""
    memory: Footprint | None = None
    compile_time: Measurement | None = None
    kernels: tuple[Mapping[str, Any], ...] = ()
    """Of target cpu, where that was asked for: as in the JSON."""
    notes: tuple[str, ...] = ()

    @property
    def latency(self) -> Measurement | None:
        return self.timing.median if self.timing else None

    @property
    def throughput(self) -> Measurement | None:
        """Samples per second."""
        return Measurement(self.run.batch / self.timing.median.value, "1/s", "measured") if self.timing else None

    def to_json(self) -> dict[str, Any]:
        low, high = self.timing.quartiles if self.timing else (None, None)
        error = None
        if self.error is not None:
            error = {
                "max_abs": self.error.max_abs,
                "relative": self.relative_error,
                "mismatching_samples": self.error.mismatching_samples,
                "top1_changed": self.error.top1_changed,
            }
        run = self.run
        return {
            "model": run.model,
            "batch": run.batch,
            "engine": run.engine,
            "is_target": run.is_target,
            "transformed": run.transformed,
            "status": self.status,
            "reason": self.reason,
            "latency": _figure(self.latency),
            "low": _figure(low),
            "high": _figure(high),
            "runs": len(self.timing.all) if self.timing else 0,
            "throughput": _figure(self.throughput),
            "error": error,
            "ratios": {name: {"value": r.value, "low": r.low, "high": r.high} for name, r in self.ratios.items()},
            "peak_memory": _figure(self.memory.peak if self.memory else None),
            "baseline_memory": _figure(self.memory.baseline if self.memory else None),
            "compile_time": _figure(self.compile_time),
            "kernels": [dict(kernel) for kernel in self.kernels],
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Mean:
    """The geometric mean of a target's ratios over the models."""

    target: str
    batch: int
    against: str
    value: float
    models: int
    worst: float
    worst_model: str

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True)
class BenchReport:
    """Models × batches × engines on this machine."""

    rows: tuple[BenchRow, ...]
    targets: tuple[str, ...]
    against: tuple[str, ...]
    threads: int
    blocks: Blocks
    pipeline: str | None
    device: Processor
    versions: Mapping[str, str]

    @property
    def means(self) -> tuple[Mean, ...]:
        """Over the models in which both ran."""
        found: dict[tuple[str, int, str], list[tuple[float, str]]] = {}
        for row in self.rows:
            for name, ratio in row.ratios.items():
                found.setdefault((row.run.engine, row.run.batch, name), []).append((ratio.value, row.run.model))
        return tuple(
            Mean(target, batch, name, geometric_mean([value for value, _ in values]), len(values), *min(values))
            for (target, batch, name), values in found.items()
        )

    @property
    def exit_code(self) -> int:
        """0 all rows ok; 1 one failed; else 3 one is unsupported."""
        statuses = {row.status for row in self.rows}
        return 1 if statuses & {"failed", "tool_missing"} else 3 if statuses - {"ok"} else 0

    def row(self, model: str, engine: str, batch: int = 1, *, transformed: bool = False) -> BenchRow:
        """The row of one run. Raises KeyError."""
        for row in self.rows:
            if (row.run.model, row.run.engine, row.run.batch, row.run.transformed) == (model, engine, batch, transformed):
                return row
        raise KeyError(f"the benchmark has no row for {model!r} on {engine!r} in batch {batch}")

    def to_json(self) -> dict[str, Any]:
        """The contract for scripts, schema 1: see the head of this file."""
        blocks = self.blocks
        return {
            "schema": 1,
            "device": self.device.to_json(),
            "threads": self.threads,
            "pipeline": self.pipeline,
            "versions": {"gatewright": gatewright.__version__, **self.versions},
            "blocks": {"runs": blocks.runs, "dropped": blocks.dropped, "pause_s": blocks.pause_s, "rounds": blocks.rounds},
            "targets": list(self.targets),
            "against": list(self.against),
            "rows": [row.to_json() for row in self.rows],
            "means": [mean.to_json() for mean in self.means],
        }

    def save_html(self, path: str | Path) -> None:
        """One file that needs nothing else: no network, no script."""
        from .bench_html import render

        write_file(Path(path), render(self).encode())

    def tables(self) -> list[RenderableType]:
        """For a rich Console."""
        from .console import table

        columns = ("model", "batch", "engine", "latency", "quartiles", "per second", "error", "memory", "compile", "ratio")
        right = ("batch", "latency", "per second", "error", "memory", "compile")
        cells = [_cells(row) for row in self.rows if row.status == "ok"]
        shown: list[RenderableType] = [table(None, columns, cells, right)] if cells else []
        for row in self.rows:
            if row.status != "ok":
                shown.append(f"{row.run.model}, batch {row.run.batch}, on {row.run.label}: {row.status.replace('_', ' ')}: {row.reason}")
            shown += [f"{row.run.model}, batch {row.run.batch}, on {row.run.label}: {note}" for note in row.notes]
        for row in self.rows:
            if row.kernels:
                shown += ["", _kernel_table(row)]
        if self.means:
            means = [
                (m.target, m.against, str(m.batch), f"{m.value:.2f}", str(m.models), f"{m.worst:.2f} ({m.worst_model})") for m in self.means
            ]
            shown += ["", table("Geometric means", ("target", "against", "batch", "ratio", "models", "worst"), means, ("batch", "ratio"))]
        blocks = self.blocks
        return [
            *shown,
            f"{self.threads} threads; {blocks.rounds} rounds of {blocks.runs} runs by turns, the first {blocks.dropped} of each dropped, "
            f"{blocks.pause_s:g} s between; ratio: another engine's latency over the target's, [quartiles over the rounds]",
        ]


def _cells(row: BenchRow) -> tuple[str, ...]:
    run = row.run
    low, high = (show(m) for m in row.timing.quartiles) if row.timing else ("–", "–")
    return (
        shorten(run.model, 40),
        str(run.batch),
        run.label,
        show(row.latency),
        f"{low} … {high}",
        show(row.throughput),
        "–" if row.relative_error is None else "0" if row.relative_error == 0 else f"{row.relative_error:.1e}",
        show(row.memory.taken) if row.memory else "–",
        show(row.compile_time),
        ", ".join(f"{name} {r.value:.2f} [{r.low:.2f}, {r.high:.2f}]" for name, r in row.ratios.items()),
    )


def _kernel_table(row: BenchRow) -> RenderableType:
    """Slowest first."""
    from .console import table

    total = sum(kernel["seconds"] for kernel in row.kernels)
    lines = [
        (
            show(Measurement(k["seconds"], "s", "measured")),
            f"{k['seconds'] / total:.1%}",
            f"{k['operations_per_s'] / 1e9:.1f}",
            f"{k['bytes_per_s'] / 1e9:.1f}",
            f"{k['share']:.0%}",
            k["op"],
            "x".join(map(str, k["shape"])),
            shorten(", ".join(k["steps"]), 60),
        )
        for k in sorted(row.kernels, key=lambda kernel: -float(kernel["seconds"]))
    ]
    title = f"{row.run.model}, batch {row.run.batch}: kernels of {row.run.engine}, share of the measured roofline"
    columns = ("time", "of all", "Gop/s", "GB/s", "share", "op", "writes", "nodes")
    return table(title, columns, lines, columns[:5])


def _figure(measurement: Measurement | None) -> dict[str, Any] | None:
    return measurement.to_json() if measurement else None
