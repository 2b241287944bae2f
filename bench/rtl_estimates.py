"""Preflight against synthesis: the LUTs and cycles that ``check`` estimates and those of the netlist that Yosys makes.

    python bench/rtl_estimates.py run --family ecp5 --results build/estimates.jsonl [--part judge|fit] [--count 20]
    python bench/rtl_estimates.py fit --family ecp5 --results build/estimates.jsonl

30 networks, three of each kind in ``KINDS``, of 4 to 8 bits, 0 to 80 % zeros, on grids that are powers of two or not: ten (``fit``)
set the prices in ``targets/rtl/estimate.py``, the other twenty (``judge``) are what errors are printed of. The serial interface is left
out on both sides. Cycles are counted in the netlist: flip-flops between in_valid and out_valid. What ``--results`` holds is not
synthesized again; ``fit`` only reads it, and prints the prices that make the squared relative errors of the fit networks least.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from scipy.optimize import nnls

import gatewright as gw
from gatewright.hw.device import Board, devices
from gatewright.runtime import driver
from gatewright.targets.rtl import estimate, pipeline, synthesis, tools, verilog
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

KINDS = ("dense", "conv", "max pool", "average", "residual", "table", "depthwise", "global", "concat", "scaled")
JUDGED, FITTED = range(20), range(20, 30)
SMALL = 500
"""Look-up tables: in the fit, the error of a smaller network is relative to so many."""


class _Writer:
    """A float model, node by node."""

    def __init__(self, rng: np.random.Generator, sparsity: float) -> None:
        self.rng, self.sparsity = rng, sparsity
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=f"n{len(self.nodes)}", **attributes))
        return name

    def weight(self, *shape: int) -> str:
        values = self.rng.normal(0, float(np.prod(shape[1:])) ** -0.5, shape).astype(np.float32)
        values[self.rng.random(shape) < self.sparsity] = 0
        values.reshape(shape[0], -1)[:, 0] += 0.5  # never a row of zeros alone
        self.arrays[f"w{len(self.arrays)}"] = values
        return f"w{len(self.arrays) - 1}"

    def dense(self, value: str, rows: int, columns: int) -> str:
        return self.node("MatMul", value, self.weight(rows, columns))

    def conv(self, value: str, filters: int, channels: int, kernel: int, **attributes: object) -> str:
        return self.node("Conv", value, self.weight(filters, channels, kernel, kernel), kernel_shape=[kernel] * 2, **attributes)


def network(number: int) -> tuple[gw.Model, str]:
    """A quantized model, and what it is in words."""
    rng = np.random.default_rng(number)
    kind = KINDS[number % len(KINDS)]
    bits, sparsity = int(rng.choice([4, 5, 6, 8])), float(rng.choice([0.0, 0.4, 0.8]))
    grid = "symmetric" if kind == "scaled" else "pow2"
    w = _Writer(rng, sparsity)
    n, m, k = (int(v) for v in rng.integers(4, 9, 3))
    shape: tuple[int, ...] = (n,)
    if kind in ("dense", "scaled"):
        y = w.dense(w.node("Relu", w.dense("x", n, m)), m, k)
    elif kind == "residual":
        h = w.node("Relu", w.dense("x", n, m))
        y = w.dense(w.node("Relu", w.node("Add", w.dense(h, m, m), h)), m, 4)
    elif kind == "table":
        y = w.dense(w.node(str(rng.choice(["Tanh", "Sigmoid"])), w.dense("x", n, 6)), 6, k)
    elif kind == "concat":
        h = w.node("Relu", w.dense("x", n, m))
        y = w.dense(w.node("Concat", h, w.node("LeakyRelu", w.dense("x", n, 5), alpha=0.125), axis=1), m + 5, 5)
    else:
        shape = (1, 5, 5)
        h = w.node("Relu", w.conv("x", 2, 1, 3, strides=[2, 2], pads=[1, 1, 1, 1]))
        if kind == "conv":
            y = w.conv(h, 3, 2, 2)
        elif kind == "max pool":
            y = w.conv(w.node("MaxPool", h, kernel_shape=[2, 2]), 3, 2, 2)
        elif kind == "average":
            y = w.conv(w.node("AveragePool", h, kernel_shape=[2, 2]), 3, 2, 2)
        elif kind == "depthwise":
            y = w.conv(w.node("Relu", w.conv(h, 2, 1, 2, group=2)), 3, 2, 1)
        else:
            y = w.conv(w.node("GlobalAveragePool", w.node("Relu", w.conv(h, 3, 2, 2))), 4, 3, 1)
    info = [helper.make_tensor_value_info("x", 1, ["N", *shape]), helper.make_tensor_value_info(y, 1, None)]
    graph = helper.make_graph(w.nodes, "g", info[:1], info[1:], [numpy_helper.from_array(a, name) for name, a in w.arrays.items()])
    proto = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10))
    data = gw.Dataset({"x": rng.uniform(0, 1, (64, *shape)).astype(np.float32)})
    model = gw.transform(gw.load(proto, name=f"net{number}"), f"fuse,quantize{{bits={bits},grid={grid}}}", data=data)
    return model, f"{kind}, {bits} bits, {sparsity:.0%} zeros"


def design(number: int, family: str) -> tuple[Network, pipeline.Schedule, Board, str]:
    board = next(d for d in devices("board") if isinstance(d, Board) and d.part.family == family)
    model, words = network(number)
    made, _ = lower(model, Strategy(negation_costs=family.startswith("ice40")))
    return made, pipeline.schedule(made, board.part.typical_clock_hz, pipeline.delays_of(board.part)), board, words


def synthesized(text: str, family: str) -> dict[str, Any]:
    """Look-up tables and cycles of the netlist, and its cells."""
    context = driver.context()
    context.cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=context.cache_dir) as name:
        folder = Path(name)
        for file, content in {"network.v": text, **synthesis.files(SYNTHESIS[family])}.items():
            (folder / file).write_text(content, encoding="utf-8")
        lines = synthesis.script(["network.v"], SYNTHESIS[family], "network")
        lines += ["tee -q -o cells.json stat -json", "write_json netlist.json"]
        tools.run(tools.YOSYS, ["-q", "-p", "; ".join(lines)], cwd=folder, log=folder / "log", what="synthesis", context=context)
        cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["design"]["num_cells_by_type"]
        netlist = json.loads((folder / "netlist.json").read_text(encoding="utf-8"))["modules"]["network"]
    tables = sum(cells.get(cell, 0) * count for cell, count in COUNTED[family].items())
    return {"luts": tables, "cycles": registers_between(netlist, "in_valid", "out_valid"), "cells": cells}


def registers_between(netlist: Mapping[str, Any], start: str, end: str) -> int:
    """The fewest flip-flops on a way from one port to another, through data inputs."""
    drivers = {}
    for cell in netlist["cells"].values():
        for pin, direction in cell["port_directions"].items():
            for bit in cell["connections"][pin] if direction == "output" else ():
                drivers[bit] = cell
    goal = set(netlist["ports"][start]["bits"])
    reached: dict[Any, int] = {}
    waiting = deque((bit, 0) for bit in netlist["ports"][end]["bits"])
    while waiting:
        bit, count = waiting.popleft()
        if bit in reached:
            continue
        reached[bit] = count
        if bit in goal:
            return count
        cell = drivers.get(bit)
        if cell is None:
            continue
        register = "FF" in cell["type"]
        for pin, bits in cell["connections"].items():
            if cell["port_directions"][pin] == "input" and (not register or pin in ("D", "DI")):
                for other in bits:
                    (waiting.append if register else waiting.appendleft)((other, count + register))
    raise SystemExit(f"no way from {start} to {end}")


def known(results: Path) -> dict[str, dict[str, Any]]:
    return dict(json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()) if results.is_file() else {}


def key_of(text: str, family: str) -> str:
    return f"{family} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def run(family: str, numbers: Sequence[int], results: Path) -> None:
    errors, slips = [], []
    for number in numbers:
        made, planned, board, words = design(number, family)
        text = verilog.emit(made, planned)
        key, kept = key_of(text, family), known(results)
        if key not in kept:
            start = time.monotonic()
            kept[key] = {**synthesized(text, family), "seconds": round(time.monotonic() - start)}
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, kept[key]]) + "\n")
        guess, found = estimate.estimate(made, planned, board.part, wrapped=False), kept[key]
        errors.append(abs(guess.luts - found["luts"]) / found["luts"])
        slips.append(abs(guess.cycles - found["cycles"]))
        off = f"off by {errors[-1]:5.1%}; cycles {guess.cycles}, netlist {found['cycles']}"
        print(f"{number:3d} {words:32s} LUT estimated {guess.luts:5d}, Yosys {found['luts']:5d}: {off}", flush=True)
    print(
        f"{family}, {len(errors)} networks: LUT error median {statistics.median(errors):.1%}, largest {max(errors):.1%}; "
        f"cycles off by {max(slips)} at most"
    )


def fit(family: str, results: Path) -> None:
    """Prices by kind of logic, least squares of the relative errors; what too few networks have keeps its price of 1."""
    kept, rows, found = known(results), [], []
    for number in FITTED:
        made, planned, _, _ = design(number, family)
        key = key_of(verilog.emit(made, planned), family)
        if key in kept:
            rows.append(estimate.tables_by_kind(made, family))
            found.append(kept[key]["luts"])
    kinds = sorted({kind for row in rows for kind in row})
    weights = 1 / np.maximum(found, SMALL)
    table = np.array([[row.get(kind, 0) for kind in kinds] for row in rows]) * weights[:, None]
    # A pull of each price towards 1, as strong as one network in which that kind is a tenth of all.
    prices, _ = nnls(np.vstack([table, 0.1 * np.eye(len(kinds))]), np.concatenate([found * weights, 0.1 * np.ones(len(kinds))]))
    print(f"{family}, from {len(rows)} networks: " + json.dumps({kind: round(float(p), 2) for kind, p in zip(kinds, prices, strict=True)}))


def main() -> None:
    parser = argparse.ArgumentParser(description="preflight against synthesis")
    parser.add_argument("what", choices=["run", "fit"])
    parser.add_argument("--family", default="ecp5", choices=sorted(SYNTHESIS))
    parser.add_argument("--results", type=Path, required=True, help="a file that keeps what Yosys made")
    parser.add_argument("--part", default="judge", choices=["judge", "fit"])
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    if arguments.what == "fit":
        fit(arguments.family, arguments.results)
    else:
        run(arguments.family, (JUDGED if arguments.part == "judge" else FITTED)[: arguments.count], arguments.results)


if __name__ == "__main__":
    main()
