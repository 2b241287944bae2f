"""A Report as one HTML file that works offline: no script, no network, every name escaped by the template engine."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import gatewright
from gatewright.hw.measurement import Measurement

from . import plots
from .report import Report, Row, show

BADGES = {
    "measured": ("meas", "a clock or a meter read it"),
    "emulated": ("emu", "a functional model of the device ran"),
    "simulated": ("sim", "a cycle- or gate-level simulation ran"),
    "synthesized": ("syn", "a tool reported it of a netlist"),
    "estimated": ("est", "from a formula; nothing ran"),
    "published": ("pub", "a paper or a data sheet states it"),
}
"""Source to the badge's text and its meaning."""

_COSTS = (("latency", "latency of one run"), ("energy", "energy of one run"), ("artifact_size", "size of the artifact"))


def environment() -> Environment:
    """The template engine."""
    # autoescape is on for every template, whatever its name: names of models and layers are not to be trusted.
    made = Environment(
        loader=PackageLoader("gatewright.runtime", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["show"] = show
    return made


def render(report: Report) -> str:
    """The whole page."""
    has_resources = any(row.resources for row in report.rows)
    template = environment().get_template("report.html.j2")
    return template.render(
        report=report,
        version=gatewright.__version__,
        badges=BADGES,
        used=sorted({m.source for row in report.rows for m in _figures(row)}, key=list(BADGES).index),
        scatters=[plot for cost, title in _COSTS if (plot := plots.scatter(report, cost, title)) is not None],
        layers=[(model.name, bars) for model in report.models if (bars := plots.layer_bars(report, model.name))],
        errors=plots.error_bars(report),
        colors=plots.COLORS,
        shapes={name: plots.SHAPES[i % len(plots.SHAPES)] for i, name in enumerate(plots.target_names(report))},
        has_resources=has_resources,
        columns=13 if has_resources else 12,
        plot={
            "width": plots.WIDTH,
            "height": plots.HEIGHT,
            "left": plots.LEFT,
            "right": plots.RIGHT,
            "top": plots.TOP,
            "bottom": plots.BOTTOM,
        },
        statuses={
            "ok": "ok",
            "unsupported": "unsupported",
            "does_not_fit": "does not fit",
            "tool_missing": "tool missing",
            "failed": "failed",
        },
    )


def _figures(row: Row) -> list[Measurement]:
    found: list[Any] = [
        row.metric,
        row.latency,
        row.throughput,
        row.emulation_rate,
        row.energy,
        row.peak_memory,
        row.artifact_size,
        row.build_time,
    ]
    return [m for m in [*found, *(row.resources or {}).values()] if m is not None]
