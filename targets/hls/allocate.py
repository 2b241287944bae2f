"""Which reuse factor each layer takes: an integer program over all layers, solved with OR-tools' CP-SAT.

One factor per layer, the sum of what they cost within the part. ``interval`` makes the time between samples least (the
slowest layer decides), ``latency`` the time of one sample (all layers add up), ``resources`` the share of the part; then, in
a second solve at that optimum, the share of the part (or the interval) is made least, so that nothing is wasted where time
does not ask for it. One worker, a fixed seed and a limit in deterministic time: the same model gives the same design.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from gatewright.hw.cost import FpgaLayer, FpgaResources, fpga_resources
from gatewright.hw.device import Part

Objective = Literal["interval", "latency", "resources"]

FILL = 0.8
"""Of a part's resources that a design is made to use: fuller ones route badly. Where none is that small, the whole part is tried."""

DETERMINISTIC_LIMIT = 20.0
"""CP-SAT's own measure of work, about seconds; programs of 100 layers take under one."""

_SHARE_UNITS = 1_000_000


@dataclass(frozen=True)
class Choice:
    """One layer with one reuse factor."""

    reuse: int
    interval: int
    """Cycles that a sample occupies it."""
    latency: int
    cost: FpgaResources


def cost_of(circuits: Sequence[FpgaLayer], part: Part | None) -> FpgaResources:
    """Of circuits side by side; nothing without a part (a LUT of what size?)."""
    return fpga_resources(circuits, part) if part is not None else FpgaResources(0, 0, 0, 0)


def allocate(
    choices: Mapping[str, Sequence[Choice]], fixed: FpgaResources, part: Part | None,
    objective: Objective, interval: int | None, fill: float,
) -> dict[str, int]:  # fmt: skip
    """Layer's name to reuse factor. ``fixed``: what the other layers cost. ``interval``: the most cycles between samples.

    Tried in turn: within ``fill`` of the part, within the part, and, where nothing fits, the smallest that can be made, which
    the caller then reports as too large. An interval that no choice reaches is treated as the least reachable one.
    """
    if not choices:
        return {}
    least = max(min(c.interval for c in options) for options in choices.values())
    bound = None if interval is None else max(interval, least)
    useful = {name: _undominated([c for c in options if bound is None or c.interval <= bound]) for name, options in choices.items()}
    if part is not None:
        for share in (fill, 1.0):
            found = _solve(useful, _budget(part, fixed, share), part, objective)
            if found is not None:
                return found
    found = _solve(useful, None, part, objective if part is None else "resources")
    assert found is not None
    return found


def _undominated(options: Sequence[Choice]) -> list[Choice]:
    """Without the choices that another is no slower and no larger than."""
    figures = [(c.interval, c.latency, *_amounts(c.cost)) for c in options]

    def beaten(mine: tuple[int, ...]) -> bool:
        return any(other != mine and all(o <= m for o, m in zip(other, mine, strict=True)) for other in figures)

    return [c for c, mine in zip(options, figures, strict=True) if not beaten(mine)]


def _budget(part: Part, fixed: FpgaResources, share: float) -> tuple[int, ...]:
    return tuple(int(share * there) - used for there, used in zip(_there(part), _amounts(fixed), strict=True))


def _there(part: Part) -> tuple[int, int, int, int]:
    return part.luts, part.ffs, part.dsps, part.bram_blocks


def _amounts(cost: FpgaResources) -> tuple[int, int, int, int]:
    return cost.luts, cost.ffs, cost.dsps, cost.brams


def _solver() -> Any:
    """CP-SAT, imported when it is needed: it takes a second.

    TensorFlow brings Abseil's symbols too; where a user's process runs it, the solver crashes unless its libraries prefer their own.
    """
    deep = getattr(os, "RTLD_DEEPBIND", 0)
    flags = sys.getdlopenflags() if deep else 0
    try:
        if deep and "tensorflow" in sys.modules:
            sys.setdlopenflags(os.RTLD_NOW | os.RTLD_LOCAL | deep)
        from ortools.sat.python import cp_model
    finally:
        if deep:
            sys.setdlopenflags(flags)
    return cp_model


def _share(choice: Choice, part: Part | None) -> int:
    """Of the part, all resources added up, in millionths; without a part, fewer multipliers are less."""
    if part is None:
        return -choice.reuse
    return sum(_SHARE_UNITS * used // max(1, there) for used, there in zip(_amounts(choice.cost), _there(part), strict=True))


def _solve(
    choices: Mapping[str, Sequence[Choice]], budget: tuple[int, ...] | None, part: Part | None, objective: Objective
) -> dict[str, int] | None:
    """Factors within the budget, or None where there are none."""
    if any(not options for options in choices.values()):
        return None
    cp_model = _solver()
    model: Any = cp_model.CpModel()
    taken = {name: [model.new_bool_var(f"{i}_{c.reuse}") for c in options] for i, (name, options) in enumerate(choices.items())}
    for flags in taken.values():
        model.add_exactly_one(flags)

    def total(of: Callable[[Choice], int]) -> Any:
        return sum(of(c) * flag for name, options in choices.items() for c, flag in zip(options, taken[name], strict=True))

    if budget is not None:
        for index, limit in enumerate(budget):
            model.add(total(lambda c, index=index: int(_amounts(c.cost)[index])) <= limit)  # type: ignore[misc]
    slowest = model.new_int_var(0, max(c.interval for options in choices.values() for c in options), "interval")
    for name, options in choices.items():
        model.add(slowest >= sum(c.interval * flag for c, flag in zip(options, taken[name], strict=True)))
    share = total(lambda c: _share(c, part))
    first = {"interval": slowest, "latency": total(lambda c: c.latency), "resources": share}[objective]
    second = slowest if objective == "resources" else share
    solver: Any = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = DETERMINISTIC_LIMIT
    for goal in (first, second):
        model.minimize(goal)
        if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
            return None
        model.add(goal <= int(solver.objective_value))
    return {
        name: next(c.reuse for c, flag in zip(options, taken[name], strict=True) if solver.boolean_value(flag))
        for name, options in choices.items()
    }  # fmt: skip
