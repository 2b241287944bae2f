"""The target cuda on real models without a GPU: compiled for each architecture, what its kernels take, and the emulator against ref.

    python bench/cuda_models.py [--models NAMES] [--archs sm_80,sm_90,sm_100] [--precision tf32] [--emulate]
                                 [--shared ../shared] [--out cuda_models.jsonl]
    python bench/cuda_models.py --show [--out cuda_models.jsonl]        the table alone

A line of --out is one model on one architecture; what is there already is not done again. Nothing here is measured on a GPU. The
emulator runs the source that the kernels were compiled from, so one architecture is emulated for all with the same source.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from models import SUBJECTS, Subject

import gatewright as gw
from gatewright.errors import GatewrightError
from gatewright.frontend.reference import Reference
from gatewright.runtime.bench import random_feeds

INT8 = ("tiny_ic_resnet8_int8", "tiny_kws_dscnn_int8", "tiny_vww_int8", "tiny_ad01_int8")
MAIN_MACS_SHARE = "conv", "matmul", "gemm", "attention"
"""Words in the names of the kernels that sum products."""


def subjects() -> dict[str, Subject]:
    """Light models, those of the tiny benchmark, the transformers."""
    found = {s.name: s for s in SUBJECTS if s.name.startswith(("light_", "tiny_", "bert", "gpt"))}
    for name in INT8:
        found[name] = Subject(name, lambda shared, name=name: gw.load(shared / "models" / f"{name}.onnx", name=name))  # type: ignore[misc]
    return found


def row(model: gw.Model, arch: str, precision: str, done: list[dict[str, Any]], emulate: bool) -> dict[str, Any]:
    began = time.perf_counter()
    artifact = gw.compile(model, f"cuda:{arch}{{precision={precision}}}")
    described = artifact.manifest["target"]
    kernels = described["resources"]
    source = hashlib.sha256((artifact.path / "kernels.cu").read_bytes()).hexdigest()
    main = {name: own for name, own in kernels.items() if any(word in name for word in MAIN_MACS_SHARE)}
    found: dict[str, Any] = {
        "model": _label(model.name, precision), "arch": arch, "kernels": len(kernels), "launches": described["kernels_run"],
        "seconds": time.perf_counter() - began,
        "spilled": sum(own["spilled_bytes"] > 0 for own in kernels.values()),
        "spilled_main": sum(own["spilled_bytes"] > 0 for own in main.values()),
        "registers": max(own["registers"] for own in kernels.values()),
        "shared_bytes": max(own["shared_bytes"] for own in kernels.values()),
        "occupancy": float(np.median([own["occupancy"] for own in main.values()] or [0])), "source": source, "notes": described["notes"],
        "attention": described["attention"],
    }  # fmt: skip
    same = next((r for r in done if r["source"] == source and "error" in r), None)
    if same is not None:
        return {**found, "error": same["error"], "exact": same["exact"], "emulated": f"as {same['arch']}, whose source is the same"}
    if emulate:
        feeds = random_feeds(model.inputs, 0)
        wanted = Reference(model).run(feeds)
        began = time.perf_counter()
        with artifact.load("emulate") as executor:
            got = executor.run(feeds)
        pairs = [(got[name].astype(np.float64), array.astype(np.float64)) for name, array in wanted.items()]
        found["error"] = max(float(np.max(np.abs(a - b)) / max(float(np.max(np.abs(b))), 1e-30)) for a, b in pairs)
        found["exact"] = all(np.array_equal(a, b) for a, b in pairs)
        found["emulated"] = f"{time.perf_counter() - began:.0f} s"
    return found


def table(rows: list[dict[str, Any]]) -> str:
    head = f"{'model':24} {'arch':7} {'kernels':>7} {'spills':>6} {'regs':>5} {'shared':>7} {'occup.':>6} {'compile':>8}"
    lines = [f"{head}  emulation against ref"]
    for r in rows:
        if "failed" in r:
            lines.append(f"{r['model']:24} {r['arch']:7} {r['failed']}")
            continue
        said = "not emulated" if "error" not in r else f"{'equal' if r['exact'] else format(r['error'], '.1e')} ({r['emulated']})"
        lines.append(
            f"{r['model']:24} {r['arch']:7} {r['kernels']:7} {r['spilled']:6} {r['registers']:5} {r['shared_bytes']:7} "
            f"{r['occupancy']:6.2f} {r['seconds']:6.0f} s  {said}{_fused(r.get('attention', []))}"
        )
    return "\n".join([*lines, "Nothing was measured on a GPU: spills, registers and shared memory are ptxas's, occupancy is predicted."])


def _label(name: str, precision: str) -> str:
    return name if precision == "float32" else f"{name} {precision}"


def _fused(told: list[str]) -> str:
    """How many attentions are one kernel."""
    return f"; {sum('one kernel,' in line for line in told)} of {len(told)} attentions fused" if told else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="parts of names, with commas; all by default")
    parser.add_argument("--archs", default="sm_80,sm_90,sm_100")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--emulate", action="store_true", help="compare with ref too: minutes for the larger models")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path, default=Path("cuda_models.jsonl"))
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.out.read_text(encoding="utf-8").splitlines()] if given.out.exists() else []
    wanted = [word for word in given.models.split(",") if word]
    for name, subject in [] if given.show else subjects().items():
        if wanted and not any(word in name for word in wanted):
            continue
        model, label = None, _label(name, given.precision)
        for arch in given.archs.split(","):
            if any(r["model"] == label and r["arch"] == arch for r in rows):
                continue
            try:
                model = model or subject.load(given.shared)
                done = [r for r in rows if r["model"] == label and "failed" not in r]
                rows.append(row(model, arch, given.precision, done, given.emulate))
            except (GatewrightError, OSError) as error:
                rows.append({"model": label, "arch": arch, "failed": str(error).splitlines()[0][:200], "source": ""})
            with open(given.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(table(rows[-1:]).splitlines()[1], flush=True)
    print(table(sorted(rows, key=lambda r: (r["model"], r["arch"]))))


if __name__ == "__main__":
    main()
