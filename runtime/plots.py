"""Where things go in a plot: positions, ticks and lengths, as numbers. The templates draw them as SVG.

All lengths are in the units of an SVG's viewBox. No text here reaches a page unescaped: templates print it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gatewright.hw.measurement import Measurement

from .report import Report, shorten, show

WIDTH, HEIGHT = 460.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 44.0

COLORS = 8
"""Series colours in the style sheet; further series begin again."""
SHAPES = ("circle", "square", "diamond", "triangle", "star", "cross", "wedge")
"""Marker shapes that the template knows."""


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Point:
    """One row of the report."""

    x: float
    y: float
    color: int
    """Of its model."""
    shape: str
    """Of its target."""
    is_estimate: bool
    """True where the cost is no measurement: drawn hollow."""
    chosen: bool
    """The recommended row."""
    title: str


@dataclass(frozen=True)
class Scatter:
    """The metric over one cost, for all rows that have both."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    y_title: str
    sources: tuple[str, ...]
    """Where the costs come from."""


@dataclass(frozen=True)
class Bar:
    label: str
    length: float
    """0 … 1 of the plot's width."""
    text: str
    title: str
    color: int = 0
    is_warning: bool = False


def scatter(report: Report, cost: str, title: str) -> Scatter | None:
    """Rows that have the metric and ``cost`` (a field of Row; a logarithmic axis); None for fewer than two."""
    found = [
        (row, row.metric.value, price)
        for row in report.rows
        if row.metric is not None and (price := getattr(row, cost)) is not None and price.value > 0
    ]
    found = [item for item in found if math.isfinite(item[1])]
    if len(found) < 2:
        return None
    x_low, x_high = log_range([price.value for _, _, price in found])
    y_low, y_high, y_step = nice_range([value for _, value, _ in found])
    models, targets = [model.name for model in report.models], target_names(report)
    best = report.recommendation
    points = [
        Point(
            x=between(math.log10(price.value), x_low, x_high, LEFT, WIDTH - RIGHT),
            y=between(value, y_low, y_high, HEIGHT - BOTTOM, TOP),
            color=models.index(row.model) % COLORS,
            shape=SHAPES[targets.index(row.target) % len(SHAPES)],
            is_estimate=price.source != "measured",
            chosen=best is not None and (best.model, best.target) == (row.model, row.target),
            title=f"{row.model} on {row.target}: {report.metric} {value:.4g}, {title} {show(price)} ({price.source})",
        )
        for row, value, price in found
    ]
    unit = found[0][2].unit
    return Scatter(
        points=tuple(points),
        x_ticks=tuple(
            Tick(between(math.log10(v), x_low, x_high, LEFT, WIDTH - RIGHT), show(Measurement(v, unit, "estimated")))
            for v in log_ticks(x_low, x_high)
        ),
        y_ticks=tuple(Tick(between(v, y_low, y_high, HEIGHT - BOTTOM, TOP), f"{v:.6g}") for v in steps(y_low, y_high, y_step)),
        x_title=title,
        y_title=report.metric,
        sources=tuple(sorted({price.source for _, _, price in found})),
    )


def target_names(report: Report) -> list[str]:
    """Targets in the order of the rows."""
    return list(dict.fromkeys(row.target for row in report.rows))


def layer_bars(report: Report, model: str) -> tuple[Bar, ...]:
    """The SQNR of one model's inner tensors against the baseline, from its first row that has any."""
    layers = next((row.layers for row in report.rows if row.model == model and row.layers), ())
    top = max((layer.sqnr_db for row in report.rows for layer in row.layers if layer.sqnr_db is not None), default=1.0)
    bars = []
    for layer in layers:
        db = layer.sqnr_db
        saturated = f", {layer.saturated} saturated" if layer.saturated else ""
        text = "equal" if db is None else f"{db:.1f} dB{saturated}"
        title = f"{layer.name}: largest error {layer.max_abs_error:.4g}{saturated}"
        bars.append(
            Bar(
                shorten(layer.name, 30),
                1.0 if db is None else max(0.0, min(1.0, db / max(top, 1e-9))),
                text,
                title,
                is_warning=db is not None and db < 10,
            )
        )
    return tuple(bars)


def error_bars(report: Report) -> tuple[Bar, ...]:
    """Samples whose answer is another than the baseline's, per row; by the largest difference where outputs name no class."""
    rows = [row for row in report.rows if row.error_baseline is not None]
    models = [model.name for model in report.models]
    use_top1 = all(row.error_baseline is not None and row.error_baseline.top1_changed is not None for row in rows)
    values = [
        float(r.error_baseline.top1_changed or 0) if use_top1 else r.error_baseline.max_abs for r in rows if r.error_baseline is not None
    ]
    top = max([value for value in values if math.isfinite(value)], default=0.0)
    bars = []
    for row, value in zip(rows, values, strict=True):
        assert row.error_baseline is not None
        text = f"{value:.0f} of {report.samples}" if use_top1 else f"{value:.4g}"
        title = f"{row.model} on {row.target}: largest difference of an output {row.error_baseline.max_abs:.4g}"
        bars.append(
            Bar(
                shorten(f"{row.model} · {row.target}", 44),
                value / top if top > 0 and math.isfinite(value) else 0.0,
                text,
                title,
                models.index(row.model) % COLORS,
            )
        )
    return tuple(bars)


def between(value: float, low: float, high: float, start: float, end: float) -> float:
    return round(start + (value - low) / (high - low) * (end - start), 2)


def log_range(values: Sequence[float]) -> tuple[float, float]:
    """Exponents of ten, with a margin, at least a decade apart."""
    low, high = math.log10(min(values)), math.log10(max(values))
    pad = max(0.08 * (high - low), (1.0 - (high - low)) / 2, 0.05)
    return low - pad, high + pad


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, thinned to at most six; with 2 and 5 in between where there are few."""
    factors = (1,) if high - low > 2 else (1, 2, 5)
    ticks = [f * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for f in factors if low <= math.log10(f * 10.0**e) <= high]
    return ticks[:: math.ceil(len(ticks) / 6)] if ticks else []


def nice_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Low, high and the step of a linear axis around ``values``: steps of 1, 2 or 5."""
    low, high = min(values), max(values)
    span = max(high - low, 0.01 * max(abs(high), 1e-9), 1e-9)
    raw = span / 4
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(f * magnitude for f in (1, 2, 5, 10) if raw <= f * magnitude * 1.0001)
    return math.floor((low - 0.15 * span) / step) * step, math.ceil((high + 0.15 * span) / step) * step, step


def steps(low: float, high: float, step: float) -> list[float]:
    return [round(low + i * step, 12) for i in range(round((high - low) / step) + 1)]
