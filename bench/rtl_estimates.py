"""Preflight against synthesis: the LUTs that ``check`` estimates and the LUTs that Yosys makes, on 20 networks.

    python bench/rtl_estimates.py [--family ice40-ultraplus] [--count 20]

The networks are two dense layers or two convolutions with Relu, of 4 to 8 bits, 0 to 80 % zeros, on grids that are powers of
two or not. The serial interface is left out on both sides. Cycles are counted in the Verilog. The last line gives the factor for
``targets/rtl/estimate.py`` that would make the median error zero.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
from onnx import helper, numpy_helper

import gatewright as gw
from gatewright.hw.device import Board, devices
from gatewright.runtime import driver
from gatewright.targets.rtl import estimate, pipeline, tools, verilog
from gatewright.targets.rtl.lower import lower
from gatewright.targets.rtl.matrix import Strategy
from gatewright.targets.rtl.network import Network

SYNTHESIS = {"ice40-ultraplus": "synth_ice40", "ecp5": "synth_ecp5", "gw1nr": "synth_gowin"}
COUNTED = {
    "ice40-ultraplus": {"SB_LUT4": 1},
    "ecp5": {"LUT4": 1, "CCU2C": 2},
    "gw1nr": {"LUT1": 1, "LUT2": 1, "LUT3": 1, "LUT4": 1, "ALU": 1},
}
"""Cells and how many look-up tables each is."""


def network(seed: int) -> tuple[gw.Model, str]:
    """A float model and the pipeline that quantizes it."""
    rng = np.random.default_rng(seed)
    bits, sparsity = int(rng.choice([4, 6, 8])), float(rng.choice([0.0, 0.5, 0.8]))
    grid = "pow2" if rng.random() < 0.7 else "symmetric"
    dense = rng.random() < 0.7

    def weight(*shape: int) -> np.ndarray:
        values = rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        values[rng.random(shape) < sparsity] = 0
        values.flat[0] = 1.0  # never a layer of zeros alone
        return values

    if dense:
        sizes = [int(n) for n in rng.integers(5, 17, 3)]
        arrays = {"w1": weight(sizes[0], sizes[1]), "w2": weight(sizes[1], sizes[2])}
        first, second = helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("MatMul", ["b", "w2"], ["y"])
        nodes = [first, helper.make_node("Relu", ["a"], ["b"]), second]
        shapes: tuple[list[object], list[object]] = (["N", sizes[0]], ["N", sizes[2]])
    else:
        channels = [int(n) for n in rng.integers(2, 5, 2)]
        arrays = {"w1": weight(channels[0], 1, 3, 3), "w2": weight(channels[1], channels[0], 2, 2)}
        nodes = [
            helper.make_node("Conv", ["x", "w1"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "w2"], ["y"]),
        ]
        shapes = (["N", 1, 3, 3], ["N", channels[1], 1, 1])
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in zip("xy", shapes, strict=True)]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(array, name) for name, array in arrays.items()])
    model = gw.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), name=f"net{seed}")
    data = gw.Dataset({"x": rng.uniform(0, 1, (64, *shapes[0][1:])).astype(np.float32)})  # type: ignore[call-overload]
    words = f"{'dense' if dense else 'conv '} {bits} bits {grid}"
    return gw.transform(model, f"fuse,quantize{{bits={bits},grid={grid}}}", data=data), words


def synthesized(design: Network, planned: pipeline.Schedule, family: str) -> int:
    context = driver.context()
    context.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.cache_dir) as name:
        folder = Path(name)
        (folder / "network.v").write_text(verilog.emit(design, planned), encoding="utf-8")
        script = f"read_verilog network.v; {SYNTHESIS[family]} -top network; tee -q -o cells.json stat -json"
        tools.run(tools.YOSYS, ["-q", "-p", script], cwd=folder, log=folder / "log", what="synthesis", context=context)
        cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["design"]["num_cells_by_type"]
    return sum(cells.get(cell, 0) * tables for cell, tables in COUNTED[family].items())


def main() -> None:
    parser = argparse.ArgumentParser(description="preflight against synthesis")
    parser.add_argument("--family", default="ice40-ultraplus", choices=sorted(SYNTHESIS))
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    board = next(d for d in devices("board") if isinstance(d, Board) and d.part.family == arguments.family)
    errors, ratios = [], []
    for seed in itertools.count():
        if len(errors) == arguments.count:
            break
        model, words = network(seed)
        design, _ = lower(model, Strategy(negation_costs=arguments.family.startswith("ice40")))
        planned = pipeline.schedule(design, board.part.typical_clock_hz, pipeline.delays_of(board.part))
        guess = estimate.estimate(design, planned, board.part, wrapped=False)
        if not guess.luts:
            continue  # nothing of it is left: every output is a constant
        made = synthesized(design, planned, arguments.family)
        errors.append(abs(guess.luts - made) / made)
        ratios.append(made / guess.luts * estimate.FACTORS[arguments.family])
        off = f"off by {errors[-1]:.1%}; {guess.cycles} cycles"
        print(f"{seed:3d} {words:22s} estimated {guess.luts:6d}, Yosys {made:6d}: {off}", flush=True)
    factor = statistics.median(ratios)
    print(f"{arguments.family}: median error {statistics.median(errors):.1%}, largest {max(errors):.1%}; factor {factor:.3f}")


if __name__ == "__main__":
    main()
