"""What reading a file in a process of its own adds to ``gatewright.load``: to the first one of a process, and to the later ones.

    python bench/isolation.py MODEL.onnx … [--pairs 9]        # "made" stands for a ResNet-50-sized model, 100 MB, made on the spot

Each pair is two fresh interpreters, one that isolates and one that trusts the file (``trust=True``), in turn first. Beside the time
that a user waits stands what processors worked, children included: on a busy machine that is the figure to look at.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LATER = 5
ONE = """
import json, os, sys, time
def worked():
    t = os.times()
    return t.user + t.system
path, trust = sys.argv[1], sys.argv[2] == "trust"
begin, cpu = time.perf_counter(), worked()
import gatewright
imported = time.perf_counter()
gatewright.load(path, trust=trust)
first, first_cpu = time.perf_counter(), worked()
later = []
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    gatewright.load(path, trust=trust)
    later.append(time.perf_counter() - start)
middle = sorted(later)[len(later) // 2]
print(json.dumps({"import": imported - begin, "first": first - imported, "own_cpu": first_cpu - cpu, "later": middle}))
"""


def measure(path: Path, how: str, later: int) -> dict[str, float]:
    """Seconds, of a fresh interpreter; ``cpu`` with its children's, over all of its life."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", ONE, str(path), how, str(later)], capture_output=True, text=True, check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(done.stdout), "cpu": cpu}


def large(path: Path) -> None:
    """53 convolutions and a classifier, as many weights and nodes as a ResNet-50 has."""
    rng = np.random.default_rng(0)
    nodes, weights, size, name, channels = [], [], 0, "stem", 64
    weights.append(numpy_helper.from_array(rng.normal(0, 0.1, (64, 3, 7, 7)).astype(np.float32), "w"))
    nodes.append(helper.make_node("Conv", ["x", "w"], ["stem"], strides=[8, 8], pads=[3, 3, 3, 3]))
    for index in range(52):
        wide = (64, 128, 256, 512)[index // 13]
        shape = (wide, channels, 3, 3) if index % 3 == 1 else (wide, channels, 1, 1)
        weights.append(numpy_helper.from_array(rng.normal(0, 0.02, shape).astype(np.float32), f"w{index}"))
        nodes += [helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], pads=[shape[2] // 2] * 4)]
        nodes += [helper.make_node("Relu", [f"c{index}"], [f"r{index}"])]
        name, channels, size = f"r{index}", wide, size + weights[-1].ByteSize()
    wide = (100_000_000 - size) // 4 // channels
    weights.append(numpy_helper.from_array(rng.normal(0, 0.02, (channels, wide)).astype(np.float32), "wide"))
    nodes += [
        helper.make_node("GlobalAveragePool", [name], ["pooled"]), helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "wide"], ["y"]),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 224, 224])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, wide])
    graph = helper.make_graph(nodes, "large", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def report(path: Path, pairs: int, later: int) -> str:
    kept: dict[str, list[dict[str, float]]] = {"isolated": [], "trust": []}
    for index in range(pairs):
        for how in ("isolated", "trust")[:: 1 if index % 2 else -1]:
            kept[how].append(measure(path, how, later))
    text = f"{path.name} ({path.stat().st_size / 1e6:.1f} MB), {pairs} pairs, load {os.getloadavg()[0]:.1f}"
    for key, what in (
        ("first", "first load"),
        ("later", "later loads"),
        ("own_cpu", "own CPU to the first"),
        ("cpu", "CPU of all processes"),
    ):
        a, b = ([one[key] for one in kept[how]] for how in ("isolated", "trust"))
        added = [x - y for x, y in zip(a, b, strict=True)]
        middle = [statistics.median(values) * 1000 for values in (a, b, added)]
        text += f"\n  {what:22} isolated {middle[0]:7.0f} ms, in this process {middle[1]:7.0f} ms, added {middle[2]:6.0f} ms"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--later", type=int, default=LATER)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for word in given.models:
            path = Path(folder) / "made.onnx" if word == "made" else Path(word)
            if word == "made":
                large(path)
            print(report(path, given.pairs, given.later), flush=True)


if __name__ == "__main__":
    main()
