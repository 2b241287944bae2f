"""Every model of a folder on ``ref``, ONNX Runtime and target ``cpu``: what falls back and why, and how far the three are apart.

    python bench/fallbacks.py check ../shared/models [NAME…]
    python bench/fallbacks.py run ../shared/models --results models.jsonl [NAME…]
    python bench/fallbacks.py table --results models.jsonl > docs/models.md

``check`` says from the models alone what ``cpu`` would hand on. ``run`` runs one sample of seeded random numbers on each engine, and goes
on where an earlier one stopped; onnx's light networks and the transformers of ``transformers.py`` are run beside the folder's.
``table`` prints two tables: the models, and every operator of theirs with those that need another engine than ``cpu``.

Errors are the largest difference to ``ref``, over the largest magnitude of ``ref``'s output; of whole numbers and texts it is told how
many differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.reference import Reference
from gatewright.runtime import partition
from gatewright.runtime.bench import random_feeds
from gatewright.runtime.targetspec import resolve

DIMS = {
    "melspectrogram": {"samples": 5120}, "ppocr_cls": {"x.2": 48, "x.3": 192},
    "ppocrv4_det": {"p2o.DynamicDimension.1": 320, "p2o.DynamicDimension.2": 320}, "silero_vad_ifless": {"sequence": 576},
}  # fmt: skip
"""Sizes of axes that a file leaves open."""
LIGHT = ("bvlc_alexnet", "inception_v1", "vgg19", "zfnet512")
"""Light networks that no benchmark runs."""


def subjects(folder: Path) -> Iterator[tuple[str, Callable[[], gw.Model]]]:
    """Names, and how each model is loaded."""
    for path in sorted(folder.glob("*.onnx")):
        yield path.stem, lambda path=path: gw.load(path, dims=DIMS.get(path.stem))  # type: ignore[misc]
    others = [subject for subject in models.SUBJECTS if not (folder / f"{subject.name}.onnx").exists()]
    for subject in others:
        yield subject.name, lambda subject=subject: subject.load(folder.parent)  # type: ignore[misc]
    for name in LIGHT:
        yield f"light_{name}", lambda name=name: models.light(f"light_{name}")(folder.parent)  # type: ignore[misc]


def checked(model: gw.Model) -> dict[str, Any]:
    """Operators, and what of them falls back: engine, reason and how often; parts and the bytes between them."""
    found = partition.cut(model, resolve("cpu"))
    moved: Counter[tuple[str, str, str]] = Counter()
    for part in found.parts if found is not None else ():
        for node, reason in part.reasons.items():
            moved[node.rpartition("(")[2].rstrip(")"), part.target.name, reason] += 1
    return {
        "nodes": len(model.graph), "operators": sorted({node.op_type for node in model.graph}),
        "parts": len(found.parts) if found is not None else 1, "crossing_bytes": found.crossing_bytes if found is not None else 0,
        "moved": [{"operator": op, "engine": engine, "reason": reason, "count": n} for (op, engine, reason), n in moved.items()],
    }  # fmt: skip


def ran(model: gw.Model) -> dict[str, Any]:
    """Seconds and error of one sample on every engine."""
    feeds = random_feeds(model.inputs, 0)
    began = time.perf_counter()
    wanted = Reference(model).run(feeds)
    found: dict[str, Any] = {"ref": {"seconds": round(time.perf_counter() - began, 3)}}
    for target in ("ort", "cpu"):
        began = time.perf_counter()
        try:
            with gw.compile(model, target).load() as executor:
                built = time.perf_counter()
                got = executor.run(feeds)
        except GatewrightError as error:
            found[target] = {"problem": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            continue
        seconds = {"build_s": round(built - began, 1), "seconds": round(time.perf_counter() - built, 3)}
        found[target] = {**seconds, **difference(got, wanted)}
    return found


def difference(got: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The largest error over all float outputs, and how many of the other values differ."""
    error, unlike = 0.0, 0
    for name, right in wanted.items():
        if right.dtype.kind == "f":
            scale = float(np.abs(right).max(initial=0.0)) or 1.0
            error = max(error, float(np.abs(got[name].astype(np.float64) - right).max(initial=0.0)) / scale)
        else:
            unlike += int(np.count_nonzero(got[name] != right))
    return {"error": error, "unlike": unlike}


