"""From a lowered artifact to a bitstream: Yosys once, place and route with one seed after another until timing is met, the packer.

Success is what the placer reports: the clock it reaches and what it uses. A file's existence proves nothing: nextpnr writes
a bitstream of a design that misses its clock.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gatewright.errors import DoesNotFit, ToolFailed
from gatewright.hw.device import Board
from gatewright.hw.measurement import Measurement
from gatewright.targets.base import TargetContext

from . import tools
from .board import Family, constraint_words, family_of
from .verilog import layer_of

INTERMEDIATE = ("top.json", "placed.json", "top.asc", "top.config")
MOST_SEEDS = 4
BUDGET_FRACTION = 0.5
"""Of the time limit: no new seed is begun after so much of it."""


@dataclass(frozen=True)
class Placed:
    """What one place-and-route reported."""

    seed: int
    fmax_hz: float
    utilization: Mapping[str, tuple[int, int]]
    """Used and there, by the placer's names."""
    critical: tuple[str, ...]
    """Wires of the critical path, from its start."""


def build(folder: Path, board: Board, target: Mapping[str, Any], context: TargetContext) -> dict[str, Any]:
    """Run the tools in ``folder``, which holds the lowered files; ``target``: the manifest's target part. Returns what that gains.

    A build that fails leaves nothing in the artifact; its logs are kept in the cache folder, and the error names the place.

    Raises DoesNotFit with the utilization, ToolFailed with the layer of the critical path where no seed meets the clock.
    """
    kept = context.cache_dir / "logs" / f"rtl-{board.name}-{target['identity']}"
    (folder / "logs").mkdir(exist_ok=True)
    try:
        return _build(folder, board, float(target["clock_hz"]), list(target["layers"]), kept, context)
    finally:
        shutil.copytree(folder / "logs", kept, dirs_exist_ok=True)


def _build(folder: Path, board: Board, clock_hz: float, layers: list[str], kept: Path, context: TargetContext) -> dict[str, Any]:
    family = family_of(board.part)
    started = time.monotonic()
    tools.run(
        tools.YOSYS, ["-q", "-l", "logs/yosys.log", "-s", "synth.ys"], cwd=folder, log=kept / "yosys.out",
        what=f"synthesis for {board.name}", context=context,
    )  # fmt: skip
    cells = _cells(folder)
    best: Placed | None = None
    for number in range(MOST_SEEDS):
        seed = context.seed + number + 1
        try:
            placed = _place(folder, family, board, clock_hz, seed, kept, context)
        except ToolFailed as failed:
            short = _shortfall(folder / "logs" / f"place-{seed}.log")
            if short:
                raise DoesNotFit(
                    f"it does not fit {board.name}: {short}", hint="prune it, use fewer bits, or take a larger board (gatewright check)"
                ) from failed
            raise
        if best is None or placed.fmax_hz > best.fmax_hz:
            best = placed
        if best.fmax_hz >= clock_hz or time.monotonic() - started > context.time_limit_s * BUDGET_FRACTION:
            break
    assert best is not None
    if best.fmax_hz < clock_hz:
        raise _missed(best, number + 1, clock_hz, layers, kept)
    tools.run(family.packer, family.pack(board.part), cwd=folder, log=kept / "pack.out", what="packing the bitstream", context=context)
    for name in INTERMEDIATE:
        (folder / name).unlink(missing_ok=True)
    figures = _figures(best, family, cells, time.monotonic() - started)
    return {
        "bitstream": family.bitstream,
        "seed": best.seed,
        "figures": {name: figure.to_json() for name, figure in figures.items()},
        "utilization": {name: list(pair) for name, pair in best.utilization.items()},
        "critical_layer": _blame(best, layers),
    }


def _place(folder: Path, family: Family, board: Board, clock_hz: float, seed: int, kept: Path, context: TargetContext) -> Placed:
    words = [
        *family.place(board.part), "--json", "top.json", *constraint_words(family), *family.placed.split(), "--freq", f"{clock_hz / 1e6:g}",
        "--seed", str(seed), "--report", "report.json", "--timing-allow-fail", "--log", f"logs/place-{seed}.log", "-q",
    ]  # fmt: skip
    what = f"place and route for {board.name}, seed {seed}"
    tools.run(family.placer, words, cwd=folder, log=kept / f"place-{seed}.out", what=what, context=context)
    return read_report(json.loads((folder / "report.json").read_text(encoding="utf-8")), seed)


def read_report(report: Mapping[str, Any], seed: int) -> Placed:
    """nextpnr's JSON report. The design has one clock besides the board's own; the slowest one counts."""
    reached = report.get("fmax", {})
    clocks = [float(entry["achieved"]) * 1e6 for name, entry in reached.items() if "clk_in" not in name or len(reached) == 1]
    used = {name: (int(entry["used"]), int(entry["available"])) for name, entry in report.get("utilization", {}).items()}
    paths = [path for path in report.get("critical_paths", []) if path.get("from") == path.get("to")] or report.get("critical_paths", [])
    wires = [str(part.get("net", "")) for path in paths[:1] for part in path.get("path", []) if part.get("net")]
    return Placed(seed, min(clocks, default=0.0), used, tuple(wires))


def _cells(folder: Path) -> dict[str, int]:
    """Cells by type after synthesis, before placement."""
    design = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["design"]
    return {str(name): int(count) for name, count in design["num_cells_by_type"].items()}


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


def _shortfall(log: Path) -> str | None:
    """The placer's own words for what is too little, if that is why it stopped."""
    words = ("unable to place", "failed to expand region", "no bels", "cells of type", "out of", "too many", "unable to find legal")
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("ERROR")]
    return errors[-1] if errors and any(word in errors[-1].lower() for word in words) else None


def _blame(placed: Placed, layers: list[str]) -> str | None:
    """The operation that most of the critical path's wires belong to."""
    found = [layer for wire in placed.critical if (layer := _layer_in(wire)) is not None and layer < len(layers)]
    return layers[max(set(found), key=found.count)] if found else None


def _layer_in(wire: str) -> int | None:
    return next((layer for part in wire.replace("$", ".").split(".") if (layer := layer_of(part)) is not None), None)


def _missed(best: Placed, seeds: int, clock_hz: float, layers: list[str], logs: Path) -> ToolFailed:
    where = _blame(best, layers)
    return ToolFailed(
        f"timing is missed: {best.fmax_hz / 1e6:.2f} MHz of {clock_hz / 1e6:g} MHz is the best of {seeds} seeds"
        + (f"; the critical path is in {where!r}" if where else "; the critical path is in the serial interface")
        + f"; logs: {logs}",
        hint="ask for a lower clock, rtl:BOARD{clock_mhz=…}, or for more pipeline stages, {margin=…}",
    )
