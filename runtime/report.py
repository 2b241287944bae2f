"""``Report``: what a comparison found, as data; as JSON (the contract for scripts), a console table, or one HTML file.

Every figure is a Measurement, so that each carries where it came from. What could not be had is None, never a guess.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gatewright.hw.measurement import Measurement
from gatewright.targets.parts import Share

from .atomic import write_file

if TYPE_CHECKING:
    from rich.console import RenderableType

Status = Literal["ok", "unsupported", "does_not_fit", "tool_missing", "failed"]
Cost = Literal["latency", "energy", "peak_memory", "artifact_size"]


@dataclass(frozen=True)
class OutputError:
    """How far outputs are from others of the same samples."""

    max_abs: float
    """The largest |difference|, over all outputs."""
    mismatching_samples: int
    """Samples with a value that is not equal; floats computed in floating point count as equal within ``errors.py``'s tolerance."""
    top1_changed: int | None
    """Samples whose winning class differs; None where the first output names no class."""


@dataclass(frozen=True)
class Layer:
    """One inner tensor, against the baseline's tensor of the same name."""

    name: str
    sqnr_db: float | None
    """10·log10(Σ baseline² / Σ difference²); None where the two are equal."""
    max_abs_error: float
    saturated: int
    """Values clamped at the bounds of its integer type."""


@dataclass(frozen=True)
class Row:
    """One model on one target."""

    model: str
    target: str
    status: Status
    reason: str | None = None
    """Why it is not ok, in one line, and what to do."""
    metric: Measurement | None = None
    error_ref: OutputError | None = None
    """Against ``ref`` on the same model."""
    error_baseline: OutputError | None = None
    """Against the first model on ``ref``."""
    first_diverging_layer: str | None = None
    """The first inner tensor that differs from ``ref``'s on the same model."""
    layers: tuple[Layer, ...] = ()
    latency: Measurement | None = None
    throughput: Measurement | None = None
    emulation_rate: Measurement | None = None
    peak_memory: Measurement | None = None
    artifact_size: Measurement | None = None
    resources: Mapping[str, Measurement] | None = None
    energy: Measurement | None = None
    build_time: Measurement | None = None
    notes: tuple[str, ...] = ()
    """What a reader should know about this row; shown, and not part of the JSON contract."""
    parts: tuple[Share, ...] = ()
    """Where the target could not run the model whole: what runs on which engine, and why, in order."""
    asked: bool = True
    """False: it is there to compare with (``ort`` beside ``cpu``). It is never recommended, and its failure is no exit code."""

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "target": self.target,
            "status": self.status,
            "reason": self.reason,
            "metric": _figure(self.metric),
            "error": {"ref": _error(self.error_ref), "baseline": _error(self.error_baseline)},
            "first_diverging_layer": self.first_diverging_layer,
            "layers": [{f.name: _number(getattr(layer, f.name)) for f in fields(layer)} for layer in self.layers],
            "latency": _figure(self.latency),
            "throughput": _figure(self.throughput),
            "emulation_rate": _figure(self.emulation_rate),
            "peak_memory": _figure(self.peak_memory),
            "artifact_size": _figure(self.artifact_size),
            "resources": None if self.resources is None else {name: _figure(value) for name, value in self.resources.items()},
            "energy": _figure(self.energy),
            "build_time": _figure(self.build_time),
            "parts": [part.to_json() for part in self.parts],
        }


@dataclass(frozen=True)
class ModelSummary:
    """A model of the comparison, and what it costs whatever it runs on."""

    name: str
    digest: str
    macs: int | None = None
    """Multiply-accumulates for one sample."""
    weight_bytes: int | None = None
    """Of all weights, as they are stored: two 4-bit values in a byte."""
    nonzero_weights: float | None = None
    """The share of weights that are not zero."""
    history: tuple[str, ...] = ()
    """What was done to it."""

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "macs": self.macs,
            "bytes": self.weight_bytes,
            "nonzero_weights": self.nonzero_weights,
        }


