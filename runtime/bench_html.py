"""A BenchReport as one HTML file that works offline, and the positions of its plot: ratios with their spread, on a log axis."""

from __future__ import annotations

import math
from dataclasses import dataclass

import gatewright

from . import plots
from .bench_report import BenchReport
from .html import BADGES, environment
from .plots import Tick, between, log_ticks
from .report import shorten

GUTTER, ROOM, STEP, TOP, RIGHT = 300.0, 420.0, 22.0, 22.0, 80.0
"""Of the plot, in units of its viewBox: where labels end, the axis' length, one line's height, what is above and at the right."""


@dataclass(frozen=True)
class Line:
    """One ratio: a point and its quartiles."""

    label: str
    y: float
    at: float
    low: float
    high: float
    text: str
    title: str
    color: int
    """Of the engine."""
    slower: bool
    """The target is slower than the engine."""


@dataclass(frozen=True)
class RatioPlot:
    """All ratios of one target in one batch. Right of ``one`` the target is faster."""

    target: str
    batch: int
    lines: tuple[Line, ...]
    ticks: tuple[Tick, ...]
    one: float
    width: float
    height: float
    gutter: float
    end: float


def ratio_plot(report: BenchReport, target: str, batch: int) -> RatioPlot | None:
    """None where there is nothing to show."""
    found = [
        (row.run.model, name, ratio)
        for row in report.rows
        if row.run.is_target and (row.run.engine, row.run.batch) == (target, batch)
        for name, ratio in row.ratios.items()
    ]
    if not found:
        return None
    low = min(-0.05, *(math.log10(ratio.low) for _, _, ratio in found)) - 0.03
    high = max(0.05, *(math.log10(ratio.high) for _, _, ratio in found)) + 0.03
    names = list(dict.fromkeys(name for _, name, _ in found))

    def x(value: float) -> float:
        return between(math.log10(value), low, high, GUTTER, GUTTER + ROOM)

    lines = []
    previous = ""
    for index, (model, name, ratio) in enumerate(found):
        lines.append(
            Line(
                label=shorten(model, 42) if model != previous else "",
                y=TOP + STEP * index + STEP / 2,
                at=x(ratio.value),
                low=x(ratio.low),
                high=x(ratio.high),
                text=f"{ratio.value:.2f}",
                title=f"{model}: {name} takes {ratio.value:.3g} times as long as {target}, quartiles {ratio.low:.3g} and {ratio.high:.3g}",
                color=names.index(name) % plots.COLORS,
                slower=ratio.value < 1,
            )
        )
        previous = model
    height = TOP + STEP * len(found) + 30
    ticks = tuple(Tick(x(value), f"{value:g}") for value in log_ticks(low, high))
    return RatioPlot(target, batch, tuple(lines), ticks, x(1.0), GUTTER + ROOM + RIGHT, height, GUTTER, GUTTER + ROOM)


def render(report: BenchReport) -> str:
    """The whole page."""
    labels = list(dict.fromkeys(name for row in report.rows for name in row.ratios))
    batches = list(dict.fromkeys(row.run.batch for row in report.rows))
    shown = [plot for target in report.targets for batch in batches if (plot := ratio_plot(report, target, batch)) is not None]
    return (
        environment()
        .get_template("bench.html.j2")
        .render(
            report=report,
            version=gatewright.__version__,
            badges=BADGES,
            plots=shown,
            colors={name: index % plots.COLORS for index, name in enumerate(labels)},
            models=list(dict.fromkeys(row.run.model for row in report.rows)),
            statuses=STATUSES,
            plot={"width": plots.WIDTH, "height": plots.HEIGHT, "left": 0, "right": 0, "top": 0, "bottom": 0},
        )
    )


STATUSES = {
    "ok": "ok",
    "unsupported": "unsupported",
    "does_not_fit": "does not fit",
    "tool_missing": "tool missing",
    "failed": "failed",
}
