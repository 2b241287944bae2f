"""Which of a folder's models target cpu runs whole, and what falls back of the others: a table, from ``check`` alone.

    python bench/fallbacks.py ../shared/models [NAME…]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.runtime import partition
from gatewright.runtime.targetspec import resolve

DIMS = {
    "melspectrogram": {"samples": 5120}, "ppocr_cls": {"x.2": 48, "x.3": 192},
    "ppocrv4_det": {"p2o.DynamicDimension.1": 320, "p2o.DynamicDimension.2": 320}, "silero_vad_ifless": {"sequence": 576},
}  # fmt: skip
"""Sizes of axes that a file leaves open."""


def row(path: Path) -> str:
    """One line of the table."""
    began = time.perf_counter()
    try:
        model = gw.load(path, dims=DIMS.get(path.stem))
        found = partition.cut(model, resolve("cpu"))
    except GatewrightError as error:
        return f"| {path.stem} | | | {type(error).__name__}: {' '.join(str(error).split())[:160]} |"
    if found is None:
        text = "whole"
    else:
        moved = [part for part in found.parts if part.reasons]
        operators = Counter(f"{node.rpartition('(')[2].rstrip(')')} on {part.target.name}" for part in moved for node in part.reasons)
        listed = ", ".join(f"{count} {operator}" for operator, count in operators.items())
        text = f"{len(found.parts)} parts, {found.crossing_bytes:,} bytes between them: {listed}"
    return f"| {path.stem} | {len(model.graph)} | {time.perf_counter() - began:.1f} | {text} |"


def main() -> None:
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    print("| model | nodes | load and check, s | on cpu |\n|---|--:|--:|---|")
    for path in sorted(folder.glob("*.onnx")):
        if not names or any(name in path.stem for name in names):
            print(row(path), flush=True)


if __name__ == "__main__":
    main()
