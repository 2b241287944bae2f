"""A Front as one HTML file that works offline: every candidate drawn, the front and the choice marked, the pipelines as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gatewright
from gatewright.hw.measurement import Measurement

from . import plots
from .front import Candidate, Front
from .html import BADGES, environment
from .plots import Point, Scatter, Tick
from .report import show


def render(front: Front) -> str:
    """The whole page."""
    failed = [one for one in front.tried if one.problem is not None]
    return environment().get_template("front.html.j2").render(
        front=front,
        version=gatewright.__version__,
        badges=BADGES,
        failed=failed,
        scatters=[drawn for name in front.objectives if (drawn := scatter(front, name)) is not None],
        rows=_rows(front),
        plot={
            "width": plots.WIDTH, "height": plots.HEIGHT,
            "left": plots.LEFT, "right": plots.RIGHT, "top": plots.TOP, "bottom": plots.BOTTOM,
        },
    )  # fmt: skip


def scatter(front: Front, cost: str) -> Scatter | None:
    """All sound candidates: grey circles, those of the front coloured diamonds, the choice with a halo; None for fewer than two."""
    found = [(one, one.costs[cost]) for one in front.tried if one.problem is None and one.costs[cost].value > 0]
    if len(found) < 2:
        return None
    low, high = plots.log_range([price.value for _, price in found])
    floor, top, step = plots.nice_range([one.metric for one, _ in found])

    def place(value: float) -> float:
        return plots.between(math.log10(value), low, high, plots.LEFT, plots.WIDTH - plots.RIGHT)

    def height(value: float) -> float:
        return plots.between(value, floor, top, plots.HEIGHT - plots.BOTTOM, plots.TOP)

    on_front = set(map(id, front.points))
    # The front last, so that it lies on top.
    drawn = sorted(found, key=lambda item: id(item[0]) in on_front)
    points = [
        Point(
            place(price.value), height(one.metric), 1 if id(one) in on_front else 7, "diamond" if id(one) in on_front else "circle",
            price.source != "measured", one is front.chosen,
            f"{one.pipeline}: {front.metric} {one.metric:.4g} ± {one.spread:.2g}, {cost} {show(price)}",
        )
        for one, price in drawn
    ]  # fmt: skip
    unit = found[0][1].unit
    return Scatter(
        tuple(points),
        tuple(Tick(place(v), show(Measurement(v, unit, "estimated"))) for v in plots.log_ticks(low, high)),
        tuple(Tick(height(v), f"{v:.6g}") for v in plots.steps(floor, top, step)),
        cost,
        f"{front.metric}, mean of the folds",
        tuple(sorted({price.source for _, price in found})),
    )


def _rows(front: Front) -> Sequence[tuple[Candidate, tuple[str, ...], Measurement | None, Measurement | None]]:
    """The front's points: their marks, and the finalist's metric and latency on the target where it was compiled."""
    rows = []
    for one in front.points:
        marks = tuple(mark for mark, holds in (("chosen", one is front.chosen), ("knee", one is front.knee)) if holds)
        made = front.finalist(one)
        rows.append((one, marks, None if made is None else made.metric, None if made is None else made.latency))
    return rows
