"""From a lowered artifact to a bitstream: Yosys once, place and route with one seed after another until timing is met, the packer.

Success is what the placer reports: the clock it reaches and what it uses. A file's existence proves nothing: nextpnr writes
a bitstream of a design that misses its clock. What is done is kept (``steps.py``): a build that was stopped goes on from there.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gatewright.errors import DoesNotFit, ToolFailed
from gatewright.hw.device import Board
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import TargetContext

from . import advice, files, tools
from .board import Family, constraint_words, family_of
from .reports import Placed, Stall, StallWatch, read_cells, read_report, too_large, utilization
from .steps import Steps

INTERMEDIATE = ("top.json", "report.json", "placed.json", "top.asc", "top.config")
BUDGET_FRACTION = 0.5
"""Of the time limit: no new seed is begun after so much of it."""


@dataclass(frozen=True)
class Request:
    """What is to be built, and with what."""

    folder: Path
    """A copy of the lowered artifact, to work in."""
    board: Board
    clock_hz: float
    layers: list[str]
    seeds: int
    """Place and route is tried with at most so many."""
    logs: Path
    """Where logs stay if it fails."""
    context: TargetContext
    large: bool = False
    """It is of the size at which wires are what a part runs out of."""

    @property
    def family(self) -> Family:
        return family_of(self.board.part)


def build(folder: Path, board: Board, target: Mapping[str, Any], seeds: int, context: TargetContext) -> dict[str, Any]:
    """Run the tools in ``folder``, which holds the lowered files; ``target``: the manifest's target part. Returns what that gains.

    A build that fails leaves nothing in the artifact; its logs are kept in the cache folder, and the error names the place.

    Raises DoesNotFit with the utilization, ToolFailed with the layer of the critical path where no seed meets the clock.
    """
    kept = context.cache_dir / "logs" / f"rtl-{board.name}-{target['identity']}"
    request = Request(folder, board, float(target["clock_hz"]), list(target["layers"]), seeds, kept, context, target.get("large", False))
    family = request.family
    steps = Steps.of(context.cache_dir, folder, {"place": " ".join(_place_words(request)), **tools.versions()})
    (folder / "logs").mkdir(exist_ok=True)
    started = time.monotonic()
    try:
        cells = _synthesized(request, steps)
        placed = _placed(request, steps, started)
        words = family.pack(board.part)
        tools.run(family.packer, words, cwd=folder, log=folder / "logs" / "pack.log", what="packing the bitstream", context=context)
    except BaseException:
        shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)
        raise
    seconds = steps.seconds()
    steps.forget()
    for name in INTERMEDIATE:
        (folder / name).unlink(missing_ok=True)
    figures = _figures(placed, family, cells, seconds)
    return {
        "bitstream": family.bitstream,
        "seed": placed.seed,
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "utilization": {name: list(pair) for name, pair in placed.utilization.items()},
        "critical_layer": placed.blame(request.layers),
    }


def _synthesized(request: Request, steps: Steps) -> dict[str, int]:
    """top.json and cells.json in the folder. Raises DoesNotFit where there are more tables than the part has, before hours of placing."""
    folder, part = request.folder, request.board.part
    if steps.restore("synthesis", folder):
        request.context.progress("synthesis was done before")
    else:
        log, what = folder / "logs" / "yosys.log", f"synthesis for {request.board.name}"
        started = _ready(tools.YOSYS, request)
        tools.run(tools.YOSYS, ["-s", "synth.ys"], cwd=folder, log=log, what=what, context=request.context)
        if request.family.tidy is not None:
            request.family.tidy(folder / "top.json", "top")
        steps.keep("synthesis", folder, ("top.json", "cells.json", "logs/yosys.log"), time.monotonic() - started)
    cells = read_cells(folder / "cells.json")
    luts = sum(count for name, count in cells.items() if name.startswith(("SB_LUT", "LUT")))
    if luts > part.luts:
        raise _does_not_fit(request, [("LUT", luts, part.luts)], "after synthesis")
    return cells


def _placed(request: Request, steps: Steps, started: float) -> Placed:
    """The first seed that meets the clock. Raises DoesNotFit, or ToolFailed where none of them does."""
    context, best, tried = request.context, None, 0
    for number in range(request.seeds):
        placed = _tried(request, steps, context.seed + number + 1)
        tried += 1
        if placed is not None:
            context.progress(f"seed {placed.seed}: {placed.fmax_hz / 1e6:.2f} MHz of {request.clock_hz / 1e6:g} MHz")
            if placed.fmax_hz >= request.clock_hz:
                return placed
            best = placed if best is None or placed.fmax_hz > best.fmax_hz else best
        if time.monotonic() - started > context.time_limit_s * BUDGET_FRACTION:
            break
    raise _missed(request, best, tried)


def _tried(request: Request, steps: Steps, seed: int) -> Placed | None:
    """Place and route with one seed; None where the router found no way."""
    folder, family, step = request.folder, request.family, f"seed-{seed}"
    log, report = folder / "logs" / f"place-{seed}.log", folder / "report.json"
    if not steps.restore(step, folder):
        report.unlink(missing_ok=True)
        what = f"place and route for {request.board.name}, seed {seed} of at most {request.seeds}"
        words = [*_place_words(request), "--seed", str(seed), "--report", report.name, "--timing-allow-fail"]
        started = _ready(family.placer, request)
        try:
            tools.run(family.placer, words, cwd=folder, log=log, what=what, context=_watching(request.context))
        except Stall as stall:
            request.context.progress(f"seed {seed}: the router found no way, {stall}")
            report.write_text("{}", encoding="utf-8")
        except ToolFailed as failed:
            if (why := too_large(log)) is not None:
                rows = [(name, used, there) for name, (used, there) in utilization(log).items() if used > there]
                raise _does_not_fit(request, rows, f"the placer stopped: {why}") from failed
            raise
        steps.keep(step, folder, (report.name, family.placed.split()[-1], f"logs/{log.name}"), time.monotonic() - started)
    found = json.loads(report.read_text(encoding="utf-8"))
    return read_report(found, seed) if found else None


def _watching(context: TargetContext) -> TargetContext:
    """The same, whose progress stops a router that goes round in circles."""
    watch = StallWatch()

    def progress(what: str, done: int | None = None, total: int | None = None) -> None:
        watch(what)
        context.progress(what, done, total)

    return replace(context, progress=progress)


def _ready(tool: tools.OpenTool, request: Request) -> float:
    """The clock, once the tool is machine code: compiling it is no part of any design's time."""
    tools.prepare(tool, request.context)
    return time.monotonic()