@dataclass(frozen=True)
class Recommendation:
    """The cheapest row whose metric is within ``max_drop`` of the baseline's."""

    model: str
    target: str
    cost: Cost
    value: Measurement
    drop: float
    max_drop: float
    candidates: int
    """Rows that were within the drop and had that cost."""
    measured: tuple[str, Measurement] | None = None
    """Where the value is no measurement: "MODEL on TARGET" with the lowest cost of those measured, and that cost."""

    def __str__(self) -> str:
        lost = f"loses {self.drop:.4g}" if self.drop > 0 else "loses nothing"
        price = f"the lowest {self.cost.replace('_', ' ')} of {self.candidates} ({show(self.value)}, {self.value.source})"
        beside = f"; of those measured, {self.measured[0]} has the lowest ({show(self.measured[1])})" if self.measured else ""
        return f"{self.model} on {self.target}: {price}; it {lost} of at most {self.max_drop:g}{beside}"

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "target": self.target,
            "cost": self.cost,
            "value": self.value.to_json(),
            "drop": self.drop,
            "max_drop": self.max_drop,
            "measured": None if self.measured is None else {"row": self.measured[0], "value": self.measured[1].to_json()},
        }


@dataclass(frozen=True)
class Report:
    """Models × targets on one data set. The first model is the baseline."""

    samples: int
    data_digest: str
    data_name: str
    metric: str
    higher_is_better: bool
    models: tuple[ModelSummary, ...]
    rows: tuple[Row, ...]
    baseline_metric: float | None = None
    """Of the first model on ref."""
    recommendation: Recommendation | None = None

    def to_json(self) -> dict[str, Any]:
        """The contract for scripts, schema 1."""
        return {
            "schema": 1,
            "data": {"samples": self.samples, "digest": self.data_digest},
            "metric": self.metric,
            "models": [model.to_json() for model in self.models],
            "rows": [row.to_json() for row in self.rows],
            "recommendation": self.recommendation.to_json() if self.recommendation else None,
        }

    def save_json(self, path: str | Path) -> None:
        write_file(Path(path), dumps(self.to_json()).encode())

    def save_html(self, path: str | Path) -> None:
        """One file that needs nothing else: no network, no script."""
        from .html import render

        write_file(Path(path), render(self).encode())

    def table(self) -> RenderableType:
        """For a rich Console."""
        from .console import report_table

        return report_table(self)

    def row(self, model: str, target: str) -> Row:
        """The row of one pair. Raises KeyError."""
        for row in self.rows:
            if (row.model, row.target) == (model, target):
                return row
        raise KeyError(f"the report has no row for {model!r} on {target!r}")

    @property
    def exit_code(self) -> int:
        """0 all rows ok; 1 one failed or lacked a tool; else 3 one is unsupported or does not fit."""
        statuses = {row.status for row in self.rows if row.asked}
        return 1 if statuses & {"failed", "tool_missing"} else 3 if statuses - {"ok"} else 0


def dumps(value: Any) -> str:
    """Strict JSON: no NaN, no infinity."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def shorten(text: str, most: int) -> str:
    """``text``, its middle left out where it is longer than ``most``."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most - most // 2) :]}"


_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"), (1e-12, "p"))


def show(measurement: Measurement | None) -> str:
    """Three significant digits with an SI prefix: "45.1 µs", "1.2 MB", "0.974"."""
    if measurement is None:
        return "–"
    value, unit = measurement.value, measurement.unit
    if not math.isfinite(value):
        return "–"
    if unit == "1":
        return f"{value:.4g}"
    if unit not in ("s", "J", "B", "1/s", "W", "Hz"):
        return f"{value:,.0f} {unit}" if float(value).is_integer() else f"{value:.3g} {unit}"
    if unit == "s" and value >= 1000:
        return f"{value:,.0f} s"
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s * 0.9995), (1.0, ""))
    if unit == "B" and scale < 1:
        scale, prefix = 1.0, ""
    number = value / scale
    digits = f"{number:.0f}" if number >= 100 or (unit == "B" and not prefix) else f"{number:.3g}"
    return f"{digits}{prefix}/s" if unit == "1/s" else f"{digits} {prefix}{unit}"


def _figure(measurement: Measurement | None) -> dict[str, Any] | None:
    if measurement is None or not math.isfinite(measurement.value):
        return None
    return measurement.to_json()


def _error(error: OutputError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    return {"max_abs": _number(error.max_abs), "mismatching_samples": error.mismatching_samples, "top1_changed": error.top1_changed}


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