def run(folder: Path, names: list[str], results: Path | None, *, execute: bool) -> None:
    """One JSON line for each model."""
    known = {line["model"] for line in read(results) if not execute or "ref" in line} if results is not None else set()
    for name, load in subjects(folder):
        if name in known or (names and not any(part in name for part in names)):
            continue
        line: dict[str, Any] = {"model": name}
        try:
            model = load()
            line |= checked(model)
            if execute:
                line |= ran(model)
        except GatewrightError as error:
            line["problem"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        print(row(line), file=sys.stderr, flush=True)
        if results is not None:
            with open(results, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def read(results: Path) -> list[dict[str, Any]]:
    """One line for each model: the last that ran it, or that checked it where none did."""
    if not results.exists():
        return []
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list({line["model"]: line for line in sorted(lines, key=lambda line: "ref" in line)}.values())


def row(line: dict[str, Any]) -> str:
    if "problem" in line:
        return f"| {line['model']} | | | | {line['problem']} |"
    moved = [f"{each['count']} {each['operator']} on {each['engine']} ({each['reason']})" for each in line["moved"]]
    cost = f"; {line['parts']} parts, {line['crossing_bytes']:,} bytes between them" if moved else ""
    return f"| {line['model']} | {line['nodes']} | {cell(line, 'ort')} | {cell(line, 'cpu')} | {'; '.join(moved) or 'whole'}{cost} |"


def cell(line: dict[str, Any], target: str) -> str:
    found = line.get(target)
    if found is None:
        return ""
    if "problem" in found:
        return str(found["problem"])
    return f"{found['error']:.1e}" + (f", {found['unlike']} unlike" if found["unlike"] else "")


PAGE = """# Models

Public models, each on the reference, on ONNX Runtime and on target `cpu`, one sample of seeded random numbers. Made by
`python bench/fallbacks.py table`; do not edit it by hand. *ort*, *cpu*: the largest difference to the reference over the largest
magnitude of its output, over all float outputs (a quantized model: over its dequantized ones); whole numbers and labels that differ
are counted. An empty cell was not run, only checked. What falls back is computed by the engine that is named; all else by `cpu`.
"""


def table(results: Path) -> str:
    lines = sorted(read(results), key=lambda line: line["model"])
    out = [PAGE, "| model | nodes | ort | cpu | what falls back |", "|---|--:|---|---|---|", *map(row, lines)]
    holders: dict[str, int] = Counter(op for line in lines for op in line.get("operators", ()))
    moved: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        for each in line.get("moved", ()):
            moved[each["operator"]].add(line["model"])
    whole = [op for op in sorted(holders) if op not in moved]
    where = f"`cpu{{fallback=none}}` runs {len(whole)} of them wherever they occur"
    out += ["", f"{len(holders)} operators occur in {len(lines)} models. {where}:", ""]
    out += [", ".join(f"{op} ({holders[op]})" for op in whole) + "."]
    out += ["", *(f"- {op} falls back in {', '.join(sorted(names))}, of {holders[op]} models" for op, names in sorted(moved.items()))]
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("check", "run", "table"))
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/models"))
    parser.add_argument("names", nargs="*", help="parts of names; all where there are none")
    parser.add_argument("--results", type=Path)
    given = parser.parse_intermixed_args()
    if given.what == "table":
        print(table(given.results or Path("models.jsonl")))
    else:
        run(given.folder, given.names, given.results, execute=given.what == "run")


if __name__ == "__main__":
    main()
