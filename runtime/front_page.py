"""A Front as one HTML file that works offline: the choice and its stages, every candidate drawn, how the search went, the finalists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import gatewright
from gatewright.hw.measurement import Measurement
from gatewright.spec import parse, split_outside_braces

from . import plots
from .front import Candidate, Finalist, Front
from .html import BADGES, environment
from .plots import Tick
from .report import show

WIDTH, HEIGHT = 720.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 18.0, 16.0, 46.0
WHISKER = 150.0
"""Width of the picture of an interval."""


@dataclass(frozen=True)
class Dot:
    """A candidate in a plot."""

    x: float
    y: float
    kind: str
    """front, beaten, uniform, below (so bad that it lies under the plot's floor)."""
    chosen: bool
    label: str
    """Words beside it, none for most."""
    label_left: bool
    title: str
    label_y: float = 4.0


@dataclass(frozen=True)
class Line:
    """A level that counts: the baseline, or what may be lost."""

    y: float
    text: str
    kind: str


@dataclass(frozen=True)
class Plot:
    """Candidates by what they cost and are worth, or by when they were tried."""

    dots: tuple[Dot, ...]
    steps: str
    """An SVG path: of what can be had for at most so much, or of the best so far."""
    lines: tuple[Line, ...]
    shade: tuple[float, float, float, float] | None
    """x, y, width, height of where uniform quantization is beaten."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_title: str
    y_title: str
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """A pass of a pipeline, to be read."""

    name: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class Whisker:
    """An interval on the axis that all finalists share."""

    zero: float
    low: float
    high: float
    at: float
    verdict: str
    """better, worse, or alike, where the interval holds 0."""


def render(front: Front) -> str:
    """The whole page."""
    failed = [one for one in front.tried if one.problem is not None]
    made = front.finalist(front.chosen)
    return (
        environment()
        .get_template("front.html.j2")
        .render(
            front=front,
            version=gatewright.__version__,
            badges=BADGES,
            failed=Counter(str(one.problem) for one in failed).most_common(),
            failures=len(failed),
            plots=[drawn for name in front.objectives if (drawn := cost_plot(front, name)) is not None],
            search=search_plot(front),
            stages=stages(front.chosen.pipeline),
            ratios={one.pipeline: ratio(front, one) for one in front.points},
            made=made,
            finalists=list(zip(front.finalists, whiskers(front.finalists), strict=True)),
            within=front.drop(front.chosen) <= front.max_drop + 1e-12,
            seconds=sum(one.seconds for one in front.tried),
            plot={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM},
            whisker=WHISKER,
        )
    )


def stages(pipeline: str) -> tuple[Stage, ...]:
    """The passes of a pipeline with their options, one text each."""
    found = []
    for text in split_outside_braces(pipeline):
        spec = parse(text)
        found.append(Stage(spec.name, tuple(f"{key}={value}" for key, value in spec.options.items())))
    return tuple(found)


def ratio(front: Front, one: Candidate) -> float | None:
    """Of the deciding cost to that of uniform 8-bit quantization."""
    name = front.objectives[0]
    if front.uniform is None or name not in front.uniform.costs or not front.uniform.costs[name].value:
        return None
    return one.costs[name].value / front.uniform.costs[name].value


def cost_plot(front: Front, cost: str) -> Plot | None:
    """All sound candidates, and uniform quantization even where it is impossible; None for fewer than two."""
    found = [one for one in front.tried if one.problem is None and one.costs[cost].value > 0]
    if len(found) < 2:
        return None
    uniform = front.uniform if front.uniform is not None and cost in front.uniform.costs else None
    prices = [one.costs[cost].value for one in found] + ([uniform.costs[cost].value] if uniform is not None else [])
    low, high = plots.log_range(prices)
    height, y_ticks, floor = _vertical(front)

    def place(value: float) -> float:
        return plots.between(math.log10(value), low, high, LEFT, WIDTH - RIGHT)

    dots = [_dot(front, one, place(one.costs[cost].value), height, floor, show(one.costs[cost])) for one in found if one is not uniform]
    shade = None
    if uniform is not None:
        x = place(uniform.costs[cost].value)
        worth = uniform.metric if uniform.problem is None else front.baseline
        kind = "uniform" if uniform.problem is None else "impossible"
        told = show(uniform.costs[cost]) if uniform.problem is None else f"{show(uniform.costs[cost])}: {uniform.problem}"
        label = "uniform 8-bit" if uniform.problem is None else "uniform 8-bit: not possible"
        dots.append(Dot(x, height(worth), kind, uniform is front.chosen, label, x > WIDTH / 2, f"uniform 8-bit: {told}", -10.0))
        if uniform.problem is None and front.higher_is_better:
            shade = (LEFT, TOP, x - LEFT, height(worth) - TOP)
    unit = found[0].costs[cost].unit
    ticks = tuple(Tick(place(v), _short(v, unit)) for v in plots.log_ticks(low, high))
    steps = _stairs([(place(one.costs[cost].value), height(one.metric)) for one in _stair(front, cost)], WIDTH - RIGHT)
    sources = tuple(sorted({one.costs[cost].source for one in found}))
    return Plot(tuple(dots), steps, _levels(front, height, floor), shade, ticks, y_ticks, cost, f"{front.metric}, mean of folds", sources)


def search_plot(front: Front) -> Plot | None:
    """The deciding cost of every sound candidate by when it was tried, and the least so far within the drop."""
    cost = front.objectives[0]
    found = [(number, one) for number, one in enumerate(front.tried, 1) if one.problem is None and one.costs[cost].value > 0]
    if len(found) < 2:
        return None
    low, high = plots.log_range([one.costs[cost].value for _, one in found])
    last = max(len(front.tried), 2)

    def place(number: float) -> float:
        return plots.between(number, 0.5, last + 0.5, LEFT, WIDTH - RIGHT)

    def height(value: float) -> float:
        return plots.between(math.log10(value), low, high, HEIGHT - BOTTOM, TOP)

    dots, best = [], list[tuple[float, float]]()
    least = math.inf
    for number, one in found:
        price = one.costs[cost].value
        inside = front.drop(one) <= front.max_drop + 1e-12
        kind = "uniform" if one is front.uniform else "front" if inside else "beaten"
        title = f"{number}. {one.pipeline}: {front.metric} {one.metric:.4g}, {cost} {show(one.costs[cost])}"
        dots.append(Dot(place(number), height(price), kind, one is front.chosen, "", False, title))
        if inside and price < least:
            least = price
            best.append((place(number), height(price)))
    stride = max(1, round(last / 8))
    x_ticks = tuple(Tick(place(n), str(n)) for n in range(1, last + 1) if n == 1 or n % stride == 0)
    unit = found[0][1].costs[cost].unit
    y_ticks = tuple(Tick(height(v), _short(v, unit)) for v in plots.log_ticks(low, high))
    sources = tuple(sorted({one.costs[cost].source for _, one in found}))
    return Plot(tuple(dots), _stairs(best, WIDTH - RIGHT), (), None, x_ticks, y_ticks, "candidate", f"{cost} (log)", sources)


def whiskers(finalists: Sequence[Finalist]) -> list[Whisker]:
    """Each finalist's difference to uniform quantization with its interval, on one axis."""
    ends = [0.0, *(end for one in finalists for end in one.interval)]
    low, high = min(ends), max(ends)
    pad = 0.08 * (high - low) or 0.01

    def place(value: float) -> float:
        return plots.between(value, low - pad, high + pad, 4.0, WHISKER - 4.0)

    def verdict(one: Finalist) -> str:
        return "better" if one.interval[0] > 0 else "worse" if one.interval[1] < 0 else "alike"

    return [Whisker(place(0.0), place(one.interval[0]), place(one.interval[1]), place(one.difference), verdict(one)) for one in finalists]


def _short(value: float, unit: str) -> str:
    """A round number on an axis; a counted thing's unit is the axis' own title."""
    return show(Measurement(value, unit, "estimated")) if unit in ("s", "J", "B") else f"{value:,.0f}"


def _vertical(front: Front) -> tuple[Callable[[float], float], tuple[Tick, ...], float]:
    """Where a metric lies, the ticks, and the floor: what loses much more than anybody would is drawn at the bottom."""
    sound = [one for one in front.tried if one.problem is None]
    worths = [one.metric for one in sound]
    far = 12 * max(front.max_drop, 0.002)
    shown = [one.metric for one in sound if front.drop(one) <= far] or worths
    floor, top, step = plots.nice_range([*shown, front.baseline])

    def height(value: float) -> float:
        return min(HEIGHT - BOTTOM, max(TOP, plots.between(value, floor, top, HEIGHT - BOTTOM, TOP)))

    return height, tuple(Tick(height(v), f"{v:.6g}") for v in plots.steps(floor, top, step)), floor if front.higher_is_better else -math.inf


def _dot(front: Front, one: Candidate, x: float, height: Callable[[float], float], floor: float, price: str) -> Dot:
    on_front = any(one is point for point in front.points)
    kind = "below" if one.metric < floor else "front" if on_front else "beaten"
    words = [word for word, holds in (("chosen", one is front.chosen), ("knee", one is front.knee)) if holds]
    title = f"{one.pipeline}: {front.metric} {one.metric:.4g} ± {one.spread:.2g}, {price}"
    return Dot(x, height(one.metric), kind, one is front.chosen, ", ".join(words), x > WIDTH * 0.7, title)


def _levels(front: Front, height: Callable[[float], float], floor: float) -> tuple[Line, ...]:
    sign = 1 if front.higher_is_better else -1
    least = front.baseline - sign * front.max_drop
    lines = [Line(height(front.baseline), "uncompressed", "baseline")]
    if front.max_drop and least > floor:
        lines.append(Line(height(least), f"loses {front.max_drop:g}", "limit"))
    return tuple(lines)


def _stair(front: Front, cost: str) -> list[Candidate]:
    """The front by one cost alone, the cheapest first."""
    sign = 1 if front.higher_is_better else -1
    kept: list[Candidate] = []
    for one in sorted(front.points, key=lambda one: (one.costs[cost].value, -sign * one.metric)):
        if one.costs[cost].value > 0 and (not kept or sign * one.metric > sign * kept[-1].metric):
            kept.append(one)
    return kept


def _stairs(points: Sequence[tuple[float, float]], end: float) -> str:
    """A path that goes on level until the next point."""
    if not points:
        return ""
    path = f"M{points[0][0]} {points[0][1]}"
    for (_, y), (x, next_y) in pairwise(points):
        path += f"L{x} {y}L{x} {next_y}"
    return f"{path}L{end} {points[-1][1]}"
