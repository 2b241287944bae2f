"""What the placer and Yosys report, read: the clock that is reached, what is used, where the critical path is, what is too little.

Wires of the network are named after their operation (``verilog.layer_of``), so that a path has an address in the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .verilog import layer_of

NO_ROOM = ("unable to place", "failed to expand region", "no bels", "cells of type", "out of", "too many", "unable to find legal")
"""How nextpnr says that a design is too large."""

_ITERATION = re.compile(r"iter=(\d+) wires=\d+ overused=(\d+)")
_USED = re.compile(r"^Info:\s+(\w+):\s*(\d+)/\s*(\d+)\s+\d+%", re.MULTILINE)


@dataclass(frozen=True)
class Placed:
    """What one place-and-route reported."""

    seed: int
    fmax_hz: float
    utilization: Mapping[str, tuple[int, int]]
    """Used and there, by the placer's names."""
    critical: tuple[str, ...]
    """Wires of the critical path, from its start."""

    def blame(self, layers: Sequence[str]) -> str | None:
        """The operation that most of the critical path's wires belong to; None where it is the serial interface."""
        found = [layer for wire in self.critical if (layer := _layer_in(wire)) is not None and layer < len(layers)]
        return layers[max(set(found), key=found.count)] if found else None


def read_report(report: Mapping[str, Any], seed: int) -> Placed:
    """nextpnr's JSON report. The design has one clock besides the board's own; the slowest one counts."""
    reached = report.get("fmax", {})
    clocks = [float(entry["achieved"]) * 1e6 for name, entry in reached.items() if "clk_in" not in name or len(reached) == 1]
    used = {name: (int(entry["used"]), int(entry["available"])) for name, entry in report.get("utilization", {}).items()}
    paths = [path for path in report.get("critical_paths", []) if path.get("from") == path.get("to")] or report.get("critical_paths", [])
    wires = [str(part.get("net", "")) for path in paths[:1] for part in path.get("path", []) if part.get("net")]
    return Placed(seed, min(clocks, default=0.0), used, tuple(wires))


def read_cells(file: Path) -> dict[str, int]:
    """Cells by type after synthesis, before placement: what Yosys' ``stat -json`` wrote."""
    design = json.loads(file.read_text(encoding="utf-8"))["design"]
    return {str(name): int(count) for name, count in design["num_cells_by_type"].items()}


def utilization(log: Path) -> dict[str, tuple[int, int]]:
    """Used and there, by the placer's names, from the log of one that stopped before its report."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    return {name: (int(used), int(there)) for name, used, there in _USED.findall(text)}


def too_large(log: Path) -> str | None:
    """The placer's own words for what is too little, if that is why it stopped."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if line.startswith("ERROR")]
    return errors[-1].removeprefix("ERROR: ") if errors and any(word in errors[-1].lower() for word in NO_ROOM) else None


class Stall(Exception):
    """The router goes round in circles."""


class StallWatch:
    """Reads what the router says while it is at it; raises Stall where nothing gets better any more.

    nextpnr's router2 has no limit: where two nets need the same last wire, it tries for ever (its pull request 1737). It may
    stand still for some twenty iterations and come free again.
    """

    MOST_ITERATIONS = 200
    """Without fewer wires in conflict."""

    def __init__(self) -> None:
        self._least, self._since = -1, 0

    def __call__(self, text: str) -> None:
        found = _ITERATION.search(text)
        if found is None:
            return
        iteration, overused = int(found[1]), int(found[2])
        if self._least < 0 or overused < self._least:
            self._least, self._since = overused, iteration
        elif iteration - self._since >= self.MOST_ITERATIONS:
            raise Stall(f"{overused} wires are still in conflict after {iteration} iterations")


def _layer_in(wire: str) -> int | None:
    return next((layer for part in wire.replace("$", ".").split(".") if (layer := layer_of(part)) is not None), None)