def _place_words(request: Request) -> list[str]:
    family, clock = request.family, f"{request.clock_hz / 1e6:g}"
    written = ["--json", "top.json", *constraint_words(family), *family.placed.split()]
    return [*family.place(request.board.part), *written, "--freq", clock, *(family.large if request.large else ())]


def _figures(placed: Placed, family: Family, cells: Mapping[str, int], seconds: float) -> dict[str, Measurement]:
    def used(names: tuple[str, ...]) -> int:
        return sum(placed.utilization.get(name, (0, 0))[0] for name in names)

    ffs = used(family.ffs) if family.ffs else sum(count for name, count in cells.items() if name.startswith("SB_DFF"))
    return {
        "LUT": Measurement(float(used(family.luts)), "LUT", "synthesized"),
        "FF": Measurement(float(ffs), "FF", "synthesized"),
        "fmax": Measurement(placed.fmax_hz, "Hz", "synthesized"),
        "build_time": Measurement(seconds, "s", "measured"),
    }


def _does_not_fit(request: Request, rows: list[tuple[str, int, int]], when: str) -> DoesNotFit:
    """``rows``: what is short, how much is needed and there; none where the part is full, but not over, and no placement is found."""
    short = "".join(f"\n  {name}: needs {used}, {request.board.part.name} has {there}" for name, used, there in rows)
    network = files.load(request.folder / "network.json")
    larger = advice.larger_board(network, request.board, max((used / there for _, used, there in rows), default=1.0))
    ways = [f"it would fit {larger}"] if larger else []
    return DoesNotFit(
        f"it does not fit {request.board.name} ({when}){short}; logs: {request.logs}",
        hint="; or ".join([*ways, "prune it, or use fewer bits (gatewright check says how far)"]),
    )


def _missed(request: Request, best: Placed | None, tried: int) -> ToolFailed:
    if best is None:
        what = f"no way was found to route it on {request.board.name}, with {tried} seeds; logs: {request.logs}"
        return ToolFailed(what, hint="let it try more placements, {seeds=12}; or make the network smaller, or take a larger board")
    where = best.blame(request.layers)
    return ToolFailed(
        f"timing is missed: {best.fmax_hz / 1e6:.2f} MHz of {request.clock_hz / 1e6:g} MHz is the best of {tried} seeds"
        + (f"; the critical path is in {where!r}" if where else "; the critical path is in the serial interface")
        + f"; logs: {request.logs}",
        hint=advice.for_timing(request.board, request.clock_hz, best.fmax_hz, in_network=where is not None),
    )
